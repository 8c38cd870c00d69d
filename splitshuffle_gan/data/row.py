"""One scan to its row of a dataset's arrays: read, judged, placed, mapped to [-1, 1], written."""

import hashlib
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from splitshuffle_gan.data.crop import find_centre, fit
from splitshuffle_gan.data.labels import read_labels, resample_labels
from splitshuffle_gan.data.readers.scan import Scan
from splitshuffle_gan.data.recipe import PrepareConfig
from splitshuffle_gan.data.resample import resample
from splitshuffle_gan.data.store import Rows
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.volume import IntensityMap


@dataclass(frozen=True)
class Job:
    """What every process needs to know. spacing: mm (D, H, W); None is each scan's own."""

    config: PrepareConfig
    folder: Path
    plane: str
    spacing: tuple[float, float, float] | None
    volumes: Rows
    labels: Rows | None

    @property
    def arrays(self) -> list[Rows]:
        """Of the volumes and, if there are any, of the labels."""
        return [self.volumes, self.labels] if self.labels else [self.volumes]


def fill_row(scan: Scan, label: Scan | None, row: int, job: Job) -> dict:
    """Write one scan's row; return its entry in the manifest. Raises UserError when the scan is bad."""
    config = job.config
    volume = scan.read(job.plane)
    bounds = _intensity(volume.array, config, scan.name)
    labels = None if label is None else config.label_table()[read_labels(label, job.plane)]
    centre = find_centre(config.crop, volume, bounds, labels, scan.name)
    step, offset = fit(volume, config.shape, job.spacing, centre)
    placed = bounds.to_unit(resample(volume.array[0], step, offset, config.shape, bounds.low, config.resample))
    if placed.min() == placed.max():
        reason = f"{scan.name}: nothing but one value, {placed.min():g}, is left after the crop to {config.shape}"
        raise UserError(f"{reason}; choose a larger shape or spacing, or remove the file")
    job.volumes.write(row, placed)
    to_source = np.diag([*step, 1.0])
    to_source[:3, 3] = offset
    entry = {
        "source": scan.name,
        "sha256": _sha256(scan),
        "source_shape": list(volume.shape),
        "source_affine": volume.affine.tolist(),
        "plane": job.plane,
        "affine": (volume.affine @ to_source).tolist(),
        "intensity": asdict(bounds),
        "prepared_sha256": hashlib.sha256(placed).hexdigest(),
        # So that near-empty slices are known without reading the array.
        "slice_std": [round(float(std), 6) for std in placed.std(axis=(1, 2))],
    }
    if label is not None:
        placed_labels = resample_labels(labels, step, offset, config.shape, config.label_resample)
        job.labels.write(row, placed_labels)
        entry["labels"] = {
            "source": label.name,
            "sha256": _sha256(label),
            "values": np.unique(placed_labels).tolist(),
            "prepared_sha256": hashlib.sha256(placed_labels).hexdigest(),
        }
    return entry


def _intensity(array: np.ndarray, config: PrepareConfig, name: str) -> IntensityMap:
    """The scan's bounds; raises UserError when its values cannot be used."""
    finite = np.isfinite(array)
    if not finite.all():
        raise UserError(f"{name}: {np.count_nonzero(~finite)} voxels are NaN or infinite; repair or remove the file")
    least, most = float(array.min()), float(array.max())
    if least == most:
        raise UserError(f"{name}: every voxel is {least:g}; a scan with some contrast is wanted: remove the file")
    if config.window is None:
        low, high = (float(bound) for bound in np.percentile(array, config.percentiles))
        if low >= high:
            raise UserError(f"{name}: percentiles {config.percentiles} are both {low:g}; widen them or remove the file")
        return IntensityMap("percentiles", low, high)
    low, high = (float(bound) for bound in config.window)
    if most <= low or least >= high:
        raise UserError(
            f"{name}: values {least:g}..{most:g} are all outside the window {low:g}..{high:g}; "
            "move the window or remove the file"
        )
    return IntensityMap("window", low, high)


def _sha256(scan: Scan) -> str:
    """Of the one file; of the hashes of all files, in order, where there are more."""
    hashes = [_file_sha256(path, path.stat().st_mtime_ns) for path in scan.paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


@lru_cache(maxsize=4)
def _file_sha256(path: Path, changed: int) -> str:
    """Kept for a while, because a 4D file is many scans."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
