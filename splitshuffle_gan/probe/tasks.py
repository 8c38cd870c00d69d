"""What is asked in 3D: volumes, each with a class; from prepared datasets or from a MedMNIST file."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splitshuffle_gan.data.dataset import PreparedDataset, open_dataset
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.weights import file_sha256
from splitshuffle_gan.factors.anatomy import BRIGHTNESS, Factor
from splitshuffle_gan.factors.training import true_factors
from splitshuffle_gan.probe.npz import grey, read_arrays, whole_classes
from splitshuffle_gan.probe.plan import Target

LEAST = 2  # volumes of each class, to learn from and to be judged by


@dataclass(frozen=True)
class Part:
    """Volumes and their classes, int64 `[n]`.

    `read(i)` is float32 `[D, H, W]` in [-1, 1]; `mark` changes with the volumes.
    """

    read: Callable[[int], np.ndarray]
    classes: np.ndarray
    mark: str

    def __len__(self) -> int:
        return len(self.classes)

    def batch(self, items: list[int]) -> Tensor:
        """Volumes `[N, 1, D, H, W]`."""
        return torch.from_numpy(np.stack([self.read(item) for item in items])[:, None])


@dataclass(frozen=True)
class Task:
    """Parts to learn from, to be judged by and, where a set has its own, to choose by.

    classes: how many there are. threshold: what the number must exceed to be of class 1; None for given classes.
    """

    train: Part
    test: Part
    val: Part | None
    classes: int
    threshold: float | None = None

    @property
    def mark(self) -> str:
        """Changes with any volume and any class."""
        parts = [part for part in (self.train, self.test, self.val) if part]
        seen = [[part.mark, part.classes.tolist()] for part in parts]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def open_task(target: Target, root: Path) -> Task:
    """The task of a target, paths starting from `root`.

    Raises UserError: a file is missing or of another kind; datasets do not go together, or share a volume; a label or
    factor is unknown; a class has too few volumes to learn from, or to be judged by; the part to choose by has another.
    """
    task = _of_arrays(target, root) if target.npz is not None else _of_datasets(target, root)
    for name, part in (("training", task.train), ("test", task.test)):
        counts = np.bincount(part.classes, minlength=task.classes)
        if len(counts) > task.classes or counts.min() < LEAST:
            cut = "" if task.threshold is None else f", cut at {task.threshold:.4g}"
            raise UserError(
                f"{name} volumes per class are {counts.tolist()}{cut}; at least {LEAST} of each are wanted: choose "
                "another `above`, or more volumes"
            )
    if task.val is not None and task.val.classes.max(initial=0) >= task.classes:
        most = task.val.classes.max()
        raise UserError(f"validation volumes are of class {most}; training volumes have 0 to {task.classes - 1} only")
    return task


def _of_arrays(target: Target, root: Path) -> Task:
    path = root / target.npz
    needed = [f"{part}_{what}" for part in ("train", "test") for what in ("images", "labels")]
    found = read_arrays(path, tuple(needed), 3, ("val_images", "val_labels"))
    mark = file_sha256(path)

    def part(name: str) -> Part:
        images, labels = found[f"{name}_images"], found[f"{name}_labels"]
        labels = labels.reshape(len(labels), -1)
        if labels.shape[1] != 1:
            raise UserError(f"{path}: {name}_labels has {labels.shape[1]} columns; one class per volume is wanted")
        rows = _some(list(map(str, range(len(images)))), target.volumes if name == "train" else None)
        classes = whole_classes(labels[rows, 0], f"{path}: {name}_labels")
        return Part(lambda item: grey(images[rows[item]]), classes, f"{mark} {name} {len(rows)}")

    train, test = part("train"), part("test")
    val = part("val") if {"val_images", "val_labels"} <= set(found) else None
    return Task(train, test, val, int(train.classes.max()) + 1)


def _of_datasets(target: Target, root: Path) -> Task:
    train, test = open_dataset(root / target.train), open_dataset(root / target.test)
    for name in ("shape", "spacing", "plane"):
        if getattr(train, name) != getattr(test, name):
            both = f"{getattr(train, name)} to learn from and {getattr(test, name)} to be judged by"
            raise UserError(f"test: {name}: found {both}; prepare both alike")
    if shared := test.shared_with(train):
        raise UserError(f"test: {len(shared)} of its volumes are in {train.folder} as well; other subjects are wanted")
    rows = _some([entry["source"] for entry in train.manifest["volumes"]], target.volumes)
    values = _values(target, train, root, rows)
    threshold = float(np.median(values)) if target.above is None else target.above
    every = list(range(len(test)))
    parts = [
        Part(lambda item, kept=kept, of=of: np.array(of.volumes[kept[item], 0]),
             (numbers > threshold).astype(np.int64), f"{of.data_hash} {len(kept)}")
        for of, kept, numbers in ((train, rows, values), (test, every, _values(target, test, root, every)))
    ]  # fmt: skip
    return Task(*parts, None, 2, threshold)


def _some(names: list[str], count: int | None) -> list[int]:
    """`count` rows, by the hash of their names, ascending; all of them by default, or where there are no more."""
    order = sorted(range(len(names)), key=lambda row: hashlib.sha256(names[row].encode()).hexdigest())
    return sorted(order[:count])


def _values(target: Target, dataset: PreparedDataset, root: Path, rows: list[int]) -> np.ndarray:
    """The number that is asked about, `[len(rows)]`."""
    if target.factor is not None:
        return _factor(target.factor, root / target.factors, dataset, rows)
    unit = BRIGHTNESS if target.measure == "brightness" else "ml"
    known = dataset.manifest.get("labels", {}).get("values", [])
    if unknown := [label for label in (*target.labels, *target.over) if label not in known]:
        raise UserError(f"labels: {dataset.folder} has {known or 'no labels at all'}, not {unknown[0]}")
    asked = {"labels": Factor(target.labels, unit)} | ({"over": Factor(target.over)} if target.over else {})
    found = true_factors(asked, dataset, rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = found[:, 0] / found[:, 1] if target.over else found[:, 0]
    if (bad := np.flatnonzero(~np.isfinite(values))).size:
        name = dataset.manifest["volumes"][rows[bad[0]]]["source"]
        lacking = "over" if target.over else "labels"
        raise UserError(f"{lacking}: {dataset.folder}: {name} has no such voxel, so there is no number; remove it")
    return values


def _factor(name: str, path: Path, dataset: PreparedDataset, rows: list[int]) -> np.ndarray:
    try:
        volumes = {volume["file"]: volume["factors"] for volume in json.loads(path.read_text())["volumes"]}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; the factors.json of `splitshuffle phantom` is wanted") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a factors.json of `splitshuffle phantom` ({error!r})") from error
    values = []
    for row in rows:
        entry = dataset.manifest["volumes"][row]
        factors = volumes.get(Path(entry["source"]).name)
        if factors is None:
            raise UserError(
                f"{path}: has no volume {entry['source']}, which {dataset.folder} has; wanted its phantoms'"
            )
        value = factors.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            numbers = ", ".join(key for key, found in factors.items() if isinstance(found, int | float))
            raise UserError(f"factor: found {name!r}; one of {numbers} is wanted")
        values.append(float(value))
    _check_same_phantom(path, dataset, rows[0])
    return np.array(values)


def _check_same_phantom(path: Path, dataset: PreparedDataset, row: int) -> None:
    """Other seeds give the same names: where the images are still there, look whether one is the dataset's."""
    entry = dataset.manifest["volumes"][row]
    image = path.parent / "images" / Path(entry["source"]).name
    if image.is_file() and file_sha256(image) != entry["sha256"]:
        raise UserError(f"{path}: {image.name} beside it is not the one that {dataset.folder} was prepared from")
