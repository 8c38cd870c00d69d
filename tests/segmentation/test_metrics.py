"""Dice and HD95 against counts and against distances of all pairs of border voxels."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from splitshuffle_gan.segmentation.metrics import measure, summarise

LABELS = (0, 3, 7)
SPACING = (3.0, 1.0, 0.5)


@pytest.fixture
def maps():
    """Boxes of classes 1 and 2, in the first map moved and grown."""
    truth = np.zeros((12, 16, 20), np.uint8)
    truth[2:7, 3:9, 4:12] = 1
    truth[8:11, 10:14, 5:9] = 2
    found = np.zeros_like(truth)
    found[3:8, 3:11, 4:12] = 1
    found[8:11, 10:14, 5:9] = 2
    found[8, 10:14, 12:14] = 2
    return found, truth


def border(mask):
    return np.argwhere(mask & ~binary_erosion(mask)) * SPACING


def test_dice_is_twice_the_overlap_over_the_sizes(maps):
    found, truth = maps
    result = measure(found, truth, LABELS, SPACING)
    for number, label in ((1, "3"), (2, "7")):
        overlap = np.sum((found == number) & (truth == number))
        wanted = 2 * overlap / (np.sum(found == number) + np.sum(truth == number))
        assert result["dice"][label] == pytest.approx(wanted)


def test_hd95_is_in_mm_along_every_axis(maps):
    found, truth = maps
    result = measure(found, truth, LABELS, SPACING)
    for number, label in ((1, "3"), (2, "7")):
        distances = cdist(border(found == number), border(truth == number))
        wanted = max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))
        assert result["hd95"][label] == pytest.approx(wanted, rel=1e-5)
    assert measure(truth, truth, LABELS, SPACING)["hd95"] == {"3": 0.0, "7": 0.0}


def test_what_is_in_neither_map_counts_for_nothing_and_what_is_in_one_counts_as_missed(maps):
    found, truth = maps
    missed = measure(np.where(found == 2, 0, found), truth, LABELS, SPACING)
    assert missed["dice"]["7"] == 0 and missed["hd95"]["7"] is None
    absent = measure(*(np.where(part == 2, 0, part) for part in maps), LABELS, SPACING)
    assert absent["dice"]["7"] is None and absent["hd95"]["7"] is None
    made_up = measure(found, np.where(truth == 2, 0, truth), LABELS, SPACING)
    assert made_up["dice"]["7"] == 0 and made_up["hd95"]["7"] is None


def test_means_are_over_cases_then_over_structures():
    cases = [
        {"dice": {"3": 0.5, "7": None}, "hd95": {"3": 2.0, "7": None}, "source": "a"},
        {"dice": {"3": 0.7, "7": 0.2}, "hd95": {"3": 4.0, "7": None}, "source": "b"},
    ]
    found = summarise(cases)
    assert found["dice"] == {"3": pytest.approx(0.6), "7": pytest.approx(0.2)}
    assert found["hd95"] == {"3": pytest.approx(3.0), "7": None}
    assert found["mean_dice"] == pytest.approx(0.4)


def test_without_a_spacing_there_are_no_distances(maps):
    assert set(measure(*maps, LABELS, None)) == {"dice"}
    assert set(summarise([measure(*maps, LABELS, None)])) == {"dice", "mean_dice"}
