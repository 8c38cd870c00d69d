"""The trial of AH-Net's transfer on balls; its stages are done here, one after the other, not in processes."""

import dataclasses
import json
from collections.abc import Callable
from importlib import import_module

import pytest

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.segmentation.options import Network2DOptions, Network3DOptions
from splitshuffle_gan.trials import ahnet as module
from splitshuffle_gan.trials.ahnet import ahnet, steps_of
from splitshuffle_gan.trials.ahnet_options import AHNetConfig

pytestmark = pytest.mark.usefixtures("cpu")


@pytest.fixture
def make(sets, tmp_path) -> Callable[..., AHNetConfig]:
    """`make(**changes)`: a small trial."""

    def config(**changes) -> AHNetConfig:
        values = {
            "train": sets.train,
            "test": sets.test,
            "out": tmp_path / "ahnet",
            "seeds": 1,
            "minutes": 1.0,
            "batch_size_2d": 4,
            "batch_size_3d": 2,
            "mixed_precision": "no",
            "network2d": Network2DOptions(layers=(1, 1, 1, 1), width=4),
            "network3d": Network3DOptions(psp_blocks=0, pad=True),
            "resamples": 200,
        }
        return AHNetConfig(**(values | changes))

    return config


@pytest.fixture
def here(monkeypatch) -> list[str]:
    """Stages are done in this process, steps take 10 s in 2D and 20 s in 3D; what was done, in order."""
    seen = []

    def carry_out(chains, jobs, failed, look):
        for stages in chains.values():
            for stage in stages:
                if not stage.done():
                    seen.append(stage.what)
                    name, _, function = stage.function.partition(":")
                    getattr(import_module(name), function)(*stage.arguments())
                    assert stage.done()
                    look()

    monkeypatch.setattr(module, "carry_out", carry_out)
    monkeypatch.setattr(module, "time_steps", lambda config: {"2": 10.0, "3": 20.0})
    return seen


def test_every_way_has_the_same_seconds(make):
    config = make(minutes=10, share_2d=0.25)
    seconds = {"2": 0.5, "3": 3.0}
    steps = steps_of(config, seconds)
    assert steps == {"slices": [1200, 0], "scratch": [0, 200], "transfer": [300, 150]}
    for in_2d, in_3d in steps.values():
        assert in_2d * seconds["2"] + in_3d * seconds["3"] == pytest.approx(600)
    with pytest.raises(UserError, match="minutes: found 0.1, too few for scratch: a step takes 0.5 s in 2D and 30 s"):
        steps_of(make(minutes=0.1), {"2": 0.5, "3": 30.0})


def test_three_ways_are_trained_and_tested_on_the_same_cases(make, here):
    config = make()
    text = ahnet(config)
    lines = [json.loads(line) for line in (config.out / "results.jsonl").read_text().splitlines()]
    assert [(line["arm"], line["given"]) for line in lines] == [
        ("slices", "6 in 2D"), ("scratch", "3 in 3D"), ("transfer", "2 in 2D, 2 in 3D"),
    ]  # fmt: skip
    for line in lines:
        assert len(line["cases"]) == 6 and all(0 <= case["dice"]["2"] <= 1 for case in line["cases"])
        assert line["cases"][-1]["dice"]["5"] is None  # which has no core
    runs = {path.parent.relative_to(config.out / "runs").as_posix(): json.loads(path.read_text())
            for path in config.out.glob("runs/*/*/run.json")}  # fmt: skip
    assert set(runs) == {"slices-seed0/2d", "scratch-seed0/3d", "transfer-seed0/2d", "transfer-seed0/3d"}
    assert runs["scratch-seed0/3d"]["transfer"] is None
    assert runs["transfer-seed0/3d"]["transfer"]["origin"]
    networks = [runs[name]["network"] for name in ("scratch-seed0/3d", "transfer-seed0/3d")]
    assert networks[0] == networks[1] and networks[0]["layers"] == [1, 1, 1, 1]
    assert "| transfer - scratch |" in text and (config.out / "dice.png").stat().st_size > 1000
    assert not list(config.out.rglob("model.safetensors"))

    here.clear()
    ahnet(dataclasses.replace(config, resamples=300))
    assert not here
    with pytest.raises(UserError, match="^minutes: .*ahnet was begun with 1.0, found 2.0; go on with the same"):
        ahnet(make(minutes=2.0))


def test_a_killed_trial_goes_on(make, here, monkeypatch):
    judge = module.run_judging

    def dying(job):
        if job.arm == "transfer":
            raise KeyboardInterrupt
        judge(job)

    monkeypatch.setattr(module, "run_judging", dying)
    with pytest.raises(KeyboardInterrupt):
        ahnet(make())
    monkeypatch.setattr(module, "run_judging", judge)
    here.clear()
    assert "| transfer |" in ahnet(make())
    assert here == ["transfer, seed 0: test"]


def test_a_step_is_timed_without_leaving_anything(make):
    config = make()
    seconds = module.time_steps(config)
    assert set(seconds) == {"2", "3"} and all(0 < value < 60 for value in seconds.values())
    assert not config.out.exists()


def test_what_makes_no_sense_is_said(make, sets, tiny_dataset, here):
    for changes, told in (
        ({"seeds": 0}, "seeds: found 0, must be at least 1"),
        ({"minutes": 0.0}, "minutes: found 0.0"),
        ({"minutes": float("inf")}, "minutes: found inf"),
        ({"share_2d": 1.0}, "share_2d: found 1.0, a share between 0 and 1"),
        ({"learning_rate": 0.0}, "learning_rate: found 0.0"),
    ):
        with pytest.raises(UserError, match=told):
            make(**changes)
    for changes, told in (
        ({"test": sets.train}, "^test: 3 of its volumes, such as 0.nii.gz, are in .*train.* as well"),
        ({"test": tiny_dataset}, "has no labels; prepare it with --labels"),
    ):
        with pytest.raises(UserError, match=told):
            ahnet(make(**changes))
    assert not here and not make().out.exists()
