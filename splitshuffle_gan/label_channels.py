"""Label maps as channels beside an image, and back.

Each structure, that is each label but 0, has a channel of its own: the distance to its border within the slice, above
0 inside and below 0 outside, which ends at 1 and -1 after `REACH` pixels. One channel of the labels' numbers would not
do: a network draws smooth edges, and on its way from 0 to 2 it would pass through a rim of 1, a structure that is not
there. Nor do channels of +1 and -1 alone do well: their jumps print themselves on the image, rings along every border.
Within the slice, so that the slices a 2D network learns from are those of the volumes.
Which channel is whose, the geometry of a network says ("labels", ascending).
"""

import math

import numpy as np

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
    channel_of = np.full(256, -1)
    channel_of[list(structures)] = range(len(structures))
    channels = np.full((len(structures), *slices.shape), -1, np.float32)
    inside = np.ones(slices.shape, np.float32)
    height, width = slices.shape[1:]
    for down, right in _offsets(REACH + 0.5):  # the nearest come last and count
        if abs(down) >= height or abs(right) >= width:
            continue
        top, left = max(-down, 0), max(-right, 0)
        here = slices[:, top : height - max(down, 0), left : width - max(right, 0)]
        there = slices[:, top + down : height - max(-down, 0), left + right : width - max(-right, 0)]
        depths, rows, columns = np.nonzero(here != there)
        other = channel_of[there[depths, rows, columns]]
        at, share = (depths, rows + top, columns + left), (math.hypot(down, right) - 0.5) / REACH
        inside[at] = share
        known = other >= 0
        channels[(other[known], *(part[known] for part in at))] = -share
    for channel, number in zip(channels, structures, strict=True):
        np.copyto(channel, inside, where=slices == number)
    return channels.reshape(len(structures), *labels.shape)


def _offsets(reach: float) -> list[tuple[int, int]]:
    """Steps (down, right) to all pixels nearer than `reach`, the farthest first."""
    whole = range(-int(reach), int(reach) + 1)
    steps = [(down, right) for down in whole for right in whole if 0 < math.hypot(down, right) < reach]
    return sorted(steps, key=lambda step: -math.hypot(*step))


def from_channels(channels: np.ndarray, structures: tuple[int, ...]) -> np.ndarray:
    """The inverse of `to_channels`, for any values: uint8 `[*S]`, the structure with the greatest where it is above 0.

    Elsewhere the background, 0; of equals the first.
    """
    return np.where(channels.max(0) > 0, np.asarray(structures, np.uint8)[channels.argmax(0)], np.uint8(0))
