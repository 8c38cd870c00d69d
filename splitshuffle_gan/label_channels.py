"""Label maps as channels beside an image, and back.

Each structure, that is each label but 0, has a channel of its own: +1 inside, -1 outside. One channel of the labels'
numbers would not do: a network draws smooth edges, and on its way from 0 to 2 it would pass through a rim of 1, a
structure that is not there. Which channel is whose, the geometry of a network says ("labels", ascending).
"""

import numpy as np


def structures_of(geometry: dict | None) -> tuple[int, ...]:
    """The labels that a network with this geometry draws, ascending, in the order of its channels behind the image."""
    return tuple((geometry or {}).get("labels", ()))


def to_channels(labels: np.ndarray, structures: tuple[int, ...]) -> np.ndarray:
    """Labels `[*S]` to float32 `[len(structures), *S]`: +1 where the label is that structure's, else -1."""
    numbers = np.asarray(structures).reshape(-1, *[1] * labels.ndim)
    return np.where(labels == numbers, np.float32(1), np.float32(-1))


def from_channels(channels: np.ndarray, structures: tuple[int, ...]) -> np.ndarray:
    """The inverse of `to_channels`, for any values: uint8 `[*S]`, the structure with the greatest where it is above 0.

    Elsewhere the background, 0; of equals the first.
    """
    return np.where(channels.max(0) > 0, np.asarray(structures, np.uint8)[channels.argmax(0)], np.uint8(0))
