"""Linear resampling of a volume along its own axes: spacing and extent change, directions never do."""

import numpy as np
from scipy import ndimage

# Reducing by more than this factor would alias without a blur first.
ANTIALIAS_FACTOR = 1.5
# Positions this close to a voxel's outer face, in voxels, count as inside.
FACE_TOLERANCE = 1e-6


def resample(
    array: np.ndarray,
    step: np.ndarray,
    offset: np.ndarray,
    shape: tuple[int, int, int],
    fill: float,
    antialias: bool = True,
) -> np.ndarray:
    """`[D, H, W]` on a new grid of `shape`, float32: index i there is index `offset + step * i` here, axis by axis.

    Beyond the outer faces of the array's voxels lies `fill`. With `antialias`, axes reduced by more than 1.5 are
    blurred first, by the Gaussian that widens a voxel's full width at half maximum to `step` voxels.
    """
    array = np.asarray(array, dtype=np.float32)
    step, offset = np.asarray(step, dtype=np.float64), np.asarray(offset, dtype=np.float64)
    reduced = step > ANTIALIAS_FACTOR
    if antialias and reduced.any():
        # Widths of Gaussians in a row add in squares; 8 ln 2 turns a full width at half maximum into a variance.
        sigma = np.sqrt(np.where(reduced, (step**2 - 1) / (8 * np.log(2)), 0))
        array = ndimage.gaussian_filter(array, sigma, mode="nearest")
    result = ndimage.affine_transform(array, step, offset, tuple(shape), order=1, mode="nearest", output=np.float32)
    for axis, length in enumerate(array.shape):
        position = offset[axis] + step[axis] * np.arange(shape[axis])
        outside = (position < -0.5 - FACE_TOLERANCE) | (position > length - 0.5 + FACE_TOLERANCE)
        result[(slice(None),) * axis + (outside,)] = fill
    return result
