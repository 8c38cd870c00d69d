"""Random changes of images together with their label maps or heat maps, true in mm."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from splitshuffle_gan.training.augment import AugmentConfig, augment, resample, sampling_affine


def augment_pairs(
    images: Tensor,
    targets: Tensor,
    count: int,
    config: AugmentConfig,
    p: float,
    generator: torch.Generator,
    spacing: tuple[float, ...],
) -> tuple[Tensor, Tensor]:
    """Images `[N, C, *S]` and what belongs to them, `[N, 1, *S]`, each sample changed with probability p.

    Flip, in-plane rotation, zoom and shift move both alike. Heat maps, float32, are interpolated linearly as the images
    are; so is each class, int64 below `count`, by itself, and a voxel gets the one that weighs most. Then the images
    alone change in contrast and noise, each transform with probability p. `spacing` is mm, in array order; `generator`
    is on the CPU. Strengths: see `AugmentConfig`.
    """
    rows = torch.nonzero(torch.rand(len(images), generator=generator) < p).squeeze(1)
    if len(rows):
        linear, offset = (t.to(images.device) for t in _affine(len(rows), images.shape[2:], config, generator, spacing))
        rows = rows.to(images.device)
        images = images.index_copy(0, rows, resample(images[rows], linear, offset))
        if targets.is_floating_point():
            moved = resample(targets[rows], linear, offset)
        else:
            one_hot = F.one_hot(targets[rows, 0], count).movedim(-1, 1).float()
            moved = resample(one_hot, linear, offset).argmax(1, keepdim=True)
        targets = targets.index_copy(0, rows, moved)
    still = replace(config, flip_lr=False, translate=0.0, translate_depth=0.0, rotate=0.0, scale=0.0)
    return augment(images, p, still, generator, spacing), targets


def _affine(
    n: int, size: torch.Size, config: AugmentConfig, generator: torch.Generator, spacing: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Where to read `n` samples, as `sampling_affine` has it."""

    def symmetric(largest: float) -> Tensor:
        return largest * (2 * torch.rand(n, generator=generator) - 1)

    shares = (config.translate_depth, config.translate, config.translate)[-len(size) :]
    shift = torch.stack([symmetric(share * length).round() for share, length in zip(shares, size, strict=True)], dim=1)
    flip = (torch.rand(n, generator=generator) < 0.5).float() * config.flip_lr
    zoom = config.scale * torch.randn(n, generator=generator)
    return sampling_affine(flip, zoom, symmetric(config.rotate), shift, size, spacing)
