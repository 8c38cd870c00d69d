"""Implicit shapes, random fields and the canvas that phantoms are painted with.

Points are float32 `[3, D, H, W]`: (x, y, z) in mm towards Right, Anterior, Superior. A shape is a signed distance in
mm, negative inside. Random fields are sums of plane waves, so a subject is the same whatever grid it is sampled on.
"""

from dataclasses import dataclass

import numpy as np


def array_affine(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> np.ndarray:
    """The 4x4 map from array index (d, h, w, 1) to RAS mm: axes are (S, A, R), the volume is centred at 0."""
    affine = np.zeros((4, 4))
    for axis, (size, step) in enumerate(zip(shape, spacing, strict=True)):
        affine[2 - axis, axis] = step
        affine[2 - axis, 3] = -step * (size - 1) / 2
    affine[3, 3] = 1
    return affine


def grid_points(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> np.ndarray:
    """RAS mm of every voxel centre, float32 `[3, D, H, W]`."""
    z, y, x = ((np.arange(n, dtype=np.float32) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True))
    return np.stack(np.broadcast_arrays(x[None, None, :], y[None, :, None], z[:, None, None])).astype(np.float32)


def rotation(degrees_x: float, degrees_y: float, degrees_z: float) -> np.ndarray:
    """3x3 rotation about x, then y, then z (pitch, roll, yaw for a patient in RAS)."""
    a, b, c = np.deg2rad([degrees_x, degrees_y, degrees_z])
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rz @ ry @ rx


def dot(vector: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Inner product of a 3-vector with every point; faster than BLAS, whose threads fight over the cores of a pool."""
    a, b, c = np.asarray(vector, np.float32)
    return a * points[0] + b * points[1] + c * points[2]


def turn_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The 3x3 matrix applied to every point."""
    return np.stack([dot(row, points) for row in matrix])


def to_anatomy(points: np.ndarray, turn: np.ndarray, shift: np.ndarray, scale: float) -> np.ndarray:
    """World points in the frame of an anatomy that was scaled, turned (3x3) and then shifted (mm)."""
    moved = points - np.asarray(shift, np.float32)[:, None, None, None]
    return turn_points(turn.T / scale, moved)


@dataclass(frozen=True)
class Waves:
    """A smooth Gaussian-like random field of unit variance: plane waves of about one wavelength (mm)."""

    vectors: np.ndarray
    phases: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, wavelength: float, count: int = 12, spread: float = 0.2) -> "Waves":
        """`count` random directions; wavelengths lie within the fraction `spread` of `wavelength`."""
        directions = rng.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = wavelength * rng.uniform(1 - spread, 1 + spread, size=(count, 1))
        vectors = directions * 2 * np.pi / lengths
        return cls(vectors.astype(np.float32), rng.uniform(0, 2 * np.pi, count).astype(np.float32))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """The field at `points`, float32 `[D, H, W]`."""
        total = np.zeros(points.shape[1:], np.float32)
        for vector, phase in zip(self.vectors, self.phases, strict=True):
            total += np.cos(dot(vector, points) + phase)
        return total * np.float32(np.sqrt(2 / len(self.phases)))

    def distance_to_zero(self, points: np.ndarray) -> np.ndarray:
        """About the distance (mm) to the sheet where the field is 0: |f| / |grad f|, bounded at the saddles."""
        total = np.zeros(points.shape[1:], np.float32)
        slope = np.zeros(points.shape, np.float32)
        for vector, phase in zip(self.vectors, self.phases, strict=True):
            angle = dot(vector, points) + phase
            total += np.cos(angle)
            sine = np.sin(angle)
            for axis in range(3):
                slope[axis] -= vector[axis] * sine
        typical = np.sqrt((self.vectors**2).sum() / 2)
        return np.abs(total) / np.sqrt((slope**2).sum(0) + (0.35 * typical) ** 2)


def warp(points: np.ndarray, rng: np.random.Generator, amplitude: float, wavelength: float) -> np.ndarray:
    """Points moved by a smooth random displacement of RMS `amplitude` mm on each axis."""
    if amplitude == 0:
        return points
    return points + np.float32(amplitude) * np.stack([Waves.draw(rng, wavelength, 8)(points) for _ in range(3)])


def mirror(points: np.ndarray) -> np.ndarray:
    """Points with |x|: shapes drawn on the right side appear on both."""
    return np.concatenate([np.abs(points[:1]), points[1:]])


def ellipsoid(points: np.ndarray, centre: tuple, radii: tuple) -> np.ndarray:
    """Approximate signed distance to an axis-aligned ellipsoid, first-order exact at its surface."""
    offset = points - np.array(centre, np.float32)[:, None, None, None]
    scaled = offset / np.array(radii, np.float32)[:, None, None, None]
    unit = np.sqrt((scaled**2).sum(0))
    scaled /= np.array(radii, np.float32)[:, None, None, None]
    return unit * (unit - 1) / np.maximum(np.sqrt((scaled**2).sum(0)), 1e-6)


def tube(points: np.ndarray, path: list[tuple], radii: list[float]) -> np.ndarray:
    """Signed distance to a polyline whose radius (mm) changes linearly from node to node."""
    nodes = np.array(path, np.float32)
    result = np.full(points.shape[1:], np.inf, np.float32)
    for start, end, first, last in zip(nodes[:-1], nodes[1:], radii[:-1], radii[1:], strict=True):
        line = end - start
        offset = points - start[:, None, None, None]
        along = np.clip(dot(line / (line @ line), offset), 0, 1)
        offset -= line[:, None, None, None] * along
        distance = np.sqrt((offset**2).sum(0)) - (np.float32(first) + np.float32(last - first) * along)
        result = np.minimum(result, distance)
    return result


def smooth_min(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Union of two signed distances with a fillet of about `blend` mm."""
    mix = np.maximum(blend - np.abs(a - b), 0)
    return np.minimum(a, b) - mix * mix * np.float32(0.25 / blend)


def smooth_max(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Intersection of two signed distances with a rounded edge of about `blend` mm."""
    return -smooth_min(-a, -b, blend)


class Canvas:
    """An image and its label map, painted structure over structure with partial-volume edges."""

    def __init__(self, shape: tuple[int, int, int], background: float, voxel: float):
        """`voxel` is the edge of a voxel in the mm of the shapes: the ramp of an edge is one voxel wide."""
        self.image = np.full(shape, background, np.float32)
        self.label = np.zeros(shape, np.uint8)
        self.voxel = voxel

    def paint(self, distance: np.ndarray, value: float | np.ndarray, label: int | None = None) -> None:
        """Cover the inside of `distance` with `value`; voxels more than half covered get `label`, if given."""
        cover = np.clip(0.5 - distance / np.float32(self.voxel), 0, 1)
        self.image += cover * (value - self.image)
        if label is not None:
            self.label[cover > 0.5] = label
