"""Cross-D convolution (arXiv 2411.02441): one 3D kernel, used whole in volumes and as a slice of itself in images.

In images a small head looks at each sample and chooses an axis and an angle; the kernel is moved accordingly and its
middle slice convolves that sample. Every movement is a linear map of the kernel's K^3 values, the same for all pairs
of channels, so a sample costs one small matrix and one product with the kernel.
"""

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitshuffle_gan.errors import UserError

Phase = Literal["published", "rotation"]
Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # stride, padding, dilation
PHASES = get_args(Phase)
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
HEAD_CHANNELS = 16
LARGEST_ANGLE = math.pi / 4


def moved_kernels(weight: Tensor, axis: Tensor, angle: Tensor, phase: Phase = "published") -> Tensor:
    """The kernel moved for each sample: `[O, I, K, K, K], [N, 3], [N] -> [N, O, I, K, K, K]`, at least float32.

    `axis` are unit vectors in array order (D, H, W), `angle` is in radians. `I` is the inputs of one group.

    `phase="published"` is the paper's formula: the spectrum times `exp(-2 pi i 1^T R f)`, with R = I + angle [axis]_x,
    transformed back, its real part. The paper calls this a rotation. It is a *translation*, circular and in fractions
    of a voxel, by `R^T 1 = 1 + angle (1 x axis)`: a phase linear in f can do nothing else. At angle 0 it rolls the
    kernel by one voxel along each axis.

    `phase="rotation"` is what the words promise: `w(x) = K^-3 sum_f W(f) exp(2 pi i (R f)^T x)`, x counted from the
    kernel's centre, R a true rotation (Rodrigues). That evaluates the kernel's trigonometric interpolation at
    `R^T x`: exact where R maps the grid on itself, so a right angle about an array axis is `torch.rot90`, from the
    next axis towards the one after it. Points turned out of the cube wrap around, as they must with a discrete
    spectrum.
    """
    size = weight.shape[-1]
    moved = _move(weight, _movement(size, axis, angle, phase, _voxels(size, weight.device)))
    return moved.unflatten(-1, (size,) * 3)


def slice_kernels(weight: Tensor, axis: Tensor, angle: Tensor, phase: Phase = "published") -> Tensor:
    """The middle slice `[:, :, :, K // 2]` of `moved_kernels`, and only that computed: `[N, O, I, K, K]`.

    Because of the shift by one, the published form uses raw slice K // 2 - 1 at angle 0 (the first of three), rolled
    in-plane. With K = 1 there is nothing to move, and every sample gets the raw kernel.
    """
    size = weight.shape[-1]
    return _move(weight, _movement(size, axis, angle, phase, _middle(size, weight.device))).unflatten(-1, (size,) * 2)


def convolve_moved(
    x: Tensor,
    weight: Tensor,
    axis: Tensor,
    angle: Tensor,
    phase: Phase,
    bias: Tensor | None = None,
    geometry: Geometry = ((1, 1), (0, 0), (1, 1)),
    groups: int = 1,
) -> Tensor:
    """Each sample `[N, in, H, W]` convolved with its own of the `slice_kernels` of `weight`; no loop over the batch."""
    size, stride = weight.shape[-1], geometry[0]
    movement = _movement(size, axis, angle, phase, _middle(size, x.device))
    places = math.prod(x.shape[2:]) / math.prod(stride)  # roughly
    # Per sample the moved patches hold in K^3 places numbers, the moved kernel out (in / groups) K^2.
    convolve = _move_patches if places * size * groups < weight.shape[0] else _move_kernels
    return convolve(x, weight, movement, bias, geometry, groups)


def _move(weight: Tensor, movement: Tensor) -> Tensor:
    """`[O, I, K, K, K]` through the maps `[N, P, K^3]`: `[N, O, I, P]`."""
    with torch.autocast(weight.device.type, enabled=False):
        dtype = torch.promote_types(weight.dtype, movement.dtype)
        return torch.einsum("oiq,npq->noip", weight.flatten(2).to(dtype), movement.to(dtype))


def _movement(size: int, axis: Tensor, angle: Tensor, phase: Phase, voxels: Tensor) -> Tensor:
    """What the wanted `voxels` [P, 3] take from each voxel of the raw kernel: `[N, P, K^3]`, at least float32."""
    _check_choice("phase", phase, PHASES)
    dtype = torch.promote_types(torch.promote_types(axis.dtype, angle.dtype), torch.float32)
    axis, angle = axis.to(dtype), angle.to(dtype)
    with torch.autocast(axis.device.type, enabled=False):
        return (_published if phase == "published" else _rotated)(size, axis, angle, voxels)


def _published(size: int, axis: Tensor, angle: Tensor, voxels: Tensor) -> Tensor:
    frequency = torch.fft.fftfreq(size, dtype=axis.dtype, device=axis.device)
    frequency = torch.stack(torch.meshgrid(*[frequency] * 3, indexing="ij"), dim=-1)
    turn = torch.eye(3, dtype=axis.dtype, device=axis.device) + angle[:, None, None] * _cross_product(axis)
    shift = torch.einsum("zyxf,ngf->nzyxg", frequency, turn).sum(-1)
    # A factor in the spectrum is a circular convolution with its own transform, which is where an impulse goes.
    impulse = torch.fft.ifftn(torch.polar(torch.ones_like(shift), -2 * math.pi * shift), dim=(1, 2, 3)).real
    distance = (voxels[:, None] - _voxels(size, voxels.device)).remainder(size)
    return impulse[(slice(None), *distance.unbind(-1))]


def _rotated(size: int, axis: Tensor, angle: Tensor, voxels: Tensor) -> Tensor:
    cross = _cross_product(axis)
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    turn = torch.eye(3, dtype=axis.dtype, device=axis.device) + sine * cross + (1 - cosine) * cross @ cross
    centre = (size - 1) / 2
    source = (voxels - centre).to(axis.dtype) @ turn + centre  # R^T x as a row
    distance = source[..., None] - torch.arange(size, device=axis.device)
    frequency = torch.fft.fftfreq(size, dtype=axis.dtype, device=axis.device)
    weights = (2 * math.pi * distance[..., None] * frequency).cos().mean(-1)  # along each axis
    return torch.einsum("npz,npy,npx->npzyx", *weights.unbind(-2)).flatten(2)


def _cross_product(axis: Tensor) -> Tensor:
    """`[N, 3] -> [N, 3, 3]`: the matrices [k]_x, with [k]_x v = k x v."""
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1).unflatten(-1, (3, 3))


def _voxels(size: int, device: torch.device) -> Tensor:
    """The indices of a cube of `size`, `[size^3, 3]`, in memory's order."""
    return torch.cartesian_prod(*[torch.arange(size, device=device)] * 3)


def _middle(size: int, device: torch.device) -> Tensor:
    """Those of the middle slice, `[size^2, 3]`."""
    return _voxels(size, device).unflatten(0, (size, -1))[size // 2]


class RotationHead(nn.Module):
    """An axis and an angle for each image: `[N, C, H, W] -> [N, 3], [N]`, at least float32.

    1 x 1 convolution to 16, batch norm, ReLU, 1 x 1 convolution to 4; each channel summed with its own softmax over
    the grid as weights. The first three are the axis, made a unit vector in array order (D, H, W); the fourth the angle
    in radians, squashed into (-pi/4, pi/4). `norm=False` leaves the batch norm out, which lets samples see each other.
    """

    def __init__(
        self,
        in_channels: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        norm: bool = True,
    ) -> None:
        super().__init__()
        place = {"device": device, "dtype": dtype}
        self.squeeze = nn.Conv2d(in_channels, HEAD_CHANNELS, 1, **place)
        self.norm = nn.BatchNorm2d(HEAD_CHANNELS, **place) if norm else nn.Identity()
        self.choose = nn.Conv2d(HEAD_CHANNELS, 4, 1, **place)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.choose(torch.relu(self.norm(self.squeeze(x)))).flatten(2)
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        values = (maps * maps.softmax(-1)).sum(-1)
        axis = values[:, :3] / (torch.linalg.vector_norm(values[:, :3], dim=1, keepdim=True) + 1e-8)
        return axis, LARGEST_ANGLE * values[:, 3].tanh()


class CrossDConv(nn.Module):
    """Cross-D convolution; the arguments are `torch.nn.Conv2d`'s, besides `rank` and `phase`.

    One kernel `weight` [out, in / groups, K, K, K] serves both ranks, and so does the state dict:

    - `rank=2`, `[N, in, H, W]`: every sample is convolved with its own K x K kernel, `slice_kernels` of the axis and
      angle that `head` (a `RotationHead`) reads off it.
    - `rank=3`, `[N, in, D, H, W]`: an ordinary convolution with the raw kernel. The head is kept, so that the state
      dict fits, but neither used nor trained (`requires_grad` False).

    `phase` is "published" or "rotation"; see `moved_kernels` for what they do. At angle 0 the slice that images use is,
    published, an outer one of the kernel that volumes use, and rolled; with "rotation" it is the middle one.

    With `kernel_size` 1 there is nothing to move: no head, an ordinary convolution at both ranks. An even K has no
    middle; slice K // 2 stands in for it (`rotation` turns about the true centre, between the voxels). The kernel must
    be a cube. It starts from Kaiming's normal distribution by fan-out (of the 3D kernel), the bias from zero.

    Movements are computed in float32 or better whatever the autocast. No loop over the batch: whichever is smaller,
    a sample's kernel or its patches, is moved.

    Raises:
        UserError: an argument out of range, its name and value in the message.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | Literal["valid", "same"] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rank: Literal[2, 3] = 2,
        phase: Phase = "published",
    ) -> None:
        super().__init__()
        _check_choice("rank", rank, (2, 3))
        _check_choice("phase", phase, PHASES)
        _check_choice("padding_mode", padding_mode, PADDING_MODES)
        _check_channels(in_channels, out_channels, groups)
        self.rank, self.phase = rank, phase
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = _per_axis("kernel_size", kernel_size, rank)
        self.stride = _per_axis("stride", stride, rank)
        self.dilation = _per_axis("dilation", dilation, rank)
        self.padding = padding if isinstance(padding, str) else _per_axis("padding", padding, rank)
        self.padding_mode = padding_mode
        size = self._check_geometry()
        place = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, size, size, size, **place))
        self.bias = nn.Parameter(torch.empty(out_channels, **place)) if bias else None
        self.head = RotationHead(in_channels, **place).requires_grad_(rank == 2) if size > 1 else None
        self.reset_parameters()

    def _check_geometry(self) -> int:
        """K, if the geometry is possible."""
        if len(set(self.kernel_size)) > 1:
            raise UserError(f"kernel_size: found {self.kernel_size}, wanted a cube: one kernel serves all directions")
        if isinstance(self.padding, str):
            _check_choice("padding", self.padding, ("valid", "same"))
            if self.padding == "same" and set(self.stride) != {1}:
                raise UserError(
                    f"padding: found 'same' with stride {self.stride}, which has no meaning; wanted stride 1"
                )
        return self.kernel_size[0]

    def reset_parameters(self) -> None:
        """A fresh kernel and bias; the head is left alone."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != self.rank + 2 or x.shape[1] != self.in_channels:
            grid = "D, H, W" if self.rank == 3 else "H, W"
            raise UserError(f"input: found shape {tuple(x.shape)}, wanted [N, {self.in_channels}, {grid}]")
        before, padding = self._pad()
        padded = F.pad(x, before, "constant" if self.padding_mode == "zeros" else self.padding_mode) if before else x
        geometry = (self.stride, padding, self.dilation)
        if self.rank == 3:
            return F.conv3d(padded, self.weight, self.bias, *geometry, self.groups)
        if self.head is None or not len(x):  # no sample, no kernel of its own
            return F.conv2d(padded, self.weight[:, :, 0], self.bias, *geometry, self.groups)
        return convolve_moved(padded, self.weight, *self.head(x), self.phase, self.bias, geometry, self.groups)

    def _pad(self) -> tuple[list[int], tuple[int, ...]]:
        """What `F.pad` adds before the convolution (last axis first), and what the convolution adds itself."""
        if isinstance(self.padding, str):
            reach = self.kernel_size[0] - 1 if self.padding == "same" else 0
            sides = [(step * reach // 2, step * reach - step * reach // 2) for step in self.dilation]
        else:
            sides = [(p, p) for p in self.padding]
        if self.padding_mode == "zeros" and all(left == right for left, right in sides):
            return [], tuple(left for left, _ in sides)
        return [amount for side in reversed(sides) for amount in side], (0,) * self.rank

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding!r}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, "
            f"padding_mode={self.padding_mode!r}, rank={self.rank}, phase={self.phase!r}"
        )


def _move_kernels(
    x: Tensor, weight: Tensor, movement: Tensor, bias: Tensor | None, geometry: Geometry, groups: int
) -> Tensor:
    """Each sample with its own kernel: one convolution, the samples being groups of its channels."""
    kernels = _move(weight, movement).to(weight.dtype).unflatten(-1, (weight.shape[-1],) * 2)
    x = x.flatten(0, 1)[None]
    y = F.conv2d(x, kernels.flatten(0, 1), None, *geometry, groups=len(kernels) * groups)
    y = y[0].unflatten(0, kernels.shape[:2])
    return y if bias is None else y + bias[:, None, None].to(y.dtype)


def _move_patches(
    x: Tensor, weight: Tensor, movement: Tensor, bias: Tensor | None, geometry: Geometry, groups: int
) -> Tensor:
    """The same, but the transposed movement goes to the samples' patches, on which the raw kernel acts as 1 x 1."""
    size, (stride, padding, dilation) = weight.shape[-1], geometry
    patches = F.unfold(x, size, dilation, padding, stride).unflatten(1, (x.shape[1], -1))
    moved = (movement.mT[:, None].to(x.dtype) @ patches).flatten(1, 2)
    y = F.conv1d(moved, weight.flatten(1)[..., None], bias, groups=groups)
    sides = zip(x.shape[2:], stride, padding, dilation, strict=True)
    return y.unflatten(-1, [(side + 2 * pad - step * (size - 1) - 1) // hop + 1 for side, hop, pad, step in sides])


def _per_axis(name: str, value: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * rank
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in values)
    if len(values) != rank or not whole or min(values) < (name != "padding"):
        wanted = f"an integer or {rank} of them, at least {int(name != 'padding')}"
        raise UserError(f"{name}: found {value!r}, wanted {wanted}")
    return values


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name}: found {value!r}, wanted one of {', '.join(map(repr, choices))}")


def _check_channels(in_channels: int, out_channels: int, groups: int) -> None:
    if min(in_channels, out_channels, groups) < 1 or in_channels % groups or out_channels % groups:
        raise UserError(
            f"groups: found {groups} with {in_channels} input and {out_channels} output channels; wanted positive "
            "numbers, the channels multiples of the groups"
        )
