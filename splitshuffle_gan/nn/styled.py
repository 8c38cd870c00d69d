"""Layers that a style w drives: the styled convolution and the projection to an image."""

import math

import torch
from torch import Tensor, nn

from splitshuffle_gan import nd, passes
from splitshuffle_gan.config import GeneratorConfig
from splitshuffle_gan.nn.conv import Kernel, Linear, make_conv

ACTIVATION_GAIN = math.sqrt(2)  # keeps the variance of the leaky ReLU's input


class StyledConv(nn.Module):
    """Modulated convolution with demodulation, upsampling, noise, bias over depth and activation.

    StyleGAN2 (arXiv 1912.04958), equations 1 to 3. With several samples the style scales the activations before the
    convolution and demodulation those after it: the same function as a kernel scaled for each sample, on one kernel.
    Growth comes after the convolution, which so runs on the coarse grid.

    `demod_gain` [out] is 1 in a network trained from scratch. Inflation sets it where spreading a kernel over depth
    lowers the kernel's norm, which demodulation would otherwise amplify again.
    """

    def __init__(self, config: GeneratorConfig, level: int, in_channels: int, out_channels: int, grow: bool) -> None:
        super().__init__()
        self.rank, self.volume_depth = config.rank, config.shape[0]
        self.factors = config.factors(level) if grow else None
        self.depth_upsample = config.depth_upsample
        grid = config.schedule.grids[level]
        self.affine = Linear(config.w_dim, in_channels, bias=1.0)
        self.conv = make_conv(config.conv, config.rank, in_channels, out_channels)
        self.rows = grid[0] if config.depth_aware else 1
        self.bias = nn.Parameter(torch.zeros(out_channels, config.knots(level)))
        self.register_buffer("demod_gain", torch.ones(out_channels))
        if config.noise:
            self.noise_strength = nn.Parameter(torch.zeros(()))
            seed = 2 * level + grow
            noise = torch.randn(1, *grid, generator=torch.Generator().manual_seed(seed))
            self.register_buffer("noise_const", noise, persistent=False)

    def forward(self, x: Tensor, w: Tensor, depth: Tensor | None, noise_mode: str) -> Tensor:
        """`[N, in, *coarse], [N, w_dim] -> [N, out, *fine]`; `depth` [N] is the slice index at rank 2."""
        styles = self.affine(w)
        demodulation = torch.rsqrt(self.conv.output_energy(styles.square()) + 1e-8)
        demodulation = demodulation * self.demod_gain * ACTIVATION_GAIN
        if len(x) == 1:  # its style and demodulation can go to the kernel, where they cost nothing
            parts, demodulation = self.conv.parts(x, modulation=(styles[0], demodulation[0])), None
        else:
            parts = self.conv.parts(x, scale=styles)
        if self.factors is not None:  # demodulation commutes with growth, and before it there is less to multiply
            x = passes.finish(parts, demodulation, slope=1.0)
            parts, demodulation = (nd.upsample(x, self.factors, self.depth_upsample),), None
        bias = nd.join_knots(self.bias * ACTIVATION_GAIN, self.rows)
        bias = nd.depth_rows(bias, self.rank, depth, self.volume_depth)
        noise = self._noise(parts[0], depth, noise_mode)
        strength = None if noise is None else self.noise_strength * ACTIVATION_GAIN
        return passes.finish(parts, demodulation, bias, noise, strength)

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
        self.rows = config.schedule.grids[level][0] if config.depth_aware else 1
        self.affine = Linear(config.w_dim, channels, bias=1.0)
        self.kernel = Kernel(config.image_channels, channels, (1,) * config.rank)
        self.bias = nn.Parameter(torch.zeros(config.image_channels, config.knots(level)))

    def forward(self, x: Tensor, w: Tensor, depth: Tensor | None) -> Tensor:
        """`[N, C, *S], [N, w_dim] -> [N, image_channels, *S]`."""
        weight = self.affine(w)[:, None] * self.kernel.effective().flatten(1)
        # A batched matrix product reads the activations once; scaling, then convolving, reads them twice. Channels
        # come last in it, so that the gradient that flows back to the activations has their layout.
        pixels = x.movedim(1, -1)
        image = torch.bmm(pixels.flatten(1, -2), weight.to(x.dtype).mT).unflatten(1, pixels.shape[1:-1]).movedim(-1, 1)
        bias = nd.depth_rows(nd.join_knots(self.bias, self.rows), self.rank, depth, self.volume_depth)
        return image.float() + bias[..., None, None]
