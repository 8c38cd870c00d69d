"""What happens to activations between convolutions, in few passes over memory.

A Split&Shuffle convolution does a third of the arithmetic but moves as many activations, so on the clock everything
around it counts. Each function here is one step for autograd, with a backward of its own: forward and backward write
straight into the memory that the next convolution reads. All can be differentiated twice, as R1 and path length need.

Each is written in PyTorch's operations; `compile_passes` puts compiled code in their place, of the same function.

Tensors are `[N, C, *S]`, channels-last; "depth" is axis 2 of a volume.
"""

import subprocess
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from splitshuffle_gan import native
from splitshuffle_gan.layout import as_channels_last, empty

SLOPE = 0.2  # of the leaky ReLU


def _grid(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _over_grid(values: Tensor, x: Tensor) -> Tensor:
    """`[N, C]` to broadcast over the grid of `x`, in its dtype."""
    return values.to(x.dtype).reshape(*values.shape, *([1] * (x.ndim - 2)))


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float().contiguous()


def _planes(x: Tensor) -> Tensor:
    """`[N, C, (D,) H, W] -> [N, D or 1, H W, C]`: a view of a channels-last tensor, in the order of its memory."""
    x = x.movedim(1, -1)
    return (x if x.ndim == 5 else x[:, None]).flatten(2, 3)


# Into a convolution ---------------------------------------------------------------------------------------------------


def branches(x: Tensor, scale: Tensor | None, paddings: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The inputs of parallel convolutions: `x` times `scale` [N, C], its channels cut in equal parts.

    Part i has its end slices repeated `paddings[i]` times at either end of the depth; 0 at rank 2.
    """
    if scale is None and paddings == (0,):
        return (x,)
    return _Branches.apply(as_channels_last(x), scale, paddings)


class _Branches(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor | None, paddings: tuple[int, ...]) -> tuple[Tensor, ...]:
        ctx.paddings, ctx.shape = paddings, x.shape
        ctx.save_for_backward(None if scale is None else x, scale)
        n, channels, *grid = x.shape
        grids = [(grid[0] + 2 * padding, *grid[1:]) for padding in paddings]
        parts = tuple(empty(x, (n, channels // len(paddings), *padded)) for padded in grids)
        if native.serves(x):
            native.branches(x, _float(scale), paddings, parts)
            return parts
        factor = None if scale is None else _over_grid(scale, x)
        for cut, part, padding in zip(_cuts(channels, len(parts)), parts, paddings, strict=True):
            inner = part[:, :, padding : padding + grid[0]]
            if factor is None:
                inner.copy_(x[:, cut])
            else:
                torch.mul(x[:, cut], factor[:, cut], out=inner)
            if padding:
                part[:, :, :padding] = inner[:, :, :1]
                part[:, :, -padding:] = inner[:, :, -1:]
        return parts

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return *_branches_gradient(grads, x, scale, ctx.paddings), None
        grad_x = empty(grads[0], ctx.shape)
        if native.serves(grad_x):
            grads = tuple(as_channels_last(grad) for grad in grads)
            return grad_x, native.branches_gradient(grads, x, _float(scale), ctx.paddings, grad_x), None
        factor = None if scale is None else _over_grid(scale, x)
        sums = None if scale is None else torch.zeros_like(scale)
        for cut, grad, padding in zip(_cuts(ctx.shape[1], len(grads)), grads, ctx.paddings, strict=True):
            end = grad.shape[2] - padding
            # First the slices that were there; then the repeated ones, added to those they repeat.
            places = [(slice(padding, end), slice(None))]
            places += [(slice(i, i + 1), slice(0, 1)) for i in range(padding)]
            places += [(slice(i, i + 1), slice(-1, None)) for i in range(end, end + padding)]
            for i, (there, here) in enumerate(places):
                part, target = grad[:, :, there], grad_x[:, cut, here]
                if scale is None:
                    target.add_(part) if i else target.copy_(part)
                    continue
                if i:
                    target.addcmul_(part, factor[:, cut])
                else:
                    torch.mul(part, factor[:, cut], out=target)
                sums[:, cut] += (part * x[:, cut, here]).sum(_grid(part))
        return grad_x, sums, None


def _branches_gradient(
    grads: tuple[Tensor, ...], x: Tensor | None, scale: Tensor | None, paddings: tuple[int, ...]
) -> tuple[Tensor, Tensor | None]:
    """The gradient of `branches` in operations that autograd knows."""
    parts = [_unpad(grad, padding) for grad, padding in zip(grads, paddings, strict=True)]
    grad = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    if scale is None:
        return grad, None
    return grad * _over_grid(scale, grad), (grad * x).sum(_grid(grad)).to(scale.dtype)


def _cuts(channels: int, parts: int) -> list[slice]:
    size = channels // parts
    return [slice(i * size, (i + 1) * size) for i in range(parts)]


def _unpad(grad: Tensor, padding: int) -> Tensor:
    """The transpose of repeating the end slices."""
    if not padding:
        return grad
    inner = grad[:, :, padding:-padding]
    first = F.pad(grad[:, :, :padding].sum(2, keepdim=True), (0, 0, 0, 0, 0, inner.shape[2] - 1))
    last = F.pad(grad[:, :, -padding:].sum(2, keepdim=True), (0, 0, 0, 0, inner.shape[2] - 1, 0))
    return inner + first + last


# Out of a convolution -------------------------------------------------------------------------------------------------


def interleave(a: Tensor, b: Tensor) -> Tensor:
    """Concatenate two equal halves of the channels and shuffle them with two groups: a0 b0 a1 b1 ..."""
    return finish((a, b), slope=1.0)


def finish(
    parts: tuple[Tensor, ...],
    scale: Tensor | None = None,
    rows: Tensor | None = None,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
    slope: float = SLOPE,
) -> Tensor:
    """`leaky_relu(x * scale + rows + noise * strength)`, `x` being one part, or two parts shuffled: a0 b0 a1 b1 ...

    `parts` each [N, c, *S], together C channels; a single one may be overwritten. `scale` [N, C] (demodulation),
    `rows` [1 or N, C, (D or 1)] (a bias for each channel, and each depth at rank 3), `noise` [1 or N, 1, *S] with
    `strength`, a scalar. `slope` 1 is no activation. In the dtype of the parts.
    Raises ValueError for noise without rows or without strength.
    """
    if noise is not None and (rows is None or strength is None):
        raise ValueError("noise needs rows and strength: give rows of zeros to add noise alone")
    # Before the step, not inside it: what is saved there must be an input for the second derivative to reach it.
    return _Finish.apply(scale, rows, noise, strength, slope, *map(as_channels_last, parts))


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scale, rows, noise, strength, slope, *parts):
        ctx.rows, ctx.slope = None if rows is None else rows.shape, slope
        x = parts[0]
        if rows is not None:
            rows = (rows[..., None] if x.ndim == 4 else rows).movedim(1, -1).contiguous()
        if noise is not None:
            noise = (noise if x.ndim == 5 else noise[:, :, None]).flatten(3)[:, 0].contiguous()
        if len(parts) == 1 and scale is None and not x._is_view():  # autograd copies what is changed through a view
            y = x
        else:
            y = empty(x, (len(x), len(parts) * x.shape[1], *x.shape[2:]))
        if native.serves(x):
            strength = 0.0 if strength is None else float(strength)
            native.finish(parts, _float(scale), _float(rows), _float(noise), strength, slope, y)
        else:
            (_compiled_finish or _finish)(parts, scale, rows, noise, strength, slope, y)
        if y is x:
            ctx.mark_dirty(y)
        ctx.save_for_backward(scale, y, noise, *(() if scale is None else parts))
        ctx.parts = len(parts)
        return y

    @staticmethod
    def backward(ctx, grad):
        scale, y, noise, *parts = ctx.saved_tensors
        if native.serves(grad) and not torch.is_grad_enabled():
            grad = as_channels_last(grad)
            shape = (len(grad), grad.shape[1] // ctx.parts, *grad.shape[2:])
            grads = tuple(empty(grad, shape) for _ in range(ctx.parts))
            sums = native.finish_gradient(grad, y, tuple(parts) or None, _float(scale), _float(noise), ctx.slope, grads)
            grad_scale = None if scale is None else sums[:, :, 2].sum(1)
            sums = sums[:, :, : 1 if noise is None else 2]
        else:
            if ctx.slope != 1:
                grad = torch.ops.aten.leaky_relu_backward(grad, y, ctx.slope, True)
            sums = None if ctx.rows is None else _plane_sums(grad, noise)
            grads = tuple(grad[:, i :: ctx.parts] for i in range(ctx.parts))
            grad_scale = None
            if scale is not None:
                # Halves are copied once, for three uses, the convolution's among them.
                grads = tuple(as_channels_last(grad) for grad in grads)
                products = [(g * part).sum(_grid(g)) for g, part in zip(grads, parts, strict=True)]
                grad_scale = torch.stack(products, dim=-1).flatten(1).to(scale.dtype)
                grads = tuple(g * _over_grid(scale[:, i :: ctx.parts], g) for i, g in enumerate(grads))
        grad_rows = grad_strength = None
        if ctx.rows is not None:
            grad_rows = sums[:, :, 0].movedim(-1, 1)  # [N, C, D], D = 1 at rank 2
            for axis, extent in ((0, ctx.rows[0]), (2, ctx.rows[2] if len(ctx.rows) == 3 else 1)):
                grad_rows = grad_rows.sum(axis, keepdim=True) if extent == 1 else grad_rows
            grad_rows = grad_rows.reshape(ctx.rows)
            grad_strength = None if noise is None else sums[:, :, 1].sum()
        return grad_scale, grad_rows, None, grad_strength, None, *grads


def _plane_sums(grad: Tensor, noise: Tensor | None) -> Tensor:
    """Sums over planes of the gradient, and of it times the noise: `[N, D, 1 or 2, C]`, float32.

    As a product with ones and noise: over scattered axes, bfloat16 sums on CPU are far slower than in order.
    """
    planes = _planes(grad)
    left = torch.ones_like(planes[..., :1])
    if noise is not None:
        left = torch.cat((left, noise[..., None].to(grad.dtype).expand_as(left)), dim=-1)
    return (left.flatten(0, 1).mT @ planes.flatten(0, 1)).float().unflatten(0, planes.shape[:2])


def _finish(parts, scale, rows, noise, strength, slope, out):
    """Bias and noise by one matrix product, `[1 noise] @ [rows; strength]`, added to the activations where they lie."""
    if len(parts) == 1 and scale is None and out is not parts[0]:
        out.copy_(parts[0])
    if len(parts) == 2:
        torch.stack([part.movedim(1, -1) for part in parts], dim=-1, out=out.movedim(1, -1).unflatten(-1, (-1, 2)))
    if scale is not None:
        torch.mul(parts[0] if len(parts) == 1 else out, _over_grid(scale, out), out=out)
    if rows is not None:
        planes = _planes(out)
        left = planes.new_ones((*planes.shape[:3], 1))
        right = rows.to(out.dtype).expand(*planes.shape[:2], -1)[:, :, None]
        if noise is not None:
            left = torch.cat((left, noise[..., None].to(out.dtype).expand_as(left)), dim=-1)
            right = torch.cat((right, strength.to(out.dtype).expand_as(right)), dim=2)
        planes.flatten(0, 1).baddbmm_(left.flatten(0, 1), right.flatten(0, 1))
    if slope != 1:
        F.leaky_relu_(out, slope)


def _finish_formula(parts, scale, rows, noise, strength, slope, out):
    """As its meaning is written, for `torch.compile`."""
    planes = [_planes(part) for part in parts]
    x = (planes[0] if len(planes) == 1 else torch.stack(planes, dim=-1).flatten(-2)).float()
    if scale is not None:
        x = x * scale[:, None, None]
    if rows is not None:
        x = x + rows[:, :, None]
    if noise is not None:
        x = x + noise[..., None] * strength
    _planes(out).copy_(torch.where(x > 0, x, x * slope))


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU (slope 0.2), in place.

    It is positive-homogeneous: its gain is applied before it, to kernels and biases, where it costs nothing.
    """
    return F.leaky_relu_(x, SLOPE)


# Recomputation --------------------------------------------------------------------------------------------------------


def recomputes(grid: tuple[int, ...], checkpoint_above: int | None) -> bool:
    """Whether a level of this grid is computed again in the backward pass: it has more rows or columns than that."""
    return checkpoint_above is not None and max(grid[-2:]) > checkpoint_above and torch.is_grad_enabled()


# Compilation ----------------------------------------------------------------------------------------------------------

_compiled_finish: Callable | None = None


def compile_passes(device: torch.device, enable: bool = True) -> str | None:
    """Compile what is more than one operation, for the rest of the process; None, or why it cannot be.

    On a CPU that is `branches` and `finish`, forward and backward, by the C++ compiler (`native`). On a GPU it is
    `finish`, forward, by `torch.compile`, with symbolic shapes: once for each kind of input (dtype, rank, one sample or
    more, with scale or noise or without), not for each level. What is differentiated twice always takes PyTorch's own
    operations, so gradient penalties need no exception. `enable=False` goes back to them altogether.
    """
    global _compiled_finish
    _compiled_finish = None
    native.unload()
    if not enable:
        return None
    return native.load() if device.type == "cpu" else _compile_finish(device)


def _compile_finish(device: torch.device) -> str | None:
    global _compiled_finish
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    _compiled_finish = torch.compile(_finish_formula, dynamic=True)
    x = torch.ones(2, 4, 2, 2, 2, device=device)
    try:
        finish((x,), torch.ones(2, 4, device=device), torch.ones(1, 4, 2, device=device))
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        _compiled_finish = None
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None
