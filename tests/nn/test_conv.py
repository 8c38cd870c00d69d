"""Every kind of convolution against one dense convolution, assembled by hand or measured with unit impulses."""

import math

import pytest
import torch
import torch.nn.functional as F

from splitshuffle_gan.config import CONV_KINDS
from splitshuffle_gan.nn.conv import Kernel, Linear, PlainConv, SeparableConv, SplitShuffleConv, make_conv


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


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("kind", CONV_KINDS)
def test_a_conv_is_the_dense_convolution_of_its_impulse_response(kind, rank):
    conv = make_conv(kind, rank, 6, 4)
    x = torch.randn(2, 6, *[5, 4, 6][3 - rank :])
    torch.testing.assert_close(conv(x), dense_conv(x, impulse_response(conv, 6, rank)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("kind", CONV_KINDS)
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
    assert [type(make_conv(kind, 3, 4, 4)) for kind in CONV_KINDS] == [SplitShuffleConv, PlainConv, SeparableConv]


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
