"""Where a prepared volume lies in its scan: what it is centred on, and its grid in the scan's voxels."""

import numpy as np
from scipy import ndimage

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.volume import IntensityMap, Volume

# A step within this of one source voxel counts as one: such scans are cut, not interpolated.
SAME_SPACING = 1e-3
# The foreground is looked for on a grid of at least this many voxels along a longer axis.
COARSE_SIDE = 64


def find_centre(crop: str, volume: Volume, bounds: IntensityMap, labels: np.ndarray | None, name: str) -> np.ndarray:
    """The voxel (d, h, w), not rounded, to centre on; `crop` is "center", "foreground" or "label".

    `bounds` clip the intensities before the foreground is looked for. `labels` is `[D, H, W]` on the volume's grid.
    Raises UserError, naming the scan, when the label map is empty.
    """
    if crop == "center":
        return (np.asarray(volume.shape) - 1) / 2
    if crop == "label":
        if not labels.any():
            raise UserError(f"{name}: its label map is 0 everywhere, so there is nothing to centre on; remove the scan")
        return _middle_of(labels > 0)
    array = np.clip(volume.array[0], bounds.low, bounds.high)
    stride = np.maximum(np.asarray(array.shape) // COARSE_SIDE, 1)
    coarse = array[tuple(slice(None, None, s) for s in stride)]
    return _middle_of(_largest_part(coarse > otsu(coarse))) * stride


def fit(
    volume: Volume, shape: tuple[int, int, int], spacing: tuple[float, float, float] | None, centre: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Step and offset, in source voxels, of the target grid about `centre`; `spacing` None is the volume's own.

    The grid moves off the centre as far as it must to take in no padding that it can do without: a target smaller than
    the scan stays inside it, a larger one holds all of it.
    """
    step = np.ones(3) if spacing is None else np.asarray(spacing) / volume.spacing
    same = np.abs(step - 1) < SAME_SPACING
    step = np.where(same, 1.0, step)
    half = step * (np.asarray(shape) - 1) / 2
    other = np.asarray(volume.shape) - 1 - half
    offset = np.clip(centre, np.minimum(half, other), np.maximum(half, other)) - half
    # Half a voxel off the middle is better than the blur of interpolating half-way between voxels.
    return step, np.where(same, np.floor(offset), offset)


def otsu(values: np.ndarray) -> float:
    """The threshold that leaves the least variance within what is below and what is above it."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts), counts.sum()
    mass = np.cumsum(counts * centres)
    above = total - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return float(edges[np.argmax(np.nan_to_num(between)) + 1])


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part, specks and thin bridges (a table, a head rest) removed where that leaves anything."""
    cross = ndimage.generate_binary_structure(3, 1)
    # Beyond the border counts as foreground, so that thin stacks of slices outlive the erosion.
    opened = ndimage.binary_dilation(ndimage.binary_erosion(mask, cross, border_value=1), cross)
    mask = opened if opened.any() else mask
    parts, count = ndimage.label(mask, cross)
    if count < 2:
        return mask
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])


def _middle_of(mask: np.ndarray) -> np.ndarray:
    """The middle of the mask's bounding box; of the whole grid when the mask is empty."""
    middle = []
    for axis, length in enumerate(mask.shape):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        middle.append((hit[0] + hit[-1]) / 2 if len(hit) else (length - 1) / 2)
    return np.asarray(middle)
