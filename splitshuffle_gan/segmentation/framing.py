"""How a grid enters a network that wants certain sizes, and how the logits come back onto it.

Small volumes are magnified by whole factors and padded; logits are cropped and averaged back. Labels never move.
"""

import torch.nn.functional as F
from torch import Tensor

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def magnify(images: Tensor, scale: tuple[int, ...]) -> Tensor:
    """`[N, C, *S]` with every axis grown by its whole factor, linearly between voxels."""
    if all(factor == 1 for factor in scale):
        return images
    return _resize(images, [length * factor for length, factor in zip(images.shape[2:], scale, strict=True)])


def pad_to(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """`[N, C, *size]`: the border's values repeated on both sides, the odd one at the end."""
    pads = []
    for have, want in zip(images.shape[:1:-1], size[::-1], strict=True):
        pads += [(want - have) // 2, want - have - (want - have) // 2]
    return F.pad(images, pads, mode="replicate") if any(pads) else images


def bring_back(logits: Tensor, size: tuple[int, ...], scale: tuple[int, ...]) -> Tensor:
    """Logits of a grid of `size` that was magnified and padded, on that grid again; float32.

    A factor of 2 averages pairs; larger ones are read between the middle voxels.
    """
    large = [length * factor for length, factor in zip(size, scale, strict=True)]
    starts = [(have - want) // 2 for have, want in zip(logits.shape[2:], large, strict=True)]
    kept = tuple(slice(start, start + want) for start, want in zip(starts, large, strict=True))
    logits = logits[(slice(None), slice(None), *kept)].float()
    return logits if tuple(large) == tuple(size) else _resize(logits, list(size))


def _resize(images: Tensor, size: list[int]) -> Tensor:
    return F.interpolate(images, size=size, mode=LINEAR[len(size)], align_corners=False)
