"""How activations `[N, C, *S]` lie in memory: channels-last, which convolutions are fastest on."""

import torch
from torch import Tensor


def channels_last(ndim: int) -> torch.memory_format:
    """The fast memory format of a batch of slices (4 axes) or volumes (5)."""
    return torch.channels_last if ndim == 4 else torch.channels_last_3d


def as_channels_last(x: Tensor) -> Tensor:
    """`x` itself where it lies so already, else a copy."""
    return x.contiguous(memory_format=channels_last(x.ndim))


def empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Memory to write to, channels-last, of the dtype and on the device of `like`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=channels_last(len(shape)))
