"""NIfTI files to Volumes and back."""

import gzip
import os
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.volume import Volume, from_xyz, plane_axes, spacing_of

SUFFIXES = (".nii", ".nii.gz")
DESCRIPTION_BYTES = 79
MM_PER_UNIT = {"meter": 1e3, "mm": 1.0, "micron": 1e-3}  # a header without a unit means mm
# Volume of the parallelepiped that the three unit directions span; 1 is orthogonal, 0 is flat.
LEAST_SPAN = 1e-6

# Everything that nibabel, gzip and NumPy are known to raise on a damaged file.
_DAMAGE = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError, TypeError, OverflowError)


def is_nifti(path: Path) -> bool:
    """Whether the name, in any case, ends like a NIfTI file's."""
    return Path(path).name.lower().endswith(SUFFIXES)


def read_nifti(path: Path, plane: str = "axial") -> Volume:
    """One scan in source units (scale factors applied), float32 `[1, D, H, W]`, its axes in `plane`'s RAS+ order.

    Axes are flipped and permuted, never resampled: an oblique scan keeps its oblique affine.
    Raises UserError naming the file and the reason when it is missing, damaged, empty, not 3D (a fourth axis of length
    one is dropped) or not real-valued. The values themselves are not judged.
    """
    path = Path(path)
    image = _load(path)
    try:
        if path.name.lower().endswith(".gz"):
            _check_gzip(path)
        array = image.get_fdata(dtype=np.float32)
    except _DAMAGE as error:
        raise UserError(f"{path}: the voxels cannot be read ({_reason(error)}); replace or remove the file") from error
    orientation, affine = _canonical(image)
    return from_xyz(apply_orientation(array.reshape(image.shape[:3]), orientation), affine, plane)


def read_spacing(path: Path, plane: str = "axial") -> tuple[float, float, float]:
    """The spacing (D, H, W) in mm from the header alone; raises as `read_nifti` does."""
    _, affine = _canonical(_load(Path(path)))
    return spacing_of(affine[:, [*plane_axes(plane), 3]])


def write_nifti(volume: Volume, path: Path, dtype: type | None = None, description: str = "") -> Path:
    """Write a one-channel volume in RAS+ (x, y, z) order with qform and sform set (code 1); the file appears complete.

    `dtype` is the type on disk (default float32; values are rounded for an integer type). `description` goes into the
    header, cut at 79 bytes. Returns the path. Raises ValueError for a name that does not end with .nii or .nii.gz, more
    than one channel, or values that the type cannot hold.
    """
    path = Path(path)
    suffix = next((s for s in reversed(SUFFIXES) if path.name.endswith(s)), None)
    if suffix is None:
        raise ValueError(f"{path}: a NIfTI file's name ends with .nii or .nii.gz")
    if volume.array.shape[0] != 1:
        raise ValueError(f"{path}: a file holds one channel; the volume has {volume.array.shape[0]}")
    dtype = np.dtype(dtype or np.float32)
    image = nib.as_closest_canonical(nib.Nifti1Image(_cast(volume.array[0], dtype, path), volume.affine))
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()[:DESCRIPTION_BYTES]
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    # nibabel picks the format by the suffix, so the temporary name keeps it; the dot hides it from `prepare`.
    temporary = path.with_name(f".{path.name.removesuffix(suffix)}.{os.getpid()}{suffix}")
    try:
        nib.save(image, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _load(path: Path) -> nib.Nifti1Image:
    """The file with its header checked and its voxels not yet read."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a NIfTI file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes); replace or remove it")
    try:
        image = nib.load(path)
    except _DAMAGE as error:
        raise UserError(f"{path}: not a readable NIfTI file ({_reason(error)}); replace or remove it") from error
    shape, kind, affine = image.shape, image.get_data_dtype(), image.affine
    if len(shape) < 3 or 0 in shape or any(side != 1 for side in shape[3:]):
        raise UserError(f"{path}: holds an array of shape {shape}; one 3D volume is wanted: split or remove the file")
    if kind.kind not in "iufb":
        raise UserError(f"{path}: voxels of type {kind}; real numbers are wanted: convert or remove the file")
    if not _is_invertible(affine):
        raise UserError(f"{path}: its affine {affine.tolist()} is not invertible; repair the header or remove the file")
    return image


def _is_invertible(affine: np.ndarray) -> bool:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not np.isfinite(lengths).all() or not lengths.all():
        return False
    return abs(np.linalg.det(affine[:3, :3] / lengths)) > LEAST_SPAN


def _check_gzip(path: Path) -> None:
    """Read to the checksum at the very end, where nibabel, content with the voxels, does not go."""
    with gzip.open(path) as file:
        while file.read(1 << 20):
            pass


def _canonical(image: nib.Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
    """The flips and swaps that bring the image closest to RAS+, and its affine after them."""
    # As `nib.as_closest_canonical`, which however reads all voxels, as float64.
    orientation = io_orientation(image.affine)
    to_mm = np.diag([*[MM_PER_UNIT.get(image.header.get_xyzt_units()[0], 1.0)] * 3, 1.0])
    return orientation, to_mm @ image.affine @ inv_ornt_aff(orientation, image.shape[:3])


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _cast(array: np.ndarray, dtype: np.dtype, path: Path) -> np.ndarray:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        array = np.rint(array)
        if not (np.isfinite(array).all() and limits.min <= array.min() and array.max() <= limits.max):
            found = f"{array.min():g}..{array.max():g}"
            raise ValueError(f"{path}: values {found} do not fit {dtype}; choose a wider type")
    return array.astype(dtype)
