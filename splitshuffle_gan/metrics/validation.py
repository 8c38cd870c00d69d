"""Is the ruler straight? Real volumes, damaged in known ways by known amounts, measured against undamaged ones.

The volumes are split at random into two disjoint halves, A and B, many times over. Without damage the Fréchet distance
from A to B is the *floor*. With A damaged it should rise with every step of strength (Spearman correlation 1) and leave
the floor's interval at the weakest. Copies in place of distinct volumes should cost recall, not precision. What an
extractor fails at is said in words (`blind_spots`), for its card.

Every volume is damaged once and its features serve all splits: a network treats each volume by itself. For the same
reason damages of a set's composition are arrangements of features.
"""

import importlib.metadata
import importlib.util
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from accelerate import PartialState
from scipy.stats import rankdata
from tqdm import tqdm

from splitshuffle_gan import __version__
from splitshuffle_gan.data.phantom import make_phantom
from splitshuffle_gan.devices import use_all_cores, wants_cpu
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.catalogue import Extractor, default_extractor, open_extractor
from splitshuffle_gan.metrics.corruptions import (
    CORRUPTIONS,
    WARP_SMOOTHNESS,
    Damage,
    VolumeDamage,
    mirror,
    rearrange,
)
from splitshuffle_gan.metrics.features import extract
from splitshuffle_gan.metrics.frechet import Gaussian, frechet_distance
from splitshuffle_gan.metrics.neighbours import BALL_NEIGHBOURS, neighbours
from splitshuffle_gan.metrics.resampling import interval, split_pairs
from splitshuffle_gan.metrics.source import from_arrays, open_volumes
from splitshuffle_gan.metrics.validation_report import markdown, plot
from splitshuffle_gan.metrics.volume_set import IntensityRule, VolumeSet
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json
from splitshuffle_gan.volume import plane_axes

FORMAT, VERSION = "splitshuffle-validation", 1
MARK = "validation.json"
LEAST_N = 8
SHIPPED = ("med3d-mini", "random-0")
NOT_SHIPPED = ("medicalnet", "cross_d")  # how the names begin of those that weights are given for
PHANTOM_RULES = {"brain": IntensityRule(), "heart": IntensityRule("window", -250.0, 650.0)}
ROUNDING = 1e-12  # of the features' mean square: a distance below that is float32 noise


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Ask of every extractor whether its distance grows with damage: validation.json, validation.md, validation.png.

    Attributes:
        real: real volumes, a prepared dataset or a folder of scans.
        out: folder to make.
        other: another organ to mix in: heart or brain (phantoms on the same grid), or a dataset or folder of that grid.
        extractors: names; by default med3d-mini, random-0 and, where its weights are at hand, medicalnet-resnet50.
        weights: weights of the medicalnet or cross_d-resnet18 among `extractors`: a file, or what `carry` made; by
            default from the cache or the hub.
        n: volumes in each of the two halves; by default half of what there is. Two times n volumes are held in memory.
        splits: random splits into halves, over which every number is averaged.
        seed: of everything random.
        overwrite: replace an earlier validation in `out`.
    """

    real: Path
    out: Path
    other: str = "heart"
    extractors: tuple[str, ...] = ()
    weights: Path | None = None
    n: int | None = None
    splits: int = 20
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.n is not None and self.n < LEAST_N:
            raise UserError(f"n: found {self.n}, at least {LEAST_N} volumes a half are wanted")
        if self.splits < 2:
            raise UserError(f"splits: found {self.splits}, at least 2 are wanted for an interval")
        if self.seed < 0:
            raise UserError(f"seed: found {self.seed}, wanted 0 or more")


def validate(config: ValidationConfig) -> Path:
    """Run the whole validation and return `config.out`, now a folder of validation.json, .md and .png.

    Raises UserError for sets that are too small or do not fit, an `out` that may not be replaced, and
    unknown or missing extractors; all before the work starts.
    """
    start = time.perf_counter()
    use_all_cores(PartialState(cpu=wants_cpu()))
    refuse_existing(config.out, config.overwrite, MARK, keep=(config.real,))
    extractors = _open_extractors(config)
    available = open_volumes(config.real)
    n = config.n or len(available) // 2
    if n < LEAST_N or 2 * n > len(available):
        wanted = f"two disjoint halves of {max(n, LEAST_N)} need {2 * max(n, LEAST_N)}"
        raise UserError(f"real: {config.real} holds {len(available)} volumes, {wanted}; add some or choose a lower --n")
    chosen = np.random.default_rng(config.seed).permutation(len(available))[: 2 * n]
    real = available.subset(sorted(chosen))
    other, other_record = _other_organ(config, real, n)
    features = _all_features(real, other, extractors, config.seed)
    splits = split_pairs(2 * n, n, config.splits, config.seed)
    tables = {}
    for extractor in tqdm(extractors, desc="distances", unit="extractor"):
        table = measure(features[extractor.name], splits, config.seed)
        tables[extractor.name] = {"extractor": extractor.describe(), **table, "blind_spots": blind_spots(table)}
    result = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "created_with": __version__,
        "n": n,
        "real": _record(real) | {"available": len(available)},
        "other": other_record,
        "settings": {
            "seed": config.seed,
            "splits": config.splits,
            "neighbours": BALL_NEIGHBOURS,
            "warp_smoothness": WARP_SMOOTHNESS,
        },
        "extractors": tables,
        "environment": _environment(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    with whole_folder(config.out) as building:
        write_json(building / MARK, result)
        (building / "validation.md").write_text(markdown(result), encoding="utf-8")
        plot(result, building / "validation.png")
    return config.out


# Volumes and features -------------------------------------------------------------------------------------------------


def _open_extractors(config: ValidationConfig) -> list[Extractor]:
    names = config.extractors or tuple(dict.fromkeys((default_extractor().name, *SHIPPED)))
    if len(set(names)) < len(names):
        raise UserError(f"extractors: found {' '.join(names)}, in which a name comes twice")
    foreign = [name for name in names if name.startswith(NOT_SHIPPED)]
    if config.weights and len(foreign) != 1:
        kinds = "medicalnet or cross_d-resnet18"
        raise UserError(f"weights: {config.weights} is for one {kinds}; name just one in --extractors")
    opened = [open_extractor(name, config.weights if name in foreign else None) for name in names]
    for extractor in opened:
        if extractor.rank != 3:
            raise UserError(f"extractors: {extractor.name} looks at slices; one for volumes is wanted")
    return opened


def _other_organ(config: ValidationConfig, real: VolumeSet, n: int) -> tuple[VolumeSet, dict]:
    """`n` volumes of another organ on the grid of `real`, and a record of where they came from."""
    if config.other in PHANTOM_RULES:
        rule = PHANTOM_RULES[config.other]
        to_plane = [plane_axes("axial").index(axis) for axis in plane_axes(real.plane)]
        to_axial = np.argsort(to_plane)
        shape, spacing = (tuple(np.asarray(values)[to_axial].tolist()) for values in (real.shape, real.spacing))
        stack = []
        for number in tqdm(range(n), desc=f"{config.other} phantoms", unit="volume"):
            image = make_phantom(config.other, shape, spacing, config.seed + number).image
            stack.append(rule.to_unit(image, f"{config.other} phantom {number}").transpose(to_plane))
        other = from_arrays(stack, real.spacing, real.plane, f"{config.other} phantoms")
        return other, _record(other)
    frame = (real.plane, real.rule) if real.rule else None
    found = open_volumes(config.other, frame)
    if found.shape != real.shape or found.plane != real.plane:
        have, want = (f"{' x '.join(map(str, v.shape))}, {v.plane}" for v in (found, real))
        raise UserError(f"other: {config.other} is {have}; {want} as in {config.real} is wanted: prepare it so")
    if len(found) < n:
        raise UserError(f"other: {config.other} holds {len(found)} volumes, {n} are wanted; choose a lower --n")
    other = found.subset(range(n))
    return other, _record(other)


def _all_features(real: VolumeSet, other: VolumeSet, extractors: list[Extractor], seed: int) -> dict[str, dict]:
    """For every extractor, features by what was done to the volumes, the keys of `_treatments`."""
    features: dict[str, dict] = {extractor.name: {} for extractor in extractors}
    sets = 3 + sum(len(damage.strengths) for damage in CORRUPTIONS if isinstance(damage, VolumeDamage))
    with tqdm(total=sets * len(extractors), desc="features", unit="set") as progress:
        for key, volumes in _treatments(real, other, seed):
            for extractor in extractors:
                features[extractor.name][key] = extract(volumes, extractor, progress=False)
                progress.update()
    return features


def _treatments(real: VolumeSet, other: VolumeSet, seed: int) -> Iterator[tuple[object, VolumeSet]]:
    """The keys "clean", "mirror", "other" and (name, strength) of every `VolumeDamage`, each with its volumes."""
    arrays = real.array()

    def as_set(volumes: np.ndarray, label: str) -> VolumeSet:
        return from_arrays(volumes, real.spacing, real.plane, f"{real.name}, {label}")

    yield "clean", as_set(arrays, "undamaged")
    yield "mirror", as_set(mirror(arrays, real.plane), "mirrored")
    yield "other", other
    for number, damage in enumerate(CORRUPTIONS):
        for strength in damage.strengths if isinstance(damage, VolumeDamage) else ():
            rng = np.random.default_rng([seed, number])  # the same draws at every strength
            label = f"{damage.title}, {damage.label(strength)}"
            yield (damage.name, strength), as_set(damage.apply(arrays, strength, rng), label)


# Numbers --------------------------------------------------------------------------------------------------------------


def measure(features: dict, splits: list[tuple[np.ndarray, np.ndarray]], seed: int) -> dict:
    """The table of one extractor, plain JSON, from its features by key (see `_treatments`) and the splits.

    "floor": median distance, 95 % interval, precision and recall of undamaged halves. "corruptions", by name: a row
    for each strength (mean distance over the splits and its interval, ratio to the floor or null where that is 0,
    whether the mean is above the floor's interval, mean precision and recall) and `spearman` of distance with
    strength. Intervals hold 95 % of the splits, which overlap: they tell how far splits differ, not sampling error.
    """
    clean = features["clean"]
    undamaged = np.array([_compare(clean[a], clean[b]) for a, b in splits])
    floor = {
        "value": float(np.median(undamaged[:, 0])),
        "interval": interval(undamaged[:, 0]),
        "precision": float(undamaged[:, 1].mean()),
        "recall": float(undamaged[:, 2].mean()),
    }
    rounding = ROUNDING * float(np.square(clean).sum(1).mean())
    corruptions = {}
    for number, damage in enumerate(CORRUPTIONS):
        rows = []
        for strength in damage.strengths:
            values = [
                _compare(_damaged(damage, strength, features, a, [seed, number, split]), clean[b])
                for split, (a, b) in enumerate(splits)
            ]
            row = _row(np.array(values), floor, rounding)
            rows.append({"strength": strength, "label": damage.label(strength)} | row)
        distances = [row["distance"] for row in rows]
        rank = spearman(_amounts(damage, len(splits[0][0])), distances) if np.ptp(distances) > rounding else 0.0
        corruptions[damage.name] = {"title": damage.title, "spearman": rank, "rows": rows}
    return {"floor": floor, "corruptions": corruptions}


def _row(values: np.ndarray, floor: dict, rounding: float) -> dict:
    """From distance, precision and recall of every split `[splits, 3]`."""
    distance, precision, recall = (float(value) for value in values.mean(0))
    return {
        "distance": distance,
        "interval": interval(values[:, 0]),
        "over_floor": distance / floor["value"] if floor["value"] > rounding else None,
        "above_floor": distance > floor["interval"][1] + rounding,
        "precision": precision,
        "recall": recall,
    }


def _amounts(damage: Damage, n: int) -> list[float]:
    """What the strengths come to: of few volumes, 5 % and 10 % may be the same one."""
    if isinstance(damage, VolumeDamage):
        return list(damage.strengths)
    rng = np.random.default_rng(0)  # whichever volumes they are, they are as many
    return [float(np.count_nonzero(damage.arrange(n, s, rng) != np.arange(n))) for s in damage.strengths]


def spearman(first: list[float], second: list[float]) -> float:
    """Spearman's rank correlation; ties share their mean rank, and a constant side, which ranks nothing, gives 0."""
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (first, second)]
    scale = np.sqrt(np.square(ranks[0]).sum() * np.square(ranks[1]).sum())
    return float(round(ranks[0] @ ranks[1] / scale, 12)) if scale else 0.0


def blind_spots(table: dict) -> list[str]:
    """What an extractor cannot see, a sentence each, from its table (see `measure`); none if its ruler is straight."""
    floor, entries = table["floor"], table["corruptions"]
    rows = [row for entry in entries.values() for row in entry["rows"]]
    if not any(row["above_floor"] or row["over_floor"] for row in rows):
        return ["Blind to everything: the features of different volumes are the same."]
    sentences = []
    for name, entry in entries.items():
        title, rows = entry["title"], entry["rows"]
        seen = [row["above_floor"] for row in rows]
        if not any(seen):
            most = max(rows, key=lambda row: row["distance"])
            sentences.append(f"Blind to {title}: {_beside_floor(most, floor)}, and that is the most.")
            continue
        if not seen[0]:
            first = rows[seen.index(True)]["label"]
            sentences.append(f"Weak on {title}: {_beside_floor(rows[0], floor)}; seen from {first} on.")
        if entry["spearman"] < 1:
            sentences.append(f"Misjudges how strong {title} is: Spearman {entry['spearman']:.2f}, where 1 is wanted.")
        lost = collapse_cost(table)
        if name == "duplicates" and lost["recall"] <= lost["precision"]:
            sentences.append(
                f"Does not tell collapse from poor quality: with {rows[-1]['label']} recall falls by "
                f"{lost['recall']:.2f}, precision by {lost['precision']:.2f}."
            )
    return sentences


def _beside_floor(row: dict, floor: dict) -> str:
    if row["over_floor"] is None:
        return f"{row['label']} gives {row['distance']:.3g}, undamaged halves up to {floor['interval'][1]:.3g}"
    reach = floor["interval"][1] / floor["value"]
    return f"{row['label']} gives {row['over_floor']:.2g} times the floor, where undamaged halves reach {reach:.2g}"


def collapse_cost(table: dict) -> dict[str, float]:
    """By how much "precision" and "recall" fall below the floor's at the strongest of the duplicates."""
    worst = table["corruptions"]["duplicates"]["rows"][-1]
    return {name: table["floor"][name] - worst[name] for name in ("precision", "recall")}


def _damaged(damage: Damage, strength: float, features: dict, half: np.ndarray, seed: list[int]) -> np.ndarray:
    """Features of the half `half` of the volumes, damaged."""
    if isinstance(damage, VolumeDamage):
        return features[damage.name, strength][half]
    clean, mirrored, other = features["clean"][half], features["mirror"][half], features["other"]
    pool = {"none": clean[:0], "mirror": mirrored, "other": other}[damage.pool]
    return rearrange(damage, clean, pool, strength, np.random.default_rng(seed))


def _compare(damaged: np.ndarray, real: np.ndarray) -> tuple[float, float, float]:
    """Fréchet distance, precision, recall."""
    near = neighbours(damaged, real)
    distance = frechet_distance(Gaussian.of(damaged), Gaussian.of(real))
    return distance, float(near.precision.mean()), float(near.recall.mean())


def _record(volumes: VolumeSet) -> dict:
    return {
        "name": volumes.name,
        "kind": volumes.kind,
        "n": len(volumes),
        "shape": list(volumes.shape),
        "spacing": list(volumes.spacing),
        "plane": volumes.plane,
        "data_hash": volumes.data_hash,
    }


def _environment() -> dict:
    packages = ("torch", "monai", "numpy", "scipy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
