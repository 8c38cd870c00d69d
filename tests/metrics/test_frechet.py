"""The Fréchet distance against closed forms, scipy's matrix root and torch-fidelity."""

import importlib
import time

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.metrics.frechet import (
    Gaussian,
    frechet_bootstrap,
    frechet_distance,
    frechet_infinity,
    frechet_of,
)
from splitshuffle_gan.metrics.resampling import TooFewSamples, bootstrap

seeds = st.integers(0, 2**32 - 1)


def two_sets(seed: int, n: int, m: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of two correlated distributions with different means."""
    rng = np.random.default_rng(seed)
    mix_a, mix_b = rng.normal(size=(2, d, d)) / np.sqrt(d)
    return rng.normal(size=(n, d)) @ mix_a, rng.normal(size=(m, d)) @ mix_b + rng.normal(size=d)


def by_matrix_root(a: np.ndarray, b: np.ndarray) -> float:
    """The formula as it is written, with scipy's root of the product of covariances."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * np.real(root)))


def test_commuting_closed_form():
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    variances_a, variances_b, shift = rng.uniform(0.1, 4, 6), rng.uniform(0.1, 4, 6), rng.normal(size=6)
    a = Gaussian.from_moments(shift, rotation * variances_a @ rotation.T, 100)
    b = Gaussian.from_moments(np.zeros(6), rotation * variances_b @ rotation.T, 100)
    truth = np.square(shift).sum() + np.square(np.sqrt(variances_a) - np.sqrt(variances_b)).sum()
    assert frechet_distance(a, b) == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_non_commuting_closed_form_in_two_dimensions(seed):
    # The root R of a 2x2 matrix P obeys (tr R)^2 = tr P + 2 sqrt(det P).
    factors = np.random.default_rng(seed).normal(size=(2, 2, 2))
    first, second = (factor @ factor.T for factor in factors)
    assert not np.allclose(first @ second, second @ first)
    product = first @ second
    trace = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    found = frechet_distance(*(Gaussian.from_moments(np.zeros(2), cov, 10) for cov in (first, second)))
    assert found == pytest.approx(np.trace(first) + np.trace(second) - 2 * trace, abs=1e-6)


@pytest.mark.parametrize(("n", "m", "d"), [(60, 80, 12), (300, 150, 40)])
def test_agrees_with_scipys_matrix_root(n, m, d):
    a, b = two_sets(1, n, m, d)
    assert frechet_of(a, b) == pytest.approx(by_matrix_root(a, b), rel=1e-4)


@pytest.mark.parametrize(("n", "m", "d"), [(60, 80, 12), (200, 200, 64), (20, 25, 50)])
def test_agrees_with_torch_fidelity(n, m, d):
    importlib.import_module("splitshuffle_gan.metrics.fidelity")  # makes torch-fidelity importable
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    a, b = two_sets(2, n, m, d)
    statistics = [fid_features_to_statistics(torch.from_numpy(features)) for features in (a, b)]
    assert frechet_of(a, b) == pytest.approx(fid_statistics_to_metric(*statistics, False)[KEY_METRIC_FID], rel=1e-5)


@given(seed=seeds, n=st.integers(2, 30), m=st.integers(2, 30), d=st.integers(1, 20), scale=st.floats(0.01, 100))
@settings(deadline=None, max_examples=50)
def test_invariances(seed, n, m, d, scale):
    a, b = two_sets(seed, n, m, d)
    rng = np.random.default_rng(seed)
    value = frechet_of(a, b)
    tolerance = {"rel": 1e-9, "abs": 1e-9}
    assert value >= -1e-9
    assert frechet_of(b, a) == pytest.approx(value, **tolerance)
    assert frechet_of(rng.permutation(a), rng.permutation(b)) == pytest.approx(value, **tolerance)
    rotation, move = np.linalg.qr(rng.normal(size=(d, d)))[0], rng.normal(size=d)
    assert frechet_of(a @ rotation + move, b @ rotation + move) == pytest.approx(value, **tolerance)
    assert frechet_of(scale * a, scale * b) == pytest.approx(scale**2 * value, rel=1e-8, abs=1e-9 * scale**2)
    assert frechet_of(a, a) == pytest.approx(0, abs=1e-9)


def test_fewer_samples_than_dimensions_and_duplicates():
    # In the span of the samples the covariances are regular, and there the matrix root can be trusted.
    rng = np.random.default_rng(3)
    low_a, low_b = two_sets(3, 30, 40, 8)
    basis = np.linalg.qr(rng.normal(size=(100, 8)))[0].T
    assert frechet_of(low_a @ basis, low_b @ basis) == pytest.approx(by_matrix_root(low_a, low_b), rel=1e-6)
    assert frechet_of(np.repeat(low_a[:1], 30, 0), low_b) == pytest.approx(
        np.square(low_a[0] - low_b.mean(0)).sum() + np.trace(np.cov(low_b, rowvar=False))
    )


def test_features_and_their_moments_agree():
    a, b = two_sets(4, 50, 60, 10)
    moments = [Gaussian.from_moments(x.mean(0), np.cov(x, rowvar=False), len(x)) for x in (a, b)]
    assert frechet_distance(*moments) == pytest.approx(frechet_of(a, b), rel=1e-9)
    wide = np.random.default_rng(0).normal(size=(5, 9))
    for features in (a, wide):
        factor = Gaussian.of(features).factor
        assert len(factor) <= min(features.shape)
        assert factor.T @ factor == pytest.approx(np.cov(features, rowvar=False), abs=1e-12)


def test_wide_features_are_fast():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 200, 2048))
    frechet_of(a, b)
    start = time.perf_counter()
    frechet_of(a, b)
    assert time.perf_counter() - start < 0.5


def test_bad_moments_are_refused():
    with pytest.raises(UserError, match="eigenvalue -0.1"):
        Gaussian.from_moments(np.zeros(2), np.diag([1, -0.1]), 10)
    rounding = Gaussian.from_moments(np.zeros(2), np.diag([1, -1e-9]), 10)
    assert rounding.factor.T @ rounding.factor == pytest.approx(np.diag([1, 0]), abs=1e-15)
    with pytest.raises(UserError, match="symmetric"):
        Gaussian.from_moments(np.zeros(2), np.array([[1, 0.5], [0, 1]]), 10)
    with pytest.raises(UserError, match="shape"):
        Gaussian.from_moments(np.zeros(3), np.eye(2), 10)
    with pytest.raises(UserError, match="finite"):
        Gaussian.from_moments(np.array([0, np.nan]), np.eye(2), 10)


def test_bad_features_are_refused():
    with pytest.raises(TooFewSamples, match="2 samples"):
        Gaussian.of(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="NaN"):
        Gaussian.of(np.array([[0, np.nan], [1, 1]]))
    with pytest.raises(ValueError, match="dimensions"):
        frechet_of(np.eye(4), np.eye(5))


def test_extrapolation_is_nearer_the_truth():
    # True distance: 12 * (0.3^2 + (1.2 - 1)^2).
    rng = np.random.default_rng(6)
    truth, plain, line = 12 * (0.09 + 0.04), [], []
    for seed in range(12):
        a, b = 1.2 * rng.normal(size=(60, 12)) + 0.3, rng.normal(size=(60, 12))
        plain.append(frechet_of(a, b))
        line.append(frechet_infinity(a, b, seed, resamples=2).value)
    assert np.mean(plain) > truth + 0.8
    assert abs(np.mean(line) - truth) < 0.3 * abs(np.mean(plain) - truth)
    assert np.sum(np.abs(np.array(line) - truth) < np.abs(np.array(plain) - truth)) >= 9


def test_extrapolation_describes_its_line_and_is_repeatable():
    # Like distributions, so that the distance is all bias.
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(50, 8)), rng.normal(size=(60, 8))
    found = frechet_infinity(a, b, 0, resamples=20)
    assert found == frechet_infinity(a, b, 0, resamples=20) != frechet_infinity(a, b, 1, resamples=20)
    assert found.interval[0] < found.value < found.interval[1]
    assert (found.sizes[0], found.sizes[-1]) == (25, 50)
    residuals = np.array(found.means) - found.value - found.slope / np.array(found.sizes)
    assert found.slope > 0
    assert np.abs(residuals).max() < 0.1 * (found.means[0] - found.value)


@pytest.mark.parametrize(("n", "d", "enough"), [(30, 19, True), (30, 20, False), (29, 19, False)])
def test_extrapolation_needs_more_samples_than_dimensions(n, d, enough):
    a, b = two_sets(8, n, n + 10, d)
    if enough:
        assert min(frechet_infinity(a, b, 0, resamples=2).sizes) > d
    else:
        with pytest.raises(TooFewSamples, match=f"at least {-(-3 * (d + 1) // 2)} samples a side.* has {n}"):
            frechet_infinity(a, b, 0)


def test_extrapolation_refuses_sizes_that_do_not_fit():
    a, b = two_sets(8, 30, 30, 4)
    for sizes in ((4, 10, 30), (25, 28, 30), (10, 31)):
        with pytest.raises(TooFewSamples):
            frechet_infinity(a, b, 0, sizes=sizes)


@pytest.mark.parametrize("d", [5, 300])
def test_bootstrap_is_that_of_the_features_themselves(d):
    a, b = two_sets(9, 30, 40, d)
    value = frechet_of(a, b)
    assert frechet_bootstrap(a, b, 20, 1, value) == pytest.approx(bootstrap(frechet_of, (a, b), 20, 1, value), rel=1e-8)


def test_bootstrap_interval_holds_the_expected_value():
    # Nominally 95 %; with 40 sets, 34 is three standard deviations below.
    rng = np.random.default_rng(10)
    sets = [(rng.normal(size=(50, 6)) + 0.5, rng.normal(size=(50, 6))) for _ in range(40)]
    values = [frechet_of(*pair) for pair in sets]
    expected = np.mean([frechet_of(rng.normal(size=(50, 6)) + 0.5, rng.normal(size=(50, 6))) for _ in range(400)])
    intervals = [frechet_bootstrap(*pair, 100, 0, value) for pair, value in zip(sets, values, strict=True)]
    assert sum(low <= expected <= high for low, high in intervals) >= 34
    assert np.mean([high - low for low, high in intervals]) < 2 * 3.92 * np.std(values)
