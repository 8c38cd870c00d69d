"""Layers that a style w drives: the styled convolution and the projection to an image."""

import math

import torch
from torch import Tensor, nn

from splitshuffle_gan import nd
from splitshuffle_gan.config import GeneratorConfig
from splitshuffle_gan.nn.conv import Kernel, Linear, make_conv

ACTIVATION_GAIN = math.sqrt(2)  # keeps the variance of the leaky ReLU's input


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU (slope 0.2), in place.

    It is positive-homogeneous: its gain is applied before it, to kernels and biases, where it costs nothing.
    """
    return nn.functional.leaky_relu_(x, 0.2)


class StyledConv(nn.Module):
    """Modulated convolution with demodulation, upsampling, noise, bias over depth and activation.

    StyleGAN2 (arXiv 1912.04958), equations 1 to 3, with the style applied to the activations before the convolution
    and the demodulation after it: the same function as scaling weights per sample, on one shared kernel.
    Growth comes after the convolution, which so runs on the coarse grid.

    `demod_gain` [out] is 1 in a network trained from scratch. Inflation sets it where spreading a kernel over depth
    lowers the kernel's norm, which demodulation would otherwise amplify again.
    """

    def __init__(self, config: GeneratorConfig, level: int, in_channels: int, out_channels: int, grow: bool) -> None:
        super().__init__()
        self.rank, self.volume_depth = config.rank, config.shape[0]
        self.factors = config.factors(level) if grow else (1,) * config.rank
        self.depth_upsample = config.depth_upsample
        grid = config.schedule.grids[level]
        self.affine = Linear(config.w_dim, in_channels, bias=1.0)
        self.conv = make_conv(config.conv, config.rank, in_channels, out_channels)
        self.bias = nn.Parameter(torch.zeros(out_channels, grid[0] if config.depth_aware else 1))
        self.register_buffer("demod_gain", torch.ones(out_channels))
        if config.noise:
            self.noise_strength = nn.Parameter(torch.zeros(()))
            seed = 2 * level + grow
            noise = torch.randn(1, *grid, generator=torch.Generator().manual_seed(seed))
            self.register_buffer("noise_const", noise, persistent=False)

    def forward(self, x: Tensor, w: Tensor, depth: Tensor | None, noise_mode: str) -> Tensor:
        """`[N, in, *coarse], [N, w_dim] -> [N, out, *fine]`; `depth` [N] is the slice index at rank 2."""
        x = nd.upsample(self.modulate(x, w), self.factors, self.depth_upsample)
        bias = nd.depth_rows(self.bias * ACTIVATION_GAIN, self.rank, depth, self.volume_depth)
        x = nd.add_rows(x, bias)
        noise = self._noise(x, depth, noise_mode)
        if noise is not None:
            x = x + (noise * (self.noise_strength * ACTIVATION_GAIN)).to(x.dtype)
        return activate(x)

    def modulate(self, x: Tensor, w: Tensor) -> Tensor:
        """Style, convolution, demodulation: `[N, in, *S], [N, w_dim] -> [N, out, *S]`, times the activation's gain."""
        styles = self.affine(w)
        demodulation = torch.rsqrt(self.conv.output_energy(styles.square()) + 1e-8)
        demodulation = demodulation * self.demod_gain * ACTIVATION_GAIN
        x = self.conv(x * nd.per_channel(styles.to(x.dtype), self.rank))
        return x * nd.per_channel(demodulation.to(x.dtype), self.rank)

    def _noise(self, x: Tensor, depth: Tensor | None, mode: str) -> Tensor | None:
        if mode == "none" or not hasattr(self, "noise_strength"):
            return None
        if mode == "const":
            return nd.depth_rows(self.noise_const, self.rank, depth, self.volume_depth)
        return torch.randn(x.shape[0], 1, *x.shape[2:], device=x.device)


class ToImage(nn.Module):
    """Style-modulated 1 x 1 projection to the image, without demodulation, with a bias over depth. Returns float32."""

    def __init__(self, config: GeneratorConfig, level: int) -> None:
        super().__init__()
        self.rank, self.volume_depth = config.rank, config.shape[0]
        channels = config.channels[level]
        depth = config.schedule.grids[level][0] if config.depth_aware else 1
        self.affine = Linear(config.w_dim, channels, bias=1.0)
        self.kernel = Kernel(config.image_channels, channels, (1,) * config.rank)
        self.bias = nn.Parameter(torch.zeros(config.image_channels, depth))

    def forward(self, x: Tensor, w: Tensor, depth: Tensor | None) -> Tensor:
        """`[N, C, *S], [N, w_dim] -> [N, image_channels, *S]`."""
        weight = self.affine(w)[:, None] * self.kernel.effective().flatten(1)
        # A batched matrix product reads the activations once; scaling, then convolving, reads them twice.
        image = torch.bmm(weight.to(x.dtype), x.flatten(2)).unflatten(2, x.shape[2:])
        return nd.add_rows(image.float(), nd.depth_rows(self.bias, self.rank, depth, self.volume_depth))
