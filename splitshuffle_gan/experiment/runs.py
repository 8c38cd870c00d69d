"""The runs of an experiment: what each consists of, and carrying all of them out on the cores there are."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment.budget import Steps, steps_for
from splitshuffle_gan.experiment.data import split_for
from splitshuffle_gan.experiment.evaluate import Evaluation, Snapshot
from splitshuffle_gan.experiment.plan import Plan
from splitshuffle_gan.experiment.process import FAILURE, start
from splitshuffle_gan.experiment.rates import described, significant, speed_key
from splitshuffle_gan.experiment.results import RESULTS, evaluations, read
from splitshuffle_gan.experiment.work import Training, is_done, read_done
from splitshuffle_gan.metrics.card import leaves
from splitshuffle_gan.output import write_json

WORK = "splitshuffle_gan.experiment.work:run_training"
EVALUATE = "splitshuffle_gan.experiment.evaluate:run_evaluation"
LOOK_EVERY = 5.0  # seconds, at results that running processes may have added


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Attributes:
        arm, seed: its name and seed.
        folder: of its 3D training and evaluations.
        steps: how long it trains.
        training_2d: its 2D training, which other runs may share; None without.
        training_3d: its 3D training.
        title, model: of the arm.
        data: hash of what it trains on.
    """

    arm: str
    seed: int
    folder: Path
    steps: Steps
    training_2d: Training | None
    training_3d: Training
    title: str
    model: str
    data: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class Stage:
    """Part of a run, done by one process: `key` is its own, `what` it is in words, `done()` says whether it is."""

    key: str
    what: str
    folder: Path
    name: str
    function: str
    arguments: Callable[[], tuple]
    done: Callable[[], bool]


def make_run(plan: Plan, arm: str, seed: int, data: Path, out: Path, rates: dict[str, float]) -> Run:
    """The run of an arm with a seed, its data split, its steps counted; nothing is trained.

    Raises UserError when `out` has this run with other options.
    """
    a = plan.arms[arm]
    split = split_for(plan, data, out, a.train)
    train_set, trained_on = split / "train", open_dataset(split / "train").data_hash
    in_3d = described(plan, arm, 3)
    in_2d = described(plan, arm, 2) if a.share_2d else None
    seconds = [0.0 if stage is None else rates[speed_key(stage)] for stage in (in_2d, in_3d)]
    try:
        steps = steps_for(plan.minutes_of(arm), a.share_2d, *seconds, plan.evaluations_of(arm))
    except UserError as error:
        raise UserError(f"arms.{arm}.{error}") from error
    training_2d = None
    if in_2d is not None:
        marks = json.dumps([significant(in_2d), steps.in_2d, trained_on], sort_keys=True)
        short = hashlib.sha256(marks.encode()).hexdigest()[:10]
        folder = out / "runs" / f"2d-{short}-seed{seed}"
        training_2d = Training(folder, in_2d, train_set, steps.in_2d, steps.in_2d, seed)
    folder = out / "runs" / f"{arm}-seed{seed}"
    depth_upsample = in_3d["options"].get("network", {}).get("depth_upsample") or "nearest"
    training_3d = Training(
        folder, in_3d, train_set, steps.in_3d, steps.every, seed,
        training_2d and training_2d.folder, a.inflate.method, depth_upsample,
    )  # fmt: skip
    run = Run(arm, seed, folder, steps, training_2d, training_3d, a.title or arm, a.model, trained_on)
    _record(run)
    return run


def _record(run: Run) -> None:
    """Keep what the run is made of; UserError where its folder holds one that is made otherwise."""
    parts = {
        "data": run.data,
        "in_2d": run.training_2d and {"steps": run.steps.in_2d, **run.training_2d.described},
        "inflate": run.training_2d and {
            "method": run.training_3d.method, "depth_upsample": run.training_3d.depth_upsample
        },
        "in_3d": {"steps": run.steps.in_3d, "every": run.steps.every, **run.training_3d.described},
    }  # fmt: skip
    path = run.folder / "options.json"
    if path.is_file() and (run.folder / "run").exists():  # what was not begun may change
        both = json.loads(path.read_text()), json.loads(json.dumps(parts))
        old, new = map(_significant, both)
        was, now = (dict(leaves(part)) for part in both)
        for field in sorted({**old, **new}):
            if old.get(field) != new.get(field):
                raise UserError(
                    f"arms.{run.arm}: {run.folder} was begun with {field} {was.get(field)!r}, now it is "
                    f"{now.get(field)!r}; give the arm another name, or the experiment another --out"
                )
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(path, parts)


def _significant(parts: dict) -> dict:
    """Field by field, what a run is made of, without options that have their default."""
    parts = {key: significant(part) if key in ("in_2d", "in_3d") and part else part for key, part in parts.items()}
    return dict(leaves(parts))


def stages_of(run: Run, evaluate: Callable[[Run], Evaluation]) -> list[Stage]:
    """What the run consists of, in order."""
    stages = []
    for rank, training in ((2, run.training_2d), (3, run.training_3d)):
        if training is None:
            continue
        minutes = training.steps * (run.steps.seconds_2d if rank == 2 else run.steps.seconds_3d) / 60
        stages.append(Stage(
            key=f"{training.folder}:{rank}d",
            what=f"{run.name}: {rank}D training, {training.steps} steps, {minutes:.3g} minutes of one core",
            folder=training.folder,
            name=f"train{rank}d",
            function=WORK,
            arguments=lambda training=training: (training,),
            done=lambda training=training: is_done(training.folder),
        ))  # fmt: skip
    return [*stages, evaluation_stage(run, "held_out", evaluate)]


def evaluation_stage(run: Run, of_set: str, evaluate: Callable[[Run], Evaluation]) -> Stage:
    """The evaluation of a run's snapshots, which has been trained."""
    return Stage(
        key=f"{run.folder}:{of_set}",
        what=f"{run.name}: evaluation, {of_set.replace('_', ' ')} volumes",
        folder=run.folder,
        name=f"evaluate-{of_set}",
        function=EVALUATE,
        arguments=lambda: (evaluate(run),),
        done=lambda: _is_evaluated(evaluate(run)) if is_done(run.folder) else False,
    )


def _is_evaluated(job: Evaluation) -> bool:
    known = evaluations(read(job.results), job.of_set)
    return all((job.arm, job.seed, job.of_set, snapshot.index) in known for snapshot in job.snapshots)


def evaluation_of(plan: Plan, run: Run, of_set: str, real: Path, out: Path) -> Evaluation:
    """What to judge of a trained run: every snapshot by the held-out volumes, the last by the final ones.

    Inflated networks are judged before their 3D training, too: as a snapshot of index -1.
    """
    done, steps = read_done(run.folder), run.steps
    kimg = run.training_3d.described["options"]["batch_size"] / 1000
    snapshots = [
        Snapshot(run.folder / "run" / "snapshots" / name, index, count, count * kimg, steps.minutes(count))
        for index, name in enumerate(done["snapshots"])
        for count in [(index + 1) * steps.every]
    ]
    if run.training_2d is not None:
        snapshots.insert(0, Snapshot(run.folder / "inflated", -1, 0, 0.0, steps.minutes(0)))
    return Evaluation(
        arm=run.arm,
        title=run.title,
        model=run.model,
        seed=run.seed,
        minutes_2d=steps.minutes(0),
        snapshots=tuple(snapshots if of_set == "held_out" else snapshots[-1:]),
        count=len(done["snapshots"]),
        parameters=done["parameters"],
        of_set=of_set,
        real=real,
        train=out / "data" / "all" / "train",
        trained_on=run.data,
        draws=plan.draws,
        extractor=plan.extractor,
        results=out / RESULTS,
        cache=out / "cache",
    )


def carry_out(
    chains: dict[tuple[str, int], list[Stage]],
    jobs: int,
    failed: Callable[[tuple[str, int], str, str], None],
    look: Callable[[], None],
) -> None:
    """Do the stages of all chains, each chain's in order, `jobs` at a time, earlier chains first.

    A stage that several chains have is done once. Where one fails, `failed(chain, stage, message)` is called for every
    chain that needs it, and the others go on. `look` is called when something ended, and every few seconds.
    """
    slots = cores_for(jobs)
    free, running, broken = list(range(jobs)), {}, {}
    pending = {name: list(stages) for name, stages in chains.items()}
    try:
        while pending:
            for stage in _ready(pending, {stage.key for stage, *_ in running.values()}, broken, failed):
                if not free:
                    break
                slot = free.pop(0)
                process = start(stage.function, stage.arguments(), stage.folder, stage.name, slots[slot])
                running[process.sentinel] = (stage, process, slot, time.time())
                _say(f"begun: {stage.what}")
            if not running:
                continue
            for sentinel in wait(list(running), timeout=LOOK_EVERY):
                stage, process, slot, begun = running.pop(sentinel)
                process.join()
                free.append(slot)
                if process.exitcode or not stage.done():
                    broken[stage.key] = (stage.name, reason_of(stage.folder, stage.name, process.exitcode))
                    _say(f"FAILED: {stage.what}: {broken[stage.key][1]}")
                else:
                    _say(f"ended: {stage.what}, after {time.time() - begun:.0f} s")
            look()
    finally:
        for _, process, *_ in running.values():
            process.terminate()
            process.join()


def _ready(pending: dict, busy: set[str], broken: dict, failed: Callable) -> Iterator[Stage]:
    """The next stage of every chain that can begin; chains that are through, or cannot go on, leave `pending`."""
    for name in list(pending):
        stages = pending[name]
        while stages and stages[0].key not in busy and stages[0].key not in broken and stages[0].done():
            stages.pop(0)
        if not stages or stages[0].key in broken:
            if stages:
                failed(name, *broken[stages[0].key])
            del pending[name]
        elif stages[0].key not in busy:
            busy.add(stages[0].key)
            yield stages[0]


def reason_of(folder: Path, name: str, exitcode: int) -> str:
    """Why a process of `process.start` ended badly."""
    if (folder / FAILURE).is_file():
        return json.loads((folder / FAILURE).read_text())["message"]
    if exitcode < 0:
        return f"killed by signal {-exitcode}, often for memory; see {folder / name}.log"
    return f"it ended with exit code {exitcode}; see {folder / name}.log"


def cores_for(jobs: int) -> list[set[int]]:
    """A share of the cores for each of `jobs` processes; where there are fewer cores, they share them."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if jobs > len(cores):
        return [{cores[job % len(cores)]} for job in range(jobs)]
    return [set(map(int, share)) for share in np.array_split(cores, jobs)]


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
