"""What the processes of an experiment do: one stage each of one run. Called again after a kill, a stage goes on."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from splitshuffle_gan.benchmark.cases import count_parameters
from splitshuffle_gan.experiment.plan import typed
from splitshuffle_gan.models.discriminator import Discriminator
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.output import write_json
from splitshuffle_gan.training.loop import train
from splitshuffle_gan.training.options import TrainConfig
from splitshuffle_gan.training.state import STATE
from splitshuffle_gan.transfer.apply import inflate_checkpoint

DONE = "done.json"


@dataclass(frozen=True)
class Training:
    """One training of a run.

    Attributes:
        folder: of the stage: `run/` is the training's, `done.json` is written last.
        described: see `rates.described`.
        data: prepared dataset.
        steps: length.
        every: steps between snapshots.
        seed: of everything random.
        inflated_from: folder of the 2D stage that the networks are inflated from, or None.
        method: of inflation. depth_upsample: of the inflated generator.
    """

    folder: Path
    described: dict
    data: Path
    steps: int
    every: int
    seed: int
    inflated_from: Path | None = None
    method: str = "center"
    depth_upsample: str = "nearest"


def run_training(stage: Training) -> None:
    """Train, from where a killed training stopped if there was one, and say in `done.json` what came out.

    {"snapshots": names of folders in `run/snapshots`, in order, "parameters": of each network}.
    """
    folder, run = stage.folder, stage.folder / "run"
    kimg = stage.described["options"]["batch_size"] / 1000
    resume = (run / STATE).is_file()
    if not resume and run.exists():
        shutil.rmtree(run)
    given = {
        "data": stage.data,
        "out": run,
        "seed": stage.seed,
        "resume": resume,
        "kimg": stage.steps * kimg,
        "snapshot_kimg": stage.every * kimg,
    }
    work = _train_diffusion if stage.described["model"] == "diffusion" else _train_gan
    parameters = work(stage, given)
    snapshots = sorted(path.name for path in (run / "snapshots").glob("kimg*"))
    write_json(folder / DONE, {"snapshots": snapshots, "parameters": parameters})


def _train_gan(stage: Training, given: dict) -> dict[str, int]:
    options = stage.described["options"]
    if stage.inflated_from is not None:
        # What the networks are follows from the 2D ones; options for new networks would only repeat it.
        options = options | {"network": {}}
        given["init"] = stage.folder / "inflated"
        if not given["resume"]:
            source = stage.inflated_from / "run"
            shutil.rmtree(given["init"], ignore_errors=True)
            inflate_checkpoint(source, given["init"], stage.method, None, stage.depth_upsample, stage.seed)
    snapshot = train(typed(TrainConfig, {**options, **given}), stage.described["rank"])
    return {
        model.__name__.lower(): count_parameters(model.from_pretrained(snapshot))
        for model in (Generator, Discriminator)
    }


def _train_diffusion(stage: Training, given: dict) -> dict[str, int]:
    from splitshuffle_gan.experiment.denoiser import Denoiser
    from splitshuffle_gan.experiment.diffusion import DiffusionConfig, train_diffusion

    snapshot = train_diffusion(typed(DiffusionConfig, {**stage.described["options"], **given}))
    return {"generator": count_parameters(Denoiser.from_pretrained(snapshot)), "discriminator": 0}


def is_done(folder: Path) -> bool:
    """Whether a training has ended."""
    return (folder / DONE).is_file()


def read_done(folder: Path) -> dict:
    """What `run_training` wrote last."""
    return json.loads((folder / DONE).read_text())
