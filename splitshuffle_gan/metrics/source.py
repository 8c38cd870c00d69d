"""Volumes to be scored, wherever they come from, all brought to float32 `[D, H, W]` in [-1, 1].

A prepared dataset is read as it is. A folder that `splitshuffle sample` wrote is mapped back exactly, by its
samples.json. Any other scans go through the intensity rule of the set they are compared with. A generator is sampled on
the fly, one volume per seed. Label maps that come with samples, or that a generator draws, are left aside.
"""

import json
import math
import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from accelerate import PartialState

from splitshuffle_gan.checkpoint import find_checkpoint, shipped
from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.data.readers.nifti import is_nifti, nifti_scans
from splitshuffle_gan.data.readers.scan import Scan
from splitshuffle_gan.data.readers.scans import all_scans
from splitshuffle_gan.devices import wants_cpu
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.metrics.volume_set import OUTERMOST, IntensityRule, VolumeSet
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.sample_files import IMAGES
from splitshuffle_gan.sampler import check_volumes, draw, styles_of_seed
from splitshuffle_gan.volume import IntensityMap, check_geometry, plane_axes

SAME_SPACING = 0.01  # relative; headers are rounded
SEEDS_PER_RUN = 1_000_000
SHOWN = 3


def part_of(count: int, share: float) -> int:
    """How many a share of `count` is; an exact half is rounded down, so that 0.5 leaves as many in the other part."""
    return math.ceil(share * count - 0.5)


def open_pair(
    generated: str | Path,
    real: str | Path,
    count: int | None = None,
    truncation_psi: float = 1.0,
    seed: int = 0,
    share: float = 1.0,
) -> tuple[VolumeSet, VolumeSet]:
    """The two sides of a comparison, checked to be on one grid: (generated, real).

    Scans without a record of their own take plane and intensity rule from the other side. `count`: volumes that a
    checkpoint draws, by default `share` of the number of real ones.
    Raises UserError for what cannot be read, and when shape, spacing, plane or intensities of the sides differ, with
    the command that fixes it.
    """
    frame = _frame_of(real) or _frame_of(generated) or ("axial", IntensityRule())
    truth = open_volumes(real, frame, count, truncation_psi, seed)
    made = open_volumes(generated, frame, count or part_of(len(truth), share), truncation_psi, seed)
    check_same_grid(made, truth)
    return made, truth


def open_volumes(
    path: str | Path,
    frame: tuple[str, IntensityRule] | None = None,
    count: int | None = None,
    truncation_psi: float = 1.0,
    seed: int = 0,
) -> VolumeSet:
    """A prepared dataset, a scan or a folder of scans in any format that is read, or a generator.

    A generator is a checkpoint, a run, the name of one that ships or a hub id, of which `count` (100) volumes are
    drawn; seed s draws those of the seeds from s * 1,000,000 on.
    A folder with `images/` beside `labels/` (phantoms, for one) counts as its images. `frame`: plane and intensity
    rule for scans without a record of their own; by default axial and percentiles 0.5 and 99.5.
    Raises UserError naming the path and what is wrong.
    """
    folder = Path(path)
    if (folder / "manifest.json").is_file():
        return _from_dataset(folder)
    if (folder / "samples.json").is_file():
        return _from_scans(folder, frame or ("axial", IntensityRule()), _record_of_samples(folder))
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        return _from_scans(folder / "images", frame or ("axial", IntensityRule()))
    if folder.is_file() or folder.is_dir() and not _is_checkpoint(folder):
        return _from_scans(folder, frame or ("axial", IntensityRule()))
    if not folder.exists() and (isinstance(path, Path) or path.count("/") != 1 and shipped(path) is None):
        generator = "a checkpoint, a run, a name that `splitshuffle models` lists or a hub id OWNER/NAME"
        raise UserError(f"{path}: no such file or folder; wanted a prepared dataset, scans, or {generator}")
    return _from_checkpoint(path, count or 100, truncation_psi, seed)


def from_arrays(
    volumes: Iterable[np.ndarray],
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    plane: str = "axial",
    name: str = "arrays",
) -> VolumeSet:
    """Volumes `[D, H, W]` or `[1, D, H, W]` in [-1, 1] that are in memory already: arrays, or tensors on the CPU.

    Raises UserError for an empty set, shapes that differ, or values outside [-1, 1].
    """
    stack = [np.asarray(volume, dtype=np.float32) for volume in volumes]
    stack = [volume[0] if volume.ndim == 4 and len(volume) == 1 else volume for volume in stack]
    if not stack:
        raise UserError(f"{name}: no volumes; at least one is wanted")
    plane_axes(plane)
    shapes = {volume.shape for volume in stack}
    if len(shapes) > 1 or stack[0].ndim != 3:
        raise UserError(
            f"{name}: shapes {sorted(shapes)[:SHOWN]}; one shape [D, H, W] or [1, D, H, W] for all is wanted"
        )
    for index, volume in enumerate(stack):
        if np.abs(volume).max() > OUTERMOST:
            reach = f"{name}: volume {index} reaches {np.abs(volume).max():g}; values in [-1, 1] are wanted"
            raise UserError(f"{reach}: clamp a generator's output, as `sampler.draw` does, or map intensities first")
    names = tuple(f"volume {index}" for index in range(len(stack)))
    return VolumeSet(name, "arrays", stack[0].shape, tuple(spacing), plane, None, names, lambda i: stack[i])


def check_same_grid(generated: VolumeSet, real: VolumeSet) -> None:
    """Raise UserError, with the command that fixes it, unless both sides have one grid and one intensity scale."""
    # Files without a record of their own are brought to the grid of the other side.
    moved, wanted = (real, generated) if real.kind == "scans" and generated.kind != "scans" else (generated, real)
    shape, spacing = " ".join(map(str, wanted.shape)), " ".join(f"{length:g}" for length in wanted.spacing)
    fix = f"splitshuffle prepare {_scans_of(moved)} --out PREPARED --shape {shape} --spacing {spacing}"
    fix += f" --plane {wanted.plane}"
    if wanted.rule is not None:
        fix += f" --{wanted.rule.kind} {wanted.rule.low:g} {wanted.rule.high:g}"
    fix = f"bring both to one grid, as with `{fix}`, and score PREPARED instead of {moved.name}"
    if generated.kind == "checkpoint" and moved is generated:
        fix = "a generator is scored against data prepared as its training set was"
    far = np.abs(np.subtract(generated.spacing, real.spacing)) > SAME_SPACING * np.asarray(real.spacing)
    differing = [name for name in ("shape", "plane") if getattr(generated, name) != getattr(real, name)]
    differing += ["spacing"] if far.any() else []
    for name in differing:
        found = f"{name}: generated {generated.name} has {_text(getattr(generated, name))}"
        raise UserError(f"{found}, real {real.name} has {_text(getattr(real, name))}; {fix}")
    if None in (generated.rule, real.rule) or generated.rule == real.rule:
        return
    # A checkpoint or a folder of samples knows its window, but not the percents behind its percentiles.
    if generated.rule.kind == real.rule.kind == "percentiles" and generated.kind != "dataset":
        return
    found = f"intensity: generated {generated.name} has {generated.rule}"
    raise UserError(f"{found}, real {real.name} has {real.rule}; {fix}")


def _scans_of(volumes: VolumeSet) -> str:
    """Where the scans of a set are, as a word of a command: a dataset says what it was prepared from."""
    if volumes.kind != "dataset":
        return shlex.quote(volumes.name)
    made = open_dataset(Path(volumes.name)).manifest.get("created_with") or {}
    return shlex.quote(made.get("config", {}).get("source", f"SCANS OF {volumes.name}"))


def _text(value: object) -> str:
    return " x ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else str(value)


def _frame_of(path: str | Path) -> tuple[str, IntensityRule] | None:
    """Plane and intensity rule of what carries a record of them."""
    folder = Path(path)
    if (folder / "manifest.json").is_file():
        dataset = open_dataset(folder)
        return dataset.plane, _rule_of_manifest(dataset.manifest["intensity"])
    if (folder / "samples.json").is_file():
        geometry = _record_of_samples(folder)["geometry"]
    elif not folder.exists() or _is_checkpoint(folder):
        geometry = Generator.from_pretrained(find_checkpoint(path, "generator")).geometry
    else:
        return None
    return (geometry["plane"], rule_of_geometry(geometry)) if geometry else None


def _rule_of_manifest(intensity: dict) -> IntensityRule:
    bounds = (intensity["low"], intensity["high"]) if intensity["mode"] == "window" else intensity["percentiles"]
    return IntensityRule(intensity["mode"], *map(float, bounds))


def rule_of_geometry(geometry: dict) -> IntensityRule:
    """How intensities became -1 and 1 in the set behind a generator's geometry; percents of percentiles by default."""
    intensity = geometry["intensity"]
    if intensity["kind"] == "percentiles":
        return IntensityRule()
    return IntensityRule("window", float(intensity["low"]), float(intensity["high"]))


def _is_checkpoint(folder: Path) -> bool:
    return any((folder / part).exists() for part in ("config.json", "generator", "snapshots"))


def _record_of_samples(folder: Path) -> dict:
    """What samples.json says, "geometry" checked or None."""
    path = folder / "samples.json"
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); sample again") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}: fields by name are wanted; sample again")
    return {**record, "geometry": record.get("geometry") and check_geometry(record["geometry"], str(path))}


def training_data(checkpoint: object) -> dict:
    """{"trained_on": data hash} of a checkpoint inside a training run; empty for any other."""
    for folder in Path(str(checkpoint)).absolute().parents:
        if (folder / "run.json").is_file() and (folder / "snapshots").is_dir():
            try:
                return {"trained_on": json.loads((folder / "run.json").read_text())["data"]["data_hash"]}
            except (ValueError, KeyError, TypeError):
                return {}
    return {}


def _from_dataset(folder: Path) -> VolumeSet:
    dataset = open_dataset(folder)
    names = tuple(entry["source"] for entry in dataset.manifest["volumes"])
    rule = _rule_of_manifest(dataset.manifest["intensity"])
    return VolumeSet(
        str(folder), "dataset", dataset.shape, dataset.spacing, dataset.plane, rule, names,
        lambda i: np.array(dataset.volumes[i, 0]), {"dataset_hash": dataset.data_hash},
    )  # fmt: skip


def _from_scans(folder: Path, frame: tuple[str, IntensityRule], record: dict | None = None) -> VolumeSet:
    geometry, details = (record or {}).get("geometry"), {}
    if record:
        details = {key: record[key] for key in ("checkpoint", "truncation_psi") if key in record}
        details |= training_data(record.get("checkpoint"))
    plane, rule = (geometry["plane"], rule_of_geometry(geometry)) if geometry else frame
    scans = all_scans(folder) if record is None else _samples_in(folder)
    sources = [str((folder if folder.is_dir() else folder.parent) / scan.name) for scan in scans]
    header = scans[0].header()
    shape, spacing = tuple(header.shape[axis] for axis in plane_axes(plane)), header.spacing(plane)

    def read(index: int) -> np.ndarray:
        volume = scans[index].read(plane)
        if volume.shape != shape or not np.allclose(volume.spacing, spacing, rtol=SAME_SPACING):
            here, there = (
                f"{_text(a)} voxels of {_text(b)} mm" for a, b in ((volume.shape, volume.spacing), (shape, spacing))
            )
            raise UserError(
                f"{sources[index]}: {here}, but {scans[0].name} has {there}; bring them to one grid with "
                f"`splitshuffle prepare {folder} --out PREPARED --shape D H W` and score PREPARED"
            )
        if not np.isfinite(volume.array).all():
            raise UserError(f"{sources[index]}: has voxels that are NaN or infinite; repair or remove it")
        if geometry:
            return IntensityMap(**geometry["intensity"]).to_unit(volume.array[0])
        return rule.to_unit(volume.array[0], sources[index])

    names = tuple(scan.name for scan in scans)
    kind = "scans" if record is None else "samples"
    return VolumeSet(str(folder), kind, shape, spacing, plane, rule, names, read, details)


def _samples_in(folder: Path) -> list[Scan]:
    # Not searched for: the DICOM series that may lie beside a sample are the same volume once more.
    # Volumes that have label maps are in a folder of their own.
    images = folder / IMAGES if (folder / IMAGES).is_dir() else folder
    paths = sorted(path for path in images.iterdir() if is_nifti(path) and not path.name.startswith("."))
    if not paths:
        raise UserError(f"{folder}: holds samples.json, but no .nii.gz file; sample again")
    return [scan for path in paths for scan in nifti_scans(path, path.relative_to(folder).as_posix())]


def _from_checkpoint(path: str | Path, count: int, truncation_psi: float, seed: int) -> VolumeSet:
    if not isinstance(path, str) and not Path(path).exists():
        raise UserError(f"{path}: no such file or folder")
    if not math.isfinite(truncation_psi):
        raise UserError(f"truncation_psi: found {truncation_psi}, a finite number is wanted, such as 0.7")
    found = find_checkpoint(path, "generator")
    generator = Generator.from_pretrained(found).to(PartialState(cpu=wants_cpu()).device)
    check_volumes(generator, found)
    geometry, first = generator.geometry, seed * SEEDS_PER_RUN
    names = tuple(f"seed {first + index}" for index in range(count))

    def read(index: int) -> np.ndarray:
        return draw(generator, styles_of_seed(generator, first + index, truncation_psi))

    details = {"checkpoint": found, "truncation_psi": truncation_psi, "seeds": [first, first + count - 1]}
    details |= training_data(found)
    return VolumeSet(
        str(path), "checkpoint", generator.config.shape, tuple(geometry["spacing"]), geometry["plane"],
        rule_of_geometry(geometry), names, read, details,
    )  # fmt: skip
