"""Factors from labels: against counts by hand, and against what phantoms say of themselves."""

import numpy as np
import pytest

from splitshuffle_gan.data.phantom import make_phantom
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.factors.anatomy import ANATOMY, Factor, classes_of, factors_of_labels, has_anatomy, measure

HU = {"kind": "window", "low": -250.0, "high": 650.0}
FACTORS = {
    "both": Factor((2, 5)),
    "one": Factor((5,), "mm3"),
    "how bright": Factor((2,), "HU"),
    "missing": Factor((9,), "HU"),
}


def from_labels(factors, label, image, spacing, intensity=HU):
    table, members = classes_of(factors)
    classes = table[label].ravel()
    counts = np.bincount(classes, minlength=len(members))
    return measure(factors, counts[None], np.bincount(classes, image.ravel(), len(members))[None], spacing, intensity)


def test_volumes_and_brightness_are_those_counted_by_hand():
    label = np.zeros((4, 5, 6), np.uint8)
    label[0, 0], label[1, 0, :3], label[2] = 2, 5, 7  # 6, 3 and 30 voxels; nobody asked for 7
    image = np.where(label == 2, -0.5, 1.0)
    both, one, bright, missing = from_labels(FACTORS, label, image, (2.0, 10.0, 5.0))[0]
    assert both == pytest.approx(9 * 0.1)
    assert one == pytest.approx(300)
    assert bright == pytest.approx(-250 + 0.25 * 900)
    assert np.isnan(missing)


def test_classes_are_no_more_than_it_takes_and_background_is_the_first():
    table, members = classes_of({"a": Factor((1, 2, 3)), "b": Factor((3,)), "c": Factor((4,), "HU")})
    assert members.shape == (4, 3) and not members[0].any()
    assert table[1] == table[2] != table[3] and len({0, *table[[1, 3, 4]]}) == 4
    assert not table[[0, 5, 255]].any()


def test_the_factors_of_a_phantom_are_those_it_says_of_itself():
    spacing = (6.5, 6.5, 7.0)
    heart = make_phantom("heart", (24, 40, 48), spacing, 3)
    unit = np.clip((heart.image - HU["low"]) / 450 - 1, -1, 1)
    found = from_labels(ANATOMY["heart"], heart.label, unit, spacing)[0]
    found = dict(zip(ANATOMY["heart"], found, strict=True))
    assert found["left ventricle"] == pytest.approx(heart.factors["lv_volume_ml"])
    assert found["coronary calcium"] == pytest.approx(heart.factors["calcium_volume_mm3"])
    chambers = ("left ventricle", "its wall", "right ventricle", "left atrium", "right atrium")
    assert found["heart"] == pytest.approx(sum(found[name] for name in chambers))
    spacing = (8.0, 9.5, 8.0)
    brain = make_phantom("brain", (24, 24, 24), spacing, 3)
    found = from_labels(ANATOMY["brain"], brain.label, brain.image, spacing)[0]
    found = dict(zip(ANATOMY["brain"], found, strict=True))
    assert found["ventricles"] == pytest.approx(brain.factors["ventricle_volume_ml"])
    assert found["head"] == pytest.approx(np.count_nonzero(brain.label) * 608 / 1000)


def test_one_kind_of_phantom_is_not_taken_for_the_other():
    """Their labels have the same numbers."""
    grids = {"heart": ((32, 40, 48), (4.5, 6.5, 7.0)), "brain": ((24, 24, 24), (8.0, 9.5, 8.0))}
    present = {
        kind: sorted(
            {value for seed in range(4) for value in np.unique(make_phantom(kind, *grid, seed).label).tolist()}
        )
        for kind, grid in grids.items()
    }
    assert {(kind, other): has_anatomy(kind, present[other]) for kind in grids for other in grids} == {
        ("heart", "heart"): True, ("heart", "brain"): False, ("brain", "heart"): False, ("brain", "brain"): True,
    }  # fmt: skip


@pytest.mark.parametrize("labels, unit", [((), "ml"), ((0,), "ml"), ((256,), "ml"), ((1.5,), "ml"), ((1,), "litres")])
def test_a_factor_that_makes_no_sense_is_refused(labels, unit):
    with pytest.raises(UserError, match="factor: "):
        Factor(labels, unit)


def test_every_label_but_the_background_is_a_factor():
    assert factors_of_labels([0, 1, 4]) == {"label 1": Factor((1,)), "label 4": Factor((4,))}
    with pytest.raises(UserError, match="background only"):
        factors_of_labels([0])
