"""The headers of NIfTI and MGH files: parsed by nibabel, checked, and put into words."""

import gzip
import itertools
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import logger as nibabel_logger
from nibabel.orientations import inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError, SpatialHeader

from splitshuffle_gan.errors import UserError

SUFFIXES = (".nii", ".nii.gz")
PAIR_SUFFIXES = (".hdr", ".hdr.gz")  # of the header; the voxels are in .img or .img.gz
VOXEL_SUFFIXES = (".img", ".img.gz")
MGH_SUFFIXES = (".mgh", ".mgz", ".mgh.gz")
COMPRESSED = (".gz", ".mgz")
SYNTHETIC = "synthetic volume, splitshuffle_gan"  # the description of our own samples
# Any text here may be a name: who wrote it, and what, cannot be told.
PERSONAL_FIELDS = ("descrip", "aux_file", "intent_name", "db_name")
MM_PER_UNIT = {"meter": 1e3, "mm": 1.0, "micron": 1e-3}  # a header without a unit means mm
# Volume of the parallelepiped that the three unit directions span; 1 is orthogonal, 0 is flat.
LEAST_SPAN = 1e-6
FORMS_AGREE = 0.1  # mm, anywhere in the grid
SPACINGS_AGREE = 0.01  # relative
SHEARED = 1e-3  # cosine between two axes
MOST_PADDING = 4096  # bytes after the voxels that are no sign of a wrong shape
MOST_COMPRESSION = 1032  # deflate cannot do more

# Everything that nibabel, gzip and NumPy are known to raise on a damaged file.
DAMAGE = (
    ImageFileError,
    HeaderDataError,
    OSError,
    EOFError,
    zlib.error,
    ValueError,
    TypeError,
    OverflowError,
    KeyError,
)

_NIFTI = {b"n+1\0": nib.Nifti1Header, b"ni1\0": nib.nifti1.Nifti1PairHeader}
_NIFTI |= {b"n+2\0": nib.Nifti2Header, b"ni2\0": nib.nifti2.Nifti2PairHeader}
_MGH = nib.freesurfer.mghformat.MGHHeader
_FIRST_BYTES = 540  # the longest header, NIfTI-2's


@dataclass(frozen=True)
class Stored:
    """A checked header.

    Attributes:
        header: nibabel's, after its corrections.
        shape: of the array on disk, three or four axes.
        affine: 4x4, index on disk to RAS mm.
        remarks, personal: as in `scan.Header`.
    """

    header: SpatialHeader
    shape: tuple[int, ...]
    affine: np.ndarray
    remarks: tuple[str, ...]
    personal: tuple[str, ...]

    @property
    def needs(self) -> int:
        """Bytes from the start of the file to the last voxel's end."""
        voxels = int(np.prod(self.shape, dtype=object))
        return self.header.get_data_offset() + voxels * self.header.get_data_dtype().itemsize


def opened(path: Path):
    """The file, decompressed where its name says that it is compressed."""
    return gzip.open(path) if path.name.lower().endswith(COMPRESSED) else open(path, "rb")


def canonical(affine: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The flips and swaps (nibabel's orientation array) that bring a grid closest to RAS+, and the affine after."""
    orientation = io_orientation(affine)
    return orientation, affine @ inv_ornt_aff(orientation, shape[:3])


def check_affine(affine: np.ndarray, path: Path) -> None:
    """Raise UserError naming `path` unless the 4x4 affine is finite and its three axes span a volume."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if np.isfinite(affine).all() and np.isfinite(lengths).all() and lengths.all():
        if abs(np.linalg.det(affine[:3, :3] / lengths)) > LEAST_SPAN:
            return
    raise UserError(f"{path}: its affine {affine.tolist()} is not invertible; repair the header or remove the file")


def stated_volumes(path: Path) -> int:
    """The length of the fourth axis that a header states, 1 where that says nothing; otherwise unchecked."""
    block = _first_bytes(path)
    kind = _kind(path, block)
    raw = _raw(kind, block)
    return int(raw["dims"][3] if kind is _MGH else raw["dim"][4] if raw["dim"][0] >= 4 else 1)


def read_header(paths: tuple[Path, ...]) -> Stored:
    """The header of a file or pair, checked; voxels are not read.

    Raises UserError naming the file when it is missing, empty, damaged, not of three axes (a fourth is let pass), not
    real-valued, without a usable affine, or when its shape does not fit the file's size.
    """
    path = paths[0]
    try:
        block = _first_bytes(path)
        kind = _kind(path, block)
        raw = _raw(kind, block)
        header = _parse(path, kind, block)
        shape, dtype = tuple(int(side) for side in header.get_data_shape()), header.get_data_dtype()
        header.get_slope_inter()
        if header.get_data_offset() < 0:
            raise ValueError(f"its voxels start at byte {header.get_data_offset()}")
        unit = 1.0 if kind is _MGH else MM_PER_UNIT.get(header.get_xyzt_units()[0], 1.0)
        if kind is not _MGH:
            _check_pixdim(path, raw)
        with np.errstate(invalid="ignore"):  # a damaged header may hold infinities; checked below
            affine = np.diag([unit, unit, unit, 1.0]) @ header.get_best_affine()
    except DAMAGE as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a readable NIfTI or MGH file ({reason(error)}); replace or remove it") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if not 3 <= len(shape) <= 4 or min(shape) < 1:
        raise UserError(f"{path}: holds an array of shape {shape}; one 3D volume is wanted: split or remove the file")
    if dtype.kind not in "iufb":
        raise UserError(f"{path}: voxels of type {dtype}; real numbers are wanted: convert or remove the file")
    check_affine(affine, path)
    remarks = _mgh_remarks(raw) if kind is _MGH else _nifti_remarks(header, raw, shape, affine, unit)
    stored = Stored(header, shape, affine, remarks, () if kind is _MGH else _personal(header))
    if len(paths) < 2 and path.name.lower().endswith(PAIR_SUFFIXES):
        raise UserError(f"{path}: its voxels are missing; put the .img file of the same name beside it")
    check_size(paths[-1], stored)
    return stored


def check_size(path: Path, stored: Stored, found: int | None = None) -> None:
    """Raise UserError unless the file that holds the voxels is as long as the header says.

    `found`: its length decompressed, where that is known. A little padding at the end is let pass.
    """
    size, needs = path.stat().st_size, stored.needs
    compressed = found is None and path.name.lower().endswith(COMPRESSED)
    found = size * MOST_COMPRESSION + MOST_PADDING if compressed else size if found is None else found
    padding = max(MOST_PADDING, needs // stored.shape[2])
    # After the voxels of MGH come its footer and tags, of any length.
    too_long = found - needs >= padding and not compressed and not isinstance(stored.header, _MGH)
    if found < needs or too_long:
        holds = f"at most {found}" if compressed else found
        raise UserError(
            f"{path}: shape {stored.shape} of {stored.header.get_data_dtype()} needs {needs} bytes and the file holds "
            f"{holds}: header or voxels are damaged; replace or remove the file"
        )


def reason(error: Exception) -> str:
    """What a library said, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _first_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a NIfTI or MGH file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes); replace or remove it")
    with opened(path) as file:
        return file.read(_FIRST_BYTES)


def _kind(path: Path, block: bytes) -> type[SpatialHeader]:
    """nibabel's class for the header that `block` starts with."""
    name = path.name.lower()
    single = name.endswith(SUFFIXES)
    magic = block[4:8] if block[4:7] in (b"n+2", b"ni2") else block[344:348]
    if name.endswith(VOXEL_SUFFIXES):
        raise ValueError("its header is missing: put the .hdr file of the same name beside it")
    if name.endswith(MGH_SUFFIXES):
        kind, length = _MGH, _MGH._hdrdtype.itemsize
    elif magic in _NIFTI:
        kind, length = _NIFTI[magic], _NIFTI[magic].template_dtype.itemsize
        if single != (magic[1:2] == b"+"):
            raise ValueError(f"its magic is that of a {'.hdr/.img pair' if single else 'single .nii file'}")
    elif block[:2] == b"\x1f\x8b":
        raise ValueError("it is compressed, so its name must end with .gz")
    elif not single and 348 in (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")):
        raise ValueError("it is Analyze 7.5, which does not say where left is: convert it to NIfTI")
    else:
        found = f"its magic is {magic!r}" if len(block) >= 348 else f"it ends after {len(block)} bytes"
        raise ValueError(f"{found}, which is no NIfTI header")
    if len(block) < length:
        raise ValueError(f"it ends within the header, after {len(block)} bytes")
    return kind


def _raw(kind: type[SpatialHeader], block: bytes) -> np.void:
    """The header's fields as written, before any correction."""
    if kind is _MGH:
        return np.frombuffer(block, kind._hdrdtype, count=1)[0]
    native = np.frombuffer(block, kind.template_dtype, count=1)
    # By nibabel's own rule: where a damaged header leaves the byte order open, both must read it alike.
    return native.view(kind.template_dtype.newbyteorder(kind.guessed_endian(native[0])))[0]


def _parse(path: Path, kind: type[SpatialHeader], block: bytes) -> SpatialHeader:
    if kind is _MGH:
        # Its `from_fileobj` would read on to the footer, behind all voxels.
        with _quiet_nibabel():
            return kind(block[: kind._hdrdtype.itemsize])
    with opened(path) as file, _quiet_nibabel():
        return kind.from_fileobj(file)


@contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """Without its log of the corrections that the remarks state."""
    level = nibabel_logger.level
    nibabel_logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        nibabel_logger.setLevel(level)


def _check_pixdim(path: Path, raw: np.void) -> None:
    """Only a sform does without pixdim: nibabel would take 1 mm for 0, and drop a minus."""
    spacing = raw["pixdim"][1:4]
    if raw["sform_code"] <= 0 and not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise UserError(
            f"{path}: pixdim is {_numbers(spacing)}, and there is no sform; three positive lengths in mm are wanted: "
            "repair the header or remove the file"
        )


def _nifti_remarks(
    header: nib.Nifti1Header, raw: np.void, shape: tuple[int, ...], affine: np.ndarray, unit: float
) -> tuple[str, ...]:
    remarks = []
    spacing, lengths = raw["pixdim"][1:4] * unit, np.linalg.norm(affine[:3, :3], axis=0)
    with_sform, with_qform = raw["sform_code"] > 0, raw["qform_code"] > 0
    if not with_sform and not with_qform:
        remarks.append(
            "neither qform nor sform: the spacing is pixdim's, the axes are taken for left, anterior, superior about "
            "the middle, so left and right may be swapped"
        )
    apart = _forms_apart(header, shape, affine, unit) if with_sform and with_qform else 0.0
    if apart is None:
        remarks.append("the qform is not usable; the sform is used")
    elif apart > FORMS_AGREE:
        remarks.append(f"qform and sform disagree by up to {apart:.1f} mm; the sform is used")
    elif not np.allclose(spacing, lengths, rtol=SPACINGS_AGREE):
        remarks.append(f"pixdim is {_numbers(spacing)}, the affine's spacing {_numbers(lengths)} mm; that is used")
    if unit != 1:
        remarks.append(f"lengths are in {header.get_xyzt_units()[0]}s; converted to mm")
    directions = affine[:3, :3] / lengths
    if np.abs(directions.T @ directions - np.eye(3)).max() > SHEARED:
        remarks.append("the axes are not at right angles")
    if np.isinf(raw["scl_slope"]):
        remarks.append("scl_slope is infinite; the voxels are taken as they are")
    return tuple(remarks)


def _forms_apart(header: nib.Nifti1Header, shape: tuple[int, ...], affine: np.ndarray, unit: float) -> float | None:
    """The greatest distance in mm between a voxel's places by the two forms, which is at a corner; None without."""
    try:
        qform = np.diag([unit, unit, unit, 1.0]) @ header.get_qform()
    except (HeaderDataError, ValueError):
        return None
    corners = [[*corner, 1] for corner in itertools.product(*[(0, side - 1) for side in shape[:3]])]
    apart = float(np.linalg.norm((affine - qform)[:3] @ np.transpose(corners), axis=0).max())
    return apart if np.isfinite(apart) else None


def _mgh_remarks(raw: np.void) -> tuple[str, ...]:
    if raw["goodRASFlag"]:
        return ()
    return ("goodRASFlag is 0: the spacing is taken for 1 mm and the axes for left, inferior, anterior",)


def _personal(header: nib.Nifti1Header) -> tuple[str, ...]:
    texts = {field: bytes(header[field]).strip(b"\0 ") for field in PERSONAL_FIELDS if field in header.keys()}
    named = [field for field, text in texts.items() if text and text != SYNTHETIC.encode()]
    return (*named, *(f"extension {extension.get_code()}" for extension in header.extensions))


def _numbers(values: np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
