"""NIfTI and MGH files to Volumes, and Volumes to NIfTI files."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.orientations import apply_orientation, ornt2axcodes

from splitshuffle_gan.data.readers.nifti_header import (
    COMPRESSED,
    DAMAGE,
    PAIR_SUFFIXES,
    SUFFIXES,
    VOXEL_SUFFIXES,
    Stored,
    canonical,
    check_size,
    opened,
    read_header,
    reason,
    stated_volumes,
)
from splitshuffle_gan.data.readers.scan import Header, Scan
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import whole_file
from splitshuffle_gan.volume import Volume, from_xyz, plane_axes, spacing_of

DESCRIPTION_BYTES = 79
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class NiftiScan(Scan):
    """A NIfTI-1 or NIfTI-2 file or .hdr/.img pair, or an MGH/MGZ file.

    `paths` are the one file, or header and voxels. `part` is the volume, counted from 0, of a file that holds several.
    """

    part: int | None = None

    def header(self) -> Header:
        """As `Scan.header`."""
        stored = _chosen(self.paths, self.part)
        orientation, affine = canonical(stored.affine, stored.shape)
        axes = np.argsort(orientation[:, 0])
        return Header(
            shape=tuple(stored.shape[axis] for axis in axes),
            affine=affine,
            dtype=stored.header.get_data_dtype().name,
            orientation="".join(ornt2axcodes(orientation)),
            remarks=stored.remarks,
            personal=stored.personal,
        )

    def read(self, plane: str = "axial") -> Volume:
        """As `Scan.read`, scale factors applied. The file is read once, to its end, where a checksum may be."""
        stored = _chosen(self.paths, self.part)
        orientation, affine = canonical(stored.affine, stored.shape)
        return from_xyz(apply_orientation(_voxels(self.paths[-1], stored, self.part), orientation), affine, plane)


def nifti_scans(path: Path, name: str, volume: int | str | None = None) -> list[NiftiScan]:
    """The scans of one file, or of the pair it belongs to: one, called `name`, or as many as `volume` says.

    `volume`, a number from 0 or "all", chooses among the volumes of a file that holds several; they are called
    `name#K`. It says nothing to a file of one. A file that cannot be read is one scan, whose `read` says why.
    Raises UserError when a file holds several and `volume` is None or beyond the last.
    """
    paths = with_voxels(Path(path))
    try:
        several = stated_volumes(paths[0]) > 1
    except DAMAGE:
        several = False
    if not several:
        return [NiftiScan(name, paths)]
    first = None if volume is None else 0 if volume == "all" else volume
    count = _chosen(paths, first).shape[3]
    return [NiftiScan(f"{name}#{part}", paths, part) for part in (range(count) if volume == "all" else [volume])]


def with_voxels(path: Path) -> tuple[Path, ...]:
    """The file alone, or of a .hdr/.img pair the header and then the voxels, whichever of the two is given.

    Of a pair that lacks one, the other.
    """
    name = path.name.lower()
    for suffixes, others in ((PAIR_SUFFIXES, VOXEL_SUFFIXES), (VOXEL_SUFFIXES, PAIR_SUFFIXES)):
        suffix = next((s for s in suffixes if name.endswith(s)), None)
        if suffix is not None:
            stem = path.name[: -len(suffix)]
            names = (stem + change(other) for other in others for change in (str.lower, str.upper))
            found = [path.with_name(name) for name in names if path.with_name(name).exists()][:1]
            return (path, *found) if suffixes is PAIR_SUFFIXES else (*found, path)
    return (path,)


def is_nifti(path: Path) -> bool:
    """Whether the name, in any case, ends like a NIfTI file's."""
    return Path(path).name.lower().endswith(SUFFIXES)


def read_nifti(path: Path, plane: str = "axial") -> Volume:
    """One scan in source units (scale factors applied), float32 `[1, D, H, W]`, its axes in `plane`'s RAS+ order.

    Axes are flipped and permuted, never resampled: an oblique scan keeps its oblique affine.
    Raises UserError naming the file and the reason when it is missing, damaged, empty, not 3D (a fourth axis of length
    one is dropped) or not real-valued. The values themselves are not judged.
    """
    return NiftiScan(Path(path).name, with_voxels(Path(path))).read(plane)


def read_spacing(path: Path, plane: str = "axial") -> tuple[float, float, float]:
    """The spacing (D, H, W) in mm from the header alone; raises as `read_nifti` does."""
    stored = _chosen(with_voxels(Path(path)), None)
    _, affine = canonical(stored.affine, stored.shape)
    return spacing_of(affine[:, [*plane_axes(plane), 3]])


def write_nifti(volume: Volume, path: Path, dtype: type | None = None, description: str = "") -> Path:
    """Write a one-channel volume in RAS+ (x, y, z) order with qform and sform set (code 1); the file appears complete.

    `dtype` is the type on disk (default float32; values are rounded for an integer type). `description` goes into the
    header, cut at 79 bytes. Returns the path. Raises ValueError for a name that does not end with .nii or .nii.gz, more
    than one channel, or values that the type cannot hold.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path}: a NIfTI file's name ends with .nii or .nii.gz")
    if volume.array.shape[0] != 1:
        raise ValueError(f"{path}: a file holds one channel; the volume has {volume.array.shape[0]}")
    dtype = np.dtype(dtype or np.float32)
    image = nib.as_closest_canonical(nib.Nifti1Image(_cast(volume.array[0], dtype, path), volume.affine))
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()[:DESCRIPTION_BYTES]
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    with whole_file(path) as temporary:
        nib.save(image, temporary)
    return path


def _chosen(paths: tuple[Path, ...], part: int | None) -> Stored:
    """The header, if the file holds one volume, or `part` is one of those it holds."""
    stored = read_header(paths)
    if len(stored.shape) == 4:
        last = stored.shape[3] - 1
        if part is None:
            raise UserError(
                f"{paths[0]}: holds {last + 1} volumes, shape {stored.shape}, and one is wanted; choose with "
                f"--volume K (0 to {last}) or --volume all where a command has that option, or split the file"
            )
        if not 0 <= part <= last:
            raise UserError(f"{paths[0]}: volume {part} is not among its {last + 1}; choose --volume 0 to {last}")
    return stored


def _voxels(path: Path, stored: Stored, part: int | None) -> np.ndarray:
    """The array (x, y, z) as on disk, float32, scale factors applied."""
    dtype, offset = stored.header.get_data_dtype(), stored.header.get_data_offset()
    slope, inter = stored.header.get_slope_inter()
    slope, inter = (1.0, 0.0) if slope is None else (slope, inter)
    several = len(stored.shape) == 4

    def values(file, slope: float, inter: float, wanted: type | None) -> np.ndarray:
        proxy = ArrayProxy(file, (stored.shape, dtype, offset, slope, inter), mmap=False)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(proxy[..., part] if several else proxy, dtype=wanted)

    try:
        with opened(path) as file:
            array = values(file, slope, inter, np.float32)
            if path.name.lower().endswith(COMPRESSED):
                check_size(path, stored, _length(file, stored.needs))
            overflow = 0
            if dtype.itemsize > 4 or (slope, inter) != (1, 0):
                overflow = np.count_nonzero(~np.isfinite(array))
            if overflow:  # less those that were not finite before
                overflow -= np.count_nonzero(~np.isfinite(values(file, 1.0, 0.0, None)))
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{path}: the voxels cannot be read ({reason(error)}); replace or remove the file") from error
    except MemoryError as error:
        raise UserError(f"{path}: {stored.shape} voxels do not fit in memory; use fewer workers, or crop it") from error
    if overflow > 0:
        raise UserError(
            f"{path}: {overflow} voxels overflow float32 with scl_slope {slope:g}, scl_inter {inter:g}; "
            "repair the header or remove the file"
        )
    return array


def _length(file, needs: int) -> int:
    """Read a compressed file to its end, where its checksum is; its length, or enough to see that it is too long."""
    while file.tell() < 2 * needs + READ_BYTES and file.read(READ_BYTES):
        pass
    return file.tell()


def _cast(array: np.ndarray, dtype: np.dtype, path: Path) -> np.ndarray:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        array = np.rint(array)
        if not (np.isfinite(array).all() and limits.min <= array.min() and array.max() <= limits.max):
            found = f"{array.min():g}..{array.max():g}"
            raise ValueError(f"{path}: values {found} do not fit {dtype}; choose a wider type")
    return array.astype(dtype)
