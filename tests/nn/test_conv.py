"""Every kind of convolution against one dense convolution, assembled by hand or measured with unit impulses."""

import math

import pytest
import torch
import torch.nn.functional as F

from splitshuffle_gan.config import CONV_KINDS
from splitshuffle_gan.layout import channels_last
from splitshuffle_gan.nn.conv import (
    CrossDKernel,
    Kernel,
    Linear,
    PlainConv,
    SeparableConv,
    SplitShuffleConv,
    make_conv,
)
from splitshuffle_gan.nn.cross_d import moved_kernels

# In slices a Cross-D convolution chooses its kernel by what it sees.
LINEAR = [(kind, rank) for kind in CONV_KINDS for rank in (2, 3) if (kind, rank) != ("cross_d", 2)]


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def dense_conv(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """3 x 3 (x 3) convolution; depth repeats its end slices, planes are padded with zeros."""
    if x.ndim == 4:
        return F.conv2d(x, weight, padding=1)
    padded = torch.cat((x[:, :, :1], x, x[:, :, -1:]), dim=2)
    return F.conv3d(padded, weight, padding=(0, 1, 1))


def impulse_response(conv: torch.nn.Module, channels: int, rank: int) -> torch.Tensor:
    """The dense kernel of `conv`, `[out, in, 3, 3(, 3)]`, from its answer to one impulse per channel."""
    impulses = torch.zeros(channels, channels, *[5] * rank)
    impulses[(range(channels), range(channels), *[2] * rank)] = 1
    response = conv(impulses)
    grid = tuple(range(2, 2 + rank))
    assert response.abs().sum(grid).sub(response[(..., *[slice(1, 4)] * rank)].abs().sum(grid)).abs().max() < 1e-5
    return response[(..., *[slice(1, 4)] * rank)].flip(grid).transpose(0, 1)


# Split&Shuffle --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 3])
def test_split_shuffle_is_a_structured_dense_convolution(rank):
    inputs, outputs = 6, 4
    conv = SplitShuffleConv(rank, inputs, outputs)
    volumetric = conv.volumetric.weight / math.sqrt(inputs / 2 * 3**rank)
    planar = conv.planar.weight / math.sqrt(inputs / 2 * 9)
    dense = torch.zeros(outputs, inputs, *[3] * rank)
    for i in range(outputs // 2):
        dense[2 * i, : inputs // 2] = volumetric[i]  # the shuffle: halves alternate in the output
        if rank == 3:
            dense[2 * i + 1, inputs // 2 :, 1] = planar[i, :, 0]
        else:
            dense[2 * i + 1, inputs // 2 :] = planar[i]
    x = torch.randn(2, inputs, 4, 5, 6)
    x = x if rank == 3 else x[:, :, 0]
    torch.testing.assert_close(conv(x), dense_conv(x, dense))


def simple_split_shuffle(conv, x, gain=1.0, scale=None, bias=None, modulation=None):
    """Chunk, pad, convolve, concatenate, shuffle; the style and the demodulation on the activations."""
    rank, ones = x.ndim - 2, [1] * (x.ndim - 2)
    for factor in (scale, None if modulation is None else modulation[0][None]):
        x = x if factor is None else x * factor.reshape(*factor.shape, *ones)
    volumetric, planar = x.chunk(2, dim=1)
    if rank == 3:
        a = F.pad(volumetric, (0, 0, 0, 0, 1, 1), mode="replicate")
        a = F.conv3d(a, conv.volumetric.weight * conv.volumetric.gain, padding=(0, 1, 1))
        b = F.conv3d(planar, conv.planar.weight * conv.planar.gain, padding=(0, 1, 1))
    else:
        a = F.conv2d(volumetric, conv.volumetric.weight * conv.volumetric.gain, padding=1)
        b = F.conv2d(planar, conv.planar.weight * conv.planar.gain, padding=1)
    y = F.channel_shuffle(torch.cat((a, b), dim=1), 2) * gain
    y = y if modulation is None else y * modulation[1].reshape(-1, *ones)
    return y if bias is None else y + bias.reshape(-1, *ones)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("argument", ["none", "bias", "scale", "modulation"])
@pytest.mark.parametrize("grid", [(4, 5, 6), (1, 5, 6), (5, 6)])
def test_split_shuffle_is_its_simple_formulation(grid, argument, layout):
    """Output, gradients, and the gradients of a penalty on the input's gradient, as R1 is."""
    conv = SplitShuffleConv(len(grid), 6, 4)
    layout = torch.contiguous_format if layout == "contiguous" else channels_last(len(grid) + 2)
    for samples in (1, 3):
        x = torch.randn(samples, 6, *grid).contiguous(memory_format=layout).requires_grad_()
        values = {
            "none": (),
            "bias": (torch.randn(4),),
            "scale": (torch.randn(samples, 6),),
            "modulation": (torch.randn(6), torch.randn(4)),
        }[argument]
        values = [value.requires_grad_() for value in values]
        named = {argument: tuple(values) if argument == "modulation" else values[0]} if values else {}
        leaves, probe, found = [x, *conv.parameters(), *values], torch.randn(samples, 4, *grid), []
        for y in (conv(x, 1.5, **named), simple_split_shuffle(conv, x, 1.5, **named)):
            first = torch.autograd.grad(y, leaves, probe, retain_graph=True)
            (slope,) = torch.autograd.grad(y, x, probe, create_graph=True)
            penalty = slope.square().sum()
            second = torch.autograd.grad(penalty, leaves, allow_unused=True, materialize_grads=True)
            found.append([y, *first, *second])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("kind", CONV_KINDS)
def test_modulation_of_the_kernel_is_scaling_of_the_activations(kind, rank):
    conv, x = make_conv(kind, rank, 6, 4), torch.randn(2, 6, *[4] * rank)
    rows, columns, bias = torch.randn(6), torch.randn(4), torch.randn(4)
    unit = [1] * rank
    expected = conv(x, 1.5, scale=rows.expand(2, -1)) * columns.reshape(-1, *unit) + bias.reshape(-1, *unit)
    torch.testing.assert_close(conv(x, 1.5, bias=bias, modulation=(rows, columns)), expected, atol=1e-5, rtol=1e-5)
    if (kind, rank) not in LINEAR:
        return  # the head would see other activations
    by_hand = 1.5 * conv(x * rows.reshape(-1, *unit)) * columns.reshape(-1, *unit) + bias.reshape(-1, *unit)
    torch.testing.assert_close(expected, by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [2, 3])
def test_split_shuffle_in_bfloat16_is_close(rank):
    conv, x, scale = SplitShuffleConv(rank, 8, 8), torch.randn(2, 8, *[6] * rank), torch.randn(2, 8)
    exact, rounded = conv(x, scale=scale), conv(x.bfloat16(), scale=scale)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_two_split_shuffle_layers_mix_all_channels():
    first, second = SplitShuffleConv(3, 8, 8), SplitShuffleConv(3, 8, 8)
    reach = (second.output_energy(first.output_energy(torch.eye(8))) > 0).all(0)
    one_layer = (first.output_energy(torch.eye(8)) > 0).all(0)
    assert reach.all() and not one_layer.any()


@pytest.mark.parametrize(
    ("kind", "rank", "per_square"),
    [
        ("split_shuffle", 3, 9),
        ("plain", 3, 27),
        ("separable", 3, 12),
        ("split_shuffle", 2, 4.5),
        ("plain", 2, 9),
        ("separable", 2, 9),
    ],
)
def test_weight_counts(kind, rank, per_square):
    channels = 8
    conv = make_conv(kind, rank, channels, channels)
    assert sum(p.numel() for p in conv.parameters()) == per_square * channels**2


# All kinds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "rank"), LINEAR)
def test_a_conv_is_the_dense_convolution_of_its_impulse_response(kind, rank):
    conv = make_conv(kind, rank, 6, 4)
    x = torch.randn(2, 6, *[5, 4, 6][3 - rank :])
    torch.testing.assert_close(conv(x), dense_conv(x, impulse_response(conv, 6, rank)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "rank"), LINEAR)
def test_output_energy_is_the_norm_of_the_scaled_dense_kernel(kind, rank):
    conv = make_conv(kind, rank, 6, 4)
    scales = torch.randn(3, 6)
    dense = impulse_response(conv, 6, rank).flatten(2)
    expected = torch.stack([(dense * s[None, :, None]).square().sum((1, 2)) for s in scales])
    torch.testing.assert_close(conv.output_energy(scales.square()), expected)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("kind", CONV_KINDS)
def test_gain_multiplies_the_output(kind, rank):
    conv, x = make_conv(kind, rank, 4, 4), torch.randn(1, 4, *[4] * rank)
    torch.testing.assert_close(conv(x, 3.0), 3 * conv(x))


def test_kinds():
    made = {kind: make_conv(kind, 3, 4, 6) for kind in CONV_KINDS}
    types = {"split_shuffle": SplitShuffleConv, "plain": PlainConv, "separable": SeparableConv, "cross_d": CrossDKernel}
    assert {kind: type(conv) for kind, conv in made.items()} == {**types, "split_pointwise": SplitShuffleConv}
    assert made["split_shuffle"].planar.weight.shape == (3, 2, 1, 3, 3)
    assert made["split_pointwise"].planar.weight.shape == (3, 2, 1, 1, 1)


def test_equalised_learning_rate_keeps_unit_variance_whatever_the_width():
    for channels, size in ((2, (3, 3, 3)), (64, (3, 3)), (16, (1, 1, 1))):
        kernel = Kernel(256, channels, size)
        assert kernel.weight.std().item() == pytest.approx(1, rel=0.05)
        energy = kernel.effective().square().flatten(1).sum(1)
        assert energy.mean().item() == pytest.approx(1, rel=0.1)


# Linear ---------------------------------------------------------------------------------------------------------------


def test_linear_scales_weight_and_bias():
    layer = Linear(4, 3, bias=1.0, lr_multiplier=0.01)
    x = torch.randn(5, 4)
    expected = x @ layer.weight.T * (0.01 / 2) + 1.0
    torch.testing.assert_close(layer(x), expected)
    assert Linear(64, 256, lr_multiplier=0.01).weight.std().item() == pytest.approx(100, rel=0.05)


def test_linear_is_float32_under_autocast():
    layer, x = Linear(64, 8), torch.randn(2, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.bfloat16())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, layer(x.bfloat16().float()))


# Cross-D --------------------------------------------------------------------------------------------------------------


def test_cross_d_in_2d_is_each_samples_turned_middle_slice():
    conv, x, scale = make_conv("cross_d", 2, 6, 4), torch.randn(3, 6, 5, 7), torch.randn(3, 6)
    axis, angle = conv.head(x)
    assert angle.abs().min() > 1e-4 and (axis[0] - axis[1]).abs().max() > 1e-3  # else this would show little
    turned = moved_kernels(conv.weight, axis, angle, "rotation")[:, :, :, 1] / math.sqrt(6 * 9)
    rows = [F.conv2d(x[i : i + 1] * scale[i, :, None, None], turned[i], padding=1) for i in range(3)]
    torch.testing.assert_close(conv(x, scale=scale), torch.cat(rows), atol=1e-5, rtol=1e-5)


def test_cross_d_keeps_its_weights_and_its_scale_from_2d_to_3d():
    flat, solid = make_conv("cross_d", 2, 32, 64), make_conv("cross_d", 3, 32, 64)
    solid.load_state_dict(flat.state_dict())
    image, volume = torch.randn(4, 32, 12, 12), torch.randn(2, 32, 8, 12, 12)
    inner = flat(image)[..., 1:-1, 1:-1].std(), solid(volume)[:, :, 1:-1, 1:-1, 1:-1].std()
    torch.testing.assert_close(*inner, atol=0.05, rtol=0)
    assert inner[1].item() == pytest.approx(1, abs=0.05)
    ones = torch.ones(1, 32)
    torch.testing.assert_close(flat.output_energy(ones), solid.output_energy(ones))


def test_cross_d_trains_its_head_in_2d_only():
    for rank in (2, 3):
        conv = make_conv("cross_d", rank, 4, 4)
        conv(torch.randn(2, 4, *[6] * rank)).square().sum().backward()
        assert conv.weight.grad.abs().amin((0, 1)).min() > 0  # all 27 values of a kernel
        assert all((p.grad is not None) == p.requires_grad == (rank == 2) for p in conv.head.parameters())


def test_cross_d_twice_differentiated():
    conv = make_conv("cross_d", 2, 3, 4).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: conv(x).sum(), (x,))
