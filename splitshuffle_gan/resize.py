"""Growth and averaging of activations: linear maps, each with its transpose, which is its derivative.

The transposes are written out: those that autograd takes are many times slower. Being linear, the maps can be
differentiated any number of times.

Tensors are `[N, C, *S]`, channels-last; "depth" is axis 2 of a volume.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from splitshuffle_gan.layout import as_channels_last, empty

LinearMap = Callable[[Tensor], Tensor]


class _Linear(torch.autograd.Function):
    """A linear map and its transpose, each the other's derivative."""

    @staticmethod
    def forward(ctx, x: Tensor, there: LinearMap, back: LinearMap) -> Tensor:
        ctx.maps = back, there
        return there(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Linear.apply(grad, *ctx.maps), None, None


def grow_planes(x: Tensor, factors: tuple[int, int]) -> Tensor:
    """Bilinear growth of every slice of a volume, H and W by their factor, 1 or 2."""
    return _Linear.apply(x, partial(_grow_planes, factors=factors), partial(_ungrow_planes, factors=factors))


def repeat_depth(x: Tensor) -> Tensor:
    """Every slice twice: slice z of the result is slice z // 2."""
    return _Linear.apply(x, _repeat, _add_pairs)


def blend_depth(x: Tensor) -> Tensor:
    """Twice as many slices, each 3/4 of the nearest and 1/4 of the next; the ends are repeated."""
    return _Linear.apply(x, _blend, _unblend)


def average(x: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Shrink each axis of the grid by its factor, 1 or 2, averaging the cells that merge."""
    return _Linear.apply(x, partial(_average, factors=factors), partial(_spread, factors=factors))


def _slices(x: Tensor) -> Tensor:
    """`[N, C, D, H, W] -> [N D, C, H, W]`, a view of a channels-last volume."""
    return x.movedim(2, 1).flatten(0, 1)


def _grow_planes(x: Tensor, factors: tuple[int, int]) -> Tensor:
    size = [x.shape[3] * factors[0], x.shape[4] * factors[1]]
    # Written into `out`, not viewed as a volume afterwards: autograd handles in-place operations on views by copying.
    out = empty(x, (*x.shape[:3], *size))
    torch.ops.aten.upsample_bilinear2d.out(_slices(x), size, False, out=_slices(out))
    return out


def _ungrow_planes(x: Tensor, factors: tuple[int, int]) -> Tensor:
    x = as_channels_last(x)  # six times as fast as other layouts
    out = empty(x, (*x.shape[:3], x.shape[3] // factors[0], x.shape[4] // factors[1]))
    slices = _slices(out)
    torch.ops.aten.upsample_bilinear2d_backward.grad_input(
        _slices(x), list(x.shape[3:]), list(slices.shape), False, grad_input=slices
    )
    return out


def _repeat(x: Tensor) -> Tensor:
    return F.interpolate(x, size=[2 * x.shape[2], *x.shape[3:]], mode="nearest")


def _add_pairs(x: Tensor) -> Tensor:
    return x[:, :, 0::2] + x[:, :, 1::2]  # whole slices: sixteen times as fast as the backward of `interpolate`


def _blend(x: Tensor) -> Tensor:
    out = empty(x, (*x.shape[:2], 2 * x.shape[2], *x.shape[3:]))
    even, odd = out[:, :, 0::2], out[:, :, 1::2]
    torch.lerp(x[:, :, 1:], x[:, :, :-1], 0.25, out=even[:, :, 1:])
    torch.lerp(x[:, :, :-1], x[:, :, 1:], 0.25, out=odd[:, :, :-1])
    even[:, :, 0], odd[:, :, -1] = x[:, :, 0], x[:, :, -1]
    return out


def _unblend(x: Tensor) -> Tensor:
    even, odd = x[:, :, 0::2], x[:, :, 1::2]
    out = (even + odd).mul_(0.75)
    out[:, :, :-1].add_(even[:, :, 1:], alpha=0.25)
    out[:, :, 1:].add_(odd[:, :, :-1], alpha=0.25)
    out[:, :, 0].add_(even[:, :, 0], alpha=0.25)
    out[:, :, -1].add_(odd[:, :, -1], alpha=0.25)
    return out


def _average(x: Tensor, factors: tuple[int, ...]) -> Tensor:
    # At exactly half size, linear interpolation weighs the two neighbours equally: it is the average, and it is
    # faster than average pooling, which has no bfloat16 CPU kernel in 3D.
    size = [length // factor for length, factor in zip(x.shape[2:], factors, strict=True)]
    return F.interpolate(x, size=size, mode="bilinear" if x.ndim == 4 else "trilinear", align_corners=False)


def _spread(x: Tensor, factors: tuple[int, ...]) -> Tensor:
    size = [length * factor for length, factor in zip(x.shape[2:], factors, strict=True)]
    return F.interpolate(x / torch.Size(factors).numel(), size=size, mode="nearest")
