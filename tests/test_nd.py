"""Every operation against its closed form, written with plain indexing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from splitshuffle_gan import nd, resize


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# conv -----------------------------------------------------------------------------------------------------------------


SIZES = [(3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 1, 1), (5, 3, 3)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_conv_pads_planes_with_zeros_and_nothing_over_depth(size, with_bias):
    x, weight = normal(2, 3, 6, 5, 6), normal(4, 3, *size, seed=1)
    bias = normal(4, seed=2) if with_bias else None
    expected = F.conv3d(F.pad(x, [size[2] // 2] * 2 + [size[1] // 2] * 2), weight, bias)
    assert expected.shape == (2, 4, 7 - size[0], 5, 6)
    torch.testing.assert_close(nd.conv(x, weight, bias), expected)


@pytest.mark.parametrize("size", SIZES)
def test_a_branch_repeats_end_slices_so_that_the_convolution_keeps_the_grid(size):
    x, weight = normal(2, 3, 4, 5, 6), normal(4, 3, *size, seed=1)
    border = size[0] // 2
    padded = torch.cat([x[:, :, :1]] * border + [x] + [x[:, :, -1:]] * border, dim=2)
    (branch,) = nd.branches(x, None, (weight,))
    assert torch.equal(branch, padded)
    assert nd.conv(branch, weight).shape == (2, 4, 4, 5, 6)


def test_every_branch_is_scaled_and_padded_for_its_own_kernel():
    x, scale = normal(2, 6, 4, 5, 6), normal(2, 6, seed=1)
    kernels = normal(4, 3, 3, 3, 3), normal(4, 3, 1, 3, 3)
    volumetric, planar = nd.branches(x, scale, kernels)
    scaled = x * scale[:, :, None, None, None]
    torch.testing.assert_close(volumetric[:, :, 1:-1], scaled[:, :3])
    torch.testing.assert_close(planar, scaled[:, 3:])
    assert volumetric.shape[2] == 6


@pytest.mark.parametrize("size", [1, 3])
def test_conv_at_rank_2_is_the_zero_padded_convolution(size):
    x, weight, bias = normal(2, 3, 5, 6), normal(4, 3, size, size, seed=1), normal(4, seed=2)
    expected = F.conv2d(F.pad(x, [size // 2] * 4), weight, bias)
    torch.testing.assert_close(nd.conv(*nd.branches(x, None, (weight,)), weight, bias), expected)


def test_conv_of_a_depth_constant_volume_is_the_slice_convolution_with_the_summed_kernel():
    x, weight = normal(1, 2, 5, 6), normal(2, 2, 3, 3, 3, seed=1)
    volume = nd.conv(*nd.branches(x[:, :, None].expand(-1, -1, 4, -1, -1), None, (weight,)), weight)
    for depth in range(4):
        torch.testing.assert_close(volume[:, :, depth], F.conv2d(x, weight.sum(2), padding=1))


def test_conv_computes_in_the_dtype_of_the_activations():
    y = nd.conv(normal(1, 2, 4, 4).bfloat16(), normal(2, 2, 3, 3), normal(2))
    assert y.dtype == torch.bfloat16


# Resampling -----------------------------------------------------------------------------------------------------------


def along(x: torch.Tensor, axis: int, function) -> torch.Tensor:
    """`function` of the list of slices along `axis`, stacked again."""
    return torch.stack(function(x.unbind(axis)), dim=axis)


def fir_doubled(slices):
    """Zero insertion and [1 3 3 1] / 4, with repeated ends."""
    last, doubled = len(slices) - 1, []
    for i, here in enumerate(slices):
        doubled += [(slices[max(i - 1, 0)] + 3 * here) / 4, (3 * here + slices[min(i + 1, last)]) / 4]
    return doubled


def repeated(slices):
    return [s for s in slices for _ in range(2)]


factors3 = st.tuples(*[st.sampled_from([1, 2])] * 3)


@settings(max_examples=20, deadline=None)
@given(factors=factors3, rank=st.sampled_from([2, 3]), mode=st.sampled_from(["linear", "nearest"]))
def test_upsample_is_the_fir_filter_or_repeats_slices(factors, rank, mode):
    factors, x = factors[3 - rank :], normal(2, 3, 4, 3, 5)
    x = x if rank == 3 else x[:, :, 0]
    expected = x
    for axis, factor in enumerate(factors, start=2):
        if factor == 2:
            through_plane = rank == 3 and axis == 2
            expected = along(expected, axis, repeated if through_plane and mode == "nearest" else fir_doubled)
    torch.testing.assert_close(nd.upsample(x, factors, mode), expected)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 2), (2, 1, 1), (1, 1, 1)])
def test_constants_survive_resampling_up_to_the_border(factors, mode):
    x = torch.full((1, 2, 4, 4, 6), 0.7)
    for y in (nd.upsample(x, factors, mode), resize.average(x, factors)):
        torch.testing.assert_close(y, torch.full_like(y, 0.7))


def test_nearest_depth_repeats_slices_exactly():
    x = normal(1, 2, 4, 3, 3)
    assert torch.equal(nd.upsample(x, (2, 1, 1), "nearest"), x.repeat_interleave(2, dim=2))


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 3, 2, 4, 6)])
def test_bfloat16_stays(shape):
    x, factors = normal(*shape).bfloat16(), (2,) * (len(shape) - 2)
    for y in (nd.upsample(x, factors), nd.upsample(x, factors, "nearest")):
        assert y.dtype == torch.bfloat16


# Rows -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knots, rows", [(2, 7), (5, 16), (8, 32), (6, 6)])
def test_knots_are_joined_by_straight_lines(knots, rows):
    table = torch.randn(3, knots, dtype=torch.float64)
    places = np.linspace(0, knots - 1, rows)
    wanted = np.stack([np.interp(places, np.arange(knots), row) for row in table.numpy()])
    np.testing.assert_allclose(nd.join_knots(table, rows).numpy(), wanted, atol=1e-12)


def test_depth_rows_picks_the_row_of_each_slice():
    table, volume_depth = torch.arange(4.0).expand(3, 4), 8
    depths = torch.arange(volume_depth)
    rows = nd.depth_rows(table, 2, depths, volume_depth)
    assert rows.shape == (8, 3)
    assert rows[:, 1].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(nd.depth_rows(table, 3, None, volume_depth), table[None])


@given(rows=st.integers(1, 15), factor=st.sampled_from([1, 2, 4, 8]))
def test_depth_rows_at_rank_2_are_the_nearest_upsampled_rows_of_rank_3(rows, factor):
    table = normal(2, rows, 3, 3)
    grown = table.repeat_interleave(factor, dim=1)
    read = nd.depth_rows(table, 2, torch.arange(rows * factor), rows * factor)
    assert torch.equal(read, grown.transpose(0, 1))


def test_a_table_of_one_row_serves_every_depth():
    table = normal(3, 1, 2, 2)
    assert torch.equal(nd.depth_rows(table, 2, torch.tensor([0, 5]), 8), table.transpose(0, 1).expand(2, -1, -1, -1))


# Names of rank --------------------------------------------------------------------------------------------------------


def test_shapes_of_each_rank():
    assert nd.kernel_size(2, 3) == (3, 3) == nd.kernel_size(2, 3, depth=1)
    assert nd.kernel_size(3, 3) == (3, 3, 3) and nd.kernel_size(3, 3, depth=1) == (1, 3, 3)
    assert nd.per_channel(torch.zeros(2, 5), 2).shape == (2, 5, 1, 1)
    assert nd.per_channel(torch.zeros(5), 3).shape == (5, 1, 1, 1)
    assert nd.spatial_dims(2) == (2, 3) and nd.spatial_dims(3) == (2, 3, 4)


def test_autocast_decides_at_the_entrance_and_is_off_inside():
    cpu = torch.device("cpu")
    assert nd.compute_dtype(cpu) == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nd.compute_dtype(cpu) == torch.bfloat16
        with nd.explicit_dtypes(cpu):
            assert nd.compute_dtype(cpu) == torch.float32
            assert (normal(2, 2) @ normal(2, 2)).dtype == torch.float32


# Networks of libraries ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 3, 1), (3, 1, 1)])
@pytest.mark.parametrize("grid", [(2, 4, 4), (2, 2, 2)])
def test_padded_beforehand_bf16_gradients_are_right_where_two_voxels_are_left(grid, kernel):
    exact = nn.Conv3d(16, 16, kernel, padding=tuple(size // 2 for size in kernel))
    padded = nn.Sequential(nn.Conv3d(16, 16, kernel, padding=tuple(size // 2 for size in kernel)))
    nd.pad_beforehand(padded)
    padded[0].load_state_dict(exact.state_dict())
    x = normal(2, 16, *grid)
    torch.testing.assert_close(padded(x), exact(x))
    exact(x).square().sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = padded(x)
    y.float().square().sum().backward()
    assert (padded[0].weight.grad - exact.weight.grad).norm() < 0.02 * exact.weight.grad.norm()
