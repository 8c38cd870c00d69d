"""The only file that knows rank: one name per operation, for 2D and 3D alike.

A tensor is `[N, C, *S]` with `S` = (D, H, W) at rank 3 and (H, W) at rank 2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def kernel_size(rank: int, size: int, depth: int | None = None) -> tuple[int, ...]:
    """`size` in-plane and `depth` (default `size`) through-plane: (depth, size, size) or (size, size)."""
    return (size, size) if rank == 2 else (size if depth is None else depth, size, size)


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Stride-1 convolution that keeps the grid; kernels have odd sizes.

    In-plane borders are padded with zeros, as in StyleGAN. Depth borders repeat the end slices: a volume is a slab
    cut from a body, not an object on a black table, and a depth-constant input keeps a depth-constant output, which
    is what makes every inflation exact up to the border.
    """
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    padding = [size // 2 for size in weight.shape[2:]]
    if weight.ndim == 4:
        return F.conv2d(x, weight, bias, padding=padding)
    if padding[0]:
        x = F.pad(x, (0, 0, 0, 0, padding[0], padding[0]), mode="replicate")
    return F.conv3d(x, weight, bias, padding=(0, *padding[1:]))


def upsample(x: Tensor, factors: tuple[int, ...], depth_mode: str = "linear") -> Tensor:
    """Grow each axis by its factor, 1 or 2.

    Linear without aligned corners is StyleGAN2's [1 3 3 1] filter away from the border, and keeps constants up to
    it. `depth_mode="nearest"` repeats slices instead (rank 3 only): slice z comes from slice z // factor.
    """
    if x.ndim == 5 and depth_mode == "nearest":
        x = _upsample_planes(x, factors[1:])
        depth = x.shape[2] * factors[0]
        return x if factors[0] == 1 else F.interpolate(x, size=[depth, *x.shape[3:]], mode="nearest")
    if all(factor == 1 for factor in factors):
        return x
    size = [length * factor for length, factor in zip(x.shape[2:], factors, strict=True)]
    return F.interpolate(x, size=size, mode="bilinear" if x.ndim == 4 else "trilinear", align_corners=False)


def _upsample_planes(x: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Bilinear growth of every slice: slices as samples, a view of a channels_last tensor."""
    slices = x.movedim(2, 1)
    return upsample(slices.flatten(0, 1), factors).unflatten(0, slices.shape[:2]).movedim(1, 2)


def downsample(x: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Shrink each axis by its factor, 1 or 2, averaging the cells that merge."""
    if all(factor == 1 for factor in factors):
        return x
    # At exactly half size, linear interpolation weighs the two neighbours equally: it is the average, and it is
    # faster than average pooling, which has no bfloat16 CPU kernel in 3D.
    size = [length // factor for length, factor in zip(x.shape[2:], factors, strict=True)]
    return F.interpolate(x, size=size, mode="bilinear" if x.ndim == 4 else "trilinear", align_corners=False)


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


def add_rows(x: Tensor, rows: Tensor) -> Tensor:
    """`x + rows[..., None, None]`: one value per channel, and per depth at rank 3 (`rows` as from `depth_rows`).

    Written on a view with H and W merged and channels last, and with one row per sample: the gradient is then a sum
    over one contiguous axis, which in bfloat16 on CPU is over 100 times faster than over scattered ones.
    """
    planes = x.movedim(1, -1).flatten(-3, -2)
    rows = rows.to(x.dtype).expand(x.shape[0], *rows.shape[1:]).movedim(1, -1).unsqueeze(-2)
    return (planes + rows).unflatten(-2, x.shape[-2:]).movedim(-1, 1)


def interleave(a: Tensor, b: Tensor) -> Tensor:
    """Concatenate two equal halves of the channels and shuffle them with two groups: a0 b0 a1 b1 ...

    Done on the last axis, where channels_last tensors keep their channels, it is one copy that keeps the layout.
    """
    return torch.stack((a.movedim(1, -1), b.movedim(1, -1)), dim=-1).flatten(-2).movedim(-1, 1)


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
    return torch.channels_last if rank == 2 else torch.channels_last_3d
