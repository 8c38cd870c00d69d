"""Arithmetic counted against closed forms and against PyTorch's own counter; time told apart by operation."""

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from splitshuffle_gan.benchmark.cases import Bare, Place, make_networks
from splitshuffle_gan.benchmark.operations import Operations, operations_of
from splitshuffle_gan.nn.conv import make_conv

CPU = torch.device("cpu")
WEIGHTS = {"plain": 27, "split_shuffle": 9, "separable": 12}  # per C^2, from the description of the convolutions


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_convolutions_cost_what_the_formula_says(kind, dtype):
    shape = (2, 8, 4, 6, 8)
    voxels, place = 2 * 4 * 6 * 8, Place(CPU, dtype)
    expected = 2 * WEIGHTS[kind] * 8 * 8 * voxels
    bare = Bare(kind, shape, place)
    assert bare.flop == expected
    assert operations_of(bare.forward, CPU).convolution_flop == expected
    assert operations_of(bare.training, CPU).convolution_flop == 3 * expected
    module, x = make_conv(kind, 3, 8, 8), place.random(*shape)
    with torch.no_grad():
        assert operations_of(lambda: module(x), CPU).convolution_flop == expected


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_generator_costs_the_sum_of_its_layers(kind):
    channels, grids = (8, 6, 4), ((4, 4, 4), (8, 8, 8), (16, 16, 16))
    generator, _ = make_networks(kind, (16, 16, 16), {"channels": channels})
    kernels = {
        "plain": lambda i, o: 27 * i * o,
        "split_shuffle": lambda i, o: (27 + 9) * (i // 2) * (o // 2),
        "separable": lambda i, o: 9 * i * o + 3 * o * o,
    }[kind]
    multiplications = 0
    for level, grid in enumerate(grids):
        multiplications += kernels(channels[level], channels[level]) * torch.Size(grid).numel()
        if level:  # before it grows
            multiplications += kernels(channels[level - 1], channels[level]) * torch.Size(grids[level - 1]).numel()
    z = torch.randn(3, generator.z_dim)
    with torch.no_grad():
        assert operations_of(lambda: generator(z), CPU).convolution_flop == 2 * 3 * multiplications


def test_the_count_is_that_of_torch():
    _, discriminator = make_networks("split_shuffle", (8, 8, 8), {"channels": [8, 8]})
    images = torch.randn(2, 1, 8, 8, 8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        discriminator(images)
    counts = counter.get_flop_counts()["Global"]
    with torch.no_grad():
        found = operations_of(lambda: discriminator(images), CPU).convolution_flop
    assert found == sum(count for operation, count in counts.items() if "conv" in str(operation)) > 0


def test_time_goes_to_convolutions_or_to_the_rest():
    x, weight = torch.randn(1, 8, 8, 8, 8), torch.randn(8, 8, 3, 3, 3)
    start = time.perf_counter()
    with Operations() as convolving:
        torch.conv3d(x, weight)
    with Operations() as rest:
        (x * 2).sum()
    elapsed = 1e3 * (time.perf_counter() - start)
    assert convolving.convolution_ms > 0 and convolving.other_ms == 0
    assert rest.convolution_ms == rest.convolution_flop == 0 < rest.other_ms
    assert convolving.convolution_ms + rest.other_ms < elapsed


def test_gradients_of_gradients_are_counted():
    x, weight = torch.randn(1, 4, 6, 6, 6, requires_grad=True), torch.randn(4, 4, 3, 3, 3, requires_grad=True)

    def penalty() -> None:
        (gradient,) = torch.autograd.grad(torch.conv3d(x, weight, padding=1).sum(), x, create_graph=True)
        torch.autograd.grad(gradient.square().sum(), weight)

    once = 2 * 27 * 4 * 4 * 6**3
    # Forward, gradient of x, and the derivative of that gradient by the kernel.
    assert operations_of(penalty, CPU).convolution_flop >= 3 * once
