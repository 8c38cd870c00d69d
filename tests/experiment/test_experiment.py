"""Whole experiments on tiny phantoms: what comes out, that a killed one goes on, what is refused.

All stages run in this process; that they can run in others is in test_process.
"""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.data.phantom import write_phantoms
from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.experiment import evaluate, process, rates, run, runs
from splitshuffle_gan.experiment.folder import only_one
from splitshuffle_gan.experiment.plan import parse_plan
from splitshuffle_gan.experiment.results import read
from splitshuffle_gan.metrics.features import extract
from splitshuffle_gan.metrics.frechet import frechet_of
from splitshuffle_gan.metrics.source import open_pair
from splitshuffle_gan.training.state import load_state
from splitshuffle_gan.training.step import Trainer

pytestmark = pytest.mark.usefixtures("cpu")
SHAPE, SPACING = (16, 16, 16), (14.0, 14.0, 14.0)
SECTION = {
    "batch_size": 4,
    "mixed_precision": "no",
    "network": {"channels": [8, 8, 8], "z_dim": 8, "w_dim": 8, "mapping_layers": 2, "group_size": 2},
}
# At these seconds per step 24 seconds are 8 steps of plain 3D; or 8 of 2D in the quarter that is theirs, and 8 of 3D.
PLAN = {
    "title": "Tiny",
    "minutes": 0.4,
    "seeds": [3],
    "evaluations": 2,
    "draws": 2,
    "held_out": 12,
    "extractor": "random-0",
    "baseline": "plain",
    "train2d": SECTION,
    "train3d": SECTION,
    "arms": {
        "plain": {"title": "Plain", "network": {"conv": "plain", "depth_aware": False}},
        "ours": {"title": "Ours", "share_2d": 0.25, "inflate": {"depth_upsample": "linear"}},
    },
}
SECONDS = {("plain", 3): 3.0, ("ours", 2): 0.75, ("ours", 3): 2.0}
VARYING = {"time", "seconds"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """26 brains prepared in dataset/, the scans of 8 others in others/."""
    folder = tmp_path_factory.mktemp("experiment")
    write_phantoms("brain", 26, SHAPE, SPACING, 0, folder / "brains")
    write_phantoms("brain", 8, SHAPE, SPACING, 1, folder / "others")
    prepare(PrepareConfig(folder / "brains" / "images", folder / "dataset", SHAPE, workers=1))
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

    for module in (runs, run):
        monkeypatch.setattr(module, "start", start)
    monkeypatch.setattr(runs, "wait", lambda sentinels, timeout: sentinels)
    return SimpleNamespace(started=started)


@pytest.fixture
def cli(data, here, tmp_path, run):
    """`cli(out, *options, **changes)`: the command with the plan, changed; the timings are those of SECONDS."""

    def call(out: Path, *options: object, timed: bool = True, **changes) -> SimpleNamespace:
        values = PLAN | changes
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        if timed and not (out / "rates.json").exists():
            out.mkdir(parents=True, exist_ok=True)
            plan, steps = parse_plan(PLAN), {}
            for (arm, rank), seconds in SECONDS.items():
                steps[rates.speed_key(rates.described(plan, arm, rank))] = {"seconds_per_step": seconds}
            (out / "rates.json").write_text(json.dumps({"sessions": [], "steps": steps}))
        options = ("--data", data / "dataset", "--out", out, "--jobs", 1, *options)
        return run("experiment", tmp_path / "plan.yaml", *options)

    return call


@pytest.fixture
def finished(cli, data):
    """The folder of a finished experiment, made once; not to be changed."""
    out = data / "finished"
    if not out.exists():
        found = cli(out)
        assert found.code == 0, found.err
    return out


def fixed(line: dict) -> dict:
    return {key: value for key, value in line.items() if key not in VARYING}


def by_place(lines: list[dict]) -> dict:
    return {(line["arm"], line["seed"], line["set"], line["index"]): fixed(line) for line in lines}


def test_what_comes_out(finished, data):
    lines = read(finished / "results.jsonl")
    assert [(x["arm"], x["index"], x["steps"]) for x in lines] == [
        ("plain", 0, 4), ("plain", 1, 8), ("ours", -1, 0), ("ours", 0, 4), ("ours", 1, 8)
    ]  # fmt: skip
    assert [x["minutes"] for x in lines] == pytest.approx([0.2, 0.4, 6 / 60, (6 + 8) / 60, (6 + 16) / 60])
    assert [x["minutes_2d"] for x in lines] == pytest.approx([0, 0, 0.1, 0.1, 0.1])
    assert lines[0]["parameters"]["generator"] > lines[2]["parameters"]["generator"]
    for x in lines:
        assert x["n"] == x["metrics"]["fid_3d"]["floor"]["n"] == 12 and x["seed"] == 3
        assert ("ms_ssim" in x["metrics"]) == (x["index"] == 1)
        assert x["trained_on"] == open_dataset(finished / "data" / "all" / "train").data_hash
    snapshots = sorted((finished / "runs" / "ours-seed3" / "run" / "snapshots").iterdir())
    state = load_state(finished / "runs" / "ours-seed3" / "run")
    assert state["trainer"]["step"] == 8 and len(snapshots) == 2
    assert state["generator"]["depth_upsample"] == "linear" and state["config"]["seed"] == 3
    in_2d = next((finished / "runs").glob("2d-*"))
    assert load_state(in_2d / "run")["trainer"]["step"] == 8
    table = json.loads((finished / "table.json").read_text())
    assert [row["arm"] for row in table["sets"]["held_out"]["rows"]] == ["plain", "ours"] and not table["missing"]
    assert (finished / "table.md").is_file() and (finished / "curves.png").is_file()
    split = json.loads((finished / "data" / "all" / "split.json").read_text())
    assert len(split["held_out"]) == 12 and len(set(split["held_out"] + split["train"])) == 26


def test_the_numbers_are_those_of_the_snapshot_against_the_held_out_volumes(finished):
    line = read(finished / "results.jsonl")[-1]
    snapshot = sorted((finished / "runs" / "ours-seed3" / "run" / "snapshots").iterdir())[1]
    extractor = evaluate.open_extractor("random-0")
    for draw, value in enumerate(line["metrics"]["fid_3d"]["draws"]):
        sides = open_pair(snapshot, finished / "data" / "all" / "held_out", 12, 1.0, draw)
        assert value == pytest.approx(frechet_of(*(extract(side, extractor) for side in sides)), rel=1e-5)
    assert line["metrics"]["fid_3d"]["mean"] == pytest.approx(sum(line["metrics"]["fid_3d"]["draws"]) / 2)


def test_done_again_nothing_is_done(finished, cli, here):
    before = (finished / "results.jsonl").read_bytes()
    found = cli(finished)
    assert found.code == 0 and here.started == [] and "| Ours | 1 |" in found.out
    assert (finished / "results.jsonl").read_bytes() == before


def test_killed_anywhere_it_goes_on_to_the_same_results(finished, cli, here, tmp_path, monkeypatch):
    """Killed in the 2D training, in the 3D training after its first snapshot, and in the first evaluation's writing."""
    out, step, append = tmp_path / "out", Trainer.train_step, evaluate.append

    def die_in(rank: int, at: int):
        def mortal(self, batch):
            if (self.G.config.rank, self.step, self.G.config.conv) == (rank, at, "split_shuffle"):
                raise KeyboardInterrupt
            return step(self, batch)

        monkeypatch.setattr(Trainer, "train_step", mortal)
        assert cli(out).err.count("interrupted") == 1
        monkeypatch.setattr(Trainer, "train_step", step)

    def torn(path, line):
        append(path, line)
        path.write_bytes(path.read_bytes()[:-30])
        raise KeyboardInterrupt

    die_in(2, 5)
    assert [x["arm"] for x in read(out / "results.jsonl")] == ["plain", "plain"]
    die_in(3, 6)
    assert load_state(out / "runs" / "ours-seed3" / "run")["trainer"]["step"] == 4
    monkeypatch.setattr(evaluate, "append", torn)
    assert cli(out).err.count("interrupted") == 1
    monkeypatch.setattr(evaluate, "append", append)
    here.started.clear()
    found = cli(out)
    assert found.code == 0 and "cut short" in found.err and here.started == ["ours-seed3/evaluate-held_out"]
    assert by_place(read(out / "results.jsonl")) == by_place(read(finished / "results.jsonl"))


def test_a_run_that_fails_is_recorded_and_the_others_go_on(cli, here, tmp_path, monkeypatch):
    step = Trainer.train_step

    def bad(self, batch):
        if self.G.config.conv == "plain":
            raise FloatingPointError("loss_g became nan")
        return step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", bad)
    found = cli(tmp_path / "out")
    assert found.code == 1 and "1 runs failed" in found.err
    assert "- plain, seed 3, train3d: loss_g became nan" in found.out and "| Ours | 1 |" in found.out
    monkeypatch.setattr(Trainer, "train_step", step)
    found = cli(tmp_path / "out", "--arms", "plain")
    assert found.code == 0 and "| Plain | 1 |" in found.out and "Failed" not in found.out


def test_final_volumes_are_prepared_alike_and_judged_at_the_end(finished, cli, here, data, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    assert cli(out, "--final", data / "others" / "images").code == 0
    lines = [line for line in read(out / "results.jsonl") if line["set"] == "final"]
    assert [(line["arm"], line["index"], line["n"]) for line in lines] == [("plain", 1, 8), ("ours", 1, 8)]
    assert here.started == ["plain-seed3/evaluate-final", "ours-seed3/evaluate-final"]
    (copy,) = (out / "data").glob("final-*")
    made, theirs = (open_dataset(x).manifest for x in (copy, data / "dataset"))
    assert made["intensity"]["percentiles"] == theirs["intensity"]["percentiles"]
    assert made["spacing"] == theirs["spacing"] and made["plane"] == theirs["plane"]
    assert "By the final volumes" in (out / "table.md").read_text()
    found = cli(out, "--final", data / "dataset")
    assert found.code == 1 and "final: " in found.err and "26 volumes, such as" in found.err


def test_results_of_two_final_sets_are_not_mixed(finished, cli, here, data, tmp_path):
    out, others = tmp_path / "out", tmp_path / "images"  # of the same name as the first
    shutil.copytree(finished, out)
    assert cli(out, "--final", data / "others" / "images").code == 0
    here.started.clear()
    assert cli(out, "--final", data / "others" / "images").code == 0 and not here.started
    shutil.copytree(data / "others" / "images", others)
    next(iter(sorted(others.iterdir()))).unlink()
    found = cli(out, "--final", others)
    assert found.code == 1 and "final: " in found.err and "results by 8 other final volumes" in found.err
    assert not here.started


def test_trainings_are_timed_where_they_are_not_known(cli, here, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(process, "attempt", lambda function, arguments, folder, name: asked.update(arguments[0]) or 1)
    (tmp_path / "out").mkdir()
    plan = parse_plan(PLAN)
    known = rates.speed_key(rates.described(plan, "plain", 3))
    (tmp_path / "out" / "rates.json").write_text(json.dumps({"steps": {known: {"seconds_per_step": 3.0}}}))
    assert cli(tmp_path / "out", timed=False).code == 1
    assert set(asked) == {rates.speed_key(rates.described(plan, "ours", rank)) for rank in (2, 3)}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"held_out": 10}, "held_out: .* was begun with 12, found 10"),
        ({"draws": 3}, "draws: .* was begun with 2, found 3"),
        ({"train3d": SECTION | {"g_lr": 0.5}}, "arms.plain: .*plain-seed3 was begun with in_3d.options.g_lr 0.002"),
        ({"seeds": [4], "options": ("--seeds", 3)}, "seeds: found 3, which none of the arms has"),
        ({"options": ("--arms", "theirs")}, "arms: found theirs, the plan has plain, ours"),
    ],
)
def test_what_does_not_fit_is_refused(finished, cli, changes, message):
    changes = dict(changes)
    found = cli(finished, *changes.pop("options", ()), **changes)
    assert found.code == 1 and re.search(message, found.err), found.err


def test_a_folder_that_is_no_experiment_is_left_alone(cli, tmp_path):
    (tmp_path / "home" / "letters").mkdir(parents=True)
    found = cli(tmp_path / "home", timed=False)
    assert found.code == 1 and "has no experiment.json" in found.err
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letters"]
    found = cli(tmp_path / "nothing", "--report-only", timed=False)
    assert found.code == 1 and "has no results.jsonl" in found.err


def test_two_at_once_are_refused(finished, cli):
    with only_one(finished, run.RECORD):
        found = cli(finished)
    assert found.code == 1 and "another process works in" in found.err


def test_the_report_alone_needs_the_results_alone(finished, cli, here, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(finished / "results.jsonl", out)
    assert cli(out, "--report-only", timed=False).code == 0 and here.started == []
    assert (out / "table.md").read_text() == (finished / "table.md").read_text()
