"""The only file that knows rank: one name per operation, for 2D and 3D alike.

A tensor is `[N, C, *S]` with `S` = (D, H, W) at rank 3 and (H, W) at rank 2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitshuffle_gan import layout, passes, resize


def kernel_size(rank: int, size: int, depth: int | None = None) -> tuple[int, ...]:
    """`size` in-plane and `depth` (default `size`) through-plane: (depth, size, size) or (size, size)."""
    return (size, size) if rank == 2 else (size if depth is None else depth, size, size)


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Stride-1 convolution, kernels of odd size: zeros beyond the in-plane borders, as in StyleGAN, none over depth.

    For a grid of the same depth, `x` comes with its end slices repeated (`branches`): a volume is a slab cut from a
    body, not an object on a black table, and a depth-constant input keeps a depth-constant output, which is what makes
    every inflation exact up to the border.
    """
    padding = [size // 2 for size in weight.shape[2:]]
    bias = None if bias is None else bias.to(x.dtype)
    if not any(padding) and (x.dtype == torch.float32 or x.shape[1] == 1):
        # As matrix products, plane by plane: PyTorch's 1 x 1 x 1 convolution is three times slower in float32, where it
        # forgets the layout, and seven times on a single channel in bf16. One product over all planes has a backward
        # five times slower.
        pixels = x.movedim(1, -1)
        planes = pixels.flatten(-3, -2).reshape(-1, pixels.shape[-3] * pixels.shape[-2], x.shape[1])
        matrix = weight.flatten(1).to(x.dtype).mT.expand(len(planes), -1, -1)
        product = planes.bmm(matrix) if bias is None else torch.baddbmm(bias[None, None], planes, matrix)
        return product.reshape(*pixels.shape[:-1], -1).movedim(-1, 1)
    if weight.ndim == 4:
        return F.conv2d(x, weight.to(x.dtype), bias, padding=padding)
    return F.conv3d(x, weight.to(x.dtype), bias, padding=(0, *padding[1:]))


def branches(x: Tensor, scale: Tensor | None, kernels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs of parallel convolutions with `kernels`: `x` times `scale` [N, C], its channels in equal parts.

    Each part is padded over depth as its kernel needs (see `conv`).
    """
    return passes.branches(x, scale, tuple(kernel.shape[2] // 2 if kernel.ndim == 5 else 0 for kernel in kernels))


def upsample(x: Tensor, factors: tuple[int, ...], depth_mode: str = "linear") -> Tensor:
    """Grow each axis by its factor, 1 or 2.

    Linear without aligned corners is StyleGAN2's [1 3 3 1] filter away from the border, and keeps constants up to
    it. `depth_mode="nearest"` repeats slices instead (rank 3 only): slice z comes from slice z // factor.
    """
    if all(factor == 1 for factor in factors):
        return x
    if x.ndim == 4:
        size = [length * factor for length, factor in zip(x.shape[2:], factors, strict=True)]
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    x = resize.grow_planes(x, factors[1:])
    if factors[0] == 1:
        return x
    return resize.repeat_depth(x) if depth_mode == "nearest" else resize.blend_depth(x)


def per_channel(values: Tensor, rank: int) -> Tensor:
    """Append `rank` unit axes, so that `[..., C]` broadcasts over the grid."""
    return values.reshape(*values.shape, *([1] * rank))


def depth_rows(table: Tensor, rank: int, depth: Tensor | None, volume_depth: int) -> Tensor:
    """Read a table over depth, `[C, T, *rest]`, the way each rank sees it.

    Rank 3 sees all depths at once: `[1, C, T, *rest]`. Rank 2 sees, for each sample, the row of its slice,
    `floor(depth * T / volume_depth)`: `[N, C, *rest]`.
    """
    if rank == 3:
        return table[None]
    rows = torch.div(depth * table.shape[1], volume_depth, rounding_mode="floor")
    return table.transpose(0, 1)[rows]


def join_knots(table: Tensor, rows: int) -> Tensor:
    """A table over depth `[C, T]` with `rows` rows: its T values, the ends among them, joined by straight lines."""
    if table.shape[1] == rows:
        return table
    return F.interpolate(table[None], size=rows, mode="linear", align_corners=True)[0]


def spatial_dims(rank: int) -> tuple[int, ...]:
    """The axes of the grid."""
    return tuple(range(2, 2 + rank))


def compute_dtype(device: torch.device) -> torch.dtype:
    """The dtype for activations: autocast's where it is on, else float32."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32


def explicit_dtypes(device: torch.device) -> torch.autocast:
    """Context in which operations keep their inputs' dtype.

    Autocast decides the activations' dtype at a network's entrance and is off inside: on CPU its rules would cast
    every padding and resampling to float32 and back. What needs float32 (styles, demodulation, statistics, logits,
    images) is cast where it is computed.
    """
    return torch.autocast(device.type, enabled=False)


def channels_last(rank: int) -> torch.memory_format:
    """The fast memory format of this rank."""
    return layout.channels_last(rank + 2)


def place(network: nn.Module, rank: int, device: torch.device) -> nn.Module:
    """The network itself, on the device, its kernels of this rank in the fast memory format.

    `Module.to(memory_format=...)` fails at kernels of another rank, as ACS and Cross-D convolutions have them.
    """
    network.to(device)
    for weight in network.parameters():
        if weight.ndim == rank + 2:
            weight.data = weight.data.contiguous(memory_format=channels_last(rank))
    return network


def pad_beforehand(network: nn.Module) -> None:
    """Let the `Conv3d` layers of a library's network pad their input first and convolve then; the function is the same.

    With oneDNN 3.12 (torch 2.13) the bf16 gradient of a kernel that reaches beyond the borders of a first axis of two
    voxels is wrong by any amount, inf and NaN included. With an input that is padded already it is right.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.padding_mode == "zeros" and any(module.padding):
            module.padding_mode = "constant"
