"""The generator: a StyleGAN2 for slices and volumes with skip outputs."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from splitshuffle_gan import nd, passes
from splitshuffle_gan.checkpoint import Pretrained
from splitshuffle_gan.config import GeneratorConfig
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.nn.conv import Linear
from splitshuffle_gan.nn.styled import ACTIVATION_GAIN, StyledConv, ToImage

NoiseMode = Literal["random", "const", "none"]


class Mapping(nn.Module):
    """Mapping network, z -> w: `[N, z_dim] -> [N, w_dim]`, float32."""

    def __init__(self, z_dim: int, w_dim: int, layers: int) -> None:
        super().__init__()
        sizes = [z_dim] + [w_dim] * layers
        self.layers = nn.ModuleList(
            Linear(a, b, lr_multiplier=0.01) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Normalise z to unit mean square, then the layers."""
        x = z.float() * torch.rsqrt(z.float().square().mean(1, keepdim=True) + 1e-8)
        for layer in self.layers:
            x = passes.activate(layer(x) * ACTIVATION_GAIN)
        return x


class GeneratorBlock(nn.Module):
    """One level: grow and convolve (not at the base), convolve, add to the image."""

    def __init__(self, config: GeneratorConfig, level: int) -> None:
        super().__init__()
        channels, self.grid = config.channels[level], config.spatial(level)
        self.factors, self.depth_upsample = config.factors(level) if level else (), config.depth_upsample
        self.grow = StyledConv(config, level, config.channels[level - 1], channels, grow=True) if level else None
        self.conv = StyledConv(config, level, channels, channels, grow=False)
        self.to_image = ToImage(config, level)

    def forward(
        self, x: Tensor, image: Tensor | None, ws: list[Tensor], depth: Tensor | None, noise_mode: str
    ) -> tuple[Tensor, Tensor]:
        """Features and image of the level before -> features and image of this one; `ws` holds a w per layer."""
        if self.grow is not None:
            x = self.grow(x, ws[0], depth, noise_mode)
            image = nd.upsample(image, self.factors, self.depth_upsample)
        x = self.conv(x, ws[-1], depth, noise_mode)
        y = self.to_image(x, ws[-1], depth)
        return x, y if image is None else image + y


class Generator(nn.Module, Pretrained):
    """Latents to images: `[N, z_dim] -> [N, C, D, H, W]` at rank 3, `[N, C, H, W]` at rank 2, in about [-1, 1].

    Attributes:
        config: what it is made of.
        geometry: spacing, affine, plane and intensities of the set it was trained on, or None; see
            `PreparedDataset.geometry`. Travels with the checkpoint.
        checkpoint_above: recompute levels of more than this many rows or columns in the backward pass instead of
            storing what is inside them; None stores all.
    """

    config_class = GeneratorConfig

    def __init__(self, config: GeneratorConfig, geometry: dict | None = None) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        self.checkpoint_above: int | None = None
        base = config.schedule.grids[0]
        depth = base[0] if config.rank == 3 or config.depth_aware else 1
        self.mapping = Mapping(config.z_dim, config.w_dim, config.mapping_layers)
        self.constant = nn.Parameter(torch.randn(config.channels[0], depth, *base[1:]))
        self.blocks = nn.ModuleList(GeneratorBlock(config, level) for level in range(len(config.channels)))
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    @property
    def z_dim(self) -> int:
        """Size of the latent."""
        return self.config.z_dim

    @property
    def num_ws(self) -> int:
        """Number of styled layers, each with its own w: one at the base, two at every other level."""
        return 2 * len(self.blocks) - 1

    def map(self, z: Tensor, truncation_psi: float = 1.0) -> Tensor:
        """`[N, z_dim] -> [N, num_ws, w_dim]`; psi < 1 pulls w towards its mean: less variety, fewer bad samples."""
        w = self.mapping(z)
        if truncation_psi != 1:
            w = self.w_avg.lerp(w, truncation_psi)
        return w[:, None].expand(-1, self.num_ws, -1)

    def synthesize(self, ws: Tensor, noise_mode: NoiseMode = "random", depth: Tensor | None = None) -> Tensor:
        """`[N, num_ws, w_dim]` -> images, float32. Mix styles by mixing rows of `ws`; coarse layers come first.

        `depth` [N], int64 in 0..D-1, is the slice to draw at rank 2 (default: the middle one); ignored at rank 3.
        """
        if noise_mode not in ("random", "const", "none"):
            raise UserError(f"noise_mode: found {noise_mode!r}, must be 'random', 'const' or 'none'")
        rank = self.config.rank
        if rank == 2 and depth is None:
            depth = torch.full((ws.shape[0],), self.config.shape[0] // 2, device=ws.device)
        x = nd.depth_rows(self.constant, rank, depth, self.config.shape[0])
        x = x.expand(ws.shape[0], *x.shape[1:]).to(nd.compute_dtype(x.device))
        x = x.contiguous(memory_format=nd.channels_last(rank))
        image, used = None, 0
        with nd.explicit_dtypes(x.device):
            for block in self.blocks:
                layers = 1 if block.grow is None else 2
                arguments = (x, image, list(ws[:, used : used + layers].unbind(1)), depth, noise_mode)
                used += layers
                if passes.recomputes(block.grid, self.checkpoint_above):
                    x, image = checkpoint(block, *arguments, use_reentrant=False)
                else:
                    x, image = block(*arguments)
        return image

    def forward(
        self,
        z: Tensor,
        truncation_psi: float = 1.0,
        noise_mode: NoiseMode = "random",
        depth: Tensor | None = None,
    ) -> Tensor:
        """`[N, z_dim]` -> images; see `map` and `synthesize` for the arguments."""
        return self.synthesize(self.map(z, truncation_psi), noise_mode, depth)

    @torch.no_grad()
    def update_w_avg(self, samples: int = 4096, seed: int = 0) -> None:
        """Estimate the mean of w, the target of truncation, from `samples` latents."""
        z = torch.randn(samples, self.z_dim, generator=torch.Generator().manual_seed(seed))
        self.w_avg.copy_(self.mapping(z.to(self.w_avg.device)).mean(0))
