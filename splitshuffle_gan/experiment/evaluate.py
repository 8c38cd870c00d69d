"""Snapshots judged against real volumes: a line of results.jsonl for each."""

import platform
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from splitshuffle_gan import __version__
from splitshuffle_gan.devices import use_all_cores, wants_cpu
from splitshuffle_gan.experiment.results import append, evaluations, read
from splitshuffle_gan.extractors.catalogue import default_extractor, open_extractor
from splitshuffle_gan.metrics.score import Settings, measure
from splitshuffle_gan.metrics.source import VolumeSet, open_pair, open_volumes

ALONG, LAST = ("fid", "kid", "prdc"), ("fid", "kid", "prdc", "ms-ssim")
FLOOR_SPLITS = 50
RULER_FIELDS = ("name", "weights_sha256", "dimension")


@dataclass(frozen=True)
class Snapshot:
    """What is judged: `folder`, the `index` of the evaluation (-1 is the start), and how far the 3D training was."""

    folder: Path
    index: int
    steps: int
    kimg: float
    minutes: float


@dataclass(frozen=True)
class Evaluation:
    """Snapshots of one run, and what they are judged against.

    Attributes:
        arm, title, model, seed: of the run.
        minutes_2d: of the run's minutes, those in 2D.
        snapshots: in order; `count` is how many there are in all, the start left out.
        parameters: of each network.
        of_set: held_out or final.
        real: prepared dataset or folder of the volumes to judge against; all of them are used, and as many generated.
        train: prepared dataset for the floor.
        trained_on: hash of the data that the run was trained on.
        draws: how many sets are generated, and judged each.
        extractor: by name; None is the best at hand.
        results: file to append to.
        cache: folder for features of real volumes.
    """

    arm: str
    title: str
    model: str
    seed: int
    minutes_2d: float
    snapshots: tuple[Snapshot, ...]
    count: int
    parameters: dict
    of_set: str
    real: Path
    train: Path
    trained_on: str
    draws: int
    extractor: str | None
    results: Path
    cache: Path


def run_evaluation(job: Evaluation) -> None:
    """Judge every snapshot that has no line yet."""
    use_all_cores(PartialState(cpu=wants_cpu()))
    known = evaluations(read(job.results), job.of_set)
    extractor = open_extractor(job.extractor) if job.extractor else default_extractor()
    for snapshot in job.snapshots:
        if (job.arm, job.seed, job.of_set, snapshot.index) in known:
            continue
        started = time.time()
        last = snapshot.index == job.count - 1
        cards = []
        for draw in range(job.draws):
            first = draw == 0
            settings = Settings(
                metrics=LAST if last else ALONG,
                resamples=200 if first else 20,
                splits=FLOOR_SPLITS if first else 2,
                seed=draw,
                floor_from=str(job.train),
                cache=job.cache,
            )
            cards.append(measure(*_sides(job, snapshot.folder, draw), extractor, settings=settings))
        append(job.results, {**_head(job, snapshot), **_numbers(cards), "seconds": round(time.time() - started, 1)})


def _sides(job: Evaluation, folder: Path, draw: int) -> tuple[VolumeSet, VolumeSet]:
    """As many generated volumes as there are real ones, and those."""
    real = open_volumes(job.real)
    if job.model == "gan":
        return open_pair(folder, job.real, len(real), 1.0, draw)
    from splitshuffle_gan.experiment.diffusion import volume_set

    return volume_set(folder, len(real), draw), real


def _head(job: Evaluation, snapshot: Snapshot) -> dict:
    return {
        "kind": "evaluation",
        "arm": job.arm,
        "title": job.title,
        "seed": job.seed,
        "set": job.of_set,
        "index": snapshot.index,
        "of": job.count,
        "fraction": (snapshot.index + 1) / job.count,
        "steps": snapshot.steps,
        "kimg": snapshot.kimg,
        "minutes": snapshot.minutes,
        "minutes_2d": job.minutes_2d,
        "parameters": job.parameters,
        "trained_on": job.trained_on,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "splitshuffle_gan": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _numbers(cards: list[dict]) -> dict:
    """What the cards of all draws say; intervals, floors and what real volumes have are the first's."""
    rows = [{row["metric"]: row for row in card["metrics"]} for card in cards]
    first, metrics, omitted = rows[0], {}, {}
    for name in first:
        reasons = [row[name]["omitted"] for row in rows if "omitted" in row[name]]
        if reasons:
            omitted[name] = reasons[0]
            continue
        values = [row[name]["value"] for row in rows]
        at_floor = [row[name]["value_at_floor_n"] for row in rows]
        metrics[name] = {
            "mean": float(np.mean(values)),
            "draws": values,
            "interval": first[name]["interval"],
            "floor": first[name]["floor"],
            "at_floor_n": None if None in at_floor else float(np.mean(at_floor)),
            "better": first[name]["better"],
            **({"real": first[name]["real"]} if "real" in first[name] else {}),
        }
    ruler, real = cards[0]["ruler"], cards[0]["real"]
    return {
        "n": ruler["n"],
        "metrics": metrics,
        "omitted": omitted,
        "ruler": {field: ruler["extractor"][field] for field in RULER_FIELDS} | {"dtype": ruler["dtype"]},
        "data": {"real": real["data_hash"], "floor_from": real["floor_from"]["data_hash"]},
        "generated": [card["generated"]["data_hash"] for card in cards],
    }
