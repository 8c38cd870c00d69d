"""Precision, recall, density and coverage against loops over the definitions and against torch-fidelity."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitshuffle_gan.metrics.neighbours import neighbour_intervals, neighbours
from splitshuffle_gan.metrics.resampling import TooFewSamples

NAMES = ("precision", "density", "recall", "coverage")


def by_definition(generated: np.ndarray, real: np.ndarray, k: int, k_density: int) -> dict[str, list[float]]:
    def radius(rows: np.ndarray, i: int, k: int) -> float:
        return sorted(np.linalg.norm(rows[i] - rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    def within(x: np.ndarray, rows: np.ndarray, k: int) -> list[bool]:
        return [np.linalg.norm(x - row) <= radius(rows, i, k) for i, row in enumerate(rows)]

    def holds(i: int) -> bool:
        return any(np.linalg.norm(x - real[i]) <= radius(real, i, k_density) for x in generated)

    return {
        "precision": [any(within(x, real, k)) for x in generated],
        "density": [sum(within(x, real, k_density)) / k_density for x in generated],
        "recall": [any(within(y, generated, k)) for y in real],
        "coverage": [holds(i) for i in range(len(real))],
    }


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(6, 15), m=st.integers(6, 15), d=st.integers(1, 4))
@settings(deadline=None, max_examples=15)
def test_agrees_with_the_definitions(seed, n, m, d):
    rng = np.random.default_rng(seed)
    generated, real = 0.7 * rng.normal(size=(n, d)) + 0.5, rng.normal(size=(m, d))
    found, truth = neighbours(generated, real), by_definition(generated, real, 3, 5)
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(np.array(truth[name], dtype=float)), name


@pytest.mark.parametrize(("seed", "n", "m", "d", "k"), [(0, 40, 60, 3, 3), (1, 200, 200, 64, 3), (2, 30, 25, 8, 5)])
def test_means_are_torch_fidelitys(seed, n, m, d, k):
    from splitshuffle_gan.metrics.fidelity import precision_recall

    rng = np.random.default_rng(seed)
    generated, real = 0.8 * rng.normal(size=(n, d)), rng.normal(size=(m, d))
    found = neighbours(generated, real, ball_neighbours=k).means()
    # torch-fidelity averages in float32.
    assert (found["precision"], found["recall"]) == pytest.approx(precision_recall(generated, real, k), abs=1e-7)
    assert round(found["precision"] * n) == pytest.approx(found["precision"] * n, abs=1e-9)


def test_swapping_the_sides_swaps_precision_and_recall():
    rng = np.random.default_rng(3)
    collapsed, real = 0.3 * rng.normal(size=(80, 6)), rng.normal(size=(60, 6))
    right, swapped = neighbours(collapsed, real), neighbours(real, collapsed)
    assert right.precision.tolist() == swapped.recall.tolist()
    assert right.recall.tolist() == swapped.precision.tolist()
    assert (len(right.precision), len(right.density)) == (80, 80)
    assert (len(right.recall), len(right.coverage)) == (60, 60)
    # A collapsed generator is faithful and has no variety.
    assert right.precision.mean() > 0.9 > 0.3 > right.recall.mean()
    assert right.density.mean() > 1.5


def test_far_apart_and_equal_sets():
    real = np.random.default_rng(4).normal(size=(50, 5))
    assert set(neighbours(real + 100, real).means().values()) == {0.0}
    equal = neighbours(real.copy(), real).means()
    assert (equal["precision"], equal["recall"], equal["coverage"]) == (1, 1, 1)


def test_independent_sets_of_one_distribution_have_density_one():
    rng = np.random.default_rng(5)
    values = [neighbours(*rng.normal(size=(2, 100, 4))).density.mean() for _ in range(20)]
    assert np.mean(values) == pytest.approx(1, abs=0.1)


def test_duplicates_are_each_others_neighbours():
    rng = np.random.default_rng(6)
    real = rng.normal(size=(40, 3))
    # Ten copies each of four points: the balls have radius 0 and hold only the points themselves.
    collapsed = np.repeat(real[:4], 10, axis=0)
    found = neighbours(collapsed, real)
    assert found.precision.mean() == 1
    assert np.flatnonzero(found.recall).tolist() == [0, 1, 2, 3]


def test_order_and_rigid_motion_do_not_matter():
    rng = np.random.default_rng(7)
    generated, real = rng.normal(size=(30, 6)) + 0.4, rng.normal(size=(40, 6))
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    means = neighbours(generated, real).means()
    assert neighbours(rng.permutation(generated), rng.permutation(real)).means() == pytest.approx(means)
    assert neighbours(3 * generated @ rotation + 5, 3 * real @ rotation + 5).means() == pytest.approx(means)


def test_near_neighbours_far_from_the_origin_keep_their_digits():
    rng = np.random.default_rng(8)
    generated, real = rng.normal(size=(30, 6)) + 0.4, rng.normal(size=(40, 6))
    assert neighbours(generated + 1e6, real + 1e6).means() == pytest.approx(neighbours(generated, real).means())


@pytest.mark.parametrize(("n", "m"), [(5, 50), (50, 5)])
def test_too_few_samples(n, m):
    with pytest.raises(TooFewSamples, match="6 samples a side; the smaller side has 5"):
        neighbours(np.eye(50)[:n], np.eye(50)[:m])
    with pytest.raises(TooFewSamples, match="half"):
        neighbour_intervals(np.eye(50)[:11], np.eye(50), 10, 0)


def test_intervals_hold_the_expected_values():
    # Nominally 95 %; the values of single samples resampled hold about 60 % here.
    rng = np.random.default_rng(9)
    sets = [(rng.normal(size=(60, 4)) + 0.7, rng.normal(size=(60, 4))) for _ in range(60)]
    expected = {name: np.mean([neighbours(*pair).means()[name] for pair in sets]) for name in NAMES}
    held = dict.fromkeys(NAMES, 0)
    for seed, pair in enumerate(sets):
        intervals = neighbour_intervals(*pair, 60, seed)
        assert neighbour_intervals(*pair, 60, seed) == intervals
        for name, (low, high) in intervals.items():
            assert low <= neighbours(*pair).means()[name] <= high
            held[name] += low <= expected[name] <= high
    assert min(held.values()) >= 0.8 * 60, held


def test_intervals_of_shares_stay_within_zero_and_one():
    real = np.random.default_rng(10).normal(size=(2, 40, 6))
    intervals = neighbour_intervals(*real, 50, 0)
    assert all(0 <= low <= high <= 1 for name, (low, high) in intervals.items() if name != "density")


def test_shares_of_one_have_an_interval_that_ends_at_one():
    """Half samples of a small set can all miss what the whole set has; the interval moved there must not pass 1."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        real = rng.normal(size=(16, 8))
        intervals = neighbour_intervals(real + 0.01 * rng.normal(size=real.shape), real, 100, seed)
        for name in ("precision", "recall", "coverage"):
            low, high = intervals[name]
            assert 0 <= low <= high <= 1, (seed, name, low, high)
