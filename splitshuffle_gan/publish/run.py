"""A finished 3D run to a folder that ships: weights, model card, metric card, memorisation audit, pictures."""

import platform
import shutil
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tyro
from accelerate import PartialState

from splitshuffle_gan import __version__
from splitshuffle_gan.checkpoint import CONFIG, WEIGHTS
from splitshuffle_gan.data.dataset import PreparedDataset, open_dataset
from splitshuffle_gan.devices import use_all_cores, wants_cpu
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.catalogue import default_extractor
from splitshuffle_gan.extractors.weights import file_sha256
from splitshuffle_gan.metrics.audit import AuditConfig, run_audit
from splitshuffle_gan.metrics.memorisation import MIN_REAL
from splitshuffle_gan.metrics.report import write_card
from splitshuffle_gan.metrics.score import ScoreConfig, score
from splitshuffle_gan.metrics.source import open_volumes
from splitshuffle_gan.models.discriminator import Discriminator
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.montage import save_beside
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json
from splitshuffle_gan.publish.choice import RULE, best_of, snapshots_of, validate
from splitshuffle_gan.publish.model_card import AUDIT, PICTURE, SCORE, TRAINING, write_model_card
from splitshuffle_gan.publish.record import portable, read_json, stages
from splitshuffle_gan.sampler import sample

LARGEST = 16 * 2**20  # bytes; what a repository can carry without special storage
SHOWN = 16  # volumes on either side of the picture
CLOSEST = 8  # samples of the audit that are kept by name


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """A finished 3D run to a checkpoint that ships: its best snapshot with scores, audit, pictures and a model card.

    The pictures show real scans beside generated ones, so the scans must be free to be shown.

    Attributes:
        run: folder of a finished 3D training run.
        train: the prepared dataset that it was trained on.
        held_out: a prepared dataset of other subjects, to choose a snapshot by and to score it against.
        out: folder to make, as checkpoints/NAME; NAME is what `splitshuffle sample` takes.
        title: what it draws, in a few words.
        data_from: what the scans are, who published them and where.
        data_licence: licence of the scans.
        lacks: who and what is not in the scans, such as "Children; other scanners".
        data_name: what to call the scans in short; default the name of `out`.
        licence: of the weights; default that of the scans.
        skip: share of the training whose snapshots are passed over.
        draws: sets of volumes that a snapshot's number is the mean of.
        overwrite: replace the checkpoint in `out`.
    """

    run: tyro.conf.Positional[Path]
    train: Path
    held_out: Path
    out: Path
    title: str
    data_from: str
    data_licence: str
    lacks: str
    data_name: str | None = None
    licence: str | None = None
    skip: float = 0.0
    draws: int = 3
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.skip < 1:
            raise UserError(f"skip: found {self.skip}, a share from 0 to below 1 is wanted")
        if self.draws < 1:
            raise UserError(f"draws: found {self.draws}, at least 1 is wanted")
        for name in ("title", "data_from", "data_licence", "lacks"):
            if not getattr(self, name).strip():
                raise UserError(f"{name}: is empty; the model card needs it")


def publish(config: PublishConfig) -> Path:
    """Write the folder `config.out` and return it; on one process.

    In it: the generator (config.json, model.safetensors), README.md (its card), score.json, .md and .png, audit.json
    and .png, montage.png, training.json. Nothing in it says where anything lay on this machine.
    Raises UserError for a run that is not finished, data it was not trained on, sets that share scans, and files that
    are too large to ship.
    """
    use_all_cores(PartialState(cpu=wants_cpu()))
    # Whole paths are found in any text, and taken out of it; "train" would be found in words.
    places = {name: getattr(config, name).absolute() for name in ("run", "train", "held_out", "out")}
    config = replace(config, **places)
    refuse_existing(config.out, config.overwrite, TRAINING, keep=(config.run, config.train, config.held_out))
    train, held_out = open_dataset(config.train), open_dataset(config.held_out)
    _check(config, train, held_out)
    snapshots = snapshots_of(config.run, config.skip)
    _check_size(snapshots[-1] / "generator" / WEIGHTS)
    validated = validate(snapshots, open_volumes(config.held_out), default_extractor(), config.draws)
    chosen = config.run / "snapshots" / best_of(validated)["snapshot"]
    generator = chosen / "generator"
    title = config.data_name or config.out.name
    names = {
        str(generator): config.out.name,
        str(config.train): f"{title} train ({len(train)})",
        str(config.held_out): f"{title} held out ({len(held_out)})",
    }
    record = _record(config, chosen, validated, (train, held_out), names)
    with whole_folder(config.out) as folder:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(generator / name, folder / name)
        _score(config, generator, names, folder)
        _audit(config, generator, names, folder)
        _picture(generator, held_out, folder)
        write_json(folder / TRAINING, record)
        write_model_card(folder, config.out.name)
        for path in sorted(folder.iterdir()):
            _check_size(path)
    return config.out


def _check(config: PublishConfig, train: PreparedDataset, held_out: PreparedDataset) -> None:
    """What can be wrong is said before hours of scoring, not after them."""
    record = read_json(config.run / "run.json")
    if record.get("rank") != 3:
        raise UserError(f"run: {config.run} is of rank {record.get('rank')}; a 3D training run is wanted")
    trained_on = (record.get("data") or {}).get("data_hash")
    if trained_on != train.data_hash:
        raise UserError(f"train: {config.train} is not what {config.run} was trained on; give the dataset of that run")
    for name, dataset in (("train", train), ("held_out", held_out)):
        if len(dataset) < MIN_REAL:
            raise UserError(f"{name}: found {len(dataset)} volumes; the audit needs at least {MIN_REAL}")
    if shared := held_out.shared_with(train):
        raise UserError(
            f"held_out: {len(shared)} of its {len(held_out)} volumes are in the training set as well; set others "
            "aside before training, with `splitshuffle split`"
        )


def _check_size(path: Path) -> None:
    if path.stat().st_size <= LARGEST:
        return
    remedy = "publish it on the Hugging Face hub instead (`Generator.push_to_hub`)"
    if path.name == WEIGHTS:
        remedy = f"train a network with fewer --network.channels, or {remedy}"
    raise UserError(
        f"{path.name}: has {path.stat().st_size / 2**20:.1f} MiB; a file that ships has at most {LARGEST / 2**20:g}: "
        f"{remedy}"
    )


def _score(config: PublishConfig, generator: Path, names: dict[str, str], folder: Path) -> None:
    """The whole metric card, against the held-out volumes; its floor is what the training volumes have."""
    asked = ScoreConfig(
        generated=str(generator), real=str(config.held_out), floor_from=str(config.train), out=folder / SCORE
    )
    write_card(portable(score(asked), names), folder / SCORE, overwrite=True)


def _audit(config: PublishConfig, generator: Path, names: dict[str, str], folder: Path) -> None:
    """What the audit found, with the closest samples only and without the names of the training scans."""
    asked = AuditConfig(
        generated=str(generator), train=config.train, held_out=config.held_out, out=folder / "audit", k=CLOSEST
    )
    report = portable(run_audit(asked), names)
    report["samples"] = [
        {key: value for key, value in found.items() if key != "train_name"} for found in report["samples"][:CLOSEST]
    ]
    (folder / "audit" / "pairs.png").replace(folder / AUDIT.replace(".json", ".png"))
    shutil.rmtree(folder / "audit")
    write_json(folder / AUDIT, report)


def _picture(generator: Path, held_out: PreparedDataset, folder: Path) -> None:
    """Samples as they come beside real volumes as they come."""
    network = Generator.from_pretrained(generator)
    made = list(sample(network, range(SHOWN)))
    rows = np.random.default_rng(0).permutation(len(held_out))[:SHOWN]
    real = [np.array(held_out.volumes[int(row), 0]) for row in rows]
    save_beside(
        made,
        real,
        folder / PICTURE,
        (f"synthetic: seeds 0 to {SHOWN - 1}, none left out", f"real: {len(real)} held-out scans, drawn at random"),
        spacing=held_out.spacing,
        plane=held_out.plane,
    )


def _record(
    config: PublishConfig,
    chosen: Path,
    validated: list[dict],
    datasets: tuple[PreparedDataset, PreparedDataset],
    names: dict[str, str],
) -> dict:
    """training.json: what the card says in words, the stages of training, all snapshots' numbers, data and versions."""
    sets = zip(("train", "held_out"), (config.train, config.held_out), datasets, strict=True)
    steps = stages(config.run, chosen)
    networks = {
        name: sum(parameter.numel() for parameter in kind(kind.config_class.from_dict(steps[-1][name])).parameters())
        for name, kind in (("generator", Generator), ("discriminator", Discriminator))
    }
    return {
        "created_with": __version__,
        "card": {
            "title": config.title.strip().rstrip("."),
            "data_from": config.data_from.strip(),
            "data_licence": config.data_licence.strip(),
            "lacks": config.lacks.strip(),
            "licence": (config.licence or config.data_licence).strip(),
        },
        "data": {
            name: {
                "name": names[str(path)],
                "count": len(dataset),
                "data_hash": dataset.data_hash,
                "intensity": dataset.manifest["intensity"],
            }
            for name, path, dataset in sets
        },
        "parameters": networks,
        "weights_sha256": file_sha256(chosen / "generator" / WEIGHTS),
        "stages": steps,
        "choice": {
            "rule": RULE,
            "chosen": chosen.name,
            "skip": config.skip,
            "draws": config.draws,
            "volumes": len(datasets[1]),
            "extractor": default_extractor().describe(),
            "snapshots": validated,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "monai", "numpy", "scipy", "safetensors")},
        },
    }
