"""Whole runs: what they leave on disk, how they stop, and that a killed one goes on as if nothing had happened."""

import dataclasses
import errno
import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from splitshuffle_gan.checkpoint import find_checkpoint
from splitshuffle_gan.config import GeneratorConfig
from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.models.discriminator import Discriminator
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.training.loop import train
from splitshuffle_gan.training.state import STATE, load_state, save_state
from splitshuffle_gan.training.step import Trainer

KIMG_PER_STEP = 0.008
# A run that dies without a word inside step argv[2]; argv[1] is a pickled (config, rank).
KILLED = """
import os, pickle, signal, sys
from splitshuffle_gan.training import loop

os.sched_getaffinity = lambda _: {0}

class Mortal(loop.Trainer):
    def _generator_phase(self, depth):
        if self.step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._generator_phase(depth)

loop.Trainer = Mortal
loop.train(*pickle.load(open(sys.argv[1], "rb")))
"""


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_identical(a: object, b: object, where: str = "state") -> None:
    """Bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_identical(*pair, f"{where}.{i}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    else:
        assert a == b, where


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def poison(monkeypatch, step: int, bad: float = float("nan")) -> None:
    """The generator's loss becomes `bad` from `step` on."""
    original = Trainer._generator_phase

    def phase(self, depth):
        stats = original(self, depth)
        return stats | {"loss_g": stats["loss_g"] + bad} if self.step >= step else stats

    monkeypatch.setattr(Trainer, "_generator_phase", phase)


@pytest.fixture(scope="module")
def finished(tiny_dataset, tmp_path_factory):
    """Where one finished run is, to look at and to copy."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(finished, tiny_config):
    """A finished 3D run of 16 steps with snapshots at 8 and 16: its config and its folder, not to be changed."""
    config = tiny_config(out=finished, snapshot_kimg=8 * KIMG_PER_STEP)
    if not finished.exists():
        train(config, 3)
    return config


@pytest.mark.parametrize("rank", [2, 3])
def test_a_killed_run_goes_on_bit_for_bit(tiny_config, tmp_path, rank):
    """40 steps straight, against a state at step 20, death at step 27, and 20 more steps from the state."""
    random = {
        "kimg": 40 * KIMG_PER_STEP,
        "snapshot_kimg": 20 * KIMG_PER_STEP,
        "d_lr": 0.01,
        "r1_interval": 4,
        "pl_weight": 2.0,
        "augment_target": 0.01,
        "augment_kimg": 0.1,
        "minutes": None,
    }
    interrupted = tiny_config(out=tmp_path / "interrupted", **random)
    (tmp_path / "job").write_bytes(pickle.dumps((interrupted, rank)))
    (tmp_path / "killed.py").write_text(KILLED)
    dying = subprocess.Popen(
        [sys.executable, tmp_path / "killed.py", tmp_path / "job", "27"], stderr=subprocess.PIPE, text=True
    )
    straight = tiny_config(out=tmp_path / "straight", **random)
    train(straight, rank)
    _, errors = dying.communicate(timeout=120)
    assert dying.returncode == -signal.SIGKILL, errors

    saved = load_state(interrupted.out)["trainer"]
    assert saved["step"] == 20
    assert saved["adaptive"]["p"] > 0 and saved["pl_mean"] > 0  # so randomness and all state are really in play
    assert any(v.abs() > 1e-3 for k, v in saved["G"].items() if k.endswith("noise_strength"))
    assert log_of(interrupted.out)[-1]["step"] == 24  # beyond the state: these lines will be trained again

    train(dataclasses.replace(interrupted, resume=True), rank)
    expected, found = (load_state(config.out)["trainer"] for config in (straight, interrupted))
    assert expected["step"] == 40
    assert_identical(found, expected)
    assert [line["step"] for line in log_of(interrupted.out)] == list(range(4, 41, 4))
    clock = {"seconds", "img_s", "data_wait"}
    for a, b in zip(log_of(straight.out), log_of(interrupted.out), strict=True):
        assert {k: v for k, v in a.items() if k not in clock} == {k: v for k, v in b.items() if k not in clock}
    snapshots = [sorted(p.name for p in (c.out / "snapshots").iterdir()) for c in (straight, interrupted)]
    assert snapshots[0] == snapshots[1] == ["kimg00000.160", "kimg00000.320"]
    for network in ("generator", "discriminator"):
        a, b = (contents(c.out / "snapshots" / "kimg00000.320" / network) for c in (straight, interrupted))
        assert a == b


def test_a_kill_between_snapshot_and_state_is_made_good(tiny_config, run, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(run.out, out)
    half = out / "snapshots" / ".kimg00000.192.4711"
    half.mkdir()
    (half / "junk").write_text("")
    with open(out / "log.jsonl", "a") as log:
        log.write('{"step": 9999, "kimg"')  # cut short by the kill
    config = dataclasses.replace(run, out=out, resume=True, kimg=24 * KIMG_PER_STEP)
    train(config, 3)
    names = sorted(path.name for path in (out / "snapshots").iterdir())
    assert names == ["kimg00000.064", "kimg00000.128", "kimg00000.192"]
    assert [line["step"] for line in log_of(out)] == list(range(4, 25, 4))
    assert json.loads((out / "run.json").read_text())["config"]["kimg"] == config.kimg


def test_resuming_a_finished_run_leaves_it_finished(run, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(run.out, out)
    before = load_state(out)["trainer"]
    assert train(dataclasses.replace(run, out=out, resume=True), 3).name == "kimg00000.128"
    assert_identical(load_state(out)["trainer"], before)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("g_lr", {"g_lr": 0.003}),
        ("batch_size", {"batch_size": 4}),
        ("seed", {"seed": 1}),
        ("augment_target", {"augment_target": 0.5}),
        ("network.channels", {"network": {"channels": (8, 8, 4)}}),
        ("jitter", {"jitter": 1}),
        ("mixed_precision", {"mixed_precision": "bf16"}),
    ],
)
def test_resuming_with_a_changed_option_names_it(tiny_config, run, name, change):
    before = contents(run.out)
    config = tiny_config(**({"out": run.out, "snapshot_kimg": run.snapshot_kimg, "resume": True} | change))
    with pytest.raises(UserError, match=rf"^{re.escape(name)}: the run in .* was started with"):
        train(config, 3)
    assert contents(run.out) == before


def test_an_option_that_the_state_does_not_know_has_its_default(tiny_config, run, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(run.out, out)
    state = load_state(out)
    del state["config"]["jitter"], state["config"]["network"]["depth_knots"], state["version"]
    save_state(out, state)
    with pytest.raises(UserError, match=r"^jitter: the run in .* was started with 0, found 1"):
        train(dataclasses.replace(run, out=out, resume=True, jitter=1), 3)
    knots = dataclasses.replace(run.network, depth_knots=3)
    with pytest.raises(UserError, match=r"^network.depth_knots: the run in .* was started with None, found 3"):
        train(dataclasses.replace(run, out=out, resume=True, network=knots), 3)
    train(dataclasses.replace(run, out=out, resume=True, kimg=run.kimg + 0.032), 3)
    assert load_state(out)["trainer"]["step"] == state["trainer"]["step"] + 4


def test_resuming_needs_a_run_of_its_rank_and_dataset(tiny_config, run, tmp_path, tiny_dataset):
    with pytest.raises(UserError, match="is of rank 3, not 2"):
        train(dataclasses.replace(run, resume=True), 2)
    with pytest.raises(UserError, match="does not exist; there is nothing to resume"):
        train(tiny_config(resume=True), 3)
    other = tmp_path / "other"
    shutil.copytree(tiny_dataset, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"data_hash": "0" * 64}))
    with pytest.raises(UserError, match="data: .*other is not the dataset that the run"):
        train(dataclasses.replace(run, data=other, resume=True), 3)


def test_an_existing_folder_is_refused_unless_told_otherwise(run, tiny_config, tmp_path):
    before = contents(run.out)
    with pytest.raises(UserError, match="exists already"):
        train(run, 3)
    assert contents(run.out) == before
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("...")
    with pytest.raises(UserError, match="no run.json in it"):
        train(tiny_config(out=precious, overwrite=True), 3)
    assert [path.name for path in precious.iterdir()] == ["thesis.tex"]
    out = tmp_path / "copy"
    shutil.copytree(run.out, out)
    (out / "stale").write_text("")
    train(dataclasses.replace(run, out=out, overwrite=True, kimg=KIMG_PER_STEP), 3)
    assert not (out / "stale").exists()
    assert [line["step"] for line in log_of(out)] == [4]  # a whole status interval


def test_the_folder_of_a_run(run, tiny_dataset):
    record = json.loads((run.out / "run.json").read_text())
    dataset = open_dataset(tiny_dataset)
    assert record["rank"] == 3
    assert record["config"]["batch_size"] == 8 and record["config"]["network"]["channels"] == [8, 8, 8]
    assert set(record["config"]) == {field.name for field in dataclasses.fields(run)}
    assert record["generator"]["shape"] == record["discriminator"]["shape"] == [8, 16, 8]
    assert record["r1_gamma"] == pytest.approx(2e-4 * 8 * 16 * 8 / 8)
    assert record["data"] == {
        "folder": str(tiny_dataset), "count": 6, "items": 6, "data_hash": dataset.data_hash
    }  # fmt: skip
    assert record["machine"]["processes"] == 1 and record["machine"]["mixed_precision"] == "no"
    assert record["machine"]["torch"] == torch.__version__
    log = log_of(run.out)
    assert [line["step"] for line in log] == [4, 8, 12, 16]
    assert [line["kimg"] for line in log] == [0.032, 0.064, 0.096, 0.128]
    assert {"seconds", "img_s", "data_wait", "p", "r_t", "loss_g", "loss_d"} <= set(log[1]) and "r1" in log[0]
    events = list((run.out / "tensorboard").glob("**/events.out.tfevents*"))
    assert events and max(path.stat().st_size for path in events) > 500
    assert sorted(path.name for path in run.out.iterdir()) == [
        "log.jsonl", "run.json", "snapshots", STATE, "tensorboard"
    ]  # fmt: skip


def test_a_snapshot_is_the_averaged_generator(run, tiny_dataset):
    assert find_checkpoint(run.out, "generator").endswith("kimg00000.128/generator")
    snapshot = run.out / "snapshots" / "kimg00000.128"
    assert sorted(path.name for path in snapshot.iterdir()) == ["discriminator", "generator", "montage.png"]
    assert (snapshot / "montage.png").read_bytes().startswith(b"\x89PNG")
    generator = Generator.from_pretrained(snapshot / "generator")
    discriminator = Discriminator.from_pretrained(snapshot / "discriminator")
    assert generator.geometry == discriminator.geometry == open_dataset(tiny_dataset).geometry()
    state = load_state(run.out)["trainer"]
    assert_identical(dict(generator.state_dict()), dict(state["average"]))
    assert_identical(dict(discriminator.state_dict()), dict(state["D"]))
    assert any(not torch.equal(state["average"][key], state["G"][key]) for key in state["G"] if "weight" in key)
    assert generator.w_avg.abs().max() > 0  # truncation has its target
    with torch.no_grad():
        images = generator(torch.randn(2, generator.z_dim))
        assert discriminator(images).shape == (2,)
    assert images.shape == (2, 1, 8, 16, 8)


def test_a_2d_run_trains_on_slices_that_hold_something(tiny_config, tiny_dataset):
    config = tiny_config(kimg=KIMG_PER_STEP)
    snapshot = train(config, 2)
    record = json.loads((config.out / "run.json").read_text())
    assert record["data"]["count"] == 6 and 12 < record["data"]["items"] < 6 * 8
    assert record["r1_gamma"] == pytest.approx(2e-4 * 16 * 8 / 8)
    generator = Generator.from_pretrained(snapshot / "generator")
    assert generator.config.rank == 2
    assert generator(torch.randn(3, 8)).shape == (3, 1, 16, 8)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_loss_stops_the_run_and_names_the_last_good_snapshot(tiny_config, monkeypatch, bad):
    config = tiny_config(snapshot_kimg=12 * KIMG_PER_STEP, kimg=40 * KIMG_PER_STEP)
    poison(monkeypatch, 12, bad)
    with pytest.raises(FloatingPointError, match=r"loss_g became (nan|inf) at step 16; .*snapshots/kimg00000\.096"):
        train(config, 3)
    assert [path.name for path in (config.out / "snapshots").iterdir()] == ["kimg00000.096"]
    assert load_state(config.out)["trainer"]["step"] == 12
    assert [line["step"] for line in log_of(config.out)] == [4, 8, 12]
    generator = Generator.from_pretrained(config.out / "snapshots" / "kimg00000.096" / "generator")
    assert all(value.isfinite().all() for value in generator.state_dict().values())


def test_a_bad_loss_before_any_snapshot(tiny_config, monkeypatch):
    config = tiny_config()
    poison(monkeypatch, 0)
    with pytest.raises(FloatingPointError, match="no snapshot"):
        train(config, 3)
    assert not (config.out / STATE).exists() and not list((config.out / "snapshots").iterdir())


def test_a_bad_loss_after_resuming_names_the_snapshot_resumed_from(run, tmp_path, monkeypatch):
    out = tmp_path / "copy"
    shutil.copytree(run.out, out)
    before = (out / STATE).read_bytes()
    poison(monkeypatch, 17)
    with pytest.raises(FloatingPointError, match=r"snapshots/kimg00000\.128"):
        train(dataclasses.replace(run, out=out, resume=True, kimg=1), 3)
    assert (out / STATE).read_bytes() == before


@pytest.mark.parametrize("network", ["G", "D"])
def test_bad_weights_are_not_saved_over_good_ones(tiny_config, monkeypatch, network):
    """The update of the very step of a snapshot spoils the weights; no loss has shown it yet."""
    config = tiny_config(snapshot_kimg=8 * KIMG_PER_STEP, kimg=40 * KIMG_PER_STEP)
    original = Trainer._optimise

    def optimise(self, model, optimizer):
        if self.step == 15 and model is getattr(self, network):
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("nan"))
        original(self, model, optimizer)

    monkeypatch.setattr(Trainer, "_optimise", optimise)
    with pytest.raises(FloatingPointError, match=r"snapshots/kimg00000\.064"):
        train(config, 3)
    assert load_state(config.out)["trainer"]["step"] == 8
    assert [path.name for path in (config.out / "snapshots").iterdir()] == ["kimg00000.064"]


@pytest.mark.parametrize("place", ["torch.save", "os.fsync", "splitshuffle_gan.checkpoint.save_file"])
def test_a_full_disk_keeps_the_earlier_snapshot_and_state(run, tmp_path, monkeypatch, place):
    def fail(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "copy"
    shutil.copytree(run.out, out)
    before = contents(out)
    monkeypatch.setattr(place, fail)
    with pytest.raises(UserError, match=r"kimg00000\.192: .*No space left.*kimg00000\.128 is whole"):
        train(dataclasses.replace(run, out=out, resume=True, kimg=24 * KIMG_PER_STEP), 3)
    after = contents(out)
    kept = [name for name in before if name == STATE or name.startswith("snapshots")]
    assert len(kept) > 8 and all(after[name] == before[name] for name in kept)
    assert not [name for name in after if ".tmp" in name or "/.kimg" in name]


def test_minutes_stop_a_run_with_a_snapshot_to_resume_from(tiny_config):
    config = tiny_config(kimg=1000, minutes=1e-6)
    assert train(config, 3).name == "kimg00000.032"
    assert load_state(config.out)["trainer"]["step"] == 4
    elapsed = load_state(config.out)["elapsed"]
    train(dataclasses.replace(config, resume=True), 3)
    assert load_state(config.out)["elapsed"] > elapsed > 0  # the limit is on the sum


def test_an_init_of_another_shape_or_rank_is_refused(tiny_config, tmp_path):
    sizes = {"channels": (8, 8, 8), "z_dim": 8, "w_dim": 8}
    for rank, shape, named in ((3, (8, 8, 16), "shape"), (2, (8, 16, 8), "rank")):
        init = tmp_path / f"init{named}"
        Generator(GeneratorConfig(rank=rank, shape=shape, **sizes)).save_pretrained(init / "generator")
        with pytest.raises(UserError, match=f"^{named}: .*init{named} has"):
            train(tiny_config(init=init), 3)
        assert not (tmp_path / "run").exists()


def test_a_run_starts_from_the_weights_of_its_init_and_needs_it_no_more(run, tiny_config, tmp_path):
    init = tmp_path / "init"
    shutil.copytree(run.out / "snapshots" / "kimg00000.128", init)
    config = tiny_config(init=init, g_lr=1e-12, d_lr=1e-12, kimg=KIMG_PER_STEP)
    snapshot = train(config, 3)
    for name, network in (("generator", Generator), ("discriminator", Discriminator)):
        old = network.from_pretrained(run.out / "snapshots" / "kimg00000.128" / name).state_dict()
        new = network.from_pretrained(snapshot / name).state_dict()
        for key, value in old.items():
            torch.testing.assert_close(new[key], value, atol=1e-6, rtol=0)
    shutil.rmtree(init)
    train(dataclasses.replace(config, resume=True, kimg=8 * KIMG_PER_STEP), 3)
    assert load_state(config.out)["trainer"]["step"] == 8


def test_the_same_seed_makes_the_same_networks_whatever_was_drawn_before(tiny_config, tmp_path):
    torch.rand(3)
    states = []
    for number, seed in enumerate((0, 0, 1)):
        config = tiny_config(out=tmp_path / str(number), kimg=KIMG_PER_STEP, seed=seed)
        train(config, 3)
        states.append(load_state(config.out)["trainer"])
    assert_identical(states[0], states[1])
    assert not torch.equal(states[0]["G"]["constant"], states[2]["G"]["constant"])
