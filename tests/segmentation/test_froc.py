"""FROC against counting by hand, in loops, and against MONAI's."""

import numpy as np
import pytest
from monai.metrics import compute_froc_curve_data, compute_froc_score

from splitshuffle_gan.segmentation.froc import RATES, Hits, _resampled, curve, froc, match

SPACING = (3.0, 1.0, 2.0)


def random_case(rng, lesions, finds, shape=(6, 12, 10)):
    """Numbered lesions of one to three voxels, finds anywhere, half of them near a lesion; confidences with ties."""
    numbered = np.zeros(shape, np.int32)
    for number in range(1, lesions + 1):
        centre = rng.integers(0, np.array(shape) - 1)
        for _ in range(3):
            numbered[tuple(centre + rng.integers(0, 2, 3))] = number
    kept = [number for number in range(1, lesions + 1) if (numbered == number).any()]
    numbered = np.searchsorted([0, *kept], numbered).astype(np.int32)  # some may lie beneath others
    voxels = rng.integers(0, shape, (finds, 3))
    spots = np.argwhere(numbered)
    if len(spots):
        near = spots[rng.integers(len(spots), size=finds // 2)] + rng.integers(-1, 2, (finds // 2, 3))
        voxels[: finds // 2] = np.clip(near, 0, np.array(shape) - 1)
    return numbered, voxels, rng.integers(1, 21, finds).astype(np.float32) / 20


def counted(numbered, voxels, confidences, reach):
    """The best confidence on every lesion, and those of the finds on none, pair by pair; None for what is a tie."""
    best, false = [0.0] * numbered.max(), []
    for voxel, confidence in zip(voxels, confidences, strict=True):
        distances = [
            np.linalg.norm((np.argwhere(numbered == number) - voxel) * SPACING, axis=1).min()
            for number in range(1, numbered.max() + 1)
        ]
        if distances and min(distances) <= reach:
            owners = np.flatnonzero(np.isclose(distances, min(distances)))
            if len(owners) > 1:
                return None
            best[owners[0]] = max(best[owners[0]], confidence)
        else:
            false.append(confidence)
    return best, false


@pytest.fixture(scope="module")
def cases():
    rng = np.random.default_rng(5)
    return [match(v, c, n, SPACING, 0.0) for n, v, c in (random_case(rng, k, 12) for k in (2, 0, 3, 1, 5, 0, 2))]


@pytest.mark.parametrize("reach", [0.0, 2.5])
def test_hits_are_those_of_all_pairs(reach):
    rng, checked = np.random.default_rng(0), 0
    for _ in range(60):
        numbered, voxels, confidences = random_case(rng, int(rng.integers(0, 4)), int(rng.integers(0, 9)))
        expected = counted(numbered, voxels, confidences, reach)
        if expected is None:  # a find as far from two lesions may go to either
            continue
        best, false = expected
        hits = match(voxels, confidences, numbered, SPACING, reach)
        assert hits.found.tolist() == pytest.approx(best)
        assert sorted(hits.false.tolist()) == pytest.approx(sorted(false))
        checked += 1
    assert checked > 40


def test_a_lesion_is_hit_once_and_further_finds_on_it_are_not_held_against_anyone():
    lesions = np.zeros((4, 8, 8), np.int32)
    lesions[1, 1, 1:3], lesions[3, 6, 6] = 1, 2
    voxels = np.array([[1, 1, 1], [1, 1, 2], [1, 2, 2], [0, 6, 6]])  # in, in, 1 mm off, 9 mm off
    hits = match(voxels, np.array([0.5, 0.9, 0.7, 0.8]), lesions, SPACING, 1.0)
    assert hits.found.tolist() == pytest.approx([0.9, 0.0]) and hits.false.tolist() == pytest.approx([0.8])
    hits = match(voxels, np.array([0.5, 0.9, 0.7, 0.8]), lesions, SPACING, 0.0)
    assert hits.found.tolist() == pytest.approx([0.9, 0.0]) and sorted(hits.false) == pytest.approx([0.7, 0.8])
    nothing = match(np.zeros((0, 3), int), np.zeros(0), lesions, SPACING, 1.0)
    assert nothing.found.tolist() == [0, 0] and len(nothing.false) == 0
    healthy = match(voxels, np.full(4, 0.5), np.zeros_like(lesions), SPACING, 1.0)
    assert len(healthy.found) == 0 and len(healthy.false) == 4


def test_the_curve_counts_what_is_at_least_as_sure(cases):
    rates, sensitivities, confidences = curve(cases)
    assert (rates[0], sensitivities[0], confidences[0]) == (0, 0, np.inf)
    every = {float(c) for case in cases for part in (case.found, case.false) for c in part} - {0.0}
    assert list(confidences[1:]) == sorted(every, reverse=True)
    for rate, sensitivity, least in zip(rates, sensitivities, confidences, strict=True):
        false = sum(confidence >= least for case in cases for confidence in case.false)
        found = sum(confidence >= least for case in cases for confidence in case.found)
        assert rate == pytest.approx(false / len(cases))
        assert sensitivity == pytest.approx(found / sum(len(case.found) for case in cases))


def test_the_score_is_monais(cases):
    # MONAI leaves out the lowest confidence, for which it takes the 0 of missed lesions; here there always is one.
    false = np.concatenate([[0.0], *(case.false for case in cases)])
    found = np.concatenate([case.found for case in cases])
    theirs = compute_froc_curve_data(false, found, len(found), len(cases))
    rates, sensitivities, _ = curve(cases)
    assert np.allclose(theirs[0][::-1], rates) and np.allclose(theirs[1][::-1], sensitivities)
    result = froc(cases, resamples=0)
    assert result["froc"] == pytest.approx(compute_froc_score(*theirs, eval_thresholds=RATES))
    assert list(result["sensitivity"]) == ["0.125", "0.25", "0.5", "1", "2", "4", "8"]
    for rate, entry in zip(RATES, result["sensitivity"].values(), strict=True):
        assert entry["value"] == pytest.approx(compute_froc_score(*theirs, eval_thresholds=(rate,)))
        assert "interval" not in entry
        if entry["least"] is not None:
            assert sum((case.false >= entry["least"]).sum() for case in cases) <= rate * len(cases)
    assert (result["lesions"], result["volumes"]) == (len(found), 7)


def test_intervals_are_percentiles_over_volumes_drawn_again(cases):
    result = froc(cases, resamples=300, seed=3)
    rng, scores = np.random.default_rng(11), []
    while len(scores) < 300:
        drawn = [cases[number] for number in rng.integers(len(cases), size=len(cases))]
        if any(len(case.found) for case in drawn):
            scores.append(froc(drawn, resamples=0)["froc"])
    assert result["interval"] == pytest.approx(np.percentile(scores, [2.5, 97.5]), abs=0.06)
    assert result == froc(cases, resamples=300, seed=3)
    for entry in result["sensitivity"].values():
        assert 0 <= entry["interval"][0] <= entry["interval"][1] <= 1


def test_a_draw_without_a_lesion_is_repeated():
    cases = [Hits(np.array([0.9]), np.zeros(0)), Hits(np.zeros(0), np.array([0.95]))]
    # Of the draws with a lesion, AA, AB and BA, only AA finds it below half a false positive per volume.
    assert _resampled(cases, 4000, 0)[:, 0].mean() == pytest.approx(1 / 3, abs=0.03)


def test_all_and_nothing():
    sure = froc([Hits(np.array([0.9, 0.8]), np.zeros(0)), Hits(np.zeros(0), np.array([0.1]))], resamples=50)
    assert sure["froc"] == 1 and sure["interval"] == [1, 1]
    assert sure["sensitivity"]["0.125"]["least"] == pytest.approx(0.8)
    half = froc([Hits(np.array([0.9, 0.4]), np.array([0.6])), Hits(np.zeros(0), np.zeros(0))], resamples=0)
    assert [half["sensitivity"][rate]["least"] for rate in ("0.25", "0.5", "1")] == [0.9, 0.4, 0.4]
    blind = froc([Hits(np.zeros(2), np.array([0.5]))], resamples=50)
    assert blind["froc"] == 0 and blind["interval"] == [0, 0] and blind["sensitivity"]["0.5"]["least"] is None
    with pytest.raises(ValueError, match="no lesion in 1 volumes"):
        froc([Hits(np.zeros(0), np.array([0.5]))])
