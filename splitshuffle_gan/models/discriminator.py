"""The discriminator: the generator's mirror, residual, with minibatch standard deviation."""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from splitshuffle_gan import nd, passes, resize
from splitshuffle_gan.checkpoint import Pretrained
from splitshuffle_gan.config import DiscriminatorConfig
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.nn.conv import Kernel, Linear, make_conv
from splitshuffle_gan.nn.styled import ACTIVATION_GAIN


class BiasedConv(nn.Module):
    """Convolution, bias, times `gain`, activation: `[N, in, *S] -> [N, out, *S]`."""

    def __init__(
        self,
        config: DiscriminatorConfig,
        in_channels: int,
        out_channels: int,
        size: int = 3,
        gain: float = ACTIVATION_GAIN,
    ) -> None:
        super().__init__()
        self.conv = (
            Kernel(out_channels, in_channels, (1,) * config.rank)
            if size == 1
            else make_conv(config.conv, config.rank, in_channels, out_channels, size)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, add, activate."""
        return passes.finish(self.conv.parts(x, self.gain, bias=self.bias * self.gain))


class DiscriminatorBlock(nn.Module):
    """From `level` to `level - 1`: convolve, shrink, convolve, plus a shrunk 1 x 1 shortcut."""

    def __init__(self, config: DiscriminatorConfig, level: int) -> None:
        super().__init__()
        fine, coarse = config.channels[level], config.channels[level - 1]
        self.grid, self.factors = config.spatial(level), config.factors(level)
        # Two branches of equal variance add up to one of that variance when each is multiplied by sqrt(1/2).
        self.half = math.sqrt(0.5)
        self.conv = BiasedConv(config, fine, fine)
        self.shrink = BiasedConv(config, fine, coarse, gain=ACTIVATION_GAIN * self.half)
        self.skip = Kernel(coarse, fine, (1,) * config.rank)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, fine, *S] -> [N, coarse, *S / factors]`."""
        y = self.shrink(resize.average(self.conv(x), self.factors))
        return y + self.skip(resize.average(x, self.factors), self.half)


class SpatialReadout(nn.Module):
    """One learned weight map per channel: `[N, C, *base] -> [N, C]`, float32.

    A fully connected layer over the flattened base grid would hold more weights than all convolutions together.
    """

    def __init__(self, channels: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, *grid))
        self.gain = 1 / math.sqrt(math.prod(grid))

    def forward(self, x: Tensor) -> Tensor:
        """Weighted sum over the grid."""
        # Channels last throughout, so that the gradient starts its way back in the layout of the activations.
        pixels, weight = x.movedim(1, -1).float(), (self.weight * self.gain).movedim(0, -1).contiguous()
        return (pixels * weight).flatten(1, -2).sum(1)


def group_within(batch_size: int, group_size: int) -> int:
    """The size of the groups that `minibatch_std` makes: the largest divisor of `batch_size` up to `group_size`."""
    return next(group for group in range(min(group_size, batch_size), 0, -1) if batch_size % group == 0)


def minibatch_std(x: Tensor, group_size: int) -> Tensor:
    """Standard deviation within groups of consecutive samples, averaged over the grid: `[N, C, *S] -> [N, C]`, float32.

    Of `group_within(N, group_size)` samples a group. One number per channel, where arXiv 1710.10196 averages over
    channels too: so the discriminator sees in which respect samples are too alike, not only that they are.
    """
    group = group_within(x.shape[0], group_size)
    groups = x.float().unflatten(0, (-1, group))
    # Spelled out: `var` over a scattered axis takes fifty times as long on a CPU.
    variance = (groups - groups.mean(1, keepdim=True)).square().mean(1)
    std = (variance + 1e-8).sqrt().flatten(2).mean(2)
    return std.repeat_interleave(group, dim=0)


class Discriminator(nn.Module, Pretrained):
    """Images to logits: `[N, C, D, H, W]` or `[N, C, H, W]` -> `[N]`, float32; high means real.

    Attributes:
        config: what it is made of.
        geometry: as in `Generator`.
        checkpoint_above: as in `Generator`.
    """

    config_class = DiscriminatorConfig

    def __init__(self, config: DiscriminatorConfig, geometry: dict | None = None) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        self.checkpoint_above: int | None = None
        channels, base = config.channels, config.spatial(0)
        self.from_image = BiasedConv(config, config.image_channels + config.depth_aware, channels[-1], size=1)
        self.blocks = nn.ModuleList(DiscriminatorBlock(config, level) for level in range(len(channels) - 1, 0, -1))
        self.conv = BiasedConv(config, channels[0], channels[0])
        self.readout = SpatialReadout(channels[0], base)
        self.dense = Linear(channels[0], channels[0])
        # With weights of its own: as more inputs among those of `dense`, the statistic has so little leverage that the
        # discriminator does not learn to use it, and the generator collapses unpunished.
        self.statistic = Linear(channels[0], channels[0])
        self.logit = Linear(channels[0], 1)

    def forward(self, images: Tensor, depth: Tensor | None = None) -> Tensor:
        """Logits. `depth` [N] is the slice index that a depth-aware one of rank 2 needs (default: the middle).

        At rank 3 the depth channel is a ramp; a given `depth` replaces it by that constant.
        """
        expected = self.config.spatial(-1)
        if tuple(images.shape[2:]) != expected or images.shape[1] != self.config.image_channels:
            raise UserError(
                f"images: found shape {tuple(images.shape)}, the discriminator was built for "
                f"(N, {self.config.image_channels}, {', '.join(map(str, expected))})"
            )
        # Cast, then joined along the last axis: what comes out is channels-last as it is.
        x = images.to(nd.compute_dtype(images.device)).movedim(1, -1)
        if self.config.depth_aware:
            x = torch.cat((x, self._depth_channel(images, depth).to(x.dtype).movedim(1, -1)), dim=-1)
        x = x.movedim(-1, 1).contiguous(memory_format=nd.channels_last(self.config.rank))
        with nd.explicit_dtypes(x.device):
            x = self.from_image(x)
            for block in self.blocks:
                recompute = passes.recomputes(block.grid, self.checkpoint_above)
                x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
            statistic = self.statistic(minibatch_std(x, self.config.group_size))
            x = self.dense(self.readout(self.conv(x))) + statistic
            return self.logit(passes.activate(x * ACTIVATION_GAIN))[:, 0]

    def _depth_channel(self, images: Tensor, depth: Tensor | None) -> Tensor:
        """Depth in -1..1, of the slice's centre."""
        volume_depth = self.config.shape[0]
        if depth is None and self.config.rank == 3:
            depth = torch.arange(volume_depth, device=images.device)[:, None, None]
        else:
            if depth is None:
                depth = torch.full((images.shape[0],), volume_depth // 2, device=images.device)
            depth = nd.per_channel(depth, self.config.rank + 1)
        values = ((2 * depth + 1) / volume_depth - 1).to(images.dtype)
        return values.expand(images.shape[0], 1, *images.shape[2:])
