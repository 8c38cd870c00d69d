"""Lesions as heat maps, and back: numbered in a mask, a Gaussian about each, and the peaks of a map."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

LEAST = 0.01  # of a peak: below, it is noise about nothing
MOST = 64  # peaks in a volume, the highest


def number_lesions(mask: np.ndarray) -> np.ndarray:
    """int32 `[D, H, W]`: the lesions of a mask, numbered from 1; voxels that touch, be it at a corner, are of one."""
    return ndimage.label(mask, np.ones((3, 3, 3)))[0]


def lesion_centres(lesions: np.ndarray) -> np.ndarray:
    """`[n, 3]`: the centre of mass of each numbered lesion, in voxels (D, H, W)."""
    found = ndimage.center_of_mass(lesions > 0, lesions, range(1, int(lesions.max()) + 1))
    return np.array(found, float).reshape(-1, 3)


def _nearest(lesions: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """`[n, 3]`: of each numbered lesion the voxel nearest to its centre, which itself may lie outside of a ring."""
    voxels = np.argwhere(lesions)
    numbers = lesions[tuple(voxels.T)] - 1
    order = np.lexsort((np.linalg.norm(voxels - centres[numbers], axis=1), numbers))
    return voxels[order[np.unique(numbers[order], return_index=True)[1]]]


def heat_map(centres: np.ndarray, shape: tuple[int, int, int], spacing: Sequence[float], sigma: float) -> np.ndarray:
    """float32 `[D, H, W]` in 0 to 1: exp(-r^2 / (2 sigma^2)) of the distance r in mm to the nearest of `centres`.

    `centres` are in voxels of this grid, `[n, 3]`, within it or beyond; `spacing` is mm (D, H, W), `sigma` mm.
    """
    heat = np.zeros(shape, np.float32)
    for centre in centres:
        depth, height, width = (
            np.exp(-0.5 * np.square((np.arange(length) - at) * mm / sigma))
            for length, at, mm in zip(shape, centre, spacing, strict=True)
        )
        np.maximum(heat, depth[:, None, None] * height[:, None] * width, out=heat)
    return heat


def find_peaks(
    heat: np.ndarray, spacing: Sequence[float], apart: float, least: float = LEAST, most: int = MOST
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels `[n, 3]` of the peaks of a heat map `[D, H, W]`, the highest first, and their heights `[n]`.

    A peak is no lower than its 26 neighbours and than `least`, a plateau is one, at its middlemost voxel; those within
    `apart` mm of a higher one are passed over, and the `most` highest are kept. MONAI's `ProbNMS` clears boxes of
    voxels instead, beside which the flank of a wide peak becomes a peak of its own.
    """
    tops = number_lesions((heat == ndimage.maximum_filter(heat, 3, mode="nearest")) & (heat >= least))
    voxels = _nearest(tops, lesion_centres(tops))
    heights = np.array(ndimage.maximum(heat, tops, range(1, len(voxels) + 1)), np.float32)
    order = np.argsort(-heights, kind="stable")
    voxels, heights = voxels[order], heights[order]
    points, free, kept = voxels * np.asarray(spacing), np.ones(len(voxels), bool), []
    for number, point in enumerate(points):
        if free[number] and len(kept) < most:
            kept.append(number)
            free &= np.linalg.norm(points - point, axis=1) > apart
    return voxels[kept], heights[kept]
