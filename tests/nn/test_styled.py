"""Styled layers against StyleGAN2's own formulation: weights scaled per sample, demodulated, grouped convolution."""

import math

import pytest
import torch
import torch.nn.functional as F

from splitshuffle_gan.config import CONV_KINDS, GeneratorConfig
from splitshuffle_gan.nn.styled import StyledConv, ToImage
from splitshuffle_gan.passes import activate

SHAPE, CHANNELS, W_DIM = (8, 16, 8), (8, 6, 4), 5


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def config(rank: int, **values) -> GeneratorConfig:
    return GeneratorConfig(rank=rank, shape=SHAPE, channels=CHANNELS, w_dim=W_DIM, **values)


def layer(rank: int, grow: bool = False, **values) -> StyledConv:
    """A layer of the finest level with random parameters, noise and demodulation gains."""
    module = StyledConv(config(rank, **values), 2, CHANNELS[1] if grow else CHANNELS[2], CHANNELS[2], grow)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        module.demod_gain.uniform_(0.5, 2)
    return module


def dense_kernel(conv: torch.nn.Module, channels: int, rank: int) -> torch.Tensor:
    """`[out, in, 3, 3(, 3)]` from the answer to one impulse per channel."""
    impulses = torch.zeros(channels, channels, *[5] * rank)
    impulses[(range(channels), range(channels), *[2] * rank)] = 1
    return conv(impulses)[(..., *[slice(1, 4)] * rank)].flip(tuple(range(2, 2 + rank))).transpose(0, 1)


def grouped_modulated_conv(x, w, module):
    """StyleGAN2 (arXiv 1912.04958), equations 1 to 3, as published: one kernel per sample."""
    rank, (samples, channels) = x.ndim - 2, x.shape[:2]
    styles = w @ module.affine.weight.T / math.sqrt(W_DIM) + module.affine.bias
    weight = dense_kernel(module.conv, channels, rank)[None] * styles.reshape(samples, 1, channels, *[1] * rank)
    norm = (weight.flatten(2).square().sum(2) + 1e-8).sqrt()
    weight = weight / norm.reshape(*norm.shape, *[1] * (rank + 1))
    if rank == 3:
        x = torch.cat((x[:, :, :1], x, x[:, :, -1:]), dim=2)
    padding = (0, 1, 1) if rank == 3 else 1
    convolve = F.conv3d if rank == 3 else F.conv2d
    y = convolve(x.flatten(0, 1)[None], weight.flatten(0, 1), groups=samples, padding=padding)
    return y.unflatten(1, (samples, -1))[0]


def per_plane(values: torch.Tensor, rank: int, depth: torch.Tensor | None):
    """A table `[C, T]` at every depth of the finest level, or at each sample's depth, ready to be added."""
    full = values.repeat_interleave(SHAPE[0] // values.shape[1], dim=1)
    return full[None, :, :, None, None] if rank == 3 else full.T[depth][:, :, None, None]


# StyledConv -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("depth_upsample", ["nearest", "linear"])
@pytest.mark.parametrize("grow", [False, True])
@pytest.mark.parametrize(
    ("kind", "rank"), [(kind, rank) for kind in CONV_KINDS for rank in (2, 3) if (kind, rank) != ("cross_d", 2)]
)
def test_a_styled_conv_is_the_grouped_convolution_of_stylegan2(kind, rank, grow, depth_upsample, samples):
    module = layer(rank, grow, conv=kind, depth_upsample=depth_upsample)
    grid = (4, 8, 4) if grow else SHAPE
    x, w = torch.randn(samples, CHANNELS[1] if grow else CHANNELS[2], *grid[3 - rank :]), torch.randn(samples, W_DIM)
    depth = torch.tensor([0, 3, 7])[-samples:] if rank == 2 else None

    y = grouped_modulated_conv(x, w, module) * module.demod_gain.reshape(-1, *[1] * rank)
    if grow and rank == 3 and depth_upsample == "nearest":
        planes = y.movedim(2, 1).flatten(0, 1)
        y = F.interpolate(planes, scale_factor=2, mode="bilinear").unflatten(0, (samples, -1)).movedim(1, 2)
        y = y.repeat_interleave(2, dim=2)
    elif grow:
        y = F.interpolate(y, scale_factor=2, mode="bilinear" if rank == 2 else "trilinear")
    y = y + per_plane(module.bias, rank, depth)
    noise = module.noise_const[None] if rank == 3 else module.noise_const[0, depth][:, None]
    expected = F.leaky_relu(y + module.noise_strength * noise, 0.2) * math.sqrt(2)
    torch.testing.assert_close(module(x, w, depth, "const"), expected, atol=2e-5, rtol=1e-5)


def trained(module: StyledConv) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, value) for name, value in module.named_parameters() if value.requires_grad]


def outcome(module: StyledConv, x: torch.Tensor, w: torch.Tensor, depth: torch.Tensor | None) -> list[torch.Tensor]:
    """Output; gradients of `x` and `w`; gradients of the parameters that are trained."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = module(x, w, depth, "const")
    leaves = [x, w, *(value for _, value in trained(module))]
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), leaves)]


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("grow", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("kind", CONV_KINDS)
def test_one_sample_is_a_row_of_a_batch(kind, rank, grow, noise):
    """Alone, its style is on the kernel; among others, on the activations. Gradients of parameters add up."""
    module = layer(rank, grow, conv=kind, noise=noise)
    grid = (4, 8, 4) if grow else SHAPE
    x, w = torch.randn(2, CHANNELS[1] if grow else CHANNELS[2], *grid[3 - rank :]), torch.randn(2, W_DIM)
    depth = torch.tensor([2, 5]) if rank == 2 else None
    rows = [(x[i : i + 1], w[i : i + 1], None if depth is None else depth[i : i + 1]) for i in range(2)]
    both, (first, second) = outcome(module, x, w, depth), (outcome(module, *row) for row in rows)
    for i, (a, b, c) in enumerate(zip(both, first, second, strict=True)):
        alone = torch.cat((b, c)) if i < 3 else b + c
        torch.testing.assert_close(alone, a, rtol=0, atol=1e-5 * max(1.0, a.abs().max().item()))


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("grow", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("kind", CONV_KINDS)
def test_bfloat16_is_close_to_float32(kind, rank, grow, samples):
    module = layer(rank, grow, conv=kind)
    grid = (4, 8, 4) if grow else SHAPE
    x, w = torch.randn(samples, CHANNELS[1] if grow else CHANNELS[2], *grid[3 - rank :]), torch.randn(samples, W_DIM)
    depth = torch.arange(samples) if rank == 2 else None
    exact, rounded = outcome(module, x, w, depth), outcome(module, x.bfloat16(), w, depth)
    assert rounded[0].dtype == rounded[1].dtype == torch.bfloat16
    names = ["output", "x", "w", *(name for name, _ in trained(module))]
    for name, a, b in zip(names, rounded, exact, strict=True):
        # Demodulation takes back what a style gives: the gradient of styles is a small difference of large sums. So is
        # that of a kernel with two weights per output, whose norm demodulation takes back.
        if name != "w" and not name.startswith("affine.") and (kind, name) != ("split_pointwise", "conv.planar.weight"):
            assert (a - b).norm() < 0.05 * b.norm(), name


@pytest.mark.parametrize("kind", CONV_KINDS)
def test_demodulation_gives_unit_variance_whatever_the_style(kind):
    shape = (16, 32, 32)
    module = StyledConv(
        GeneratorConfig(rank=3, shape=shape, channels=(8, 8, 8, 8), w_dim=W_DIM, conv=kind), 3, 8, 8, grow=False
    )
    y = module(torch.randn(4, 8, *shape), 30 * torch.randn(4, W_DIM), None, "none")
    before = torch.where(y < 0, y / 0.2, y)[..., 1:-1, 1:-1] / math.sqrt(2)  # the zero-padded border has less
    # Separable kernels add correlated planes at the repeated end slices, so the border in depth is left out too.
    variance = before[:, :, 2:-2].var((2, 3, 4))
    torch.testing.assert_close(variance, torch.ones_like(variance), atol=0.12, rtol=0)


def test_a_style_scale_cancels():
    module = layer(3)
    x, w = torch.randn(2, CHANNELS[2], *SHAPE), torch.randn(2, W_DIM)
    before = module(x, w, None, "none")
    with torch.no_grad():
        module.affine.weight *= 7
        module.affine.bias *= 7
    torch.testing.assert_close(module(x, w, None, "none"), before, atol=1e-5, rtol=1e-5)


def test_noise_modes():
    module, x, w = layer(3), torch.zeros(2, CHANNELS[2], *SHAPE), torch.zeros(2, W_DIM)
    with torch.no_grad():
        module.bias.fill_(10)  # far from the kink: the layer is linear there
    none, const, random = (module(x, w, None, mode) for mode in ("none", "const", "random"))
    strength = module.noise_strength * math.sqrt(2)
    added = (const - none) / strength
    torch.testing.assert_close(added, module.noise_const.expand_as(added), atol=1e-4, rtol=1e-4)
    added = (random - none) / strength
    torch.testing.assert_close(added, added[:, :1].expand_as(added), atol=1e-4, rtol=1e-4)  # one map for all channels
    assert added[:, 0].std().item() == pytest.approx(1, abs=0.1)
    assert not torch.allclose(added[0], added[1])


def test_constant_noise_is_the_same_in_every_process_and_differs_between_layers():
    noises = [StyledConv(config(3), 2, 4, 4, grow).noise_const for grow in (True, False, False)]
    assert torch.equal(noises[1], noises[2]) and not torch.equal(noises[0], noises[1])
    assert torch.equal(StyledConv(config(2), 2, 4, 4, False).noise_const, noises[1])  # a slice sees its slice of it


def test_without_noise_there_is_no_parameter_for_it():
    module = layer(3, noise=False)
    x, w = torch.randn(1, CHANNELS[2], *SHAPE), torch.randn(1, W_DIM)
    assert not hasattr(module, "noise_strength")
    assert torch.equal(module(x, w, None, "random"), module(x, w, None, "none"))


@pytest.mark.parametrize(("depth_aware", "rows"), [(True, 8), (False, 1)])
@pytest.mark.parametrize("rank", [2, 3])
def test_biases_are_tables_over_depth_only_when_depth_aware(rank, depth_aware, rows):
    assert StyledConv(config(rank, depth_aware=depth_aware), 2, 4, 4, False).bias.shape == (4, rows)
    assert ToImage(config(rank, depth_aware=depth_aware), 2).bias.shape == (1, rows)


# ToImage and activation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 3])
def test_to_image_is_a_style_weighted_sum_of_channels(rank):
    module = ToImage(config(rank, image_channels=2), 2)
    with torch.no_grad():
        module.bias.normal_()
    x, w = torch.randn(3, CHANNELS[2], *SHAPE[3 - rank :]), torch.randn(3, W_DIM)
    depth = torch.tensor([1, 4, 6]) if rank == 2 else None
    styles = w @ module.affine.weight.T / math.sqrt(W_DIM) + 1
    weight = module.kernel.weight.flatten(1) / math.sqrt(CHANNELS[2])
    expected = torch.einsum("oc,nc,nc...->no...", weight, styles, x) + per_plane(module.bias, rank, depth)
    torch.testing.assert_close(module(x, w, depth), expected)
    assert module(x.bfloat16(), w, depth).dtype == torch.float32


def test_activation_is_a_leaky_relu_of_slope_a_fifth():
    assert activate(torch.tensor([-2.0, 0.0, 3.0])).tolist() == pytest.approx([-0.4, 0, 3])
