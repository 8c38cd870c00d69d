"""Exponential moving average of the generator's weights."""

import torch
from torch import nn


def ema_beta(batch_size: int, seen: int, half_life: float, rampup: float) -> float:
    """Decay of one step over `batch_size` images (arXiv 2006.06676).

    `half_life` is in images; while training is young it is at most `rampup * seen`, so that the average does not
    hold on to the start.
    """
    return 0.5 ** (batch_size / max(min(half_life, seen * rampup), 1e-8))


@torch.no_grad()
def ema_update(average: nn.Module, model: nn.Module, beta: float) -> None:
    """Move the parameters of `average` towards those of `model`; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - beta)
    for kept, current in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(current)
