"""Resampling of a volume along its own axes: spacing and extent change, directions never do."""

import numpy as np
from scipy import ndimage

from splitshuffle_gan.errors import UserError

# Order of the spline that joins the voxels.
ORDERS = {"nearest": 0, "linear": 1, "bspline": 3}
# Reducing by more than this factor would alias without a blur first.
ANTIALIAS_FACTOR = 1.5
# Positions this close to a voxel's outer face, in voxels, count as inside.
FACE_TOLERANCE = 1e-6
# A grid whose every point is this close to a voxel, in voxels, takes the voxels as they are.
SAME_GRID = 1e-5


def resample(
    array: np.ndarray,
    step: np.ndarray,
    offset: np.ndarray,
    shape: tuple[int, int, int],
    fill: float,
    kind: str = "linear",
    antialias: bool = True,
) -> np.ndarray:
    """`[D, H, W]` on a new grid of `shape`, float32: index i there is index `offset + step * i` here, axis by axis.

    Beyond the outer faces of the array's voxels lies `fill`. `kind` is "linear", "bspline" (cubic, clipped to the
    array's range) or "nearest" (values are only copied). A grid that falls on the voxels is cut out, bit by bit.
    With `antialias`, axes reduced by more than 1.5 are blurred first, by the Gaussian that widens a voxel's full width
    at half maximum to `step` voxels; "nearest" never is. Raises UserError for another kind.
    """
    if kind not in ORDERS:
        raise UserError(f"resample: {kind!r} is unknown; choose one of {', '.join(ORDERS)}")
    array = np.asarray(array, dtype=np.float32)
    step, offset = np.asarray(step, dtype=np.float64), np.asarray(offset, dtype=np.float64)
    whole = _whole_offset(step, offset, shape)
    if whole is not None:
        return _cut(array, whole, shape, fill)
    least, most = array.min(), array.max()
    reduced = step > ANTIALIAS_FACTOR
    if antialias and kind != "nearest" and reduced.any():
        # Widths of Gaussians in a row add in squares; 8 ln 2 turns a full width at half maximum into a variance.
        sigma = np.sqrt(np.where(reduced, (step**2 - 1) / (8 * np.log(2)), 0))
        array = ndimage.gaussian_filter(array, sigma, mode="nearest")
    order = ORDERS[kind]
    result = ndimage.affine_transform(array, step, offset, tuple(shape), order=order, mode="nearest", output=np.float32)
    if kind == "bspline":
        np.clip(result, least, most, out=result)
    for axis, length in enumerate(array.shape):
        position = offset[axis] + step[axis] * np.arange(shape[axis])
        outside = (position < -0.5 - FACE_TOLERANCE) | (position > length - 0.5 + FACE_TOLERANCE)
        result[(slice(None),) * axis + (outside,)] = fill
    return result


def _whole_offset(step: np.ndarray, offset: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray | None:
    """The whole voxels by which the grid is shifted, if a shift is all there is."""
    whole = np.rint(offset)
    # Both ends of a line bound all that lies between them.
    last = offset + (step - 1) * (np.asarray(shape) - 1)
    same = max(np.abs(offset - whole).max(), np.abs(last - whole).max()) < SAME_GRID
    return whole.astype(int) if same else None


def _cut(array: np.ndarray, start: np.ndarray, shape: tuple[int, int, int], fill: float) -> np.ndarray:
    result = np.full(shape, fill, dtype=np.float32)
    spans = [(max(a, 0), min(a + n, length)) for a, n, length in zip(start, shape, array.shape, strict=True)]
    if all(low < high for low, high in spans):
        here = tuple(slice(low, high) for low, high in spans)
        there = tuple(slice(low - a, high - a) for (low, high), a in zip(spans, start, strict=True))
        result[there] = array[here]
    return result
