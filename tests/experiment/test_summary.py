"""The numbers of the report against numbers worked out by hand, from hand-written results."""

import json
from dataclasses import replace

import pytest

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment.picture import BLACK, panels_of
from splitshuffle_gan.experiment.plan import parse_plan
from splitshuffle_gan.experiment.report import write_report
from splitshuffle_gan.experiment.summary import curve_of, first_reached, pair, summarise

PLAN = parse_plan({
    "title": "By hand", "minutes": 10, "held_out": 40, "baseline": "base", "draws": 2,
    "arms": {
        "base": {"title": "Base | line"}, "ours": {"title": "Ours", "share_2d": 0.2}, "few": {"seeds": [1]},
        "none": {"seeds": [0, 1]},
    },
})  # fmt: skip
# FID at 3 evaluations, by arm and seed.
FIDS = {
    "base": {0: (40, 20, 10), 1: (44, 20, 12), 2: (42, 20, 14)},
    "ours": {0: (30, 9, 5), 1: (30, 13, 6), 2: (30, 14, 4)},
    "few": {1: (8, 7, 6)},
}


def evaluation(arm: str, seed: int, index: int, fid: float, **more) -> dict:
    fid = float(fid)
    floor = {"value": 2.0, "interval": [1.5, 2.5], "n": 40, "splits": 50}
    metrics = {
        "fid_3d": {"mean": fid, "draws": [fid, fid], "interval": [fid - 1, fid + 1], "floor": floor,
                   "at_floor_n": fid, "better": "lower"},
        "recall": {"mean": 0.25 + seed / 4, "draws": [], "interval": [0, 1], "floor": None, "at_floor_n": None,
                   "better": "higher"},
    }  # fmt: skip
    in_2d = 2.0 if arm == "ours" else 0.0
    return {
        "kind": "evaluation", "arm": arm, "title": arm, "seed": seed, "set": "held_out", "index": index, "of": 3,
        "fraction": (index + 1) / 3, "minutes": in_2d + (9 - in_2d) * (index + 1) / 3, "minutes_2d": in_2d,
        "parameters": {"generator": 600 if arm == "base" else 300, "discriminator": 400 if arm == "base" else 50},
        "n": 40, "metrics": metrics, "ruler": {"name": "med3d-mini"}, "data": {"real": "r", "floor_from": "f"}, **more,
    }  # fmt: skip


def all_lines() -> list[dict]:
    return [
        evaluation(arm, seed, index, fid)
        for arm, seeds in FIDS.items()
        for seed, fids in seeds.items()
        for index, fid in enumerate(fids)
    ]


def test_a_row_is_the_mean_over_seeds_of_the_last_evaluations():
    rows = {row["arm"]: row for row in summarise(PLAN, all_lines())["sets"]["held_out"]["rows"]}
    assert list(rows) == ["base", "ours", "few"]
    ours = rows["ours"]
    assert ours["metrics"]["fid_3d"] == {"mean": 5.0, "lowest": 4, "highest": 6, "times_floor": 2.5}
    assert ours["metrics"]["recall"]["mean"] == 0.5 and ours["metrics"]["recall"]["times_floor"] is None
    assert (ours["parameters"], ours["parameters_of_baseline"]) == (350, 0.35)
    assert (ours["minutes"], ours["minutes_2d"], ours["seeds"]) == (9.0, 2.0, [0, 1, 2])
    assert (rows["few"]["seeds"], rows["few"]["seeds_planned"]) == ([1], 1)


def test_pairs_by_seed():
    """Differences -5, -6, -10: mean -7, standard deviation sqrt(7), t(0.975, 2) = 4.302653."""
    paired = {row["arm"]: row for row in summarise(PLAN, all_lines())["sets"]["held_out"]["paired"]}
    ours, few = paired["ours"], paired["few"]
    assert ours["ratios"] == pytest.approx([0.5, 0.5, 2 / 7]) and ours["mean_difference"] == pytest.approx(-7)
    half = 4.302653 * (7 / 3) ** 0.5
    assert ours["interval"] == pytest.approx([-7 - half, -7 + half], rel=1e-6)
    assert (few["seeds"], few["ratios"], few["interval"]) == ([1], [0.5], None)


def test_when_the_baselines_last_fid_is_reached():
    """The baseline ends at 12. Ours falls from (4.333, 30) to (6.667, 12); `few` is below from its first point on."""
    paired = {row["arm"]: row for row in summarise(PLAN, all_lines())["sets"]["held_out"]["paired"]}
    reached = paired["ours"]["reaches"]
    assert reached["minutes"] == pytest.approx(2 + 7 * 2 / 3) and reached["exact"]
    assert reached["share"] == pytest.approx((2 + 7 * 2 / 3) / 9)
    assert paired["few"]["reaches"] == {"minutes": 3.0, "share": pytest.approx(1 / 3), "exact": False}


@pytest.mark.parametrize(
    "value, expected", [(20, (1.5, True)), (30, (1, False)), (10, (2, True)), (9, None), (15, (1.75, True))]
)
def test_the_first_time_is_linear_between_points(value, expected):
    assert first_reached([(1, 30), (2, 10), (3, 12)], value) == expected


def test_an_interval_needs_three_seeds_that_differ():
    assert pair([1, 2], [2, 2])["interval"] is None
    assert pair([1, 2, 3], [2, 3, 4])["interval"] is None
    assert pair([1, 2, 4], [2, 3, 4])["interval"] is not None


def test_seeds_that_are_not_through_do_not_bend_the_mean():
    lines = {0: [evaluation("ours", 0, i, 10 - i) for i in range(3)], 1: [evaluation("ours", 1, 0, 100)]}
    assert [fid for _, fid in curve_of("ours", "", lines)["mean"]] == [10, 9, 8]
    running = {0: lines[0][:2], 1: lines[1]}
    assert [fid for _, fid in curve_of("ours", "", running)["mean"]] == [55]
    assert len(curve_of("ours", "", running)["seeds"]["0"]) == 2


def test_what_is_missing_and_what_failed_is_said():
    lines = [line for line in all_lines() if (line["arm"], line["seed"]) != ("ours", 2) or line["index"] == 0]
    lines.append({"kind": "failure", "arm": "ours", "seed": 2, "set": "held_out", "stage": "train3d", "message": "NaN"})
    summary = summarise(PLAN, lines)
    assert summary["missing"] == ["ours: 2 of 3 seeds (seed 2 at 33%)", "none: 0 of 2 seeds"]
    assert summary["failures"] == [{"arm": "ours", "seed": 2, "stage": "train3d", "message": "NaN"}]


@pytest.mark.parametrize("change", [{"n": 30}, {"ruler": {"name": "random-0"}}, {"data": {"real": "other"}}])
def test_rulers_do_not_mix(change):
    with pytest.raises(UserError, match=rf"held_out: {next(iter(change))} is .* base, seed 0.* ours, seed 1"):
        summarise(PLAN, [*all_lines(), evaluation("ours", 1, 1, 5.0, **change)])


def test_the_report_is_written(tmp_path):
    text = write_report(PLAN, all_lines(), tmp_path)
    assert text == (tmp_path / "table.md").read_text()
    assert r"| Base \| line | 3 | 0.001 M | 100.0% | 9 | 12.00 [10.00, 14.00] | 6.000 |" in text
    assert "| Ours | 3 | 0.00035 M | 35.0% | 9 (2) | 5.000 [4.000, 6.000] | 2.500 |" in text
    assert "| real volumes (floor) |  |  |  |  | 2.000 [1.500, 2.500] | 1 |" in text
    assert "| Ours | 0.500 (0), 0.500 (1), 0.286 (2) | -7.000 | [-13.57, -0.4276] |" in text
    assert "at most 3 minutes, 33% of its time" in text and "6.67 minutes, 74% of its time" in text
    assert "none: 0 of 2 seeds" in text
    summary = json.loads((tmp_path / "table.json").read_text())
    assert summary == json.loads(json.dumps(summarise(PLAN, all_lines())))
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_a_group_has_a_table_of_its_own_with_what_it_is_compared_with(tmp_path):
    plan = replace(PLAN, arms={**PLAN.arms, "few": replace(PLAN.arms["few"], group="Fewer", against="ours")})
    summary = summarise(plan, all_lines())
    few = next(row for row in summary["sets"]["held_out"]["paired"] if row["arm"] == "few")
    assert (few["against"], few["ratios"]) == ("ours", [1.0])
    panels = panels_of(plan, summary["sets"]["held_out"])
    assert {title: list(look) for title, look in panels.items()} == {
        PLAN.title: ["base", "ours"],
        "Fewer": ["few", "ours"],
    }
    assert panels["Fewer"]["ours"] == (BLACK, "-") != panels[PLAN.title]["ours"]
    main, group = write_report(plan, all_lines(), tmp_path).split("### Fewer")
    assert "| few |" not in main and "| Ours |" in main
    assert "| few |" in group and "| Ours |" in group and "Base" not in group and "Against Ours" in group


def test_a_main_table_of_one_arm_has_no_panel():
    arms = {name: arm if name == "base" else replace(arm, group="Changed") for name, arm in PLAN.arms.items()}
    plan = replace(PLAN, arms=arms)
    panels = panels_of(plan, summarise(plan, all_lines())["sets"]["held_out"])
    assert {title: list(look) for title, look in panels.items()} == {"Changed": ["ours", "few", "base"]}


@pytest.mark.parametrize("count", [0, 1, 4])
def test_there_is_a_report_from_the_first_line_on(tmp_path, count):
    text = write_report(PLAN, all_lines()[:count], tmp_path)
    assert ("No run has been evaluated to its end" in text) == (count < 3)
    assert (tmp_path / "curves.png").exists() == (count > 0)
