"""Scans to a prepared dataset, and a prepared volume back to its scan.

A dataset is a folder with `volumes.npy`, float32 `[N, 1, D, H, W]` in [-1, 1], with labels also `labels.npy`, uint8,
and `manifest.json`, which says how each volume was made, so that every step can be undone.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from splitshuffle_gan import __version__
from splitshuffle_gan.data.building import build_folder, discard, forget, move_in, read_journal, record
from splitshuffle_gan.data.manifest import make_manifest
from splitshuffle_gan.data.readers.scan import Scan
from splitshuffle_gan.data.recipe import NATIVE, PrepareConfig
from splitshuffle_gan.data.resample import resample
from splitshuffle_gan.data.row import Job, fill_row
from splitshuffle_gan.data.store import Rows, split_rows
from splitshuffle_gan.data.survey import Survey, say_reasons, survey
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import refuse_existing, write_json
from splitshuffle_gan.parallel import parallel_map
from splitshuffle_gan.volume import IntensityMap, Volume

__all__ = ["PrepareConfig", "prepare", "restore", "to_source_units"]

# A run that fails with fewer finished volumes leaves nothing behind.
WORTH_KEEPING = 100


def prepare(config: PrepareConfig) -> Path:
    """Build the dataset folder `config.out` and return its path.

    Each scan is brought to RAS+, resampled along its own axes (an oblique scan keeps its direction), cropped or padded
    with its lower intensity bound, and mapped to [-1, 1]. A scan that has the wanted spacing is cut at whole voxels,
    without interpolation. One scan per process is in memory at a time.

    The folder appears complete or not at all. Until then it grows in a hidden one beside it, where the same call finds
    finished volumes again after a kill; the result is the same, byte by byte. Scans or settings that differ, but for
    `skip_bad`, `workers` and `overwrite`, start afresh.
    Raises UserError for a source without scans, an `out` that exists, or a bad scan unless `skip_bad`.
    """
    _check_out(config)
    found = survey(config)
    with build_folder(config.out, _key(config, found)) as folder:
        try:
            _check_out(config)  # another run may have ended while this one waited for its folder
            job = _job(config, found, folder)
            finished = _resume(job, found)
            bad = _prepare_all(job, found, finished)
            _finish(job, found, sorted(finished), bad)
        except BaseException as error:
            # What an interruption leaves is for the next call; what an error leaves, only if it took long.
            done = len({line["row"] for line in read_journal(folder)})
            if done < (WORTH_KEEPING if isinstance(error, Exception) else 1):
                discard(folder)
            else:
                kept = f"{done} finished volumes are kept in {folder}"
                print(f"prepare: {kept}; the same command goes on from there", file=sys.stderr)
            raise
    return config.out


def restore(array: np.ndarray, entry: dict, plane: str = "axial") -> Volume:
    """A prepared volume on its source's grid in its source's units: `prepare` undone, up to clipping and interpolation.

    `array` is `[D, H, W]` or `[1, D, H, W]` in [-1, 1]; `entry` is its record among the manifest's "volumes" and
    `plane` the manifest's. What the crop had left out comes back as the lower intensity bound.
    Raises UserError when the record is of another plane.
    """
    if entry["plane"] != plane:
        raise UserError(f"plane: {plane!r}, but {entry['source']} was prepared as {entry['plane']!r}")
    bounds = IntensityMap(**entry["intensity"])
    values = to_source_units(array[0] if array.ndim == 4 else array, entry)
    source_affine = np.asarray(entry["source_affine"])
    to_prepared = np.linalg.inv(entry["affine"]) @ source_affine
    step, offset = np.diag(to_prepared)[:3], to_prepared[:3, 3]
    # A blur would be a second loss: what was prepared holds no detail finer than the source's voxels.
    restored = resample(values, step, offset, entry["source_shape"], bounds.low, antialias=False)
    return Volume(restored[None], source_affine)


def to_source_units(array: np.ndarray, entry: dict) -> np.ndarray:
    """A prepared volume, any shape in [-1, 1], in its source's units; the grid stays as it is."""
    return IntensityMap(**entry["intensity"]).from_unit(array)


def _job(config: PrepareConfig, found: Survey, folder: Path) -> Job:
    shape = tuple(int(side) for side in config.shape)
    counts, sharded = split_rows(len(found.scans), config.shard_size), config.shard_size is not None
    volumes = Rows(folder / "rows", "volumes", "float32", shape, counts, sharded)
    labels = Rows(folder / "rows", "labels", "uint8", shape, counts, sharded) if config.labels else None
    spacing = None if config.spacing == NATIVE else found.spacing
    return Job(config, folder, found.plane, spacing, volumes, labels)


def _key(config: PrepareConfig, found: Survey) -> str:
    """The same for the same scans, settings and release."""
    settings = config.to_dict() | {"plane": found.plane, "resolved_spacing": found.spacing}
    for field in ("out", "skip_bad", "overwrite", "workers"):
        del settings[field]
    settings["source"] = str(config.source.resolve())
    names = [(scan.name, label and label.name) for scan, label in zip(found.scans, found.labels, strict=True)]
    return hashlib.sha256(json.dumps([__version__, settings, names]).encode()).hexdigest()


def _resume(job: Job, found: Survey) -> set[int]:
    """The rows that an earlier call finished and that still hold what they should; none of them in a fresh folder."""
    if not all(rows.exist() for rows in job.arrays):
        forget(job.folder)
        for rows in job.arrays:
            rows.create()
        return set()
    lines = {line["row"]: line for line in read_journal(job.folder)}
    tasks = []
    for row, line in sorted(lines.items()):
        labels = line["entry"].get("labels")
        hashes = [line["entry"]["prepared_sha256"], *([labels["prepared_sha256"]] if labels else [])]
        tasks.append((found.scans[row], found.labels[row], row, line["stamp"], hashes, job))
    checks = parallel_map(_is_finished, tasks, job.config.workers) if tasks else ()
    good = tqdm(checks, total=len(tasks), desc="check", unit="volume", delay=2)
    finished = {task[2] for task, is_good in zip(tasks, good, strict=True) if is_good}
    print(f"prepare: goes on with {len(finished)} of {len(found.scans)} volumes done, in {job.folder}", file=sys.stderr)
    return finished


def _is_finished(task: tuple) -> bool:
    scan, label, row, stamp, hashes, job = task
    found = [hashlib.sha256(rows.read(row)).hexdigest() for rows in job.arrays]
    return found == hashes and stamp == _stamp(scan, label)


def _prepare_all(job: Job, found: Survey, finished: set[int]) -> list[dict]:
    """Prepare the rows that are not finished yet, adding them to `finished`; {"source", "reason"} of the bad ones."""
    todo = [row for row in range(len(found.scans)) if row not in finished]
    tasks = [(found.scans[row], found.labels[row], row, job) for row in todo]
    outcomes = parallel_map(_prepare_one, tasks, job.config.workers) if tasks else ()
    progress = tqdm(outcomes, total=len(found.scans), initial=len(finished), desc="prepare", unit="scan")
    bad = []
    for row, reason in zip(todo, progress, strict=True):
        if reason is None:
            finished.add(row)
            continue
        bad.append({"source": found.scans[row].name, "reason": reason})
        if not job.config.skip_bad:
            raise UserError(f"{say_reasons(bad)}; no dataset was written (--skip-bad leaves such scans out)")
    return bad


def _prepare_one(task: tuple) -> str | None:
    """Write one scan's row and then its line in the journal; or say what is wrong with the scan."""
    scan, label, row, job = task
    stamp = _stamp(scan, label)
    try:
        entry = fill_row(scan, label, row, job)
    except UserError as error:
        return str(error)
    except MemoryError:
        return f"{scan.name}: too large for the memory of this machine; remove it, or use fewer workers"
    record(job.folder, {"row": row, "stamp": stamp, "entry": entry})
    return None


def _finish(job: Job, found: Survey, rows: list[int], bad: list[dict]) -> None:
    """Put the dataset of these rows in its place."""
    bad = sorted([*found.bad, *bad], key=lambda entry: entry["source"])
    if not rows:
        raise UserError(f"source: all {len(bad)} scans of {job.config.source} are bad; {bad[0]['reason']}")
    wanted = set(rows)
    entries = {line["row"]: line["entry"] for line in read_journal(job.folder) if line["row"] in wanted}
    if len(entries) < len(rows):
        lost = len(rows) - len(entries)
        raise UserError(f"out: {lost} lines of {job.folder}'s journal were lost; run the same command again")
    ready = job.folder / "dataset"
    shutil.rmtree(ready, ignore_errors=True)
    kept = [array.keep(rows, ready) for array in job.arrays]
    shards = list(kept[0].counts) if kept[0].sharded else None
    manifest = make_manifest(job.config, found, [entries[row] for row in rows], bad, shards)
    write_json(ready / "manifest.json", manifest)
    move_in(job.folder, ready, job.config.out)


def _stamp(scan: Scan, label: Scan | None) -> str:
    """Changes when a file of the scan or of its label map does."""
    states = [path.stat() for path in (*scan.paths, *(label.paths if label else ())) if path.exists()]
    return hashlib.sha256(json.dumps([(s.st_size, s.st_mtime_ns) for s in states]).encode()).hexdigest()[:16]


def _check_out(config: PrepareConfig) -> None:
    """Refuse to write over anything but, when asked to, an earlier dataset that does not hold the source."""
    keep = (config.source, config.labels) if config.labels else (config.source,)
    refuse_existing(config.out, config.overwrite, mark="manifest.json", keep=keep)
