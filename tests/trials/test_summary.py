"""Dice of arms, differences and intervals, from lines."""

import numpy as np
import pytest

from splitshuffle_gan.trials.report import markdown, png
from splitshuffle_gan.trials.summary import mean_dice, summarise
from splitshuffle_gan.trials.utility import QUESTION

ARMS = tuple(QUESTION.arms)
RECORD = {"labels": [2, 5], "settings": {"steps": 7}, "cases": 12}


def line(arm: str, seed: int, values: np.ndarray) -> dict:
    """`values` `[cases, 2]`, NaN for a structure that a case lacks."""
    cases = [
        {
            "source": str(n),
            "dice": {label: None if np.isnan(v) else float(v) for label, v in zip("25", row, strict=True)},
        }
        for n, row in enumerate(values)
    ]
    return {"arm": arm, "seed": seed, "given": f"{dict(real=8, synthetic=20, both=28)[arm]} volumes", "cases": cases}


@pytest.fixture
def lines() -> list[dict]:
    """Cases that differ much from one another, and little from arm to arm."""
    rng = np.random.default_rng(0)
    cases = rng.uniform(0.3, 0.9, (12, 2))
    better = {"real": 0.0, "synthetic": -0.04, "both": 0.02}
    return [
        line(arm, seed, cases + better[arm] + 0.01 * seed + rng.normal(0, 0.005, (12, 2)))
        for arm in ARMS
        for seed in range(3)
    ]


def test_means_medians_and_spread_are_over_seeds(lines):
    found = summarise(QUESTION, RECORD, lines, 500)["arms"]["real"]
    values = np.array([[[case["dice"][x] for x in "25"] for case in one["cases"]] for one in lines[:3]])
    by_seed = values.mean((1, 2))
    assert found["mean"]["by_seed"] == pytest.approx(by_seed)
    assert found["mean"]["mean"] == pytest.approx(by_seed.mean())
    assert found["mean"]["median"] == pytest.approx(np.median(by_seed))
    assert (found["mean"]["lowest"], found["mean"]["highest"]) == pytest.approx((by_seed.min(), by_seed.max()))
    assert found["mean"]["deviation"] == pytest.approx(by_seed.std(ddof=1))
    assert found["structures"]["5"]["mean"] == pytest.approx(values[..., 1].mean())
    assert (found["given"], found["seeds"]) == ("8 volumes", [0, 1, 2])


def test_intervals_are_those_of_the_mean_over_cases(lines):
    """Against the normal interval of a mean of 12, and of 12 paired differences, which is far narrower."""
    found = summarise(QUESTION, RECORD, lines, 4000)
    cases = {
        arm: np.mean([[list(case["dice"].values()) for case in one["cases"]] for one in lines if one["arm"] == arm], 0)
        for arm in ARMS
    }
    for values, row in (
        (cases["real"], found["arms"]["real"]["mean"]),
        (cases["synthetic"] - cases["real"], found["differences"]["synthetic"]["mean"]),
        (cases["both"] - cases["real"], found["differences"]["both"]["mean"]),
    ):
        means = values.mean(1)
        half = 1.96 * means.std() / np.sqrt(12)
        assert row["mean"] == pytest.approx(means.mean())
        assert row["interval"] == pytest.approx([means.mean() - half, means.mean() + half], abs=0.25 * half)
    widths = [np.ptp(found[kind][arm]["mean"]["interval"]) for kind, arm in (("arms", "real"), ("differences", "both"))]
    assert widths[1] < widths[0] / 5
    low, high = found["differences"]["synthetic"]["mean"]["interval"]
    assert low < -0.04 < high < 0


def test_a_structure_counts_where_a_case_has_it():
    values = np.full((12, 2), 0.5)
    values[:, 1], values[3:, 1] = 0.9, np.nan
    assert mean_dice(values) == pytest.approx(0.7)
    lines = [line("real", 0, values), line("synthetic", 0, values - 0.1)]
    found = summarise(QUESTION, RECORD, lines, 500)
    assert found["arms"]["real"]["structures"]["5"]["mean"] == pytest.approx(0.9)
    difference = found["differences"]["synthetic"]
    assert difference["mean"]["mean"] == pytest.approx(-0.1)
    assert difference["structures"]["5"]["interval"] == pytest.approx([-0.1, -0.1])


def test_only_common_seeds_are_compared_and_what_is_missing_is_said(lines):
    lines = [one for one in lines if (one["arm"], one["seed"]) not in {("both", 2), ("synthetic", 0), ("real", 1)}]
    found = summarise(QUESTION, RECORD, lines, 100)
    assert found["differences"]["synthetic"]["seeds"] == [2]
    assert found["differences"]["both"]["seeds"] == [0]
    assert found["missing"] == [["synthetic", 0], ["real", 1], ["both", 2]]
    text = markdown(QUESTION, RECORD, found)
    assert "Still missing: synthetic (seed 0), real (seed 1), both (seed 2)" in text


def test_few_cases_have_no_interval(lines):
    few = [{**one, "cases": one["cases"][:4]} for one in lines]
    found = summarise(QUESTION, RECORD | {"cases": 4}, few, 100)
    assert found["arms"]["both"]["mean"]["interval"] is None
    assert found["differences"]["both"]["mean"]["interval"] is None
    assert "[" not in markdown(QUESTION, RECORD, found).split("**How")[0]
    assert png(QUESTION, found)[:4] == b"\x89PNG"


def test_the_table_says_what_the_numbers_are(lines):
    found = summarise(QUESTION, RECORD, lines, 500)
    rows = [
        [cell.strip() for cell in row.split("|")]
        for row in markdown(QUESTION, RECORD, found).splitlines()
        if row[:1] == "|"
    ]
    by_name = {row[1]: row for row in rows}
    mean = found["arms"]["synthetic"]["mean"]
    low, high = mean["interval"]
    assert by_name["synthetic"][2:5] == ["20 volumes", "0, 1, 2", f"{mean['mean']:.3f} [{low:.3f}, {high:.3f}]"]
    assert by_name["both - real"][2].startswith("+0.0") and by_name["synthetic - real"][2].startswith("-0.0")
    assert png(QUESTION, found)[:4] == b"\x89PNG"


def test_nothing_yet():
    found = summarise(QUESTION, RECORD, [], 100)
    assert (found["arms"], found["differences"], found["missing"]) == ({}, {}, [])
    assert "# Downstream utility" in markdown(QUESTION, RECORD, found)
