"""The volumes of an experiment: trained on, held out, and final ones that neither training nor choices saw."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path

from splitshuffle_gan.data.dataset import PreparedDataset, open_dataset
from splitshuffle_gan.data.prepare import prepare
from splitshuffle_gan.data.recipe import PrepareConfig
from splitshuffle_gan.data.split import SplitConfig, split
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment.plan import Plan


def split_for(plan: Plan, data: Path, out: Path, train: int | None) -> Path:
    """The split of `data` with so many volumes to train on, made in `out/data/` unless it is there.

    Returns its folder, with train/ and held_out/. Raises UserError where it is another split.
    """
    folder = out / "data" / ("all" if train is None else f"train-{train}")
    if not (folder / "split.json").is_file():
        split(SplitConfig(data=data, out=folder, held_out=plan.held_out, patient=plan.patient, train=train))
    record, data_hash = json.loads((folder / "split.json").read_text()), open_dataset(data).data_hash
    if (record["data_hash"], record["patient"]) != (data_hash, plan.patient) or not _holds(record, plan.held_out):
        raise UserError(
            f"{folder}: a split of another dataset, or with other held_out or patient, than {data} and the plan have; "
            "take another --out"
        )
    return folder


def _holds(record: dict, held_out: int) -> bool:
    count = len(record["held_out"])
    return count == held_out or record["patient"] is not None and count > held_out


def final_set(source: Path, data: Path, out: Path) -> Path:
    """The prepared dataset of `source`: itself, or its scans prepared as those of `data` were, in `out/data/`.

    Raises UserError when one of its volumes is in `data`.
    """
    folder = source
    if not (source / "manifest.json").is_file():
        folder = out / "data" / f"final-{_mark_of(source)}"
        if not folder.exists():
            prepare(recipe_of(open_dataset(data), source, folder))
    if shared := open_dataset(folder).shared_with(open_dataset(data)):
        raise UserError(
            f"final: {source}: {len(shared)} volumes, such as {shared[0]}, are in {data} as well; volumes that neither "
            "training nor choices saw are wanted"
        )
    return folder


def _mark_of(source: Path) -> str:
    """Changes with the place of the scans, and with their names, sizes and times."""
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    seen = [(path.relative_to(source).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([str(source.resolve()), seen]).encode()).hexdigest()[:12]


def check_same_final(final: Path, lines: list[dict], out: Path) -> None:
    """Raise UserError when the results' `lines` hold evaluations by other final volumes than those of `final`."""
    data_hash = open_dataset(final).data_hash
    for line in lines:
        if line["kind"] == "evaluation" and line["set"] == "final" and line["data"]["real"] != data_hash:
            raise UserError(
                f"final: {out} has results by {line['n']} other final volumes; results of the two must not be mixed: "
                f'give those volumes again, or take the lines with "set": "final" out of {out / "results.jsonl"}'
            )


def recipe_of(dataset: PreparedDataset, source: Path, out: Path) -> PrepareConfig:
    """How to prepare the scans of `source` as those of `dataset` were, on the grid that came out there."""
    config = dataset.manifest["created_with"]["config"]
    known = {field.name for field in fields(PrepareConfig)}
    kept = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items() if key in known}
    spacing = kept.get("spacing") if kept.get("spacing") == "native" else dataset.spacing
    changed = {"source": source, "out": out, "spacing": spacing, "plane": dataset.plane, "workers": 0}
    return PrepareConfig(**{**kept, **changed, "labels": None, "overwrite": False, "shard_size": None})
