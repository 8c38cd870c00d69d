"""Rows of a card: which volumes each number sees, and what stands beside it."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from splitshuffle_gan.metrics.card import check_card
from splitshuffle_gan.metrics.measures import (
    SHARES,
    Draws,
    Measure,
    fid,
    infinity_row,
    kid,
    plane_fid,
    row,
    share,
    ssim_row,
)
from splitshuffle_gan.metrics.resampling import TooFewSamples
from splitshuffle_gan.metrics.ssim import ms_ssim

# Last: `fidelity`, which `measures` imports, lets torchvision be imported.
from torch_fidelity.metric_kid import kid_features_to_metric  # isort: skip
from torch_fidelity.metric_prc import prc_features_to_metric  # isort: skip

pytestmark = pytest.mark.usefixtures("cpu")
DRAWS = Draws(resamples=20, splits=6, seed=3)
MEASURES = {"fid": fid(DRAWS), "kid": kid(DRAWS)} | {name: share(name, DRAWS) for name in SHARES}


def features(count: int, seed: int, shift: float = 0.0, width: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (count, width))


def torch_fidelity(name: str, generated: np.ndarray, real: np.ndarray) -> float:
    """The number as others compute it: SciPy's root of a matrix, or torch-fidelity's functions."""
    if name == "fid":
        s1, s2 = np.cov(generated.T), np.cov(real.T)
        shift = np.square(generated.mean(0) - real.mean(0)).sum()
        return shift + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    tensors = torch.from_numpy(generated), torch.from_numpy(real)
    if name == "kid":
        options = {"kid_subsets": 100, "kid_subset_size": len(real) // 2, "rng_seed": 3, "verbose": False}
        return kid_features_to_metric(*tensors, **options)["kernel_inception_distance_mean"]
    return prc_features_to_metric(*tensors, prc_neighborhood=3, verbose=False)[name]


@pytest.mark.parametrize("name", ["fid", "kid", "precision", "recall"])
def test_the_value_is_that_of_others(name):
    generated, real = features(20, 0, 0.8), features(50, 1)
    generated[:5] *= 3
    reference = np.arange(10, 30)
    found = row(MEASURES[name], generated, real, reference, DRAWS)
    assert found["value"] == pytest.approx(torch_fidelity(name, generated, real[reference]), rel=1e-6)
    if name in ("precision", "recall"):  # the two sides have not changed places
        assert found["value"] != torch_fidelity(name, real[reference], generated)


@pytest.mark.parametrize("name, truth", [("density", 0.0), ("coverage", 0.0)])
def test_far_away_nothing_is_dense_or_covered(name, truth):
    far = row(MEASURES[name], features(30, 0, 100), features(60, 1), np.arange(30), DRAWS)
    near = row(MEASURES[name], features(30, 0), features(60, 1), np.arange(30), DRAWS)
    assert far["value"] == far["interval"][0] == truth and near["value"] > 0.5
    assert far["floor"]["value"] > 0.5


# --- which volumes ---------------------------------------------------------------------------------------------------


class Spy:
    """A measure that keeps what it is given: rows of one feature, a number each."""

    def __init__(self, least: int = 1):
        self.calls, self.least = [], least
        self.measure = Measure("spy", "Spy", "lower", self.value, lambda g, r, value: [value, value])

    def value(self, generated, real):
        if min(len(generated), len(real)) < self.least:
            raise TooFewSamples(f"{self.least} are wanted, there are {len(generated)}")
        self.calls.append((generated[:, 0].tolist(), real[:, 0].tolist()))
        return float(len(self.calls))


def spied(count: int, real_count: int, reference, least: int = 1) -> tuple[Spy, dict]:
    spy, real = Spy(least), np.arange(real_count, dtype=float)[:, None]
    return spy, row(spy.measure, -1 - np.arange(count, dtype=float)[:, None], real, np.asarray(reference), DRAWS)


def test_generated_comes_first_and_the_reference_second():
    spy, found = spied(4, 10, [1, 3, 5, 7])
    assert spy.calls[0] == ([-1, -2, -3, -4], [1, 3, 5, 7])
    assert found["value"] == 1 and found["n"] == 4


@pytest.mark.parametrize("count, real_count, size", [(4, 10, 4), (5, 10, 5), (9, 10, 5), (9, 11, 5), (10, 10, 5)])
def test_the_floor_is_between_disjoint_sets_of_all_real_volumes(count, real_count, size):
    spy, found = spied(count, real_count, np.arange(count))
    floors = spy.calls[1:7]
    for a, b in floors:
        assert len(set(a)) == len(set(b)) == len(a) == len(b) == size
        assert not set(a) & set(b) and set(a) | set(b) <= set(range(real_count))
    assert len({tuple(a) for a, _ in floors}) == 6
    assert set().union(*(a + b for a, b in floors)) == set(range(real_count))  # not of the reference alone
    assert (found["floor"]["n"], found["floor"]["splits"], found["floor"]["value"]) == (size, 6, 4.5)
    assert 2 <= found["floor"]["interval"][0] <= 4.5 <= found["floor"]["interval"][1] <= 7


def test_where_the_n_agree_the_value_at_the_floors_n_is_the_value():
    spy, found = spied(5, 10, np.arange(5))
    assert found["value_at_floor_n"] == found["value"] == 1 and len(spy.calls) == 7


def test_where_they_do_not_it_is_taken_on_as_many():
    reference = [0, 1, 2, 3, 4, 5, 6, 8]
    spy, found = spied(8, 9, reference)
    assert found["floor"]["n"] == 4
    for generated, real in spy.calls[7:]:
        assert len(set(generated)) == len(set(real)) == len(generated) == len(real) == 4
        assert set(generated) <= set(range(-8, 0)) and set(real) <= set(reference)
    assert len(spy.calls) == 13 and found["value_at_floor_n"] == np.median(range(8, 14))


@pytest.mark.parametrize("count, others_count, size", [(6, 9, 6), (6, 6, 6), (8, 5, 5)])
def test_the_floor_can_be_between_others_and_the_reference(count, others_count, size):
    spy, real, reference = Spy(), np.arange(20, dtype=float)[:, None], np.arange(0, 2 * count, 2)
    others = 100 + np.arange(others_count, dtype=float)[:, None]
    found = row(spy.measure, -1 - np.arange(count, dtype=float)[:, None], real, reference, DRAWS, others)
    floors = spy.calls[1:7]
    for a, b in floors:
        assert len(set(a)) == len(a) == len(set(b)) == len(b) == size
        assert set(a) <= set(range(100, 100 + others_count)) and set(b) <= set(reference)
    assert len({tuple(a) for a, _ in floors}) == (1 if size == others_count else 6)
    assert (found["floor"]["n"], found["floor"]["splits"]) == (size, 6)
    assert len(spy.calls) == (7 if size == count else 13)  # the value at the floor's n is another where n is


def test_the_floor_from_others_is_the_distance_to_them():
    generated, real, others = features(12, 0), features(24, 1), features(12, 2, 0.5)
    reference = np.arange(12)
    found = row(MEASURES["fid"], generated, real, reference, DRAWS, others)
    assert found["floor"]["value"] == pytest.approx(torch_fidelity("fid", others, real[:12]), rel=1e-6)
    line = infinity_row(features(30, 0), features(30, 1), np.arange(30), DRAWS, features(60, 2))
    assert line["floor"]["n"] == 30


def test_distances_fall_with_n_and_the_value_at_the_floors_n_knows():
    """At n = 40 in 20 dimensions; the floor's n is 20. Alike sides are within the floor there and only there."""
    generated, real = features(40, 0, width=20), features(40, 1, width=20)
    found = row(MEASURES["fid"], generated, real, np.arange(40), DRAWS)
    low, high = found["floor"]["interval"]
    assert found["value"] < low < found["value_at_floor_n"] < high


@pytest.mark.parametrize("least, there", [(5, None), (6, 5), (9, 8)])
def test_too_few_for_value_or_floor_is_said(least, there):
    _, found = spied(8, 10, np.arange(8), least)
    if there is None:
        assert found["value"] == 1
    else:
        assert found == {"metric": "spy", "title": "Spy", "omitted": f"{least} are wanted, there are {there}"}


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEASURES)
def test_a_row_is_whole(name):
    found = row(MEASURES[name], features(30, 0, 0.3), features(70, 1), np.arange(30), DRAWS)
    for part in (found, found["floor"]):
        low, high = part["interval"]
        assert low <= part["value"] <= high and low < high
    assert found["better"] == ("lower" if name in ("fid", "kid") else "higher")
    again = row(MEASURES[name], features(30, 0, 0.3), features(70, 1), np.arange(30), DRAWS)
    assert json.dumps(again) == json.dumps(found)


def test_rows_make_a_card(cards):
    generated, real, reference = features(30, 0), features(70, 1), np.arange(30)
    volumes = np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 8)).astype(np.float32)
    rows = [row(measure, generated, real, reference, DRAWS) for measure in MEASURES.values()]
    rows += [infinity_row(generated, real, reference, DRAWS), infinity_row(generated[:5], real, reference[:5], DRAWS)]
    rows[-1]["metric"] = "another"
    rows.append(ssim_row(volumes, volumes, (8, 8, 8), DRAWS))
    assert "omitted" in rows[-2]
    check_card(json.loads(json.dumps(cards.changed("metrics", rows))), "rows")


def test_slices_are_pooled_and_volumes_resampled():
    draws = Draws(resamples=60, splits=4, seed=0)
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 3, (2, 24, 1, 3))  # the slices of a volume are alike
    generated, real = centres + rng.normal(0, 0.1, (2, 24, 8, 3))
    found = row(plane_fid("coronal", 3, draws), generated, real, np.arange(24), draws)
    flat = generated.reshape(-1, 3), real.reshape(-1, 3)
    assert found["value"] == pytest.approx(torch_fidelity("fid", *flat), rel=1e-6)
    assert (found["metric"], found["n"], found["floor"]["n"]) == ("fid_coronal", 24, 12)
    slices = MEASURES["fid"].spread(*flat, found["value"])  # as if they were independent
    assert np.ptp(found["interval"]) > 1.5 * np.ptp(slices)


def test_wide_features_of_slices_are_resampled_less_and_the_row_says_so():
    assert plane_fid("axial", 2048, Draws()).settings == {"resamples": 25}
    assert plane_fid("axial", 64, Draws()).settings == {"resamples": 200}


def test_infinite_n_takes_the_bias_away():
    found = infinity_row(features(60, 0, width=8), features(120, 1, width=8), np.arange(60), DRAWS)
    plain = row(MEASURES["fid"], features(60, 0, width=8), features(120, 1, width=8), np.arange(60), DRAWS)
    assert abs(found["value"]) < 0.5 * plain["value"]
    assert found["interval"][0] < 0 < found["interval"][1] and found["slope"] > 0
    assert found["floor"]["n"] == 60 and found["value_at_floor_n"] == found["value"]
    assert max(found["settings"]["sizes"]) == 60


def test_infinite_n_with_too_few_for_the_floor_or_at_all():
    generated, real = features(20, 0, width=8), features(20, 1, width=8)
    found = infinity_row(generated, real, np.arange(20), DRAWS)
    assert found["floor"] is None and found["value_at_floor_n"] is None and np.isfinite(found["value"])
    found = infinity_row(generated[:13], real, np.arange(13), DRAWS)
    assert "14 samples a side; the smaller side has 13" in found["omitted"]


@pytest.mark.parametrize("name, count", [("kid", 7), ("precision", 11), ("density", 11), ("recall", 11)])
def test_few_volumes_omit_a_number_with_the_reason(name, count):
    assert "omitted" not in row(MEASURES[name], features(12, 0), features(24, 1), np.arange(12), DRAWS)
    found = row(MEASURES[name], features(count, 0), features(count, 1), np.arange(count), DRAWS)
    assert set(found) == {"metric", "title", "omitted"} and "the smaller side has" in found["omitted"]


# --- diversity -------------------------------------------------------------------------------------------------------


def test_diversity_stands_beside_that_of_real_pairs():
    rng = np.random.default_rng(0)
    base = rng.uniform(-1, 1, (8, 8, 8))
    alike = (0.9 * base + rng.uniform(-0.1, 0.1, (7, 8, 8, 8))).astype(np.float32)
    varied = (0.5 * base + rng.uniform(-0.5, 0.5, (9, 8, 8, 8))).astype(np.float32)
    found = ssim_row(alike, varied, (8, 8, 8), DRAWS)
    assert found["value"] > 0.8 > found["real"]["value"] + 0.2
    assert found["n"] == 7 and found["real"]["pairs"] == found["settings"]["pairs"] == 3
    assert found["floor"] is None and found["better"] == "like real"
    assert found["interval"][0] <= found["value"] <= found["interval"][1]
    swapped = ssim_row(varied[:7], alike, (8, 8, 8), DRAWS)
    assert swapped["real"]["value"] == found["value"] and swapped["value"] == found["real"]["value"]


def test_diversity_is_the_mean_over_disjoint_pairs():
    class Volumes(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    read = []
    stack = np.random.default_rng(1).normal(0, 0.2, (6, 6, 6, 6)).cumsum(1).cumsum(2).clip(-1, 1).astype(np.float32)
    found = ssim_row(Volumes(stack), stack, (6, 6, 6), DRAWS)
    assert sorted(read) == list(range(6))
    firsts, seconds = read[:3], read[3:]  # one batch: the first of every pair, then the second
    assert found["value"] == pytest.approx(ms_ssim(stack[firsts], stack[seconds]).mean())


@pytest.mark.parametrize("count, side, reason", [(1, 8, "a pair needs 2 volumes"), (4, 2, "3 voxels along each side")])
def test_diversity_that_cannot_be_taken_is_omitted(count, side, reason):
    stack = np.zeros((count, side, side, side), np.float32)
    assert reason in partial(ssim_row, stack, stack)((side,) * 3, DRAWS)["omitted"]
