"""The kinds of convolution, at rank 2 and 3, with equalised learning rate.

Every kind maps `[N, in, *S]` to `[N, out, *S]` and can tell the energy of its dense kernel, which demodulation needs.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from splitshuffle_gan import nd, passes
from splitshuffle_gan.nn.cross_d import RotationHead, convolve_moved

# Factors of a kernel's input and output channels, [in] and [out].
Modulation = tuple[Tensor, Tensor]


class Linear(nn.Module):
    """Fully connected layer with equalised learning rate (StyleGAN, arXiv 1812.04948): `[N, in] -> [N, out]`.

    In float32 whatever the autocast: the style path is small and sensitive.
    """

    def __init__(self, in_features: int, out_features: int, bias: float = 0.0, lr_multiplier: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias / lr_multiplier))
        self.gain = lr_multiplier / math.sqrt(in_features)
        self.lr_multiplier = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in] -> [N, out]`, float32."""
        with nd.explicit_dtypes(x.device):
            return nn.functional.linear(x.float(), self.weight * self.gain, self.bias * self.lr_multiplier)


class Convolution(nn.Module):
    """What the kinds share. Each says in `parts` what it computes, one tensor, or two whose channels are shuffled."""

    def forward(
        self,
        x: Tensor,
        gain: float = 1.0,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        modulation: Modulation | None = None,
    ) -> Tensor:
        """Convolve `x` times `scale` [N, in], with the kernel times `gain` and `modulation`; plus `bias` [out].

        What multiplies the kernel costs nothing, what multiplies activations a pass over memory.
        """
        parts = self.parts(x, gain, scale, bias, modulation)
        return parts[0] if len(parts) == 1 else passes.interleave(*parts)


class Kernel(Convolution):
    """One convolution kernel `[out, in, *k]`, stored with unit variance and used times `gain = 1 / sqrt(fan_in)`."""

    def __init__(self, out_channels: int, in_channels: int, size: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *size))
        self.gain = 1 / math.sqrt(in_channels * math.prod(size))

    def effective(self) -> Tensor:
        """The kernel that acts on activations."""
        return self.weight * self.gain

    def parts(
        self,
        x: Tensor,
        gain: float = 1.0,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        modulation: Modulation | None = None,
    ) -> tuple[Tensor, ...]:
        """Arguments as in `Convolution.forward`."""
        (x,) = nd.branches(x, scale, (self.weight,))
        return (self.convolve(x, gain, bias, modulation),)

    def convolve(
        self, x: Tensor, gain: float = 1.0, bias: Tensor | None = None, modulation: Modulation | None = None
    ) -> Tensor:
        """Convolve an `x` that comes from `nd.branches`."""
        return nd.conv(x, self.scaled(gain, modulation), bias)

    def scaled(self, gain: float, modulation: Modulation | None) -> Tensor:
        """The kernel that acts, times `gain` and `modulation`."""
        weight = self.weight * (self.gain * gain)
        if modulation is None:
            return weight
        rows, columns = modulation
        return weight * nd.per_channel(columns[:, None] * rows, weight.ndim - 2)

    def output_energy(self, input_energy: Tensor) -> Tensor:
        """`[N, in]` squared input scales -> `[N, out]` squared norm of the scaled kernel."""
        energy = self.weight.square().sum(nd.spatial_dims(self.weight.ndim - 2)) * self.gain**2
        return input_energy @ energy.T


class PlainConv(Kernel):
    """k x k (x k) convolution: 27 C^2 weights at rank 3, the baseline."""

    def __init__(self, rank: int, in_channels: int, out_channels: int, size: int = 3) -> None:
        super().__init__(out_channels, in_channels, nd.kernel_size(rank, size))


class SplitShuffleConv(Convolution):
    """Split&Shuffle convolution: 9 C^2 weights at rank 3, a third of the plain convolution's 27 C^2.

    The channels are split in two halves. The *volumetric* half goes through a k x k x k convolution, the *planar*
    half through a 1 x k x k one; the results are concatenated and shuffled with two groups, so that the next split
    mixes both. At rank 2 both halves are k x k: the slice network has the same graph.

    This is our declared reading of arXiv 2208.03934, whose abstract names the block and gives no equation.

    `planar_size` other than `size` is for ablation: with 1 the planar half only mixes its channels, the nearest to an
    identity that can change their number (7 C^2 weights).
    """

    def __init__(
        self, rank: int, in_channels: int, out_channels: int, size: int = 3, planar_size: int | None = None
    ) -> None:
        super().__init__()
        halves = out_channels // 2, in_channels // 2
        self.volumetric = Kernel(*halves, nd.kernel_size(rank, size))
        self.planar = Kernel(*halves, nd.kernel_size(rank, planar_size or size, depth=1))

    def parts(
        self,
        x: Tensor,
        gain: float = 1.0,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        modulation: Modulation | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Split and convolve; the two halves, not yet shuffled. Arguments as in `Convolution.forward`."""
        kernels, halves = (self.volumetric, self.planar), []
        for i, part in enumerate(nd.branches(x, scale, tuple(kernel.weight for kernel in kernels))):
            half = None if modulation is None else (modulation[0].chunk(2)[i], modulation[1][i::2])
            halves.append(kernels[i].convolve(part, gain, None if bias is None else bias[i::2], half))
        return tuple(halves)

    def output_energy(self, input_energy: Tensor) -> Tensor:
        """As `Kernel.output_energy`, in the shuffled order."""
        volumetric, planar = input_energy.chunk(2, dim=1)
        halves = self.volumetric.output_energy(volumetric), self.planar.output_energy(planar)
        return torch.stack(halves, dim=-1).flatten(-2)


class SeparableConv(Convolution):
    """(2+1)D convolution: 1 x k x k, then k x 1 x 1 at rank 3; k x k alone at rank 2. 12 C^2 weights at rank 3."""

    def __init__(self, rank: int, in_channels: int, out_channels: int, size: int = 3) -> None:
        super().__init__()
        self.planar = Kernel(out_channels, in_channels, nd.kernel_size(rank, size, depth=1))
        self.axial = Kernel(out_channels, out_channels, (size, 1, 1)) if rank == 3 else None

    def parts(
        self,
        x: Tensor,
        gain: float = 1.0,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        modulation: Modulation | None = None,
    ) -> tuple[Tensor, ...]:
        """Convolve in-plane, then through-plane; arguments as in `Convolution.forward`."""
        if self.axial is None:
            return self.planar.parts(x, gain, scale, bias, modulation)
        if modulation is None:
            return self.axial.parts(self.planar(x, gain, scale), bias=bias)
        rows, columns = modulation
        ones = torch.ones_like(columns)
        x = self.planar(x, gain, scale, modulation=(rows, ones))
        return self.axial.parts(x, bias=bias, modulation=(ones, columns))

    def output_energy(self, input_energy: Tensor) -> Tensor:
        """As `Kernel.output_energy`, of the composed kernel."""
        if self.axial is None:
            return self.planar.output_energy(input_energy)
        planar = self.planar.effective().flatten(2)
        taps = self.axial.effective().flatten(2).unbind(-1)
        composed = sum(torch.einsum("om,mik->oik", tap, planar).square().sum(-1) for tap in taps)
        return input_energy @ composed.T


class CrossDKernel(Kernel):
    """Cross-D convolution (arXiv 2411.02441): one k x k x k kernel at both ranks. 27 C^2 weights at both.

    At rank 3 it is a plain convolution. At rank 2 a head reads an axis and an angle off each sample; the kernel is
    turned by them, and its middle slice convolves that sample. So slices train the very kernel that volumes use, and
    inflation copies.

    What differs from `nn.cross_d.CrossDConv`, the published layer:

    - The kernel is truly rotated. The published phase translates it, and the slices would train an outer slice of the
      kernel, rolled, with which volumes could not start.
    - No batch norm in the head: a sample must not depend on its company.
    - Equalised learning rate, with the fan-in of what acts: k x k values at rank 2. A rotation keeps the variance of
      white kernels, so the same weights give the same scale at both ranks.
    """

    def __init__(self, rank: int, in_channels: int, out_channels: int, size: int = 3) -> None:
        super().__init__(out_channels, in_channels, (size,) * 3)
        self.rank = rank
        self.gain = 1 / math.sqrt(in_channels * size**rank)
        # Kept at rank 3, where nothing uses it, so that one state dict fits both.
        self.head = RotationHead(in_channels, norm=False).requires_grad_(rank == 2)

    def parts(
        self,
        x: Tensor,
        gain: float = 1.0,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        modulation: Modulation | None = None,
    ) -> tuple[Tensor, ...]:
        """Arguments as in `Convolution.forward`. The head looks at `x` before `scale`."""
        if self.rank == 3:
            return super().parts(x, gain, scale, bias, modulation)
        axis, angle = self.head(x.to(torch.promote_types(x.dtype, torch.float32)))
        (x,) = nd.branches(x, scale, (self.weight[:, :, 0],))
        weight = self.scaled(gain, modulation).to(x.dtype)
        pad = weight.shape[-1] // 2
        bias = None if bias is None else bias.to(x.dtype)
        y = convolve_moved(x, weight, axis, angle, "rotation", bias, ((1, 1), (pad, pad), (1, 1)))
        return (y.contiguous(memory_format=nd.channels_last(2)),)

    def output_energy(self, input_energy: Tensor) -> Tensor:
        """As `Kernel.output_energy`; at rank 2 that of the mean slice, which stands for each sample's."""
        energy = super().output_energy(input_energy)
        return energy if self.rank == 3 else energy / self.weight.shape[2]


def make_conv(kind: str, rank: int, in_channels: int, out_channels: int, size: int = 3) -> nn.Module:
    """The convolution of `kind`: split_shuffle, plain, separable, cross_d, or split_pointwise (`planar_size` 1)."""
    kinds = {
        "split_shuffle": SplitShuffleConv,
        "plain": PlainConv,
        "separable": SeparableConv,
        "cross_d": CrossDKernel,
        "split_pointwise": partial(SplitShuffleConv, planar_size=1),
    }
    return kinds[kind](rank, in_channels, out_channels, size)
