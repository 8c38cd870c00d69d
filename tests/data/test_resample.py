"""Kinds of resampling; that linear is linear stands with `prepare`'s tests."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline

from splitshuffle_gan.data.resample import ORDERS, resample
from splitshuffle_gan.errors import UserError


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kind", ORDERS)
@given(start=st.tuples(*[st.integers(-9, 9)] * 3), shape=st.tuples(*[st.integers(1, 12)] * 3))
@settings(max_examples=30, deadline=None)
def test_a_grid_on_the_voxels_takes_them_bit_by_bit(kind, start, shape):
    array = noise(5, 6, 7)
    padded = np.pad(array, 30, constant_values=-3)
    expected = padded[tuple(slice(30 + a, 30 + a + n) for a, n in zip(start, shape, strict=True))]
    # Offsets from the product of two affines are whole only nearly.
    near = np.array(start) + (1e-9, -1e-8, 1e-7)
    np.testing.assert_array_equal(resample(array, (1, 1 + 1e-12, 1), near, shape, -3, kind), expected)


def test_a_grid_that_drifts_off_the_voxels_is_interpolated():
    line = noise(1, 1, 400)
    result = resample(line, (1, 1, 1 + 1e-3), (0, 0, 0), (1, 1, 400), 0)
    positions = np.arange(400) * (1 + 1e-3)
    np.testing.assert_allclose(result[0, 0], np.interp(positions, np.arange(400), line[0, 0]), atol=1e-5)


@pytest.mark.parametrize("axis", range(3))
def test_bspline_is_the_cubic_spline_through_the_voxels(axis):
    values = np.sin(np.arange(40) / 3).astype(np.float32)
    shape, step, offset, count = [1, 1, 1], [1, 1, 1], [0, 0, 0], [1, 1, 1]
    shape[axis], step[axis], offset[axis], count[axis] = 40, 0.37, 8.1, 60
    positions = 8.1 + 0.37 * np.arange(60)
    expected = np.clip(CubicSpline(np.arange(40), values)(positions), values.min(), values.max())
    result = resample(values.reshape(shape), step, offset, count, 0, "bspline").ravel()
    np.testing.assert_allclose(result, expected, atol=1e-4)
    linear = resample(values.reshape(shape), step, offset, count, 0, "linear").ravel()
    # Ten times nearer to the sine than straight lines are.
    truth = np.sin(positions / 3)
    assert np.abs(result - truth).mean() < 0.1 * np.abs(linear - truth).mean()


def test_bspline_stays_within_the_scans_range():
    edge = np.zeros((1, 1, 20), np.float32)
    edge[..., 10:] = 100
    result = resample(edge, (1, 1, 0.3), (0, 0, 0.15), (1, 1, 60), -5, "bspline")
    assert result[..., :59].min() >= 0 and result.max() <= 100


def test_nearest_copies_the_voxel_next_to_the_point():
    line = noise(1, 1, 9)
    positions = -0.9 + 0.43 * np.arange(24)
    expected = [line[0, 0, int(np.rint(np.clip(p, 0, 8)))] if -0.5 <= p <= 8.5 else 7 for p in positions]
    np.testing.assert_array_equal(resample(line, (1, 1, 0.43), (0, 0, -0.9), (1, 1, 24), 7, "nearest")[0, 0], expected)
    every_fourth = resample(line, (1, 1, 4), (0, 0, 0), (1, 1, 3), 7, "nearest")
    np.testing.assert_array_equal(every_fourth, line[..., ::4])


@pytest.mark.parametrize("kind", ["linear", "bspline"])
def test_what_the_new_grid_cannot_show_is_blurred(kind):
    stripes = np.tile(np.array([0, 1, 0, 1], np.float32), 16)[None, None]
    result = resample(stripes, (1, 1, 4), (0, 0, 1), (1, 1, 16), 0, kind)
    np.testing.assert_allclose(result[..., 1:-1], 0.5, atol=2e-3)


def test_an_unknown_kind_is_named():
    with pytest.raises(UserError, match="resample: 'sinc'"):
        resample(noise(2, 2, 2), (1, 1, 1), (0, 0, 0), (2, 2, 2), 0, "sinc")
