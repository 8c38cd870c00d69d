"""Timing a step of every training side by side, on one core, before anything is trained."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate

from splitshuffle_gan import __version__
from splitshuffle_gan.benchmark.cases import OneProcess
from splitshuffle_gan.benchmark.clock import milliseconds, summary, take_turns
from splitshuffle_gan.benchmark.setting import Compilation, Setting, available_dtypes, describe, find_device
from splitshuffle_gan.data.dataset import PreparedDataset, VolumeDataset, open_dataset
from splitshuffle_gan.devices import resolve_precision
from splitshuffle_gan.experiment.plan import typed
from splitshuffle_gan.output import write_json
from splitshuffle_gan.training.options import TrainConfig
from splitshuffle_gan.training.pair import build_networks, items_of
from splitshuffle_gan.training.step import PL_INTERVAL, Trainer

REPETITIONS = 7
AUGMENTED = 0.4  # probability of augmentation while timing; in training it moves between 0 and 0.8


def time_steps(trainings: dict[str, dict], data: Path, path: Path) -> None:
    """Time a step of each of `trainings` (see `rates.described`) and add them to the file `path` by their keys.

    They take turns on the first volumes of the dataset `data`, on one thread, by the processor's time, not the clock.
    """
    device = find_device()
    torch.set_num_threads(1)
    dataset, compilation = open_dataset(data), Compilation(device)
    machine = describe(Setting(device, available_dtypes(), compilation, "", 0, REPETITIONS, 0))
    cases = {key: make_timed(training, dataset, device) for key, training in trainings.items()}

    def measured(case: "TimedStep") -> Callable[[], dict[str, float]]:
        def measure() -> dict[str, float]:
            compilation.switch(case.compiled and compilation.reason is None)
            return case.measure()

        return measure

    times = take_turns({key: measured(case) for key, case in cases.items()}, REPETITIONS, "seconds per step")
    record = json.loads(path.read_text()) if path.is_file() else {"sessions": [], "steps": {}}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record["sessions"].append({"time": now, "created_with": __version__, "repetitions": REPETITIONS, **machine})
    for key, case in cases.items():
        record["steps"][key] = {
            "seconds_per_step": case.seconds(times[key]),
            "session": len(record["sessions"]) - 1,
            "precision": case.precision,
            "milliseconds": {kind: summary(values) for kind, values in times[key].items()},
            **trainings[key],
        }
    write_json(path, record)


def make_timed(training: dict, dataset: PreparedDataset, device: torch.device) -> "TimedStep":
    """The training as `rates.described` has it, with fresh networks, ready to be timed."""
    place = {**training["options"], "data": dataset.folder, "out": Path()}
    if training["model"] == "diffusion":
        from splitshuffle_gan.experiment.diffusion import DiffusionConfig, DiffusionTraining

        config = typed(DiffusionConfig, place)
        precision = _precision(config)
        trainer = DiffusionTraining(config, dataset, OneProcess(device, precision))
        return TimedStep(trainer, _batch(VolumeDataset(dataset), config.batch_size), precision, device)
    config = typed(TrainConfig, place)
    precision = _precision(config)
    pair = build_networks(config, training["rank"], dataset)
    trainer = Trainer(config, dataset.spacing, *pair, OneProcess(device, precision))
    trainer.adaptive.p = AUGMENTED if config.augment_target > 0 else 0.0
    batch = _batch(items_of(config, training["rank"], dataset), config.batch_size)
    intervals = {"r1": config.r1_interval} | ({"path": PL_INTERVAL} if config.pl_weight else {})
    return TimedStep(trainer, batch, precision, device, intervals, config.compile)


def computing(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds that a call takes; on a CPU those in which this process computed: others may have the core, too."""
    if device.type != "cpu":
        return milliseconds(call, device)
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


class TimedStep:
    """A training whose steps are timed, each kind of step by itself.

    Args:
        trainer: has `train_step(batch)` and the number of the next `step`.
        intervals: what comes lazily, once in so many steps, from step 0 on.
    """

    def __init__(
        self,
        trainer: Any,
        batch: dict,
        precision: str,
        device: torch.device,
        intervals: dict[str, int] | None = None,
        compiled: bool = False,
    ) -> None:
        self.trainer, self.batch, self.precision, self.device = trainer, batch, precision, device
        self.compiled, self.kinds, self.counts = compiled, {}, Counter()
        intervals = intervals or {}
        for step in range(math.lcm(*intervals.values())):  # all that there is, in its proportions
            kind = "+".join(["plain", *(name for name, interval in intervals.items() if step % interval == 0)])
            self.kinds.setdefault(kind, step)
            self.counts[kind] += 1

    def measure(self) -> dict[str, float]:
        """Milliseconds of a step of each kind."""
        times = {}
        for kind, step in self.kinds.items():
            self.trainer.step = step
            times[kind] = computing(lambda: self.trainer.train_step(self.batch), self.device)
        return times

    def seconds(self, times: dict[str, list[float]]) -> float:
        """Seconds of a step on average: the kinds' medians in the proportions in which they come."""
        total = sum(count * summary(times[kind])["median"] for kind, count in self.counts.items())
        return total / self.counts.total() / 1000


def _precision(config: Any) -> str:
    return "bf16" if resolve_precision(config.mixed_precision) == "bf16" else "float32"


def _batch(items: Any, size: int) -> dict[str, torch.Tensor]:
    return default_collate([items[index] for index in islice(cycle(range(len(items))), size)])
