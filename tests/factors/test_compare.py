"""Distances between samples whose distributions are known."""

import numpy as np
import pytest

from splitshuffle_gan.factors.compare import compare
from splitshuffle_gan.metrics.resampling import TooFewSamples

FAST = {"resamples": 50, "splits": 50}


def normal(count, seed, mean=0.0, sd=1.0):
    return np.random.default_rng(seed).normal(mean, sd, count)


def test_a_shift_is_measured_in_real_standard_deviations_whatever_the_unit():
    real = normal(2000, 0)
    for scale in (1.0, 250.0):
        row = compare(scale * (real + 0.7), scale * real, **FAST)
        assert row["distance"] == pytest.approx(0.7 / real.std(ddof=1))
        assert row["shift"] == pytest.approx(row["distance"]) and row["spread"] == pytest.approx(1)
        assert row["interval"][0] < row["distance"] < row["interval"][1] and row["above_floor"]


def test_halves_of_one_set_are_rarely_above_the_floor_and_half_a_set_nearly_always_is():
    alarms, seen, over_floor = [], [], []
    for seed in range(30):
        values = normal(120, seed)
        generated, real = values[:60], values[60:]
        alarms.append(compare(generated, real, **FAST)["above_floor"])
        damaged = compare(np.sort(normal(120, 100 + seed))[60:], real, **FAST)
        seen.append(damaged["above_floor"] and damaged["ks_p"] < 0.01)
        over_floor.append(damaged["over_floor"])
    assert np.mean(alarms) < 0.2 and np.mean(seen) > 0.8 and np.median(over_floor) > 2


def test_lost_variety_shows_in_the_spread():
    row = compare(normal(400, 0, sd=0.3), normal(400, 1), **FAST)
    assert row["spread"] == pytest.approx(0.3, abs=0.05) and abs(row["shift"]) < 0.15 and row["above_floor"]


def test_a_floor_from_other_volumes_has_as_many_as_are_generated():
    generated, real, other = normal(50, 0), normal(60, 1), normal(200, 2)
    row = compare(generated, real, other, **FAST)
    assert row["floor"]["n"] == [50, 60] and row["at_floor_n"] == pytest.approx(row["distance"])
    assert compare(generated, real, **FAST)["floor"]["n"] == [30, 30]
    # A floor from elsewhere is one from another distribution: nothing rises above it.
    assert not compare(generated + 1, real, other + 3, **FAST)["above_floor"]


def test_chance_is_there_where_all_of_the_other_volumes_are_taken():
    """Then there is one distance between real volumes and no other; half of all good generators would lie above it."""
    rows = [compare(normal(60, s), normal(60, s + 100), normal(60, s + 200), **FAST) for s in range(40)]
    assert all(row["floor"]["interval"][0] < row["floor"]["interval"][1] for row in rows)
    assert np.mean([row["above_floor"] for row in rows]) < 0.15


def test_the_floor_falls_with_n_and_is_about_what_theory_gives():
    floors = [compare(normal(n, 0), normal(n, 1), **FAST)["floor"]["value"] for n in (40, 640)]
    # E W1 of two normal samples of n / 2: proportional to the root of 1 / n.
    assert floors[0] / floors[1] == pytest.approx(4, rel=0.4)


def test_too_few_values_and_constant_ones_are_told():
    with pytest.raises(TooFewSamples, match="7 values"):
        compare(normal(7, 0), normal(20, 1))
    with pytest.raises(TooFewSamples, match="all real values are 3"):
        compare(normal(20, 0), np.full(20, 3.0))
