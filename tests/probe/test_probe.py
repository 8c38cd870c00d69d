"""Whole probes on balls: what comes out, that a killed one goes on, what is refused, what is not told apart.

All stages run in this process.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment import process, runs
from splitshuffle_gan.experiment.folder import only_one
from splitshuffle_gan.probe.measures import auroc
from splitshuffle_gan.probe.plan import parse_plan
from splitshuffle_gan.probe.run import RECORD
from splitshuffle_gan.probe.summary import RESAMPLES, Values, resampling, summarise

pytestmark = pytest.mark.usefixtures("cpu")
PLAN = {
    "title": "Balls | tiny",
    "seeds": [0, 3],
    "baseline": "i3d",
    "network": {"width": 2},
    "precision": "no",
    "pretrain": {"steps": 3, "batch_size": 4},
    "finetune": {"steps": 2, "batch_size": 4},
    "sources": {"balls": {"dataset": "a/dataset"}},
    "arms": {
        "scratch": {"way": "scratch"},
        "i3d": {"way": "i3d", "title": "I3D"},
        "acs": {"way": "acs"},
        "rotated": {"way": "cross_d", "phase": "rotation"},
    },
    "targets": {
        "core": {"train": "a/dataset", "test": "b/dataset", "labels": [2], "title": "size of the core"},
        "given": {"npz": "given.npz"},
    },
}
VARYING = {"seconds", "in_2d"}


@pytest.fixture(scope="module")
def root(balls, tmp_path_factory) -> Path:
    """The balls, and a MedMNIST 3D file of three classes beside them."""
    folder, rng = tmp_path_factory.mktemp("root"), np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).symlink_to(balls.root / name)
    arrays = {}
    for part, count in (("train", 9), ("val", 6), ("test", 6)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, 16, 16, 16), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 3)[:, None]
    np.savez(folder / "given.npz", **arrays)
    return folder


@pytest.fixture
def here(monkeypatch):
    """Every stage in this process, one at a time; `here.started` names them."""
    started = []

    def start(function, arguments, folder, name, cores):
        started.append(f"{folder.name}/{name}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / process.FAILURE).unlink(missing_ok=True)
        code = process.attempt(function, arguments, folder, name)
        return SimpleNamespace(sentinel=object(), exitcode=code, join=lambda: None, is_alive=lambda: False)

    monkeypatch.setattr(runs, "start", start)
    monkeypatch.setattr(runs, "wait", lambda sentinels, timeout: sentinels)
    return SimpleNamespace(started=started)


@pytest.fixture
def cli(run, root, here, tmp_path):
    """`cli(out, "--seeds", 0, targets={...})`: the command, fields of the plan changed."""

    def call(out: Path, *options: object, **changes):
        plan = tmp_path / "plan.yaml"
        plan.write_text(yaml.safe_dump(PLAN | changes, sort_keys=False))
        here.started.clear()
        return run("probe", plan, "--data", root, "--out", out, "--jobs", 1, *options)

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """Where a probe is made once, and the stages that it took."""
    return SimpleNamespace(folder=tmp_path_factory.mktemp("made") / "out", started=[])


@pytest.fixture
def finished(cli, here, made, tmp_path) -> Path:
    """The folder of a probe with one seed, to do with as one likes."""
    if not made.folder.exists():
        found = cli(made.folder, "--seeds", 0)
        assert found.code == 0, found.err
        made.started = list(here.started)
    return shutil.copytree(made.folder, tmp_path / "finished")


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def without(line: dict) -> dict:
    return {key: value for key, value in line.items() if key not in VARYING}


def test_all_arms_are_judged_on_all_targets_in_both_ways(finished, made):
    found = {(line["arm"], line["target"], line["mode"]) for line in lines(finished)}
    assert found == {(a, t, m) for a in PLAN["arms"] for t in PLAN["targets"] for m in ("probe", "finetune")}
    # I3D and ACS start from the same 2D network
    assert sorted(made.started) == ["acs-seed0/judge", "i3d-seed0/judge", "pretrain-plain-seed0/pretrain",
                                    "pretrain-rotation-seed0/pretrain", "rotated-seed0/judge",
                                    "scratch-seed0/judge"]  # fmt: skip
    table = json.loads((finished / "table.json").read_text())
    line = next(line for line in lines(finished) if (line["arm"], line["target"]) == ("acs", "given"))
    value = auroc(np.array(line["logits"]), np.array(line["truth"]))[0]
    row = table["modes"][line["mode"]]["auroc"]["rows"]["acs"]["given"]
    assert row["mean"] == pytest.approx(value) and row["by_seed"] == {"0": pytest.approx(value)}
    assert table["targets"]["given"]["chance"]["balanced_accuracy"] == pytest.approx(1 / 3)
    text = (finished / "table.md").read_text()
    assert "AUROC minus that of I3D" in text and "scratch: 4 of 8 results" in text and "(1 of 2 seeds)" in text
    assert (finished / "probe.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_kill_left_is_done_and_comes_out_the_same(finished, cli, here, tmp_path):
    out = tmp_path / "resumed"
    shutil.copytree(finished, out)
    every = lines(finished)
    kept = [line for line in every if line["arm"] != "acs" or line["target"] == "core" and line["mode"] == "probe"]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    (out / "results.jsonl").write_text(text + '{"kind": "probe", "arm": "ac')  # and one that was cut short
    assert cli(out, "--seeds", 0).code == 0
    assert here.started == ["acs-seed0/judge"]
    found = sorted(lines(out), key=lambda line: (line["arm"], line["target"], line["mode"]))
    wanted = sorted(every, key=lambda line: (line["arm"], line["target"], line["mode"]))
    assert [without(line) for line in found] == [without(line) for line in wanted]
    assert cli(out, "--seeds", 0).code == 0 and here.started == []


def test_results_of_another_plan_are_not_mixed_in(finished, cli):
    found = cli(finished, "--seeds", 0, finetune={"steps": 3, "batch_size": 4})
    assert found.code == 1 and "has a result of" in found.err and "take another --out" in found.err
    renamed = PLAN["arms"] | {"acs": {"way": "acs", "title": "another title"}}
    assert cli(finished, "--seeds", 0, arms=renamed).code == 0


def test_the_report_alone_needs_the_results_alone(finished, cli, here, tmp_path):
    out = tmp_path / "report"
    out.mkdir()
    shutil.copy(finished / "results.jsonl", out)
    assert cli(out, "--report-only").code == 0 and here.started == []
    assert (out / "table.md").read_text() == (finished / "table.md").read_text()
    found = cli(tmp_path / "nothing", "--report-only")
    assert found.code == 1 and "has no results.jsonl" in found.err


def test_a_failure_is_told_and_the_others_go_on(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("splitshuffle_gan.probe.carry.RULES", {"i3d": {}, "acs": {}, "cross_d": {}})
    found = cli(tmp_path / "out", "--seeds", 0)
    assert found.code == 1 and "2 runs failed" in found.err
    text = (tmp_path / "out" / "table.md").read_text()
    assert "acs, seed 0, judge: body.conv1" in text or "acs, seed 0, judge: conv1" in text
    assert {line["arm"] for line in lines(tmp_path / "out") if line["kind"] == "probe"} == {"scratch", "rotated"}


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, ["--arms", "none"], "arms: found 'none', the plan has scratch, i3d, acs, rotated"),
        ({}, ["--seeds", 7], "seeds: found 7, the plan has 0, 3"),
        ({"sources": {"balls": {"dataset": "b/dataset"}}}, [], "sources.balls: 10 of its volumes are in the test part"),
        ({"sources": {"balls": {"npz": "none.npz"}}}, [], "sources.balls: "),
        ({"targets": {"core": PLAN["targets"]["core"] | {"labels": [9]}}}, [], "targets.core: labels: "),
    ],
)
def test_what_is_refused_before_anything_starts(cli, here, tmp_path, changes, options, message):
    found = cli(tmp_path / "out", *options, **changes)
    assert found.code == 1 and found.err.splitlines()[-1].startswith("error: ") and message in found.err
    assert here.started == []


def test_other_folders_and_two_at_once_are_refused(finished, cli, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters").touch()
    found = cli(tmp_path / "home")
    assert found.code == 1 and "has no probe.json in it, so it is no probe" in found.err
    with only_one(finished, RECORD):
        assert "another process works in" in cli(finished).err


# The summary, of results made up


def result(arm: str, seed: int, logits: np.ndarray, truth: np.ndarray, target: str = "core", test: str = "x") -> dict:
    """A line of results.jsonl."""
    return {
        "kind": "probe", "arm": arm, "seed": seed, "target": target, "mode": "probe", "made": "", "test": test,
        "parameters": 1, "in_2d": None, "train": 8, "classes": 2, "threshold": 0.5, "truth": truth.tolist(),
        "logits": logits.tolist(),
    }  # fmt: skip


def made_up(better: float, seeds: tuple[int, ...] = (0, 1, 2), count: int = 200) -> dict:
    """A summary in which scratch has a signal that is larger than that of i3d by `better`, in the same noise."""
    rng, found = np.random.default_rng(0), []
    truth = np.arange(count) % 2
    shared = rng.normal(size=count)
    for seed in seeds:
        for arm, signal in (("i3d", 0.5), ("scratch", 0.5 + better)):
            odds = signal * truth + shared + 0.5 * rng.normal(size=count)
            found.append(result(arm, seed, np.stack([-odds, odds], 1), truth))
    targets = {"core": PLAN["targets"]["core"]}
    plan = {k: v for k, v in PLAN.items() if k != "finetune"} | {"seeds": list(seeds), "targets": targets}
    return summarise(parse_plan(plan), found)["modes"]["probe"]["auroc"]


def test_intervals_hold_the_mean_and_differences_are_by_pairs():
    found = made_up(1.0)
    row, difference = found["rows"]["scratch"]["core"], found["differences"]["scratch"]["core"]
    assert row["interval"][0] < row["mean"] < row["interval"][1]
    assert row["mean"] == pytest.approx(np.mean(list(row["by_seed"].values())))
    base = found["rows"]["i3d"]["core"]
    assert difference["mean"] == pytest.approx(row["mean"] - base["mean"]) and difference["interval"][0] > 0
    # what both arms find hard they find hard together
    width = difference["interval"][1] - difference["interval"][0]
    assert width < np.hypot(row["interval"][1] - row["interval"][0], base["interval"][1] - base["interval"][0])
    assert found["rows"]["scratch"]["mean"] == row and "i3d" not in found["differences"]


def test_equal_arms_are_not_told_apart():
    low, high = made_up(0.0)["differences"]["scratch"]["core"]["interval"]
    assert low < 0 < high


def test_the_interval_has_the_width_that_theory_gives():
    row = made_up(0.0, seeds=(0,))["rows"]["i3d"]["core"]
    a, n = row["mean"], 100  # Hanley and McNeil's standard error of an AUROC, 100 volumes a class
    q1, q2 = a / (2 - a), 2 * a**2 / (1 + a)
    error = np.sqrt((a * (1 - a) + (n - 1) * (q1 - a**2) + (n - 1) * (q2 - a**2)) / n**2)
    assert row["interval"][1] - row["interval"][0] == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_seeds_that_disagree_widen_the_interval():
    values = np.repeat([[0.5], [0.6], [0.7]], 1 + RESAMPLES, axis=1)  # whatever the volumes
    found = Values((0, 1, 2), values).summary()
    assert found["mean"] == pytest.approx(0.6)
    assert found["interval"] == pytest.approx([0.5, 0.7])  # all three the same: one draw in 27, more than 2.5 %


def test_targets_of_the_same_volumes_share_resamples():
    one, again, other = (resampling(mark, 30) for mark in ("abc 30", "abc 30", "abd 30"))
    np.testing.assert_array_equal(one, again)
    assert (one[0] == 1).all() and (one.sum(1) == 30).all() and len(one) == RESAMPLES + 1
    assert not np.array_equal(one, other)


def test_other_test_volumes_are_not_mixed():
    truth, plan = np.array([0, 1, 0, 1]), parse_plan(PLAN)
    logits = np.stack([-truth, truth], 1)
    both = [result("i3d", 0, logits, truth), result("acs", 0, logits, truth, test="y")]
    with pytest.raises(UserError, match="core: acs, seed 0, was judged by other volumes"):
        summarise(plan, both)
