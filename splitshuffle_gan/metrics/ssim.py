"""Multi-scale structural similarity of pairs of volumes, and the diversity of a set by it.

Wang, Simoncelli and Bovik 2003, computed by MONAI.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from accelerate import PartialState
from monai.metrics.regression import compute_ms_ssim

from splitshuffle_gan.metrics.resampling import TooFewSamples

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the paper, from the finest scale
KERNEL_SIZE, KERNEL_SIGMA = 11, 1.5
DATA_RANGE = 2.0


class Volumes(Protocol):
    """Anything of volumes by number: `len` and item i, float32 `[D, H, W]` in [-1, 1]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...


@dataclass(frozen=True)
class SsimSettings:
    """How the similarity is taken: the Gaussian window's side (voxels) and sigma, and a weight for each scale."""

    kernel_size: int
    kernel_sigma: float
    weights: tuple[float, ...]


def settings_for(shape: tuple[int, int, int]) -> SsimSettings:
    """The settings that fit volumes of `shape` (D, H, W); values are comparable only between equal settings.

    Each scale halves the volume, and the window must fit the smallest. The paper's window of 11 voxels is kept where
    two scales fit (sides of 22 and more), with as many of the five scales as fit (a side of 176 for all). Smaller
    volumes get the largest odd window that fits two scales, or one, its sigma shrunk in proportion. The weights are
    the paper's, cut to the scales there are and divided by their sum. Raises TooFewSamples when a side is below 3.
    """
    side = min(shape)
    if side < 3:
        raise TooFewSamples(f"structural similarity needs 3 voxels along each side, the volumes are {tuple(shape)}")
    smallest = side // 2 if side >= 6 else side
    kernel_size = min(KERNEL_SIZE, smallest - 1 + smallest % 2)
    # MONAI asks for (scales - 1)^2 windows along a side, which for four scales is more than the 2^3 that it takes.
    shrink = [max(2**scale, scale**2) for scale in range(len(WEIGHTS))]
    scales = sum(side // factor >= kernel_size for factor in shrink)
    weights = np.array(WEIGHTS[:scales]) / sum(WEIGHTS[:scales])
    return SsimSettings(kernel_size, KERNEL_SIGMA * kernel_size / KERNEL_SIZE, tuple(weights.tolist()))


def ms_ssim(volumes_a: np.ndarray, volumes_b: np.ndarray, settings: SsimSettings | None = None) -> np.ndarray:
    """The similarity of volume i of one stack with volume i of the other: float64 `[N]`, 1 for equal volumes.

    The stacks are `[N, D, H, W]` in [-1, 1]; `settings` are by default `settings_for` their shape. As in MONAI, a scale
    whose mean contrast term is negative (structures that are inverted to each other) counts as 0 and makes the whole
    product 0: pairs of noise score 0 about half the time. Raises ValueError for unlike shapes and for values that
    are not finite.
    """
    if volumes_a.shape != volumes_b.shape or volumes_a.ndim != 4:
        raise ValueError(f"two stacks [N, D, H, W] of one shape are wanted; found {volumes_a.shape}, {volumes_b.shape}")
    settings = settings_for(volumes_a.shape[1:]) if settings is None else settings
    device = PartialState().device
    a, b = (
        torch.from_numpy(np.ascontiguousarray(stack, dtype=np.float32))[:, None].to(device)
        for stack in (volumes_a, volumes_b)
    )
    found = compute_ms_ssim(
        a,
        b,
        spatial_dims=3,
        data_range=DATA_RANGE,
        kernel_size=settings.kernel_size,
        kernel_sigma=settings.kernel_sigma,
        weights=settings.weights,
    )[:, 0]
    if not found.isfinite().all():
        raise ValueError("structural similarity: a volume holds NaN or infinity")
    return found.double().cpu().numpy()


def disjoint_pairs(n: int, seed: int) -> np.ndarray:
    """int64 `[n // 2, 2]`: random pairs out of `n` that share no volume, so that they are independent of each other.

    Raises TooFewSamples when there is no pair.
    """
    if n < 2:
        raise TooFewSamples(f"a pair needs 2 volumes, there are {n}")
    return np.random.default_rng(seed).permutation(n)[: n // 2 * 2].reshape(-1, 2)


def diversity(volumes: Volumes, pairs: np.ndarray, batch: int = 16) -> np.ndarray:
    """`ms_ssim` of each of the `pairs` `[P, 2]` of `volumes` (a stack or a set): float64 `[P]`, low where varied.

    It means something only beside the same number for real volumes. `batch` pairs are held in memory at a time.
    """
    values = [
        ms_ssim(*(np.stack([volumes[int(i)] for i in side]) for side in pairs[start : start + batch].T))
        for start in range(0, len(pairs), batch)
    ]
    return np.concatenate(values)
