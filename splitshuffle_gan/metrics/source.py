"""Volumes to be scored, wherever they come from, all brought to float32 `[D, H, W]` in [-1, 1].

A prepared dataset is read as it is. A folder that `splitshuffle sample` wrote is mapped back exactly, by its
samples.json. Any other NIfTI files go through the intensity rule of the set they are compared with. A generator is
sampled on the fly, one volume per seed.
"""

import hashlib
import json
import math
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import PartialState

from splitshuffle_gan.checkpoint import find_checkpoint
from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.data.prepare import DEFAULT_PERCENTILES, find_scans
from splitshuffle_gan.data.readers.nifti import read_nifti
from splitshuffle_gan.devices import wants_cpu
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.sampler import check_volumes, draw, styles_of_seed
from splitshuffle_gan.volume import IntensityMap, check_geometry, plane_axes

SAME_SPACING = 0.01  # relative; headers are rounded
SEEDS_PER_RUN = 1_000_000
SHOWN = 3
OUTERMOST = 1 + 1e-3  # of the range [-1, 1], for rounding


@dataclass(frozen=True)
class IntensityRule:
    """How intensities become -1 and 1: a fixed `window` (low, high), or `percentiles` (in percent) of each volume."""

    kind: str = "percentiles"
    low: float = DEFAULT_PERCENTILES[0]
    high: float = DEFAULT_PERCENTILES[1]

    def to_unit(self, array: np.ndarray, source: str) -> np.ndarray:
        """Source units to [-1, 1]. Raises UserError naming `source` when its percentiles are equal or not finite."""
        if self.kind == "window":
            return IntensityMap("window", self.low, self.high).to_unit(array)
        low, high = np.percentile(array, (self.low, self.high))
        if not low < high:
            raise UserError(f"{source}: its percentiles {self.low:g} and {self.high:g} are {low:g} and {high:g}; "
                            "repair or remove the file")  # fmt: skip
        return IntensityMap("percentiles", float(low), float(high)).to_unit(array)


@dataclass(frozen=True)
class VolumeSet:
    """Volumes of one shape, read one at a time: `volumes[i]` is float32 `[D, H, W]` in [-1, 1].

    Attributes:
        name: what the user called it.
        kind: dataset, samples (what `splitshuffle sample` wrote), nifti (any other files), checkpoint or arrays.
        shape: voxels (D, H, W). spacing: mm (D, H, W). plane: the order of the axes, see `volume`.
        rule: how the intensities were mapped; None when that is not known (arrays).
        names: of the volumes, for messages: file names or seeds.
        read: index -> volume.
        details: more for the card, JSON.
    """

    name: str
    kind: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    plane: str
    rule: IntensityRule | None
    names: tuple[str, ...]
    read: Callable[[int], np.ndarray]
    details: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        volume = self.read(index)
        if not np.isfinite(volume).all():
            bad = np.count_nonzero(~np.isfinite(volume))
            raise UserError(f"{self.name}: {self.names[index]} has {bad} voxels that are NaN or infinite; remove it")
        low, high = volume.min(), volume.max()
        if low == high:
            raise UserError(f"{self.name}: {self.names[index]} is {low:g} everywhere; remove it")
        if max(-low, high) > OUTERMOST:
            reach = f"{self.name}: {self.names[index]} reaches {max(-low, high):g}; values in [-1, 1] are wanted"
            raise UserError(f"{reach}: prepare the set again, or remove it")
        return volume

    def subset(self, indices: Iterable[int]) -> "VolumeSet":
        """The volumes at `indices`, in that order."""
        chosen = [int(index) for index in indices]
        return VolumeSet(
            self.name, self.kind, self.shape, self.spacing, self.plane, self.rule,
            tuple(self.names[index] for index in chosen), lambda i: self.read(chosen[i]), self.details,
        )  # fmt: skip

    def array(self) -> np.ndarray:
        """All of them, `[N, D, H, W]`, in memory."""
        return np.stack([self[i] for i in range(len(self))])

    @property
    def data_hash(self) -> str:
        """sha256 over the volumes' voxels as they are scored; changes with any of them and with their order."""
        return hash_of([volume_hash(self[i]) for i in range(len(self))])


def volume_hash(volume: np.ndarray) -> str:
    """sha256 of one volume's float32 bytes."""
    return hashlib.sha256(np.ascontiguousarray(volume, dtype=np.float32)).hexdigest()


def hash_of(hashes: list[str]) -> str:
    """sha256 of the volumes' hashes, in order."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


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

    NIfTI files without a record of their own take plane and intensity rule from the other side. `count`: volumes that
    a checkpoint draws, by default `share` of the number of real ones.
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
    """A prepared dataset, a NIfTI file or folder, or a generator.

    A generator is a checkpoint, a run or a hub id, of which `count` (100) volumes are drawn; seed s draws those of the
    seeds from s * 1,000,000 on.
    A folder with `images/` beside `labels/` (phantoms, for one) counts as its images. `frame`: plane and intensity
    rule for NIfTI files without a record of their own; by default axial and percentiles 0.5 and 99.5.
    Raises UserError naming the path and what is wrong.
    """
    folder = Path(path)
    if (folder / "manifest.json").is_file():
        return _from_dataset(folder)
    if (folder / "samples.json").is_file():
        return _from_nifti(folder, frame or ("axial", IntensityRule()), _record_of_samples(folder))
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        return _from_nifti(folder / "images", frame or ("axial", IntensityRule()))
    if folder.is_file() or folder.is_dir() and not _is_checkpoint(folder):
        return _from_nifti(folder, frame or ("axial", IntensityRule()))
    if not folder.exists() and (isinstance(path, Path) or path.count("/") != 1):
        wanted = "a prepared dataset, NIfTI files, or a generator (a checkpoint, a run or a hub id OWNER/NAME)"
        raise UserError(f"{path}: no such file or folder; {wanted} is wanted")
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
    moved, wanted = (real, generated) if real.kind == "nifti" and generated.kind != "nifti" else (generated, real)
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
    return (geometry["plane"], _rule_of_geometry(geometry)) if geometry else None


def _rule_of_manifest(intensity: dict) -> IntensityRule:
    bounds = (intensity["low"], intensity["high"]) if intensity["mode"] == "window" else intensity["percentiles"]
    return IntensityRule(intensity["mode"], *map(float, bounds))


def _rule_of_geometry(geometry: dict) -> IntensityRule:
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


def _training_data(checkpoint: object) -> dict:
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


def _from_nifti(folder: Path, frame: tuple[str, IntensityRule], record: dict | None = None) -> VolumeSet:
    geometry, details = (record or {}).get("geometry"), {}
    if record:
        details = {key: record[key] for key in ("checkpoint", "truncation_psi") if key in record}
        details |= _training_data(record.get("checkpoint"))
    plane, rule = (geometry["plane"], _rule_of_geometry(geometry)) if geometry else frame
    paths = find_scans(folder)
    first = read_nifti(paths[0], plane)

    def read(index: int) -> np.ndarray:
        volume = read_nifti(paths[index], plane)
        if volume.shape != first.shape or not np.allclose(volume.spacing, first.spacing, rtol=SAME_SPACING):
            here, there = (f"{_text(v.shape)} voxels of {_text(v.spacing)} mm" for v in (volume, first))
            raise UserError(
                f"{paths[index]}: {here}, but {paths[0].name} has {there}; bring them to one grid with "
                f"`splitshuffle prepare {folder} --out PREPARED --shape D H W` and score PREPARED"
            )
        if not np.isfinite(volume.array).all():
            raise UserError(f"{paths[index]}: has voxels that are NaN or infinite; repair or remove it")
        if geometry:
            return IntensityMap(**geometry["intensity"]).to_unit(volume.array[0])
        return rule.to_unit(volume.array[0], str(paths[index]))

    names = tuple(path.name for path in paths)
    kind = "nifti" if record is None else "samples"
    return VolumeSet(str(folder), kind, first.shape, first.spacing, plane, rule, names, read, details)


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
    details |= _training_data(found)
    return VolumeSet(
        str(path), "checkpoint", generator.config.shape, tuple(geometry["spacing"]), geometry["plane"],
        _rule_of_geometry(geometry), names, read, details,
    )  # fmt: skip
