"""What the processes of a probe do: train one 2D network, or judge one arm with one seed on all targets."""

import copy
import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from torch import nn

from splitshuffle_gan.devices import make_accelerator
from splitshuffle_gan.experiment.results import append, read
from splitshuffle_gan.extractors.slice_resnet import SliceResNet, SliceResNetConfig
from splitshuffle_gan.output import whole_folder, write_json
from splitshuffle_gan.probe.carry import carry
from splitshuffle_gan.probe.learn import features_of, finetune, measure_statistics, pretrain
from splitshuffle_gan.probe.linear import fit
from splitshuffle_gan.probe.network import seeded_slices
from splitshuffle_gan.probe.plan import Plan
from splitshuffle_gan.probe.slices import open_source
from splitshuffle_gan.probe.tasks import Part, Task, open_task
from splitshuffle_gan.training.stream import derived_seed

PRETRAINED = "pretrained.json"
NETWORK = "network"
DIGITS = 7  # of logits in results.jsonl


@dataclass(frozen=True)
class Pretraining:
    """A 2D network to train: `conv` are its convolutions; it comes to lie in `folder`, with `pretrained.json`."""

    plan: Plan
    root: Path
    conv: str
    seed: int
    folder: Path


@dataclass(frozen=True)
class Judging:
    """An arm with a seed to judge: `made` by target and mode says what a result depends on, as a hash.

    folder: of the 2D network that it starts from, None for scratch. results: file to append to.
    """

    plan: Plan
    root: Path
    arm: str
    seed: int
    folder: Path | None
    made: dict[tuple[str, str], str]
    results: Path


def run_pretraining(job: Pretraining) -> None:
    """Train and write the folder."""
    accelerator = make_accelerator(job.plan.precision)
    sources = {name: open_source(source, job.root) for name, source in job.plan.sources.items()}
    config = SliceResNetConfig(**asdict(job.plan.network), conv=job.conv)
    network = seeded_slices(config, derived_seed(job.seed, 0))
    found = pretrain(network, sources, job.plan.pretrain, derived_seed(job.seed, 1), accelerator)
    with whole_folder(job.folder) as building:
        network.save_pretrained(building / NETWORK)
        count = sum(weight.numel() for weight in network.parameters())
        write_json(building / PRETRAINED, {"conv": job.conv, "seed": job.seed, "parameters": count, **found})


def run_judging(job: Judging) -> None:
    """Judge on every target in every mode that has no line yet."""
    accelerator = make_accelerator(job.plan.precision)
    plan, arm = job.plan, job.plan.arms[job.arm]
    slices = SliceResNet.from_pretrained(job.folder / NETWORK) if job.folder else None
    carried, layers = carry(arm, plan.network, slices, derived_seed(job.seed, 0))
    done = {key_of(line) for line in results_in(read(job.results))}
    parameters = sum(weight.numel() for weight in carried.parameters() if weight.requires_grad)
    shared = {
        "kind": "probe", "arm": job.arm, "seed": job.seed, "parameters": parameters,
        "carried": sum(layer.carried for layer in layers),
        "in_2d": json.loads((job.folder / PRETRAINED).read_text()) if job.folder else None,
    }  # fmt: skip
    frozen = Frozen(carried, accelerator)
    for target in plan.targets:
        missing = [mode for mode in plan.modes if (job.arm, job.seed, target, mode) not in done]
        task = open_task(plan.targets[target], job.root) if missing else None
        for mode in missing:
            started = time.process_time()
            found = _probe(job, frozen, task) if mode == "probe" else _finetune(job, frozen, task)
            append(job.results, {
                **shared, "target": target, "mode": mode, "made": job.made[target, mode], **_about(task), **found,
                "seconds": round(time.process_time() - started, 2),
            })  # fmt: skip


class Frozen:
    """A carried network on sets of volumes: statistics and features are measured once for all targets of a set."""

    def __init__(self, carried: nn.Module, accelerator: Accelerator):
        self.carried, self.accelerator = carried, accelerator
        self._networks: dict[str, nn.Module] = {}
        self._features: dict[tuple[str, str], np.ndarray] = {}

    def network(self, task: Task) -> nn.Module:
        """The network with the statistics of the task's training volumes; not to be changed."""
        if task.train.mark not in self._networks:
            network = copy.deepcopy(self.carried)
            measure_statistics(network, task.train, self.accelerator)
            self._networks[task.train.mark] = network
        return self._networks[task.train.mark]

    def features(self, task: Task, part: Part) -> np.ndarray:
        """Pooled features `[n, F]` of a part of the task."""
        key = task.train.mark, part.mark
        if key not in self._features:
            self._features[key] = features_of(self.network(task), part, self.accelerator)
        return self._features[key]


def key_of(line: dict) -> tuple[str, int, str, str]:
    """(arm, seed, target, mode) of a result."""
    return line["arm"], line["seed"], line["target"], line["mode"]


def results_in(lines: Iterable[dict]) -> list[dict]:
    """The results among the lines of results.jsonl; of one that came twice, the last."""
    return list({key_of(line): line for line in lines if line["kind"] == "probe"}.values())


def hash_of(*parts: object) -> str:
    """A short hash of plain values, dataclasses as their fields."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _about(task: Task) -> dict:
    return {
        "test": task.test.mark,
        "train": len(task.train),
        "classes": task.classes,
        "threshold": task.threshold,
        "truth": task.test.classes.tolist(),
    }


def _probe(job: Judging, frozen: Frozen, task: Task) -> dict:
    val = None if task.val is None else (frozen.features(task, task.val), task.val.classes)
    train = frozen.features(task, task.train)
    probe = fit(train, task.train.classes, task.classes, derived_seed(job.seed, 2), val)
    return {"penalty": probe.penalty, "logits": _rounded(probe.logits(frozen.features(task, task.test)))}


def _finetune(job: Judging, frozen: Frozen, task: Task) -> dict:
    network, width = copy.deepcopy(frozen.network(task)), job.plan.network.features
    seed = derived_seed(job.seed, 3)
    return {"logits": _rounded(finetune(network, width, task, job.plan.finetune, seed, frozen.accelerator))}


def _rounded(logits: np.ndarray) -> list[list[float]]:
    return [[float(f"{value:.{DIGITS}g}") for value in row] for row in logits]
