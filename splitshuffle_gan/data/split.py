"""Part of a prepared dataset set aside: volumes that are never trained on, always the same ones."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from splitshuffle_gan.data.dataset import PreparedDataset, open_dataset
from splitshuffle_gan.data.manifest import part_of_manifest
from splitshuffle_gan.data.store import Rows
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json

PARTS = ("train", "held_out")


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Set part of a dataset aside, to score against volumes that were never trained on.

    Which ones follows from the names of the scans alone (by their sha256), so a set that grows keeps nearly all of its
    parts.

    Attributes:
        data: prepared dataset (from `splitshuffle prepare`).
        out: folder to make, with two prepared datasets in it: train/ and held_out/.
        held_out: volumes to set aside; a few more where scans of one patient would be torn apart.
        patient: regular expression that finds the patient in a scan's name, such as sub-[0-9]+: scans in whose names it
            finds the same stay together. Default: every scan is a patient.
        train: keep only so many of the others, a part of those that a larger number keeps; default all.
        overwrite: replace an earlier split in `out`.
    """

    data: Path
    out: Path
    held_out: int
    patient: str | None = None
    train: int | None = None
    overwrite: bool = False


def split(config: SplitConfig) -> tuple[Path, Path]:
    """Write both parts and return their folders, (train, held_out).

    Raises UserError when there are fewer volumes than are asked for.
    """
    refuse_existing(config.out, config.overwrite, mark="split.json", keep=(config.data,))
    dataset = open_dataset(config.data)
    names = [entry["source"] for entry in dataset.manifest["volumes"]]
    held_out, others = split_rows_by_name(names, config.held_out, config.train, config.patient)
    with whole_folder(config.out) as folder:
        for part, rows in zip(PARTS, (others, held_out), strict=True):
            write_part(dataset, rows, folder / part)
        write_json(folder / "split.json", {
            "data_hash": dataset.data_hash,
            "patient": config.patient,
            "held_out": [names[row] for row in held_out],
            "train": [names[row] for row in others],
        })  # fmt: skip
    return config.out / PARTS[0], config.out / PARTS[1]


def split_rows_by_name(
    names: list[str], held_out: int, train: int | None = None, patient: str | None = None
) -> tuple[list[int], list[int]]:
    """Rows to set aside and rows to train on, both ascending; see `SplitConfig`.

    Raises UserError when `names` are too few, or `patient` is not in one of them.
    """
    for field, value in (("held_out", held_out), ("train", train)):
        if value is not None and value < 1:
            raise UserError(f"{field}: found {value}, at least 1 is wanted")
    patients = [_patient_of(name, patient) for name in names]
    order = sorted(range(len(names)), key=lambda row: (_rank(patients[row]), _rank(names[row])))
    count = held_out
    while 0 < count < len(order) and patients[order[count]] == patients[order[count - 1]]:
        count += 1
    rest = order[count:]
    if len(rest) < (train or 1):
        raise UserError(
            f"held_out: {count} of {len(names)} volumes set aside leave {len(rest)}, wanted {train or 'at least 1'} to "
            "train on; ask for fewer"
        )
    return sorted(order[:count]), sorted(rest[:train])


def write_part(dataset: PreparedDataset, rows: list[int], folder: Path) -> None:
    """A prepared dataset of the volumes in `rows` (ascending), with their labels."""
    manifest = dataset.manifest
    sharded = "shards" in manifest
    counts = tuple(manifest["shards"]) if sharded else (manifest["count"],)
    kept = None
    for name, dtype in [("volumes", "float32"), *([("labels", "uint8")] if "labels" in manifest else [])]:
        stored = Rows(dataset.folder, name, dtype, tuple(manifest["shape"]), counts, sharded)
        kept = stored.keep(rows, folder)
    part = part_of_manifest(manifest, rows, list(kept.counts) if sharded else None)
    write_json(folder / "manifest.json", part)


def _patient_of(name: str, pattern: str | None) -> str:
    if pattern is None:
        return name
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise UserError(f"patient: {pattern!r} is not a regular expression: {error}") from error
    if found is None:
        raise UserError(f"patient: {pattern!r} finds nothing in the scan's name {name}; give one that fits all names")
    return found.group()


def _rank(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
