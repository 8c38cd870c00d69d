"""The contract of a volume in memory: array layout, geometry and intensities.

A volume is a float32 array `[C, D, H, W]`. `D` is the through-plane (slice) axis; all three axes run along RAS+, in an
order that the `plane` names:

| plane    | D, H, W  | from (x, y, z) |
|----------|----------|----------------|
| axial    | S, A, R  | z, y, x        |
| coronal  | A, S, R  | y, z, x        |
| sagittal | R, S, A  | x, z, y        |

`spacing` is in mm in the array's order (D, H, W). `affine` is 4x4 and takes an array index `(d, h, w, 1)` to RAS mm, so
its columns follow the array's order. Networks see intensities in [-1, 1]; an `IntensityMap` takes them there and back.
"""

from dataclasses import dataclass

import numpy as np

from splitshuffle_gan.errors import UserError

# For each plane, the (x, y, z) axis that lies along D, H and W.
PLANES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
MARGIN = 0.1  # of the axis, at either end: the outermost slices are padding more often than anatomy


def plane_axes(plane: str) -> tuple[int, int, int]:
    """The (x, y, z) axes along D, H, W: (2, 1, 0) for axial. Raises UserError for an unknown plane."""
    if plane not in PLANES:
        raise UserError(f"plane: {plane!r} is unknown; choose one of {', '.join(PLANES)}")
    return PLANES[plane]


def plane_slices(volume: np.ndarray, volume_plane: str, plane: str, count: int) -> np.ndarray:
    """`[count, H, W]`: evenly spaced slices of a volume `[D, H, W]` along the normal of `plane`, in that plane's order.

    Fewer where the axis is shorter than `count`.
    """
    have = plane_axes(volume_plane)
    turned = np.transpose(volume, [have.index(axis) for axis in plane_axes(plane)])
    depth = len(turned)
    positions = np.linspace(MARGIN * (depth - 1), (1 - MARGIN) * (depth - 1), count)
    return turned[np.unique(np.rint(positions).astype(int))]


@dataclass(frozen=True)
class Volume:
    """A float32 array `[C, D, H, W]` and its 4x4 `affine` from array index (d, h, w, 1) to RAS mm.

    Raises ValueError when the array is not 4D or the affine is not a finite, invertible 4x4 matrix.
    """

    array: np.ndarray
    affine: np.ndarray

    def __post_init__(self):
        object.__setattr__(self, "array", np.asarray(self.array, dtype=np.float32))
        object.__setattr__(self, "affine", np.asarray(self.affine, dtype=np.float64))
        if self.array.ndim != 4:
            raise ValueError(f"a volume's array is [C, D, H, W]; found shape {self.array.shape}")
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all() or not np.linalg.det(self.affine):
            raise ValueError(f"a volume's affine is a finite, invertible 4x4 matrix; found {self.affine.tolist()}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W), without the channels."""
        return self.array.shape[1:]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxel centres in mm, in array order (D, H, W)."""
        return spacing_of(self.affine)


@dataclass(frozen=True)
class IntensityMap:
    """The linear map between source units [low, high] and [-1, 1].

    `kind` says where the bounds came from: "window" (given, e.g. in HU) or "percentiles" (measured on a volume).
    Raises UserError when the kind is unknown or low is not below high.
    """

    kind: str
    low: float
    high: float

    def __post_init__(self):
        if self.kind not in ("window", "percentiles"):
            raise UserError(f"intensity kind: {self.kind!r} is unknown; choose window or percentiles")
        if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
            raise UserError(f"{self.kind}: low {self.low:g} must be finite and below high {self.high:g}")

    def to_unit(self, array: np.ndarray) -> np.ndarray:
        """Source units to float32 in [-1, 1]; values outside [low, high] are clipped."""
        unit = (np.asarray(array, dtype=np.float64) - self.low) * (2 / (self.high - self.low)) - 1
        return np.clip(unit, -1, 1).astype(np.float32)

    def from_unit(self, array: np.ndarray) -> np.ndarray:
        """[-1, 1] to float32 in source units, the inverse of `to_unit` inside [low, high]; nothing is clipped."""
        unit = np.asarray(array, dtype=np.float64)
        return ((unit + 1) * ((self.high - self.low) / 2) + self.low).astype(np.float32)


def check_geometry(geometry: object, source: str) -> dict:
    """`geometry` (see `PreparedDataset.geometry`) if it is whole; else UserError that names `source` and the field."""
    if not isinstance(geometry, dict):
        raise UserError(f"{source}: geometry is {geometry!r}, fields by name are wanted")
    checks = {
        "spacing": lambda value: len(value) == 3 and all(0 < length < np.inf for length in value),
        "plane": lambda value: value in PLANES,
        "affine": lambda value: np.shape(value) == (4, 4) and np.isfinite(value).all() and np.linalg.det(value) != 0,
        "intensity": lambda value: IntensityMap(**value) is not None,
    }
    if "labels" in geometry:  # of a network that draws label maps beside its images
        checks["labels"] = _are_structures
    for field, good in checks.items():
        try:
            fine = field in geometry and good(geometry[field])
        except (TypeError, ValueError, IndexError):
            fine = False
        if not fine:
            raise UserError(f"{source}: geometry has {field} {geometry.get(field)!r}, which is missing or not usable")
    return geometry


def _are_structures(labels: object) -> bool:
    whole = isinstance(labels, list) and all(type(label) is int for label in labels)
    return whole and labels == sorted(set(labels)) and 0 < labels[0] and labels[-1] <= 255


def from_xyz(array: np.ndarray, affine: np.ndarray, plane: str) -> Volume:
    """A one-channel Volume in `plane`'s order from a RAS+ array (x, y, z) and its affine (x, y, z, 1) -> RAS mm."""
    axes = plane_axes(plane)
    ordered = np.ascontiguousarray(np.transpose(array, axes), dtype=np.float32)
    return Volume(ordered[None], np.asarray(affine)[:, [*axes, 3]])


def to_xyz(volume: Volume, plane: str) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `from_xyz`: the array (x, y, z) of a one-channel volume and the affine (x, y, z, 1) -> RAS mm."""
    if volume.array.shape[0] != 1:
        raise ValueError(f"one channel is needed; the volume has {volume.array.shape[0]}")
    axes = np.argsort(plane_axes(plane))
    return np.transpose(volume.array[0], axes), volume.affine[:, [*axes, 3]]


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Lengths in mm of the affine's three columns."""
    return tuple(float(length) for length in np.linalg.norm(np.asarray(affine)[:3, :3], axis=0))


def grid_centre(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """RAS mm of the middle of a grid of `shape` (D, H, W): between two voxels where a side is even."""
    middle = (np.asarray(shape) - 1) / 2
    return np.asarray(affine)[:3, :3] @ middle + np.asarray(affine)[:3, 3]


def grid_affine(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    plane: str = "axial",
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> np.ndarray:
    """The affine of an axis-aligned RAS+ grid whose middle is at `centre` (RAS mm).

    `shape` (voxels) and `spacing` (mm) are in array order (D, H, W).
    """
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, plane_axes(plane)] * np.asarray(spacing, dtype=np.float64)
    affine[:3, 3] = np.asarray(centre) - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine
