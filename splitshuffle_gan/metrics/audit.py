"""Memorisation audit: does a generator give back its training volumes? See `memorisation` for how it decides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import PartialState

from splitshuffle_gan import __version__
from splitshuffle_gan.devices import use_all_cores, wants_cpu
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.catalogue import Extractor, default_extractor, open_extractor
from splitshuffle_gan.metrics.audit_report import LIMITS, render, save_pairs, verdict
from splitshuffle_gan.metrics.features import extract, shared_folder, store
from splitshuffle_gan.metrics.memorisation import (
    ALPHA,
    COMPONENTS,
    FLIPS,
    MIN_REAL,
    SMALLEST,
    compare,
    copies,
    linear_model_ratio,
    signatures,
    tendency,
)
from splitshuffle_gan.metrics.source import SAME_SPACING, open_pair, open_volumes
from splitshuffle_gan.metrics.volume_set import IntensityRule, VolumeSet, hash_of
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json
from splitshuffle_gan.volume import plane_axes

FORMAT, VERSION = "splitshuffle-audit", 1
MOST_LEAKED = 0.1  # of the held-out volumes; a few repeats hide no copies and are reported


@dataclass(frozen=True)
class _Flipped:
    """A set of volumes, each flipped along `axes` when it is read."""

    volumes: Sequence[np.ndarray]
    axes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return np.ascontiguousarray(np.flip(self.volumes[index], self.axes))


def audit(
    generated: Sequence[np.ndarray],
    train: Sequence[np.ndarray],
    held_out: Sequence[np.ndarray],
    features_of: Callable[[Sequence[np.ndarray]], np.ndarray] | None = None,
    seed: int = 0,
    plane: str = "axial",
    permutations: int = 999,
    progress: bool = False,
) -> dict:
    """Compare three sets of volumes float32 `[D, H, W]` in [-1, 1]: a JSON-able report.

    features_of: volumes -> features `[n, d]`; called for each set as it is and mirrored left to right. Without it only
    voxels are compared. plane: of the volumes, which tells left from right. seed: of the permutations.
    Raises UserError for fewer than MIN_REAL training or held-out volumes, none generated, shapes that differ, and
    volumes that are constant or not finite, and when more than a tenth of `held_out` is in `train`.
    """
    sets = {"generated": generated, "train": train, "held-out": held_out}
    _check_sets(sets)
    voxels = [signatures(volumes, name, progress) for name, volumes in sets.items()]
    views = {"voxel": [[_flip(rows, axes) for axes in FLIPS] for rows in voxels]}
    flips = {"voxel": FLIPS}
    if features_of is not None:
        flips["feature"] = ((), (plane_axes(plane).index(0),))
        views["feature"] = _standardised(
            [[features_of(_Flipped(volumes, axes)) for axes in flips["feature"]] for volumes in sets.values()]
        )
    spaces = {name: compare(*orientations) for name, orientations in views.items()}
    leaked = int((spaces["voxel"].held_train.min(1) <= 2 * SMALLEST).sum())
    if leaked > MOST_LEAKED * len(held_out):
        raise UserError(
            f"held-out: {leaked} of its {len(held_out)} volumes are in the training set as well, so nothing can be "
            "told from it; leave them out, or hold out other subjects"
        )
    rng = np.random.default_rng(seed)
    report = {"spaces": {}, "samples": [{"index": index, "flagged": False} for index in range(len(generated))]}
    for name, space in spaces.items():
        found = copies(space)
        report["spaces"][name] = {
            "tendency": tendency(space, permutations, rng),
            "linear_model": {"components": COMPONENTS, "ratio": linear_model_ratio(*views[name][1:], rng)},
            "copies": {key: value for key, value in found.items() if isinstance(value, float)}
            | {"flagged": int(found["flagged"].sum())},
            "train_duplicates": found["train_duplicates"],
            "held_out_duplicates": found["held_out_duplicates"],
            "unit": space.unit,
        }
        for index, sample in enumerate(report["samples"]):
            nearest = int(found["train_index"][index])
            sample[name] = {key: float(found[key][index]) for key in ("score", "p", "distance")}
            sample[name] |= {"train_index": nearest, "flip": list(flips[name][space.flip[index, nearest]])}
            sample["flagged"] |= bool(found["flagged"][index])
    for sample in report["samples"]:
        sample["space"] = min(spaces, key=lambda name: _suspicion(report, sample, name))
        sample["train_index"] = sample[sample["space"]]["train_index"]
    report["samples"].sort(key=lambda sample: _suspicion(report, sample, sample["space"]))
    counts = {name: len(volumes) for name, volumes in sets.items()}
    settings = {"seed": seed, "plane": plane, "alpha": ALPHA | {"of_the_whole_audit": 2 * sum(ALPHA.values())}}
    return {**verdict(report), "n": counts, **report, "settings": settings, "limits": list(LIMITS)}


def _suspicion(report: dict, sample: dict, space: str) -> float:
    """Up to 1 for a copy."""
    found, limits = sample[space], report["spaces"][space]["copies"]
    return max(found["score"] / limits["threshold"], found["distance"] / limits["nearest_real_pair"])


def _check_sets(sets: dict[str, Sequence[np.ndarray]]) -> None:
    for name, least in (("generated", 1), ("train", MIN_REAL), ("held-out", MIN_REAL)):
        if len(sets[name]) < least:
            raise UserError(f"{name}: found {len(sets[name])} volumes; the audit needs at least {least}; add some")
    shapes = {name: list(np.shape(volumes[0])) for name, volumes in sets.items()}
    for name, shape in shapes.items():
        if shape != shapes["train"]:
            fix = "bring both to one grid with `splitshuffle prepare`"
            raise UserError(f"shape: {name} volumes are {shape}, train volumes {shapes['train']}; {fix}")


def _flip(rows: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.flip(rows, [axis + 1 for axis in axes])


def _standardised(views: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """Features (generated, train, held-out) in units of their deviation among the real volumes; constant ones left out.

    Raises UserError for features that are not finite or all constant.
    """
    views = [[np.asarray(rows, np.float64) for rows in orientations] for orientations in views]
    real = np.concatenate([views[1][0], views[2][0]])
    mean, deviation = real.mean(0), real.std(0)
    kept = deviation > 1e-6 * max(deviation.max(), np.abs(mean).max(), 1e-30)
    if not all(np.isfinite(rows).all() for orientations in views for rows in orientations) or not kept.any():
        raise UserError("features: not finite, or the same for all real volumes; choose another extractor")
    return [[(rows[:, kept] - mean[kept]) / deviation[kept] for rows in orientations] for orientations in views]


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """Look for training volumes among generated ones: the closest pairs, and whether they are closer than chance.

    Attributes:
        generated: a folder of scans, a prepared dataset, a generator's folder, a training run or a hub id.
        train: the prepared dataset that the generator was trained on.
        held_out: a prepared dataset of other subjects, which it never saw.
        out: folder to make: audit.json, audit.md, pairs.png.
        extractor: network for the features, as for score; default: the best at hand; none compares voxels only.
        weights: file of its weights.
        n: at most so many generated volumes; default all, of a generator as many as there are training volumes.
        truncation_psi: for a generator; below 1 less variety.
        k: pairs in the picture.
        seed: of the permutations; a generator draws other volumes for another seed.
        overwrite: replace the audit in `out`.
    """

    generated: str
    train: Path
    held_out: Path
    out: Path
    extractor: str | None = None
    weights: Path | None = None
    n: int | None = None
    truncation_psi: float = 1.0
    k: int = 8
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("k", 1), ("seed", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise UserError(f"{name}: found {getattr(self, name)}, must be at least {least}")
        if self.weights is not None and self.extractor is None:
            raise UserError("weights: say which network these weights are of, with --extractor")


def run_audit(config: AuditConfig) -> dict:
    """Audit what `config` names, on every process of a launcher; write the folder `out` and return the report.

    Raises UserError for bad input (see `audit`, `open_volumes`, `open_extractor`) and for an `out` that exists.
    """
    state = PartialState(cpu=wants_cpu())
    use_all_cores(state)
    sources = [Path(path) for path in (config.generated, config.train, config.held_out)]
    refuse_existing(config.out, config.overwrite, "audit.json", keep=tuple(path for path in sources if path.exists()))
    sets = _open(config)
    extractor = _open_extractor(config)
    with shared_folder() as folder:
        stored = {name: store(volumes, folder, name) for name, volumes in sets.items()}
        sets = {name: volumes for name, (volumes, _) in stored.items()}
        report = {
            "format": FORMAT,
            "version": VERSION,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "created_with": __version__,
            "extractor": extractor.describe() if extractor else None,
            "sources": {
                name: {"name": volumes.name, "kind": volumes.kind, "data_hash": hash_of(hashes), **volumes.details}
                for name, (volumes, hashes) in stored.items()
            },
        }
        features_of = partial(_features, extractor) if extractor else None
        plane = sets["train"].plane
        report |= audit(*sets.values(), features_of, config.seed, plane, progress=state.is_main_process)
        for sample in report["samples"]:
            sample["name"] = sets["generated"].names[sample["index"]]
            sample["train_name"] = sets["train"].names[sample["train_index"]]
        if state.is_main_process:
            with whole_folder(config.out) as building:
                write_json(building / "audit.json", report)
                (building / "audit.md").write_text(render(report))
                pair_sets, spacing = (sets["generated"], sets["train"]), sets["train"].spacing
                save_pairs(report, *pair_sets, building / "pairs.png", config.k, spacing)
        state.wait_for_everyone()
    return report


def _features(extractor: Extractor, volumes: _Flipped) -> np.ndarray:
    source = volumes.volumes
    fields = (source.name, source.kind, source.shape, source.spacing, source.plane, source.rule, source.names)
    return extract(VolumeSet(*fields, volumes.__getitem__), extractor)


def _open_extractor(config: AuditConfig) -> Extractor | None:
    if config.extractor == "none":
        return None
    extractor = open_extractor(config.extractor, config.weights) if config.extractor else default_extractor()
    if extractor.rank != 3:
        raise UserError(f"extractor: {extractor.name} sees slices; one for volumes is wanted, such as med3d-mini")
    return extractor


def _open(config: AuditConfig) -> dict[str, VolumeSet]:
    if config.train.resolve() == config.held_out.resolve():
        raise UserError(f"held-out: {config.held_out} is the training set itself; give volumes that it does not hold")
    generated, train = open_pair(config.generated, config.train, config.n, config.truncation_psi, config.seed)
    held_out = open_volumes(config.held_out, (train.plane, train.rule or IntensityRule()))
    for field in ("shape", "spacing", "plane", "rule"):
        found, wanted = getattr(held_out, field), getattr(train, field)
        if found != wanted and not (field == "spacing" and np.allclose(found, wanted, rtol=SAME_SPACING)):
            fix = "prepare both alike"
            raise UserError(f"{field}: held-out {held_out.name} has {found}, train {train.name} {wanted}; {fix}")
    if config.n is not None and config.n < len(generated):
        kept = np.random.default_rng(config.seed).permutation(len(generated))[: config.n]
        generated = generated.subset(np.sort(kept))
    return {"generated": generated, "train": train, "held-out": held_out}
