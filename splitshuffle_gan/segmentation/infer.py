"""Segment whole scans of any size: masks as NIfTI on each scan's own grid, and a JSON that says how they were made.

`detect` finds lesions by the same way: the scan onto the network's grid, through it, and back.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from splitshuffle_gan import __version__
from splitshuffle_gan.checkpoint import WEIGHTS
from splitshuffle_gan.data.crop import SAME_SPACING
from splitshuffle_gan.data.labels import SUFFIXES
from splitshuffle_gan.data.place import Target, write_placed
from splitshuffle_gan.data.readers.nifti import NiftiScan, write_nifti
from splitshuffle_gan.data.readers.scan import Scan
from splitshuffle_gan.data.readers.scans import find_scans
from splitshuffle_gan.data.resample import resample
from splitshuffle_gan.devices import make_accelerator
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json
from splitshuffle_gan.segmentation.network2d import SliceSegmenter
from splitshuffle_gan.segmentation.network3d import VolumeSegmenter
from splitshuffle_gan.segmentation.options import ScansConfig, SegmentConfig
from splitshuffle_gan.segmentation.predict import OVERLAP, probabilities
from splitshuffle_gan.segmentation.segmenter import Segmenter, class_of, network_folder
from splitshuffle_gan.volume import IntensityMap, Volume

RECORD = "segment.json"
DESCRIPTION = "segmentation, splitshuffle_gan"
SEGMENTERS = {kind.__name__: kind for kind in (SliceSegmenter, VolumeSegmenter)}
# A last voxel that would reach less than this share beyond the scan is not made.
SLIVER = 1e-3


@dataclass(frozen=True)
class Answer:
    """What a network says about a scan, on a grid of its own spacing.

    Attributes:
        shares: `[classes, D, H, W]` or a heat map `[1, D, H, W]`, as `predict.probabilities` has them.
        step: of this grid in voxels of the scan (D, H, W).
        offset: its first voxel there.
        shape: voxels of the scan in the network's plane.
        affine: of the scan, from such a voxel to RAS mm.
    """

    shares: Tensor
    step: np.ndarray
    offset: np.ndarray
    shape: tuple[int, int, int]
    affine: np.ndarray

    def on_scan(self, number: int) -> np.ndarray:
        """Share `number` on the scan's grid, float32; beyond the network's grid there is background."""
        step, outside = 1 / self.step, float(len(self.shares) > 1 and number == 0)
        array = self.shares[number].numpy()
        return resample(array, step, -self.offset * step, self.shape, outside, antialias=False)

    def places(self, voxels: np.ndarray) -> np.ndarray:
        """RAS mm `[n, 3]` of voxels `[n, 3]` of the network's grid."""
        return (self.offset + self.step * voxels) @ self.affine[:3, :3].T + self.affine[:3, 3]


def open_segmenter(path: Path, detects: bool = False) -> Segmenter:
    """The network of a run or checkpoint, of either rank, in eval mode.

    Raises UserError when there is none, or one that finds lesions where masks are wanted, or the other way round.
    """
    folder = network_folder(Path(path))
    if class_of(folder) not in SEGMENTERS:
        found = f"{folder} holds a {class_of(folder)}"
        raise UserError(f"checkpoint: {found}, wanted a network of segment2d or segment3d")
    segmenter = SEGMENTERS[class_of(folder)].from_pretrained(folder)
    if segmenter.geometry is None:
        raise UserError(f"checkpoint: {folder} has no geometry, so no spacing to bring scans to; train it on a dataset")
    if detects != (segmenter.config.sigma is not None):
        command, option = ("segment", "without") if segmenter.config.sigma is None else ("detect", "with")
        raise UserError(f"checkpoint: {folder} was trained {option} --detect; use `splitshuffle {command}`")
    return segmenter


def segment(config: SegmentConfig) -> Path:
    """Write the folder `config.out`, whole or not at all, and return it.

    Raises UserError for a checkpoint that cannot be used, and for the first scan that cannot.
    """
    refuse_existing(config.out, config.overwrite, RECORD, keep=(config.checkpoint, *config.scans))
    accelerator = make_accelerator(config.mixed_precision)
    segmenter = open_segmenter(config.checkpoint).to(accelerator.device)
    jobs = scans_of(config)
    with whole_folder(config.out) as folder:
        files = {}
        for name, scan in tqdm(jobs.items(), desc="segment", unit="scan"):
            labels, affine = segment_scan(segmenter, scan, accelerator, config.overlap)
            write_over(Volume(labels[None], affine), scan, segmenter.geometry, folder / name, np.uint8, DESCRIPTION)
            files[name] = _entry(labels, affine, scan, segmenter.config.labels)
        write_json(folder / RECORD, record(config, segmenter, accelerator) | {"files": files})
    return config.out


def segment_scan(
    segmenter: Segmenter, scan: Scan, accelerator: Accelerator, overlap: float = OVERLAP
) -> tuple[np.ndarray, np.ndarray]:
    """Labels, uint8 `[D, H, W]`, on the scan's grid in the network's plane, and that grid's affine.

    The probabilities come back by linear interpolation, and each voxel gets the label of the largest.
    """
    answer = ask(segmenter, scan, accelerator, overlap)
    return _labels_on(answer, segmenter.config.labels), answer.affine


def ask(segmenter: Segmenter, scan: Scan, accelerator: Accelerator, overlap: float) -> Answer:
    """What the network says about a scan, brought to its spacing and intensities as `prepare` does, but whole.

    Raises UserError as `scan_bounds` does.
    """
    geometry = segmenter.geometry
    volume = scan.read(geometry["plane"])
    bounds = scan_bounds(volume.array, geometry["intensity"], segmenter.config.percentiles, scan.name)
    step, offset, shape = whole_grid(volume, geometry["spacing"])
    unit = bounds.to_unit(resample(volume.array[0], step, offset, shape, bounds.low))
    shares = probabilities(segmenter, unit, accelerator, overlap)
    return Answer(shares, step, offset, volume.shape, volume.affine)


def scan_bounds(array: np.ndarray, intensity: dict, percentiles: tuple[float, float] | None, name: str) -> IntensityMap:
    """The intensities that become -1 and 1: the training set's window, or percentiles of this scan.

    Raises UserError for a scan that is not finite or has no contrast there.
    """
    if not np.isfinite(array).all():
        raise UserError(f"{name}: {np.count_nonzero(~np.isfinite(array))} voxels are NaN or infinite; repair the file")
    if percentiles is None:
        return IntensityMap(**intensity)
    low, high = (float(bound) for bound in np.percentile(array, percentiles))
    if not low < high:
        raise UserError(f"{name}: percentiles {percentiles} are both {low:g}; a scan with contrast is wanted")
    return IntensityMap("percentiles", low, high)


def whole_grid(
    volume: Volume, spacing: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int]]:
    """Step and offset, in the scan's voxels, and shape of a grid of `spacing` mm (D, H, W) that covers all of the scan.

    Middle on middle; the scan's own grid along an axis where the spacings agree.
    """
    step = np.asarray(spacing) / volume.spacing
    step = np.where(np.abs(step - 1) < SAME_SPACING, 1.0, step)
    shape = np.maximum(np.ceil(np.asarray(volume.shape) / step - SLIVER), 1).astype(int)
    offset = (np.asarray(volume.shape) - 1) / 2 - step * (shape - 1) / 2
    return step, offset, tuple(int(side) for side in shape)


def _labels_on(answer: Answer, labels: tuple[int, ...]) -> np.ndarray:
    """The label of the largest probability, class by class, so that one class is in memory at a time."""
    best, winner = np.full(answer.shape, -1, np.float32), np.zeros(answer.shape, np.uint8)
    for number, label in enumerate(labels):
        weight = answer.on_scan(number)
        ahead = weight > best
        best[ahead], winner[ahead] = weight[ahead], label
    return winner


def scans_of(config: ScansConfig) -> dict[str, Scan]:
    """Every scan by the name of its result. Raises UserError for a file that cannot be a scan, or two of one name."""
    jobs = {}
    for source in config.scans:
        found = find_scans(source, config.volume, config.correct_tilt)
        if found.rejected:
            bad = found.rejected[0]
            raise UserError(f"{source}: {bad.name}: {bad.reason}; remove it, or name the scans one by one")
        for scan in found.scans:
            name = _result_name(scan.name)
            if name in jobs:
                raise UserError(f"scans: the results of two would be {name}; give each a folder of its own")
            jobs[name] = scan
    return jobs


def _result_name(name: str) -> str:
    """`a/b.nii.gz` and `a/b.nrrd` to `a/b.nii.gz`, volume `a/b.nii.gz#2` to `a/b-2.nii.gz`."""
    file, mark, part = name.partition("#")
    suffix = next((suffix for suffix in SUFFIXES if file.lower().endswith(suffix)), "")
    return file[: len(file) - len(suffix)] + (f"-{part}" if mark else "") + ".nii.gz"


def write_over(volume: Volume, scan: Scan, geometry: dict, path: Path, dtype: type, description: str) -> None:
    """Write what lies voxel for voxel over the scan: on a NIfTI or MGH file's own axes, over any other in RAS+."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(scan, NiftiScan):
        write_nifti(volume, path, dtype, description)
        return
    source = scan.paths[0]
    target = Target(source, "", volume.shape, {**geometry, "affine": volume.affine.tolist()}, nib.load(source))
    write_placed(volume, target, path, dtype, description)


def _entry(labels: np.ndarray, affine: np.ndarray, scan: Scan, known: tuple[int, ...]) -> dict:
    voxel = abs(np.linalg.det(affine[:3, :3]))
    counts = {str(label): int(np.count_nonzero(labels == label)) for label in known[1:]}
    return {
        "source": scan.name,
        "paths": [str(path) for path in scan.paths[:1]],
        "voxels": counts,
        "ml": {label: count * voxel / 1000 for label, count in counts.items()},
    }


def record(config: ScansConfig, segmenter: Segmenter, accelerator: Accelerator) -> dict:
    """How results were made; plain JSON."""
    folder = network_folder(config.checkpoint)
    return {
        "created_with": __version__,
        "torch": torch.__version__,
        "checkpoint": str(folder),
        "weights_sha256": hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest(),
        "network": segmenter.config.to_dict(),
        "geometry": segmenter.geometry,
        "overlap": config.overlap,
        "volume": config.volume,
        "correct_tilt": config.correct_tilt,
        "mixed_precision": accelerator.mixed_precision,
    }
