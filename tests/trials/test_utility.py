"""The measurement of utility on balls: real ones, and others in the part of synthetic ones."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment.folder import only_one
from splitshuffle_gan.segmentation.options import Network2DOptions, Network3DOptions, Segment2DConfig, Segment3DConfig
from splitshuffle_gan.segmentation.segmenter import open_labelled
from splitshuffle_gan.trials import utility as module
from splitshuffle_gan.trials.utility import utility
from splitshuffle_gan.trials.utility_options import UtilityConfig

pytestmark = pytest.mark.usefixtures("cpu")


@pytest.fixture
def make(sets, tmp_path):
    """`make(**changes)`: a small measurement in 2D."""

    def config(**changes) -> UtilityConfig:
        values = {
            "real_train": sets.train,
            "synthetic": sets.synthetic,
            "real_test": sets.test,
            "out": tmp_path / "utility",
            "seeds": 2,
            "rank": 2,
            "steps": 3,
            "batch_size": 4,
            "mixed_precision": "no",
            "network2d": Network2DOptions(layers=(1, 1, 1, 1), width=4),
            "resamples": 200,
        }
        return UtilityConfig(**(values | changes))

    return config


@pytest.fixture
def trained(monkeypatch) -> list[tuple]:
    """Trainings that take no time: (arm and seed, volumes, config) of each; the network finds the truth or nothing."""
    seen = []

    def train(config: Segment2DConfig | Segment3DConfig) -> Path:
        assert config.overwrite and config.val is None
        shutil.rmtree(config.out, ignore_errors=True)
        (config.out / "network").mkdir(parents=True)
        seen.append((config.out.name, len(open_labelled(config.data)), config))
        return config.out

    def evaluate(folder: Path, dataset, accelerator, thorough: bool) -> dict:
        value = {"real": 0.8, "synthetic": 0.7, "both": 0.9}[folder.name.split("-")[0]]
        entries = dataset.manifest["volumes"]
        return {
            "cases": [
                {"source": e["source"], "dice": {"2": value, "5": value - 0.1 * n}} for n, e in enumerate(entries)
            ]
        }

    class Folder(type(Path())):
        def to(self, device):
            return self

    monkeypatch.setattr(module, "train_segmenter", train)
    monkeypatch.setattr(module, "evaluate", evaluate)
    monkeypatch.setattr(module, "open_segmenter", Folder)
    return seen


def results(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_three_arms_are_trained_and_tested_on_the_same_volumes(make):
    config = make(seeds=1)
    text = utility(config)
    lines = results(config.out)
    assert [(line["arm"], line["seed"], line["given"]) for line in lines] == [
        ("real", 0, "3 volumes"), ("synthetic", 0, "4 volumes"), ("both", 0, "7 volumes"),
    ]  # fmt: skip
    test = open_dataset(config.real_test)
    for line in lines:
        assert [case["source"] for case in line["cases"]] == [entry["source"] for entry in test.manifest["volumes"]]
        dice = [case["dice"] for case in line["cases"]]
        assert all(0 <= one["2"] <= 1 for one in dice)
        assert dice[-1]["5"] is None and all(one["5"] is not None for one in dice[:-1])  # it has no core
    assert text == (config.out / "table.md").read_text() and "| both - real |" in text
    assert json.loads((config.out / "table.json").read_text())["test_cases"] == 6
    assert (config.out / "dice.png").stat().st_size > 1000
    described = json.loads((config.out / "runs" / "both-seed0" / "run.json").read_text())
    assert (described["config"]["steps"], described["sets"]["data"]["count"]) == (3, 7)
    assert not list(config.out.rglob("model.safetensors"))


def test_every_arm_has_the_same_steps_seeds_and_network(make, trained):
    config = make(rank=3, steps=11, batch_size=None)
    utility(config)
    names = [f"{arm}-seed{seed}" for seed in (0, 1) for arm in ("real", "synthetic", "both")]
    assert [name for name, *_ in trained] == names
    assert [volumes for _, volumes, _ in trained] == [3, 4, 7] * 2
    for name, _, training in trained:
        assert isinstance(training, Segment3DConfig) and training.init is None
        assert (training.steps, training.batch_size, training.seed) == (11, 4, int(name[-1]))
        assert (training.validations, training.network) == (1, config.network3d)
    difference = json.loads((config.out / "table.json").read_text())["differences"]
    assert difference["synthetic"]["mean"]["mean"] == pytest.approx(-0.1)
    assert difference["both"]["structures"]["5"]["mean"] == pytest.approx(0.1)


def test_the_same_command_goes_on_where_a_kill_left_it(make, trained, monkeypatch):
    config = make()
    train = module.train_segmenter

    def dying(training):
        if training.out.name == "synthetic-seed1":
            training.out.mkdir(parents=True)
            raise KeyboardInterrupt
        return train(training)

    monkeypatch.setattr(module, "train_segmenter", dying)
    with pytest.raises(KeyboardInterrupt):
        utility(config)
    assert "Still missing: synthetic (seed 1), both (seed 1)" in (config.out / "table.md").read_text()
    with open(config.out / "results.jsonl", "a") as file:
        file.write('{"arm": "synthetic", "seed"')  # torn
    trained.clear()
    monkeypatch.setattr(module, "train_segmenter", train)
    utility(config)
    assert [name for name, *_ in trained] == ["synthetic-seed1", "both-seed1"]
    assert len(results(config.out)) == 6

    trained.clear()
    utility(dataclasses.replace(config, seeds=3, resamples=300))
    assert [name for name, *_ in trained] == ["real-seed2", "synthetic-seed2", "both-seed2"]
    with pytest.raises(UserError, match="^steps: .*utility was begun with 3, found 4; go on with the same"):
        utility(make(steps=4))
    with pytest.raises(UserError, match="^synthetic: .*utility was begun with"):
        utility(make(synthetic=config.real_train))
    trained.clear()
    utility(make(steps=4, overwrite=True, seeds=1))
    assert len(trained) == len(results(config.out)) == 3


def test_two_do_not_work_in_one_folder(make, trained):
    config = make(seeds=1)
    with only_one(config.out, "utility.json"), pytest.raises(UserError, match="another process works in"):
        utility(config)
    assert not trained


def test_a_network_that_does_not_fit_leaves_nothing_that_is_in_the_way(make, trained):
    config = make(rank=3, network3d=Network3DOptions(layers=(1, 1, 1, 1)))
    with pytest.raises(UserError, match="let the network pad"):
        utility(config)
    assert not config.out.exists()


def test_networks_are_kept_when_asked_for(make, trained):
    utility(make(seeds=1, keep_networks=True))
    assert len(list(make().out.glob("runs/*/network"))) == 3


def test_sets_that_do_not_fit_are_refused_before_anything_is_made(
    make, sets, tmp_path, trained, tiny_dataset, tiny_pairs
):
    mixed = tmp_path / "mixed"
    shutil.copytree(sets.test, mixed)
    manifest = json.loads((mixed / "manifest.json").read_text())
    manifest["volumes"][4]["prepared_sha256"] = open_dataset(sets.synthetic).manifest["volumes"][1]["prepared_sha256"]
    (mixed / "manifest.json").write_text(json.dumps(manifest))
    for changes, told in (
        ({"synthetic": tiny_dataset}, "has no labels; prepare it with --labels"),
        ({"real_test": tiny_pairs}, "^real_test: shape: .* has 8 16 8, .* 8 32 32; prepare both alike"),
        ({"real_test": sets.train}, "^real_test: 3 of its volumes, such as 0.nii.gz, are in .*train.* as well"),
        ({"real_test": mixed}, "^real_test: 1 of its volumes, such as 4.nii.gz, are in .*synthetic.* as well"),
        ({"real_test": tmp_path / "none"}, "none does not exist"),
    ):
        with pytest.raises(UserError, match=told):
            utility(make(**changes))
        assert not make().out.exists() and not trained


def test_what_makes_no_sense_is_said(make, tmp_path, trained):
    for changes, told in (
        ({"seeds": 0}, "seeds: found 0, must be at least 1"),
        ({"rank": 4}, "rank: found 4, must be 2 or 3"),
        ({"augment_p": 2.0}, "augment_p: found 2.0"),
        ({"batch_size": 0}, "batch_size: found 0"),
    ):
        with pytest.raises(UserError, match=told):
            make(**changes)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="thesis exists"):
            utility(make(out=tmp_path / "thesis", overwrite=overwrite))
    assert (tmp_path / "thesis" / "text").exists() and not trained


def test_the_command(run, make, trained, sets, tmp_path):
    line = ["--real-train", sets.train, "--synthetic", sets.synthetic, "--real-test", sets.test, "--seeds", 1]
    done = run("utility", *line, "--out", tmp_path / "out", "--rank", 2, "--network2d.layers", *"1111")
    assert done.code == 0, done.err
    assert "# Downstream utility" in done.out and f"look at {tmp_path}/out/dice.png" in done.out
