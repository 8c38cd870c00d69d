"""Label maps as channels beside an image, and back.

Each structure, that is each label but 0, has a channel of its own: the distance to its border within the slice, above
0 inside and below 0 outside, which ends at 1 and -1 after `REACH` pixels. One channel of the labels' numbers would not
do: a network draws smooth edges, and on its way from 0 to 2 it would pass through a rim of 1, a structure that is not
there. Nor do channels of +1 and -1 alone do well: their jumps print themselves on the image, rings along every border.
Within the slice, so that the slices a 2D network learns from are those of the volumes.
Which channel is whose, the geometry of a network says ("labels", ascending).
"""

import numpy as np
from scipy import ndimage

REACH = 3.0
"""Pixels from the border at which a channel is 1 or -1."""


def structures_of(geometry: dict | None) -> tuple[int, ...]:
    """The labels that a network with this geometry draws, ascending, in the order of its channels behind the image."""
    return tuple((geometry or {}).get("labels", ()))


def to_channels(labels: np.ndarray, structures: tuple[int, ...]) -> np.ndarray:
    """Labels `[H, W]` or `[D, H, W]` to float32 `[len(structures), (D,) H, W]` in [-1, 1], above 0 in the structure.

    The border lies half-way between pixels. What lies beyond the slice is unknown and makes no border.
    """
    slices = labels.reshape(-1, *labels.shape[-2:])
    channels = [[_signed_distance(one == number) for one in slices] for number in structures]
    return np.clip(np.array(channels, np.float32) / REACH, -1, 1).reshape(len(structures), *labels.shape)


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Pixels to the border of `mask` [H, W], below 0 outside of it; right up to `REACH`, further away at least that."""
    found = np.full(mask.shape, -REACH)
    if mask.all() or not mask.any():
        return found + 2 * REACH * mask
    margin = int(np.ceil(REACH)) + 1
    (rows,), (columns,) = (np.nonzero(mask.any(axis)) for axis in (1, 0))
    near = tuple(slice(max(at[0] - margin, 0), at[-1] + margin + 1) for at in (rows, columns))
    inside = mask[near]
    if inside.all():
        return found + 2 * REACH * mask
    to_other = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    found[near] = to_other - np.where(inside, 0.5, -0.5)
    return found


def from_channels(channels: np.ndarray, structures: tuple[int, ...]) -> np.ndarray:
    """The inverse of `to_channels`, for any values: uint8 `[*S]`, the structure with the greatest where it is above 0.

    Elsewhere the background, 0; of equals the first.
    """
    return np.where(channels.max(0) > 0, np.asarray(structures, np.uint8)[channels.argmax(0)], np.uint8(0))
