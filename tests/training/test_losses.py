"""The objective and its regularisers against closed forms."""

import numpy as np
import pytest
import torch

from splitshuffle_gan.training.losses import (
    default_r1_gamma,
    discriminator_loss,
    generator_loss,
    path_lengths,
    r1_penalty,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -x)


def test_the_adversarial_losses_are_mean_log_sigmoids():
    real, fake = 3 * normal(7), 3 * normal(7, seed=1)
    assert generator_loss(fake).item() == pytest.approx(-log_sigmoid(fake.numpy()).mean(), rel=1e-12)
    wanted = -log_sigmoid(real.numpy()).mean() - np.log1p(-1 / (1 + np.exp(-fake.numpy()))).mean()
    assert discriminator_loss(real, fake).item() == pytest.approx(wanted, rel=1e-9)


def test_a_discriminator_that_is_sure_gives_finite_losses_and_a_generator_gradient():
    sure = torch.tensor([200.0], requires_grad=True)
    assert discriminator_loss(sure, -sure).item() == 0
    assert discriminator_loss(-sure, sure).item() == pytest.approx(400)
    loss = generator_loss(-sure)
    assert loss.item() == pytest.approx(200)
    assert torch.autograd.grad(loss, sure)[0].item() == pytest.approx(1)  # non-saturating


@pytest.mark.parametrize("size", [(1, 6, 5), (2, 4, 6, 5)])
def test_r1_of_a_linear_discriminator_is_half_its_squared_norm(size):
    weight = normal(*size, seed=2).requires_grad_()
    images = normal(3, *size).requires_grad_()
    penalty = r1_penalty(images, (images * weight).flatten(1).sum(1))
    assert penalty.item() == pytest.approx(np.square(weight.detach().numpy()).sum() / 2, rel=1e-6)
    assert torch.allclose(torch.autograd.grad(penalty, weight)[0], weight)  # trains the discriminator


def test_r1_sums_all_voxels_of_a_volume_and_averages_over_the_batch():
    images = (normal(4, 2, 3, 5, 6) * torch.arange(1.0, 5).view(4, 1, 1, 1, 1)).requires_grad_()
    logits = images.square().flatten(1).sum(1) / 2  # the gradient is the image
    norms = [np.square(image).sum() for image in images.detach().numpy()]
    assert r1_penalty(images, logits).item() == pytest.approx(np.mean(norms) / 2, rel=1e-6)


@pytest.mark.parametrize("size", [(6, 5), (4, 6, 5)])
def test_path_lengths_of_a_linear_synthesis(size):
    n, num_ws, w_dim, voxels = 3, 4, 7, int(np.prod(size))
    matrix = normal(num_ws * w_dim, voxels, seed=3).requires_grad_()
    ws = normal(n, num_ws, w_dim).requires_grad_()
    images = (ws.flatten(1) @ matrix).view(n, 1, *size)
    probe = normal(n, 1, *size, seed=4)
    lengths = path_lengths(images, ws, probe)
    pulled = probe.flatten(1).numpy() @ matrix.detach().numpy().T / np.sqrt(voxels)
    wanted = np.sqrt(np.square(pulled.reshape(n, num_ws, w_dim)).sum(2).mean(1))
    np.testing.assert_allclose(lengths.detach(), wanted, rtol=1e-5)
    # Lengths scale with the synthesis, so their derivative along its weights is themselves.
    (gradient,) = torch.autograd.grad(lengths.sum(), matrix)
    assert (gradient * matrix).sum().item() == pytest.approx(wanted.sum(), rel=1e-5)


def test_the_default_r1_weight_grows_with_voxels_and_falls_with_the_batch():
    assert default_r1_gamma(256 * 256, 32) == pytest.approx(0.4096)  # StyleGAN2-ADA's own value at 256 x 256
    assert default_r1_gamma(32 * 48 * 32, 8) == pytest.approx(1.2288)
