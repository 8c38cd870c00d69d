"""A volume without a place of its own, put on the grid of a scan."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation

from splitshuffle_gan.data.labels import resample_labels
from splitshuffle_gan.data.readers.nifti import DESCRIPTION_BYTES, read_nifti
from splitshuffle_gan.data.recipe import DEFAULT_PERCENTILES
from splitshuffle_gan.data.resample import resample
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import whole_file
from splitshuffle_gan.volume import IntensityMap, Volume, to_xyz

# As in `prepare`: a step within this of one voxel counts as one, and such volumes are moved, not interpolated.
SAME_SPACING = 1e-3
# All that says where a NIfTI file's voxels are; the rest of a header may hold personal data and is not taken over.
PLACE = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
SPATIAL_UNIT = 7  # the bits of xyzt_units that are not about time


@dataclass(frozen=True)
class Target:
    """The grid of a scan, for volumes of one training set.

    Attributes:
        path: the scan.
        sha256: of the file.
        shape: voxels (D, H, W), in RAS+ and the order of the set's plane.
        geometry: of what is placed here, with the fields of `PreparedDataset.geometry`. The affine is the scan's. The
            intensities are the set's window, or the scan's own range from percentile 0.5 to 99.5.
        image: the scan as it is on disk; its voxels are not needed.
    """

    path: Path
    sha256: str
    shape: tuple[int, int, int]
    geometry: dict
    image: nib.spatialimages.SpatialImage


def read_target(path: Path, geometry: dict) -> Target:
    """The grid of the scan at `path`, for samples of the set with `geometry`.

    Raises UserError as `read_nifti` does, and when percentiles are wanted of a scan that is constant or not finite.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() == ".dcm":
        wanted = "a NIfTI file is wanted: convert the series, as with dcm2niix"
        raise UserError(f"like: {path} is a folder or DICOM; {wanted}")
    scan = read_nifti(path, geometry["plane"])
    intensity = dict(geometry["intensity"])
    if intensity["kind"] == "percentiles":
        if not np.isfinite(scan.array).all():
            raise UserError(f"like: {path} has voxels that are NaN or infinite, so no range to take over; repair it")
        low, high = (float(bound) for bound in np.percentile(scan.array, DEFAULT_PERCENTILES))
        if not low < high:
            found = f"percentiles {DEFAULT_PERCENTILES} are both {low:g}"
            raise UserError(f"like: {path}: {found}; give a scan with contrast")
        intensity |= {"low": low, "high": high}
    placed = {
        **geometry,
        "spacing": list(scan.spacing),
        "plane": geometry["plane"],
        "affine": scan.affine.tolist(),
        "intensity": intensity,
    }
    return Target(path, hashlib.sha256(path.read_bytes()).hexdigest(), scan.shape, placed, nib.load(path))


def place(image: np.ndarray, spacing: tuple[float, float, float], target: Target) -> Volume:
    """`image` (`[D, H, W]` in [-1, 1], voxels of `spacing` mm) on the target's grid, in its units.

    A generator knows no patient's position, so the image lies along the scan's own axes, oblique or not, and the middle
    of its field of view on the middle of the scan's: where `prepare` would have cut it out. Between voxels it is
    interpolated linearly (blurred first where the scan is more than 1.5 times coarser). Along an axis where both
    spacings are the same it is moved by whole voxels, up to half a voxel off the middle, and keeps its values. Around
    it lies the lower intensity bound.
    """
    unit = resample(image, *_grid_in(image.shape, spacing, target), target.shape, -1.0)
    bounds = IntensityMap(**target.geometry["intensity"])
    values = np.clip(bounds.from_unit(unit), bounds.low, bounds.high)
    return Volume(values[None], np.asarray(target.geometry["affine"]))


def place_labels(labels: np.ndarray, spacing: tuple[float, float, float], target: Target) -> Volume:
    """The label map uint8 `[D, H, W]` of an image, where `place` puts the image; 0 around it.

    Between voxels each takes the label that weighs most once every label is interpolated by itself.
    """
    step, offset = _grid_in(labels.shape, spacing, target)
    placed = resample_labels(labels, step, offset, target.shape, "linear")
    return Volume(placed[None], np.asarray(target.geometry["affine"]))


def _grid_in(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], target: Target
) -> tuple[np.ndarray, np.ndarray]:
    """Step and offset of the target's grid, in voxels of an array of `shape` that lies on its middle."""
    step = np.asarray(target.geometry["spacing"]) / np.asarray(spacing)
    same = np.abs(step - 1) < SAME_SPACING
    step = np.where(same, 1.0, step)
    offset = (np.asarray(shape) - 1) / 2 - step * (np.asarray(target.shape) - 1) / 2
    # Upwards: seen from the scan that is downwards, as in `prepare`, so that its voxels come back where they were.
    return step, np.where(same, np.ceil(offset), offset)


def write_placed(volume: Volume, target: Target, path: Path, dtype: type, description: str = "") -> Path:
    """Write what `place` returned as NIfTI, voxel for voxel over the scan: its shape, axes on disk, sform and qform.

    NIfTI-2 where the scan is. Returns the path, where the file appears complete.
    """
    if volume.shape != target.shape:
        raise ValueError(f"{path}: the volume has shape {volume.shape}, the target {target.shape}")
    array, _ = to_xyz(volume, target.geometry["plane"])
    axes = io_orientation(target.image.affine)  # for every axis on disk, the RAS axis and its sign
    back = np.array([[np.flatnonzero(axes[:, 0] == axis)[0], axes[axes[:, 0] == axis, 1][0]] for axis in range(3)])
    array = apply_orientation(array, back)
    array = np.rint(array).astype(dtype) if np.dtype(dtype).kind in "iu" else array.astype(dtype)
    kind = nib.Nifti2Image if isinstance(target.image.header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(array, target.image.affine)
    source = target.image.header
    if isinstance(source, nib.Nifti1Header):  # NIfTI-2's header is one too
        for field in PLACE:
            image.header[field] = source[field]
        image.header["pixdim"][:4] = source["pixdim"][:4]
        image.header["xyzt_units"] = source["xyzt_units"] & SPATIAL_UNIT
    else:
        image.header.set_xyzt_units("mm")
        image.set_sform(image.affine, code=1)
        image.set_qform(image.affine, code=1)
    image.header["descrip"] = description.encode()[:DESCRIPTION_BYTES]
    with whole_file(path) as temporary:
        nib.save(image, temporary)
    return path
