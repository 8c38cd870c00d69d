"""Scans to a prepared dataset, and a prepared volume back to its scan.

A dataset is a folder with `volumes.npy`, float32 `[N, 1, D, H, W]` in [-1, 1], and `manifest.json`, which says how each
volume was made, so that every step can be undone.
"""

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from splitshuffle_gan import __version__
from splitshuffle_gan.data.nifti import is_nifti, read_nifti, read_spacing
from splitshuffle_gan.data.resample import resample
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json
from splitshuffle_gan.parallel import parallel_map
from splitshuffle_gan.volume import IntensityMap, Volume, plane_axes

FORMAT = "splitshuffle-dataset"
VERSION = 1
DEFAULT_PERCENTILES = (0.5, 99.5)
# A step within this of one source voxel counts as one: such scans are cut, not interpolated.
SAME_SPACING = 1e-3


@dataclass(frozen=True)
class PrepareConfig:
    """What to prepare and how. Raises UserError naming the field that makes no sense.

    source: a NIfTI file, or a folder searched to any depth (names that start with a dot are passed over).
    out: the dataset folder to make. shape: voxels (D, H, W) of every prepared volume.
    spacing: mm (D, H, W); None takes the set's median. plane: the order of the axes, see `volume`.
    window: (low, high) in source units, the same for every volume. percentiles: (low, high) in percent, measured on
    each source volume; the default, 0.5 and 99.5. Give at most one of the two.
    skip_bad: list unreadable, constant and non-finite scans in the manifest instead of stopping.
    overwrite: replace an existing dataset. workers: processes, 0 for one per core.
    """

    source: Path
    out: Path
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None = None
    percentiles: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    plane: str = "axial"
    skip_bad: bool = False
    overwrite: bool = False
    workers: int = 0

    def __post_init__(self):
        if self.window is not None and self.percentiles is not None:
            raise UserError(f"window {self.window} and percentiles {self.percentiles}: give one of the two, not both")
        if self.window is None and self.percentiles is None:
            object.__setattr__(self, "percentiles", DEFAULT_PERCENTILES)
        object.__setattr__(self, "source", Path(self.source))
        object.__setattr__(self, "out", Path(self.out))
        plane_axes(self.plane)
        if len(self.shape) != 3 or not all(side >= 1 and side % 1 == 0 for side in self.shape):
            raise UserError(f"shape: {self.shape}; three positive whole numbers D H W are wanted")
        if self.spacing is not None and (len(self.spacing) != 3 or not all(0 < s < np.inf for s in self.spacing)):
            raise UserError(f"spacing: {self.spacing}; three positive lengths in mm, D H W, are wanted")
        wanted = "two numbers are wanted, the first below the second"
        if self.window is not None:
            if len(self.window) != 2 or not -np.inf < self.window[0] < self.window[1] < np.inf:
                raise UserError(f"window: {self.window}; {wanted}")
        elif len(self.percentiles) != 2 or not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise UserError(f"percentiles: {self.percentiles}; {wanted}, within 0..100")
        if self.workers < 0:
            raise UserError(f"workers: {self.workers}; a whole number is wanted, 0 for one process per core")


def prepare(config: PrepareConfig) -> Path:
    """Build the dataset folder `config.out` and return its path.

    Each scan is brought to RAS+, resampled linearly along its own axes (an oblique scan keeps its direction), cropped
    or padded about its middle with its lower intensity bound, and mapped to [-1, 1]. A scan that has the wanted spacing
    is cut at whole voxels, without interpolation. The folder appears complete or not at all.
    Raises UserError for a source without scans, an `out` that exists, or a bad scan unless `skip_bad`.
    """
    sources = find_scans(config.source)
    _check_out(config)
    spacing = config.spacing or _median_spacing(sources, config.plane)
    with whole_folder(config.out) as folder:
        path = folder / "volumes.npy"
        _new_array(path, len(sources), config.shape)
        tasks = [(source, row, path, spacing, config) for row, source in enumerate(sources)]
        good, kept_rows, skipped = [], [], []
        outcomes = parallel_map(_prepare_one, tasks, config.workers)
        progress = tqdm(outcomes, total=len(tasks), desc="prepare", unit="scan")
        for row, outcome in enumerate(progress):
            if "reason" not in outcome:
                good.append(outcome)
                kept_rows.append(row)
            elif config.skip_bad:
                skipped.append(outcome)
            else:
                raise UserError(f"{outcome['reason']}; nothing was written (--skip-bad leaves such scans out)")
        if not good:
            raise UserError(f"source: all {len(skipped)} scans of {config.source} are bad; {skipped[0]['reason']}")
        if skipped:
            _keep_rows(path, kept_rows)
        manifest = _manifest(config, spacing, good, skipped)
        write_json(folder / "manifest.json", manifest)
    return config.out


def find_scans(source: Path) -> list[Path]:
    """The NIfTI files of a folder at any depth, sorted, or the one file given. Raises UserError when there is none."""
    source = Path(source)
    if source.is_file() and is_nifti(source):
        return [source]
    if not source.is_dir():
        found = "is not named .nii or .nii.gz" if source.exists() else "does not exist"
        raise UserError(f"source: {source} {found}; give a NIfTI file or a folder of them")
    scans, seen = [], set()
    for folder, folders, names in os.walk(source, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        # A link that leads nowhere counts as a scan, one that cannot be read.
        scans += [] if real in seen else [Path(folder, n) for n in names if is_nifti(n) and not n.startswith(".")]
        seen.add(real)
    if not scans:
        raise UserError(f"source: {source} holds no .nii or .nii.gz file at any depth; give a folder of NIfTI scans")
    return sorted(scans)


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


def _prepare_one(task: tuple) -> dict:
    """Write one scan's row; its manifest entry, or {"source", "reason"} when the scan is bad."""
    path, row, array_path, spacing, config = task
    name = path.name if path == config.source else path.relative_to(config.source).as_posix()
    try:
        volume = read_nifti(path, config.plane)
        bounds = _intensity(volume.array, config, path)
    except UserError as error:
        return {"source": name, "reason": str(error)}
    step, offset = _fit(volume, config.shape, spacing)
    placed = bounds.to_unit(resample(volume.array[0], step, offset, config.shape, bounds.low))
    if placed.min() == placed.max():
        reason = f"{path}: nothing but one value, {placed.min():g}, is left after the crop to {config.shape}"
        return {"source": name, "reason": f"{reason}; choose a larger shape or spacing, or remove the file"}
    np.load(array_path, mmap_mode="r+")[row, 0] = placed
    to_source = np.diag([*step, 1.0])
    to_source[:3, 3] = offset
    return {
        "source": name,
        "sha256": _sha256(path),
        "source_shape": list(volume.shape),
        "source_affine": volume.affine.tolist(),
        "plane": config.plane,
        "affine": (volume.affine @ to_source).tolist(),
        "intensity": asdict(bounds),
        "prepared_sha256": hashlib.sha256(placed).hexdigest(),
        # So that near-empty slices are known without reading the array.
        "slice_std": [round(float(std), 6) for std in placed.std(axis=(1, 2))],
    }


def _intensity(array: np.ndarray, config: PrepareConfig, path: Path) -> IntensityMap:
    """The scan's bounds; raises UserError when its values cannot be used."""
    finite = np.isfinite(array)
    if not finite.all():
        raise UserError(f"{path}: {np.count_nonzero(~finite)} voxels are NaN or infinite; repair or remove the file")
    least, most = float(array.min()), float(array.max())
    if least == most:
        raise UserError(f"{path}: every voxel is {least:g}; a scan with some contrast is wanted: remove the file")
    if config.window is None:
        low, high = (float(bound) for bound in np.percentile(array, config.percentiles))
        if low >= high:
            raise UserError(f"{path}: percentiles {config.percentiles} are both {low:g}; widen them or remove the file")
        return IntensityMap("percentiles", low, high)
    low, high = (float(bound) for bound in config.window)
    if most <= low or least >= high:
        raise UserError(
            f"{path}: values {least:g}..{most:g} are all outside the window {low:g}..{high:g}; "
            "move the window or remove the file"
        )
    return IntensityMap("window", low, high)


def _fit(
    volume: Volume, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Step and offset, in source voxels, of the target grid that shares the source's middle."""
    step = np.asarray(spacing) / volume.spacing
    same = np.abs(step - 1) < SAME_SPACING
    step = np.where(same, 1.0, step)
    offset = (np.asarray(volume.shape) - 1) / 2 - step * (np.asarray(shape) - 1) / 2
    # Half a voxel off the middle is better than the blur of interpolating half-way between voxels.
    return step, np.where(same, np.floor(offset), offset)


def _median_spacing(sources: list[Path], plane: str) -> tuple[float, float, float]:
    """The median over the scans whose header can be read; the others are reported when their turn comes."""
    found = []
    for source in sources:
        try:
            found.append(read_spacing(source, plane))
        except UserError:
            continue
    return tuple(round(float(length), 5) for length in np.median(found or [(1.0, 1.0, 1.0)], axis=0))


def _new_array(path: Path, count: int, shape: tuple[int, int, int]) -> np.memmap:
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, 1, *shape))
    if hasattr(os, "posix_fallocate"):
        # On a full disk this raises OSError here; a write through the map would kill the process instead.
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _keep_rows(path: Path, rows: list[int]) -> None:
    """Rewrite the array with these rows only."""
    everything = np.load(path, mmap_mode="r")
    kept = _new_array(path.with_name("kept.npy"), len(rows), everything.shape[2:])
    for target, row in enumerate(rows):
        kept[target] = everything[row]
    kept.flush()
    os.replace(kept.filename, path)


def _manifest(
    config: PrepareConfig, spacing: tuple[float, float, float], volumes: list[dict], skipped: list[dict]
) -> dict:
    if config.window is not None:
        intensity = {"mode": "window", "low": float(config.window[0]), "high": float(config.window[1])}
    else:
        low, high = np.median([[v["intensity"]["low"], v["intensity"]["high"]] for v in volumes], axis=0).tolist()
        intensity = {"mode": "percentiles", "percentiles": config.percentiles, "source_low": low, "source_high": high}
    return {
        "format": FORMAT,
        "version": VERSION,
        "shape": [int(side) for side in config.shape],
        "spacing": [float(length) for length in spacing],
        "plane": config.plane,
        "intensity": intensity,
        "count": len(volumes),
        # Of the prepared volumes' own hashes, in order.
        "data_hash": hashlib.sha256("".join(v["prepared_sha256"] for v in volumes).encode()).hexdigest(),
        "created_with": {
            "splitshuffle_gan": __version__,
            "config": asdict(config) | {"source": str(config.source), "out": str(config.out)},
        },
        "volumes": volumes,
        "skipped": skipped,
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_out(config: PrepareConfig) -> None:
    """Refuse to write over anything but, when asked to, an earlier dataset that does not hold the source."""
    out = config.out
    refuse_existing(out, config.overwrite, mark="manifest.json", keep=(config.source,))
