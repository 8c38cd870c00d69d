"""`splitshuffle ahnet`: steps are timed, networks trained and tested in processes of their own, the report kept up."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from splitshuffle_gan import __version__
from splitshuffle_gan.benchmark.clock import summary, take_turns
from splitshuffle_gan.data.dataset import PreparedDataset, open_dataset
from splitshuffle_gan.data.union import check_alike
from splitshuffle_gan.devices import make_accelerator
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment.folder import only_one
from splitshuffle_gan.experiment.results import RESULTS, append, mend, read
from splitshuffle_gan.experiment.runs import Stage, carry_out
from splitshuffle_gan.experiment.timing import computing
from splitshuffle_gan.output import write_json
from splitshuffle_gan.segmentation.infer import open_segmenter
from splitshuffle_gan.segmentation.options import Segment2DConfig, Segment3DConfig
from splitshuffle_gan.segmentation.predict import evaluate
from splitshuffle_gan.segmentation.segmenter import NETWORK, open_labelled
from splitshuffle_gan.segmentation.training import PREDICTIONS, one_step, train_segmenter
from splitshuffle_gan.trials.ahnet_options import AHNetConfig
from splitshuffle_gan.trials.cases import cases_of, refuse_shared
from splitshuffle_gan.trials.question import Question
from splitshuffle_gan.trials.report import write_report

QUESTION = Question(
    title="AH-Net: 2D only, 3D from scratch and 3D from 2D",
    arms={"slices": "#E69F00", "scratch": "#0072B2", "transfer": "#009E73"},
    base="scratch",
    column="network",
    given="steps",
    how_to_read=(
        "Every training has {minutes:g} minutes of one core, in steps; transfer spends {share_2d:.0%} of them on its "
        "2D network. The test volumes are in no training set, and nothing was chosen by them: the last network of each "
        "training counts."
    ),
)
RECORD = "ahnet.json"
TRAIN, JUDGE = (f"splitshuffle_gan.trials.ahnet:run_{what}" for what in ("training", "judging"))
TIMED = 5  # steps of each network
FREE = {"train", "test", "out", "seeds", "jobs", "resamples", "keep_networks"}  # may differ when a trial goes on


@dataclass(frozen=True)
class Judging:
    """A trained network to test: a line of the results for `arm` and `seed`."""

    config: AHNetConfig
    arm: str
    seed: int
    folder: Path
    given: str


def ahnet(config: AHNetConfig) -> str:
    """Carry out what is not done yet; returns the report as Markdown, which is in `config.out` as well.

    Raises:
        UserError: datasets that are not alike or share volumes, a folder begun with something else, sizes that do not
            fit, a training that failed.
    """
    train, test = open_labelled(config.train), open_labelled(config.test)
    check_alike(test, train, "test")
    refuse_shared("test", test, [train])
    with only_one(config.out, RECORD):
        record, results = _open(config, train, test), config.out / RESULTS
        mend(results)
        broken = []
        carry_out(
            {(arm, seed): _stages(config, record["steps"], arm, seed)
             for seed in range(config.seeds) for arm in QUESTION.arms},
            config.jobs,
            failed=lambda key, stage, message: broken.append(f"{key[0]}, seed {key[1]}: {message}"),
            look=lambda: write_report(QUESTION, record, read(results), config.resamples, config.out),
        )  # fmt: skip
        text = write_report(QUESTION, record, read(results), config.resamples, config.out)
    if broken:
        raise UserError(f"{len(broken)} of the trainings failed; the first: {broken[0]}")
    return text


def _open(config: AHNetConfig, train: PreparedDataset, test: PreparedDataset) -> dict:
    """Begin the folder and time the steps, or find it begun with the same; returns its record."""
    given = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    record = {
        "created_with": __version__,
        "settings": {name: value for name, value in given.items() if name not in FREE},
        "sets": {
            name: {"count": len(part), "data_hash": part.data_hash, "labels_hash": part.labels_hash}
            for name, part in (("train", train), ("test", test))
        },
        "labels": list(train.structures),
        "cases": len(test),
    }
    path = config.out / RECORD
    if path.is_file():
        begun = json.loads(path.read_text())
        for part in ("settings", "sets"):
            for name, value in record[part].items():
                if begun[part].get(name) != value:
                    raise UserError(
                        f"{name}: {config.out} was begun with {begun[part].get(name)!r}, found {value!r}; go on with "
                        "the same, or take another --out"
                    )
        return begun
    seconds = time_steps(config)
    record |= {"seconds_per_step": seconds, "steps": steps_of(config, seconds)}
    write_json(path, record)
    return record


def time_steps(config: AHNetConfig) -> dict[str, float]:
    """Seconds of one core for a step of the 2D ("2") and of the 3D network ("3"), timed in turns."""
    accelerator = make_accelerator(config.mixed_precision)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = {rank: one_step(config.training(rank, 1, config.out, 0), accelerator) for rank in (2, 3)}
        cases = {rank: partial(_timed, step, accelerator.device) for rank, step in steps.items()}
        times = take_turns(cases, TIMED, "seconds per step")
    finally:
        torch.set_num_threads(threads)
    return {str(rank): summary(found["ms"])["median"] / 1000 for rank, found in times.items()}


def _timed(step: Callable[[], object], device: torch.device) -> dict[str, float]:
    return {"ms": computing(step, device)}


def steps_of(config: AHNetConfig, seconds: dict[str, float]) -> dict[str, list[int]]:
    """Steps in 2D and in 3D of each way, from the seconds of a step at rank "2" and "3", the same minutes for all.

    Raises UserError where the minutes do not hold a step.
    """
    total = 60 * config.minutes
    shares = {"slices": (1.0, 0.0), "scratch": (0.0, 1.0), "transfer": (config.share_2d, 1 - config.share_2d)}
    steps = {
        arm: [round(share * total / seconds[rank]) for share, rank in zip(of, "23", strict=True)]
        for arm, of in shares.items()
    }
    for arm, counts in steps.items():
        if any(share and not count for share, count in zip(shares[arm], counts, strict=True)):
            raise UserError(
                f"minutes: found {config.minutes:g}, too few for {arm}: a step takes {seconds['2']:.2g} s in 2D and "
                f"{seconds['3']:.2g} s in 3D"
            )
    return steps


def _stages(config: AHNetConfig, steps: dict[str, list[int]], arm: str, seed: int) -> list[Stage]:
    """What the way with a seed consists of, in order."""
    folder, stages, init = config.out / "runs" / f"{arm}-seed{seed}", [], None
    for rank, count in zip((2, 3), steps[arm], strict=True):
        if count:
            training = config.training(rank, count, folder / f"{rank}d", seed, init)
            stages.append(Stage(
                key=f"{training.out}",
                what=f"{arm}, seed {seed}: {count} steps in {rank}D",
                folder=folder,
                name=f"segment{rank}d",
                function=TRAIN,
                arguments=lambda training=training: (training,),
                done=lambda training=training: (training.out / PREDICTIONS).is_file(),
            ))  # fmt: skip
            init = training.out
    given = ", ".join(f"{count} in {rank}D" for rank, count in zip((2, 3), steps[arm], strict=True) if count)
    judging = Judging(config, arm, seed, init, given)
    stages.append(Stage(
        key=f"{folder}:judge",
        what=f"{arm}, seed {seed}: test",
        folder=folder,
        name="judge",
        function=JUDGE,
        arguments=lambda: (judging,),
        done=lambda: (arm, seed) in {(line["arm"], line["seed"]) for line in read(config.out / RESULTS)},
    ))  # fmt: skip
    return stages[-1:] if stages[-1].done() else stages


def run_training(config: Segment2DConfig | Segment3DConfig) -> None:
    """A stage: train."""
    train_segmenter(config)


def run_judging(job: Judging) -> None:
    """A stage: test the network and append the line; then its weights, and those it began from, may go."""
    accelerator, test = make_accelerator(job.config.mixed_precision), open_dataset(job.config.test)
    started = time.process_time()
    found = evaluate(open_segmenter(job.folder).to(accelerator.device), test, accelerator, thorough=False)
    append(job.config.out / RESULTS, {
        "arm": job.arm,
        "seed": job.seed,
        "given": job.given,
        "seconds_of_test": time.process_time() - started,
        "cases": cases_of(found, test),
    })  # fmt: skip
    if not job.config.keep_networks:
        for network in job.folder.parent.glob(f"*/{NETWORK}"):
            shutil.rmtree(network)
