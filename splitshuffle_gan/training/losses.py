"""The adversarial objective and its regularisers. No I/O, no networks: tensors in, tensors out."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating loss (arXiv 1406.2661): `[N]` logits of generated images -> mean of -log sigmoid."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Logistic loss: mean of -log sigmoid(real) plus mean of -log(1 - sigmoid(fake))."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def r1_penalty(real_images: Tensor, real_logits: Tensor) -> Tensor:
    """Half the mean squared gradient norm of the logits at real images (arXiv 1801.04406, equation 9, gamma = 1).

    `real_images` [N, C, *S] must require gradients and have produced `real_logits` [N].
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    return gradient.float().square().flatten(1).sum(1).mean() / 2


def path_lengths(images: Tensor, ws: Tensor, probe: Tensor) -> Tensor:
    """Norm of J_w^T y per sample (arXiv 1912.04958, equation 4): `[N]`.

    `probe` is unit normal noise shaped as `images`; `ws` [N, num_ws, w_dim] requires gradients.
    """
    scaled = (images * probe).sum() / math.sqrt(math.prod(images.shape[2:]))
    (gradient,) = torch.autograd.grad(scaled, ws, create_graph=True)
    return gradient.float().square().sum(2).mean(1).sqrt()


def default_r1_gamma(voxels: int, batch_size: int) -> float:
    """StyleGAN2-ADA's rule (arXiv 2006.06676, appendix C), 0.0002 pixels / batch, with voxels for pixels."""
    return 2e-4 * voxels / batch_size
