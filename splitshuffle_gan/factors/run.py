"""`splitshuffle factors`: estimate the factors of generated and of real volumes, compare them, write the report."""

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from accelerate import PartialState

from splitshuffle_gan import __version__
from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.devices import use_all_cores, wants_cpu
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.factors.compare import LEAST, compare
from splitshuffle_gan.factors.estimator import Estimator
from splitshuffle_gan.factors.report import plot, render
from splitshuffle_gan.factors.training import RECORD, errors, estimate_all, true_factors
from splitshuffle_gan.metrics.resampling import TooFewSamples
from splitshuffle_gan.metrics.source import (
    SAME_SPACING,
    IntensityRule,
    VolumeSet,
    check_same_grid,
    open_pair,
    open_volumes,
)
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json

REPORT = "factors.json"
FORMAT, VERSION = "splitshuffle-factors", 1


@dataclass(frozen=True, kw_only=True)
class FactorsConfig:
    """Compare factors of generated volumes, such as the size of the heart, with those of real ones.

    Attributes:
        generated: a folder of NIfTI volumes, a prepared dataset, a generator's folder, a training run or a hub id.
        real: a prepared dataset, or NIfTI volumes on the same grid; best such that were never trained on.
        estimator: folder that `splitshuffle train-factors` made.
        out: folder to make: factors.json, factors.md, factors.png.
        floor_from: other real volumes, such as those that were trained on; the floor is then between as many of them as
            there are generated ones and all of `real`, instead of between halves of `real`.
        n: generated volumes; default all, of a generator as many as there are real ones.
        truncation_psi: for a generator; below 1 less variety.
        resamples: of the bootstrap intervals.
        splits: random draws for the floor.
        seed: of resamples and splits; a generator draws other volumes for another seed.
        overwrite: replace the comparison in `out`.
    """

    generated: str
    real: str
    estimator: Path
    out: Path
    floor_from: str | None = None
    n: int | None = None
    truncation_psi: float = 1.0
    resamples: int = 1000
    splits: int = 200
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, least in (("n", LEAST), ("resamples", 20), ("splits", 20), ("seed", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise UserError(f"{name}: found {getattr(self, name)}, must be at least {least}")


def run_factors(config: FactorsConfig) -> dict:
    """Compare what `config` names, write the folder `out` and return the report.

    Raises UserError for bad input, volumes unlike those that the estimator was trained on, fewer than 8 of them, and an
    `out` that exists.
    """
    state = PartialState(cpu=wants_cpu())
    use_all_cores(state)
    given = [Path(path) for path in (config.generated, config.real, config.estimator, config.floor_from) if path]
    refuse_existing(config.out, config.overwrite, REPORT, keep=tuple(path for path in given if path.exists()))
    estimator = Estimator.from_pretrained(config.estimator).to(state.device)
    record = _record(config.estimator)
    sets = _open(config)
    for volumes in sets.values():
        _check_like_training(volumes, estimator, config.estimator)
    values = {name: estimate_all(estimator, volumes, f"measure {name}") for name, volumes in sets.items()}
    error_on_real = _error_on_real(config.real, estimator, values["real"])
    report = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "created_with": __version__,
        "estimator": {"path": str(config.estimator), **record},
        "sources": {
            name: {"name": volumes.name, "kind": volumes.kind, "n": len(volumes), **volumes.details}
            for name, volumes in sets.items()
        },
        "settings": {name: getattr(config, name) for name in ("n", "truncation_psi", "resamples", "splits", "seed")},
        "factors": _rows(config, estimator, values, error_on_real or record["error"]),
        "error_on_real": error_on_real,
        "values": {name: found.tolist() for name, found in values.items()},
    }
    with whole_folder(config.out) as folder:
        write_json(folder / REPORT, report)
        (folder / "factors.md").write_text(render(report))
        plot(report, folder / "factors.png")
    return report


def _rows(
    config: FactorsConfig, estimator: Estimator, values: dict[str, np.ndarray], error: dict[str, dict]
) -> dict[str, dict]:
    """The comparison of each factor; {"omitted": reason} where it cannot be made.

    With "r2": the share of its variance that the estimates explain, on the real volumes if their labels are known.
    """
    rows = {}
    for column, (name, factor) in enumerate(estimator.config.factors.items()):
        samples = [found[:, column] for found in values.values()]
        try:
            row = compare(*samples, resamples=config.resamples, splits=config.splits, seed=config.seed)
        except TooFewSamples as error:
            row = {"omitted": str(error)}
        rows[name] = {"unit": factor.unit, "r2": error[name]["r2"], **row}
    return rows


def _record(folder: Path) -> dict:
    """What the estimator's record says of its training and of its error."""
    path = Path(folder) / RECORD
    try:
        record = json.loads(path.read_text())
        return {name: record[name] for name in ("data_hash", "train", "error")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: missing or damaged ({error!r}); train the estimator again") from error


def _open(config: FactorsConfig) -> dict[str, VolumeSet]:
    generated, real = open_pair(config.generated, config.real, config.n, config.truncation_psi, config.seed)
    if config.n is not None and config.n > len(generated):
        raise UserError(f"n: found {config.n}, {generated.name} has {len(generated)} volumes")
    if config.n is not None and config.n < len(generated):
        kept = np.random.default_rng(config.seed).permutation(len(generated))[: config.n]
        generated = generated.subset(np.sort(kept))
    sets = {"generated": generated, "real": real}
    if config.floor_from is not None:
        sets["floor from"] = open_volumes(config.floor_from, (real.plane, real.rule or IntensityRule()))
        check_same_grid(sets["floor from"], real)
    for name, volumes in sets.items():
        if len(volumes) < LEAST:
            raise UserError(f"{name}: {volumes.name} has {len(volumes)} volumes; at least {LEAST} are wanted")
    return sets


def _check_like_training(volumes: VolumeSet, estimator: Estimator, path: Path) -> None:
    """Raise UserError unless the volumes are on the scale, in mm and in intensities, that the estimator learnt."""
    wanted, rule = estimator.geometry, volumes.rule
    window = IntensityRule(**wanted["intensity"])
    same = {
        "spacing": np.allclose(volumes.spacing, wanted["spacing"], rtol=SAME_SPACING),
        "plane": volumes.plane == wanted["plane"],
        "intensity": rule is None or rule == window or rule.kind == window.kind == "percentiles",
    }
    for name, fits in same.items():
        if not fits:
            found = volumes.rule if name == "intensity" else getattr(volumes, name)
            raise UserError(
                f"{name}: {volumes.name} has {found}, the estimator {path} was trained with {wanted[name]}; train one "
                "on a dataset that is prepared alike"
            )


def _error_on_real(real: str, estimator: Estimator, found: np.ndarray) -> dict | None:
    """The error on these very volumes, where they have the labels."""
    factors = estimator.config.factors
    if not (Path(real) / "manifest.json").is_file():
        return None
    dataset = open_dataset(Path(real))
    present = set(dataset.manifest.get("labels", {}).get("values", []))
    if not all(present & set(factor.labels) for factor in factors.values()):
        return None
    return errors(factors, true_factors(factors, dataset), found)
