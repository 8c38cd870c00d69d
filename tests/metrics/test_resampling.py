"""Splits, bootstrap intervals, and the kernel distance under resampling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitshuffle_gan.metrics.resampling import (
    TooFewSamples,
    _weighted_kid,
    bootstrap,
    half_samples,
    interval,
    kid_bootstrap,
    recentred,
    split_pairs,
)


def kernel(x: np.ndarray, y: np.ndarray) -> float:
    return (x @ y / len(x) + 1) ** 3


def kid_by_loops(a: np.ndarray, b: np.ndarray) -> float:
    def within(rows):
        n = len(rows)
        return sum(kernel(rows[i], rows[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    return within(a) + within(b) - 2 * np.mean([[kernel(x, y) for y in b] for x in a])


@given(n=st.integers(2, 40), seed=st.integers(0, 1000), data=st.data())
def test_split_pairs_are_disjoint(n, seed, data):
    size = data.draw(st.integers(1, n // 2))
    pairs = split_pairs(n, size, 4, seed)
    assert len(pairs) == 4
    for first, second in pairs:
        together = np.concatenate([first, second])
        assert len(first) == len(second) == size
        assert len(set(together.tolist())) == 2 * size
        assert 0 <= together.min() <= together.max() < n


def test_split_pairs_differ_and_repeat():
    first, second = split_pairs(100, 50, 2, 0)
    assert first[0].tolist() != second[0].tolist()
    assert split_pairs(100, 50, 2, 0)[1][0].tolist() == second[0].tolist()


@pytest.mark.parametrize(("n", "size"), [(10, 6), (1, 1), (10, 0)])
def test_splits_that_do_not_fit(n, size):
    with pytest.raises(TooFewSamples, match=f"there are {n}"):
        split_pairs(n, size, 1, 0)


def test_interval_takes_the_middle():
    assert interval(np.arange(101.0)) == pytest.approx([2.5, 97.5])
    assert interval(np.arange(101.0), 0.5) == pytest.approx([25, 75])
    assert recentred(np.arange(101.0), 10) == pytest.approx([-37.5, 57.5])
    with pytest.raises(ValueError, match="level"):
        interval(np.arange(3), 95)


def test_bootstrap_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap(lambda rows: rows.mean(), (values,), 2000, 1, values.mean())
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.01)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)


def test_bootstrap_resamples_the_sides_separately_and_whole():
    seen = []

    def statistic(a, b):
        seen.append((a.copy(), b.copy()))
        return 0.0

    a, b = np.arange(20.0).reshape(10, 2), np.arange(14.0).reshape(7, 2)
    assert bootstrap(statistic, (a, b), 3, 0, 5.0) == [5.0, 5.0]
    for first, second in seen:
        assert first.shape == a.shape
        assert second.shape == b.shape
        assert {tuple(row) for row in first} <= {tuple(row) for row in a}
        assert {tuple(row) for row in second} <= {tuple(row) for row in b}
    assert seen[0][0].tolist() != seen[1][0].tolist()


def test_bootstrap_stays_around_the_estimate_of_a_biased_statistic():
    # The squared mean of noise doubles under resampling; the plain percentiles would miss much of its low side.
    rows = np.random.default_rng(2).normal(size=(50, 30))
    estimate = float(np.square(rows.mean(0)).sum())
    low, high = bootstrap(lambda x: float(np.square(x.mean(0)).sum()), (rows,), 300, 0, estimate)
    assert low < estimate < high
    assert high - estimate == pytest.approx(estimate - low, rel=0.6)


def test_half_samples_vary_as_fresh_samples_do():
    values = np.random.default_rng(3).normal(size=(400, 1))[:, 0]
    means = [values[half].mean() for (half,) in half_samples(400, repeats=2000, seed=0)]
    assert np.std(means) == pytest.approx(values.std() / 20, rel=0.1)
    first, second = half_samples(9, 6, repeats=1, seed=1)[0]
    assert (len(set(first)), len(set(second))) == (4, 3)


def test_kernel_distance_is_the_u_statistic():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(12, 3)) + 1, rng.normal(size=(9, 3))
    low, high = kid_bootstrap(a, b, 300, 0)
    truth = kid_by_loops(a, b)
    assert low < truth < high
    moved = kid_bootstrap(a, b, 300, 0, estimate=truth + 1)
    assert moved == pytest.approx([low + 1, high + 1])


def test_kernel_distance_of_a_resample_leaves_rows_that_meet_themselves_out():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(6, 3)), rng.normal(size=(5, 3))
    weights_a, weights_b = np.array([[2, 0, 1, 3, 0, 0]]), np.array([[1, 1, 0, 2, 1]])
    drawn_a, drawn_b = (np.repeat(np.arange(len(w)), w) for w in (weights_a[0], weights_b[0]))

    def within(rows, drawn):
        return np.mean([kernel(rows[i], rows[j]) for i in drawn for j in drawn if i != j])

    truth = within(a, drawn_a) + within(b, drawn_b)
    truth -= 2 * np.mean([[kernel(a[i], b[j]) for j in drawn_b] for i in drawn_a])
    assert _weighted_kid(a, b, weights_a, weights_b)[0] == pytest.approx(truth)


def test_kernel_distance_is_not_biased_by_resampling():
    # Duplicates counted as pairs would lift the mean by about k(x, x) / n.
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(2, 40, 8))
    weights = [rng.multinomial(40, np.full(40, 1 / 40), 4000) for _ in range(2)]
    resampled = _weighted_kid(a, b, *weights)
    assert resampled.mean() == pytest.approx(kid_by_loops(a, b), abs=5 * resampled.std() / np.sqrt(4000))


def test_kernel_distance_interval_holds_the_expected_value():
    rng = np.random.default_rng(7)
    sets = [(rng.normal(size=(50, 6)) + 0.4, rng.normal(size=(50, 6))) for _ in range(80)]
    intervals = [kid_bootstrap(*pair, 100, seed) for seed, pair in enumerate(sets)]
    # E k(x, y) by many fresh pairs.
    shifted, plain = rng.normal(size=(2, 100000, 6)) + 0.4, rng.normal(size=(2, 100000, 6))

    def expected(u, v):
        return np.mean((np.einsum("nd,nd->n", u, v) / 6 + 1) ** 3)

    truth = expected(*shifted) + expected(*plain) - expected(shifted[0], plain[0]) - expected(shifted[1], plain[1])
    assert sum(low <= truth <= high for low, high in intervals) >= 0.85 * 80


@pytest.mark.parametrize("n", [2, 3, 4])
def test_kernel_distance_of_few_rows_resamples_pairs(n):
    rng = np.random.default_rng(8)
    # Without care about one resample in n^(n - 1) is a single row, and the interval is NaN.
    assert np.isfinite(kid_bootstrap(*rng.normal(size=(2, n, 5)), 1000, 0)).all()


def test_the_interval_holds_the_estimate_of_skewed_values():
    assert recentred(np.array([1.0] * 199 + [0.0]), 0.8) == pytest.approx([0.8, 0.805])
    assert recentred(np.array([0.0] * 199 + [1.0]), 0.2) == pytest.approx([0.195, 0.2])


def test_kernel_distance_needs_pairs():
    with pytest.raises(TooFewSamples, match="1 and 5"):
        kid_bootstrap(np.zeros((1, 2)), np.zeros((5, 2)), 10, 0)
