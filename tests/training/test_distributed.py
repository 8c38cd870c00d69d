"""Two processes on the CPU, started as a user would, do what one does with the whole batch."""

import dataclasses
import json
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from splitshuffle_gan.training import loop

STEPS = 4  # of the runs that are compared
# Runs each (config, rank) of the pickled list argv[1]; writes what every process saw into the folder argv[2].
RECORDED = """
import os, pickle, sys
import torch
from splitshuffle_gan.training import loop, step

os.sched_getaffinity = lambda _: {0}
seen = []

class Recorded(step.Trainer):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.record = {"images": [], "latents": [], "gradients": {}}
        seen.append(self.record)
        self.d_optimizer.register_step_pre_hook(lambda *_: self.keep("D", self.D))
        self.g_optimizer.register_step_pre_hook(lambda *_: self.keep("G", self.G))

    def keep(self, name, model):
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                self.record["gradients"].setdefault(f"{name}.{key}", parameter.grad.clone())  # the first step's

    def train_step(self, batch):
        self.record["images"].append(batch["image"].clone())
        stats = super().train_step(batch)
        self.record["weights"] = {key: value.clone() for key, value in self.G.state_dict().items()}
        self.record["p"] = self.adaptive.p
        self.record["seeds"] = torch.initial_seed(), self.random.initial_seed()  # of noise and of augmentation
        return stats

    def _latents(self, phase):
        self.record["latents"].append(super()._latents(phase))
        return self.record["latents"][-1]

loop.Trainer = Recorded
for config, rank in pickle.load(open(sys.argv[1], "rb")):
    loop.train(config, rank)
torch.save(seen, f"{sys.argv[2]}/process{os.environ.get('RANK', 'alone')}.pt")
"""


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Over the tensors, the largest of: norm of the difference over norm."""
    assert a.keys() == b.keys()
    return max(((a[k] - b[k]).norm() / a[k].norm().clamp(min=1e-12)).item() for k in a)


def difference_of_norms(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], network: str) -> float:
    """Norm of the difference over norm, of all gradients of one network together."""
    a, b = (torch.cat([value.flatten() for key, value in g.items() if key[0] == network]) for g in (a, b))
    return ((a - b).norm() / a.norm()).item()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture
def jobs(tiny_config, folder):
    """Name -> (config, rank); those without noise and augmentation can be compared with one process."""
    quiet = {"kimg": STEPS * 0.008, "augment_target": 0, "network": {"noise": False}}
    noisy = {"augment_target": 0.01, "augment_kimg": 0.05, "d_lr": 0.01, "pl_weight": 2.0, "workers": 1}
    noisy = tiny_config(out=folder / "noisy", kimg=0.128, **noisy)
    return {
        "quiet3d": (tiny_config(out=folder / "quiet3d", **quiet), 3),
        "quiet2d": (tiny_config(out=folder / "quiet2d", **quiet), 2),
        "noisy": (noisy, 3),
        "resumed": (dataclasses.replace(noisy, resume=True, kimg=0.192), 3),
    }


def write(folder: Path, name: str, jobs: list) -> Path:
    (folder / "recorded.py").write_text(RECORDED)
    (folder / name).write_bytes(pickle.dumps(jobs))
    return folder / "recorded.py"


@pytest.fixture
def two(jobs, folder) -> list[dict[str, dict]]:
    """What each of two processes saw, by job; made once."""
    if not (folder / "process0.pt").exists():
        script = write(folder, "jobs", list(jobs.values()))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        done = subprocess.run(
            [*launcher, script, folder / "jobs", folder],
            env=os.environ | {"ACCELERATE_USE_CPU": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-5000:]
    return [dict(zip(jobs, torch.load(folder / f"process{rank}.pt"), strict=True)) for rank in range(2)]


@pytest.fixture
def one(jobs, folder, tmp_path, monkeypatch) -> dict[str, dict]:
    """What one process saw of the whole batch, by job."""
    if not (folder / "processalone.pt").exists():
        names = ("quiet3d", "quiet2d")
        alone = [(dataclasses.replace(jobs[n][0], out=folder / f"one_{n}"), jobs[n][1]) for n in names]
        script = write(folder, "jobs_of_one", alone)
        monkeypatch.setattr(loop, "Trainer", loop.Trainer)  # the script replaces it; this puts it back
        monkeypatch.setattr(sys, "argv", [str(script), str(folder / "jobs_of_one"), str(folder)])
        runpy.run_path(str(script))
    return dict(zip(("quiet3d", "quiet2d"), torch.load(folder / "processalone.pt"), strict=True))


@pytest.mark.parametrize("job", ["quiet3d", "quiet2d"])
def test_first_gradients_are_those_of_one_process(two, one, job):
    expected = one[job]["gradients"]
    assert {"D.logit.weight", "D.from_image.bias", "G.constant", "G.mapping.layers.0.weight"} <= expected.keys()
    for rank in range(2):
        found = two[rank][job]["gradients"]
        for network in ("D", "G"):
            assert difference_of_norms(expected, found, network) < 1e-5
        assert largest_difference(expected, found) < 1e-4  # small tensors feel the rounding of large ones


@pytest.mark.parametrize("job", ["quiet3d", "quiet2d"])
@pytest.mark.parametrize("kind", ["images", "latents"])
def test_processes_share_out_the_batch_of_one(two, one, job, kind):
    shares = [two[rank][job][kind] for rank in range(2)]
    assert len(one[job][kind]) == (STEPS if kind == "images" else 2 * STEPS)
    for whole, first, second in zip(one[job][kind], *shares, strict=True):
        assert len(first) == len(second) == 4
        assert torch.equal(torch.cat((first, second)), whole)
        assert not torch.equal(first, second)


@pytest.mark.parametrize("job", ["quiet3d", "quiet2d", "noisy", "resumed"])
def test_processes_stay_together(two, job):
    first, second = (two[rank][job] for rank in range(2))
    assert first["p"] == second["p"]
    assert len({*first["seeds"], *second["seeds"]}) == 4
    for key, value in first["weights"].items():
        assert torch.equal(value, second["weights"][key]), key
    if job == "resumed":
        assert len(first["images"]) == 24 - 16
        assert first["p"] > 0


def test_two_processes_leave_one_run(two, jobs):
    for name, steps in (("quiet3d", [4]), ("quiet2d", [4]), ("noisy", list(range(4, 25, 4)))):
        out = jobs[name][0].out
        log = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
        assert log == steps
        snapshots = sorted(path.name for path in (out / "snapshots").iterdir())
        assert snapshots == (["kimg00000.032"] if steps == [4] else ["kimg00000.128", "kimg00000.192"])
        assert sorted(path.name for path in out.iterdir()) == [
            "log.jsonl", "run.json", "snapshots", "state.pt", "tensorboard"
        ]  # fmt: skip
        assert json.loads((out / "run.json").read_text())["machine"]["processes"] == 2
