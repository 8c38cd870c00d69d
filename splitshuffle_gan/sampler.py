"""From a generator and seeds to volumes."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.models.generator import Generator


def latent_of_seed(seed: int, z_dim: int) -> Tensor:
    """The latent `[1, z_dim]` that a seed names, on the CPU, the same on every machine."""
    return torch.randn(1, z_dim, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def draw(generator: Generator, ws: Tensor, noise_mode: str = "const") -> np.ndarray:
    """One image from one row of styles `[1, num_ws, w_dim]`: float32 `[D, H, W]` in [-1, 1].

    A depth-aware generator of rank 2 draws all its slices, one volume; a depth-blind one draws `[H, W]`.
    """
    config = generator.config
    if config.rank == 2 and config.depth_aware:
        depth = torch.arange(config.shape[0], device=ws.device)
        image = generator.synthesize(ws.expand(len(depth), -1, -1), noise_mode, depth)[:, 0]
    else:
        image = generator.synthesize(ws, noise_mode)[0, 0]
    return image.float().clamp(-1, 1).cpu().numpy()


def sample(
    generator: Generator, seeds: Iterable[int], truncation_psi: float = 1.0, noise_mode: str = "const"
) -> Iterator[np.ndarray]:
    """One image per seed, float32 `[D, H, W]` in [-1, 1] (see `draw`).

    Every seed is drawn by itself, so that its voxels depend on nothing else: not on the other seeds, not on their
    order, not on the number of processes.
    """
    device = generator.w_avg.device
    for seed in seeds:
        z = latent_of_seed(seed, generator.z_dim).to(device)
        with torch.no_grad():
            ws = generator.map(z, truncation_psi)
        yield draw(generator, ws, noise_mode)


def mix_styles(coarse: Tensor, fine: Tensor, layers: int) -> Tensor:
    """Styles `[1, num_ws, w_dim]` of `coarse` for the first `layers` layers and of `fine` for the rest."""
    if not 0 < layers < coarse.shape[1]:
        raise UserError(f"mix_layers: found {layers}, must be 1 to {coarse.shape[1] - 1}")
    return torch.cat((coarse[:, :layers], fine[:, layers:]), dim=1)
