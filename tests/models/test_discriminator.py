"""What a discriminator promises, at both ranks, on networks of a few thousand weights with random parameters."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from splitshuffle_gan import passes
from splitshuffle_gan.config import CONV_KINDS, DiscriminatorConfig
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.models.discriminator import Discriminator, SpatialReadout, minibatch_std

SHAPE = (8, 16, 8)

# What a file of weights holds: it must not change with the way a layer is computed.
STATE = {
    "from_image.bias": (4,),
    "from_image.conv.weight": (4, 2, 1, 1, 1),
    "blocks.0.conv.bias": (4,),
    "blocks.0.conv.conv.volumetric.weight": (2, 2, 3, 3, 3),
    "blocks.0.conv.conv.planar.weight": (2, 2, 1, 3, 3),
    "blocks.0.shrink.bias": (8,),
    "blocks.0.shrink.conv.volumetric.weight": (4, 2, 3, 3, 3),
    "blocks.0.shrink.conv.planar.weight": (4, 2, 1, 3, 3),
    "blocks.0.skip.weight": (8, 4, 1, 1, 1),
    "conv.bias": (8,),
    "conv.conv.volumetric.weight": (4, 4, 3, 3, 3),
    "conv.conv.planar.weight": (4, 4, 1, 3, 3),
    "readout.weight": (8, 4, 4, 4),
    "dense.weight": (8, 8),
    "dense.bias": (8,),
    "statistic.weight": (8, 8),
    "statistic.bias": (8,),
    "logit.weight": (1, 8),
    "logit.bias": (1,),
}


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def discriminator(rank: int = 3, **values) -> Discriminator:
    """A tiny discriminator with every parameter moved off its initial value."""
    d = Discriminator(DiscriminatorConfig(rank=rank, **{"shape": SHAPE, "channels": (8, 8, 4), **values}))
    with torch.no_grad():
        for parameter in d.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return d


def images(rank: int = 3, samples: int = 4, channels: int = 1) -> torch.Tensor:
    return torch.randn(samples, channels, *SHAPE[3 - rank :])


def r1(d: Discriminator, x: torch.Tensor) -> torch.Tensor:
    (gradient,) = torch.autograd.grad(d(x).sum(), x, create_graph=True)
    return gradient.square().sum()


# Shapes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONV_KINDS)
@pytest.mark.parametrize("rank", [2, 3])
def test_one_logit_per_image(rank, kind):
    d = discriminator(rank, conv=kind, image_channels=2)
    logits = d(images(rank, 3, 2))
    assert logits.shape == (3,) and logits.dtype == torch.float32 and logits.isfinite().all()


@pytest.mark.parametrize("depth_aware", [True, False])
@pytest.mark.parametrize("kind", CONV_KINDS)
def test_keys_are_the_same_at_both_ranks(kind, depth_aware):
    flat, volume = (set(discriminator(rank, conv=kind, depth_aware=depth_aware).state_dict()) for rank in (2, 3))
    assert flat <= volume
    assert all(".axial." in key for key in volume - flat)
    assert bool(volume - flat) == (kind == "separable")


def test_the_state_keeps_its_names_and_shapes():
    d = discriminator(channels=(8, 4), shape=(4, 8, 4))
    assert {name: tuple(value.shape) for name, value in d.state_dict().items()} == STATE


@pytest.mark.parametrize(
    ("rank", "shape"), [(3, (2, 1, 8, 16, 16)), (3, (2, 1, 16, 8)), (3, (2, 2, 8, 16, 8)), (2, (2, 1, 8, 16, 8))]
)
def test_images_of_another_shape_are_refused(rank, shape):
    with pytest.raises(UserError, match=r"images: found shape .* built for \(N, 1, "):
        discriminator(rank)(torch.zeros(shape))


def test_variance_is_kept_from_layer_to_layer():
    """A fresh network neither drowns nor inflates its input: equalised kernels, both branches weighted."""
    torch.manual_seed(3)
    shape = (16, 32, 32)
    d = Discriminator(DiscriminatorConfig(rank=3, shape=shape, channels=(32,) * 4, depth_aware=False))
    scales = []
    for block in d.blocks:
        block.register_forward_hook(lambda _, __, y: scales.append(y.square().mean().sqrt().item()))
    logits = d(torch.randn(4, 1, *shape))
    assert all(0.1 < scale < 4 for scale in scales), scales
    assert logits.abs().max() < 20


def test_a_block_adds_two_branches_of_equal_weight():
    """StyleGAN2's residual block, with its gains written where the paper has them."""

    def biased(layer, x):
        return F.leaky_relu(layer.conv(x) + layer.bias.reshape(-1, 1, 1, 1), 0.2) * 2**0.5

    block = discriminator().blocks[0]
    x = torch.randn(2, 4, *SHAPE)
    branch = biased(block.shrink, F.avg_pool3d(biased(block.conv, x), 2))
    shortcut = F.conv3d(F.avg_pool3d(x, 2), block.skip.weight / 4**0.5)
    torch.testing.assert_close(block(x), (branch + shortcut) / 2**0.5)


# Minibatch standard deviation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "group_size", "group"), [(8, 4, 4), (6, 4, 3), (5, 4, 1), (2, 4, 2), (4, 1, 1), (9, 3, 3)]
)
@pytest.mark.parametrize("rank", [2, 3])
def test_minibatch_std_is_that_of_numpy(samples, group_size, group, rank):
    x = torch.randn(samples, 3, *[4] * rank)
    grouped = x.double().numpy().reshape(samples // group, group, 3, -1)
    expected = np.repeat(grouped.std(axis=1).mean(axis=2), group, axis=0)
    np.testing.assert_allclose(minibatch_std(x, group_size).numpy(), expected, atol=1.1e-4)


def test_a_group_does_not_see_another_group():
    d, x = discriminator(group_size=4), images(samples=8)
    other, same = x.clone(), x.clone()
    other[4:] = torch.randn(4, 1, *SHAPE)
    same[3] = 10 * torch.randn(1, *SHAPE)
    torch.testing.assert_close(d(other)[:4], d(x)[:4])
    assert (d(same)[:3] - d(x)[:3]).abs().max() > 1e-3
    torch.testing.assert_close(d(same)[4:], d(x)[4:])


def test_a_group_of_one_makes_samples_independent():
    d, x = discriminator(group_size=1), images()
    for i in range(4):
        torch.testing.assert_close(d(x[i : i + 1])[0], d(x)[i], atol=1e-5, rtol=1e-5)


# Readout and depth ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(4, 5), (3, 4, 5)])
def test_readout_is_one_weighted_sum_per_channel(grid):
    readout, x = SpatialReadout(2, grid), torch.randn(3, 2, *grid)
    weight = readout.weight.detach().numpy().reshape(2, -1) / np.sqrt(np.prod(grid))
    expected = np.einsum("ncs,cs->nc", x.numpy().reshape(3, 2, -1), weight)
    np.testing.assert_allclose(readout(x).detach().numpy(), expected, atol=1e-5)


def depth_channel(d: Discriminator, x: torch.Tensor, depth: torch.Tensor | None) -> torch.Tensor:
    """What the first layer gets after the image."""
    seen = []
    hook = d.from_image.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    d(x, depth)
    hook.remove()
    assert torch.equal(seen[0][:, :1], x)
    return seen[0][:, 1:]


CENTRES = torch.tensor([-7, -5, -3, -1, 1, 3, 5, 7]) / 8  # of eight slices that fill -1..1


def test_volumes_come_with_a_ramp_over_depth():
    ramp = depth_channel(discriminator(), images(), None)
    torch.testing.assert_close(ramp, CENTRES[:, None, None].expand(4, 1, *SHAPE))
    constant = depth_channel(discriminator(), images(), torch.tensor([0, 2, 4, 7]))
    torch.testing.assert_close(constant, CENTRES[[0, 2, 4, 7], None, None, None, None].expand(4, 1, *SHAPE))


def test_slices_come_with_their_depth():
    depths = torch.tensor([0, 2, 5, 7])
    seen = depth_channel(discriminator(2), images(2), depths)
    torch.testing.assert_close(seen, CENTRES[depths, None, None, None].expand(4, 1, *SHAPE[1:]))
    middle = depth_channel(discriminator(2), images(2), None)
    torch.testing.assert_close(middle, torch.full_like(middle, 1 / 8))


@pytest.mark.parametrize("depth_aware", [True, False])
@pytest.mark.parametrize("rank", [2, 3])
def test_logits_depend_on_depth_only_when_depth_aware(rank, depth_aware):
    d, x = discriminator(rank, depth_aware=depth_aware), images(rank)
    first, last = (d(x, torch.full((4,), depth)) for depth in (0, 7))
    assert torch.equal(first, last) != depth_aware
    if not depth_aware:
        assert depth_channel(d, x, None).shape[1] == 0


# Precision, memory and gradients --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("kind", CONV_KINDS)
def test_bfloat16_is_close_to_float32(kind, rank):
    d, x = discriminator(rank, conv=kind), images(rank, 8)
    exact = d(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = d(x)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("rank", [2, 3])
def test_recomputing_activations_changes_no_gradient(rank):
    d, x = discriminator(rank), images(rank)
    found = []
    for d.checkpoint_above in (None, 8, 0):
        found.append(torch.autograd.grad(d(x).square().sum(), list(d.parameters())))
    for a, b, c in zip(*found, strict=True):
        torch.testing.assert_close(b, a)
        torch.testing.assert_close(c, a)


def r1_gradients(d: Discriminator, x: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(r1(d, x), list(d.parameters()), allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("rank", [2, 3])
def test_r1_gradients_are_right(rank, monkeypatch):
    """Along their own direction equal to a difference quotient, with an activation that has no kink to jump over."""
    monkeypatch.setattr(passes, "activate", F.softplus)
    monkeypatch.setattr(passes, "finish", partial(passes.finish, slope=1.0))
    d, x = discriminator(rank), images(rank).requires_grad_()
    direction = r1_gradients(d, x)
    norm = sum(g.square().sum() for g in direction).sqrt()
    values = []
    for step in (1e-3, -2e-3):
        with torch.no_grad():
            for p, g in zip(d.parameters(), direction, strict=True):
                p += step * g / norm
        values.append(r1(d, x).item())
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(norm.item(), rel=0.02)


@pytest.mark.parametrize("rank", [2, 3])
def test_r1_gradients_survive_recomputing_and_activation_in_place(rank, monkeypatch):
    d, x = discriminator(rank), images(rank).requires_grad_()
    in_place = r1_gradients(d, x)
    d.checkpoint_above = 0
    recomputed = r1_gradients(d, x)
    d.checkpoint_above = None
    monkeypatch.setattr("splitshuffle_gan.passes.activate", lambda x: F.leaky_relu(x, 0.2))
    for a, b, c in zip(r1_gradients(d, x), in_place, recomputed, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(b, a)
        torch.testing.assert_close(c, a)


def test_r1_is_finite_on_black_images():
    """Air around a head: no spread between samples, where the standard deviation has its kink."""
    d, x = discriminator(), torch.full((4, 1, *SHAPE), -1.0, requires_grad=True)
    assert all(gradient.isfinite().all() for gradient in r1_gradients(d, x))
