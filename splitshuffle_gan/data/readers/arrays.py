"""NRRD files, and NumPy arrays with a sidecar, to Volumes."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np
from nibabel.orientations import apply_orientation, ornt2axcodes

from splitshuffle_gan.data.readers.nifti_header import canonical, check_affine, reason
from splitshuffle_gan.data.readers.scan import Header, Scan
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.volume import Volume, from_xyz

NRRD_SUFFIXES = (".nrrd", ".nhdr")
NUMPY_SUFFIXES = (".npy",)
# The world axes of NRRD's named spaces, as signs that take them to right, anterior, superior.
SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
MM_PER_UNIT = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "m": 1e3, "meter": 1e3, "um": 1e-3, "micron": 1e-3}
SPATIAL_KINDS = ("domain", "space", "none", "???")
MOST_LINES = 10_000
# Their names without blanks. Whatever else a header holds is free text, in which exporters put what DICOM said.
STANDARD_FIELDS = (
    "dimension type blocksize encoding endian number sizes spacings thicknesses axismins axismaxs centerings labels "
    "units kinds min max oldmin oldmax datafile lineskip byteskip sampleunits space spacedimension spaceunits "
    "spaceorigin spacedirections measurementframe"
).split()
SIDECAR = '{"affine": 4x4, index (x, y, z, 1) to RAS mm, "axes": "xyz"}'
# What NumPy, zlib and pynrrd's parsers are known to raise on a damaged file, besides pynrrd's own error.
_DAMAGE = (OSError, EOFError, zlib.error, ValueError, TypeError, OverflowError)
_DAMAGE += (KeyError, IndexError, AttributeError, StopIteration)
_DAMAGE += (SyntaxError, TokenError, RecursionError)  # of NumPy, which parses a header as Python


@dataclass(frozen=True)
class ArrayScan(Scan):
    """An NRRD file (.nrrd, or .nhdr with its data file), or a .npy file with a JSON of the same stem beside it.

    NRRD is read by pynrrd, an optional dependency. The JSON holds the affine, 4x4, from index (x, y, z, 1) to RAS mm,
    and, in "axes", in which order x, y and z are the array's axes: "zyx" says that the array is indexed [z, y, x].
    """

    def header(self) -> Header:
        """As `Scan.header`."""
        shape, affine, dtype, remarks = self._stored()
        orientation, right = canonical(affine, shape)
        return Header(
            shape=tuple(shape[axis] for axis in np.argsort(orientation[:, 0])),
            affine=right,
            dtype=dtype.name,
            orientation="".join(ornt2axcodes(orientation)),
            remarks=remarks,
            personal=self._personal(),
        )

    def read(self, plane: str = "axial") -> Volume:
        """As `Scan.read`."""
        shape, affine, _, _ = self._stored()
        try:
            array = _numpy_voxels(self.paths) if self._is_numpy else _nrrd_voxels(self.paths[0])
        except _DAMAGE as error:
            told = f"{self.paths[0]}: the voxels cannot be read ({reason(error)})"
            raise UserError(f"{told}; replace or remove the file") from error
        with np.errstate(over="ignore"):
            values = array.astype(np.float32)
        if array.dtype.itemsize > 4 and np.count_nonzero(~np.isfinite(values)) > np.count_nonzero(~np.isfinite(array)):
            raise UserError(f"{self.paths[0]}: values overflow float32; rescale them or remove the file")
        orientation, right = canonical(affine, shape)
        return from_xyz(apply_orientation(values, orientation), right, plane)

    @property
    def _is_numpy(self) -> bool:
        return self.paths[0].name.lower().endswith(NUMPY_SUFFIXES)

    def _stored(self) -> tuple[tuple[int, ...], np.ndarray, np.dtype, tuple[str, ...]]:
        """The shape (x, y, z), the affine, the voxels' type, and the remarks."""
        path = self.paths[0]
        if not path.is_file():
            raise UserError(f"{path}: no such file; give a NRRD or NumPy file")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty (0 bytes); replace or remove it")
        try:
            shape, affine, dtype, remarks = (_numpy_header if self._is_numpy else _nrrd_header)(path)
        except _DAMAGE as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: not readable ({reason(error)}); replace or remove the file") from error
        if len(shape) != 3 or min(shape) < 1:
            raise UserError(f"{path}: holds an array of shape {shape}; one 3D volume is wanted: split or remove it")
        if dtype.kind not in "iufb":
            raise UserError(f"{path}: voxels of type {dtype}; real numbers are wanted: convert or remove the file")
        check_affine(affine, path)
        return shape, affine, dtype, remarks

    def _personal(self) -> tuple[str, ...]:
        if self._is_numpy:
            return ()
        names = _nrrd_fields(self.paths[0])
        return tuple(name for name in names if name.replace(" ", "").lower() not in STANDARD_FIELDS)


def array_scan(path: Path, name: str) -> ArrayScan:
    """The scan of a NRRD or .npy file. Raises UserError when it is .npy and has no JSON beside it."""
    path = Path(path)
    if path.name.lower().endswith(NUMPY_SUFFIXES):
        sidecar = path.with_suffix(".json")
        if not sidecar.is_file():
            raise UserError(f"{path}: where its voxels lie is not known; write {sidecar.name} beside it: {SIDECAR}")
        return ArrayScan(name, (path, sidecar))
    return ArrayScan(name, (path, *_data_file(path)))


def _numpy_header(path: Path) -> tuple[tuple[int, ...], np.ndarray, np.dtype, tuple[str, ...]]:
    sidecar = path.with_suffix(".json")
    try:
        fields = json.loads(sidecar.read_text(encoding="utf-8"))
        affine, axes = np.array(fields["affine"], dtype=np.float64), fields["axes"]
        fine = affine.shape == (4, 4) and sorted(axes) == ["x", "y", "z"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{sidecar}: not readable ({error!r}); wanted: {SIDECAR}") from error
    if not fine or not np.array_equal(affine[3], (0, 0, 0, 1)):
        raise UserError(f"{sidecar}: affine {affine.tolist()}, axes {axes!r}; wanted: {SIDECAR}")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    shape = tuple(array.shape[axes.index(axis)] for axis in "xyz") if array.ndim == 3 else array.shape
    return shape, affine, array.dtype, ()


def _numpy_voxels(paths: tuple[Path, ...]) -> np.ndarray:
    axes = json.loads(paths[0].with_suffix(".json").read_text(encoding="utf-8"))["axes"]
    return np.transpose(np.load(paths[0], allow_pickle=False), [axes.index(axis) for axis in "xyz"])


def _pynrrd(path: Path):
    try:
        import nrrd
    except ImportError as error:
        raise UserError(f"{path}: reading NRRD needs pynrrd; install it: pip install pynrrd") from error
    return nrrd


def _nrrd_fields(path: Path) -> dict:
    nrrd = _pynrrd(path)
    try:
        with open(path, "rb") as file:
            return nrrd.read_header(file)
    except (nrrd.NRRDError, *_DAMAGE) as error:
        raise UserError(f"{path}: not a readable NRRD file ({reason(error)}); replace or remove it") from error


def _data_file(path: Path) -> tuple[Path, ...]:
    """The file that holds a .nhdr's voxels, if its header names one that is there."""
    try:
        fields = _nrrd_fields(path)
    except UserError:
        return ()
    name = fields.get("data file", fields.get("datafile"))
    return (path.parent / name,) if name is not None and (path.parent / name).is_file() else ()


def _nrrd_header(path: Path) -> tuple[tuple[int, ...], np.ndarray, np.dtype, tuple[str, ...]]:
    nrrd, fields = _pynrrd(path), _nrrd_fields(path)
    missing = [name for name in ("type", "sizes", "encoding", "dimension") if name not in fields]
    if missing:
        raise UserError(f"{path}: its header has no {missing[0]}; repair the header or remove the file")
    detached = fields.get("data file", fields.get("datafile"))
    if detached is not None and not _data_file(path):
        raise UserError(f"{path}: its data file {detached!r} is not one file that is there; save it as one .nrrd")
    skip = fields.get("line skip", fields.get("lineskip", 0))
    if skip > MOST_LINES:
        raise UserError(f"{path}: line skip is {skip}, above {MOST_LINES}; repair the header or remove the file")
    dtype = np.dtype(nrrd.reader._TYPEMAP_NRRD2NUMPY[fields["type"]])
    shape = tuple(int(side) for side in fields["sizes"])
    if len(shape) != 3 or not all(kind in SPATIAL_KINDS for kind in fields.get("kinds", SPATIAL_KINDS)):
        told = f"{path}: holds an array of shape {shape}, axes {fields.get('kinds')}"
        raise UserError(f"{told}; one 3D volume of one number per voxel is wanted: split or remove the file")
    space = str(fields.get("space", "")).lower()
    signs = next((signs for name, signs in SPACES.items() if space == name), None)
    directions, origin = fields.get("space directions"), fields.get("space origin")
    if signs is None:
        raise UserError(
            f"{path}: space is {space!r}, so its place in the patient is not known; one of {', '.join(SPACES)} is "
            "wanted: save it again with that"
        )
    for field, value, wanted in (("directions", directions, (3, 3)), ("origin", origin, (3,))):
        if np.shape(value) != wanted or not np.isfinite(value).all():
            found = None if value is None else np.asarray(value).tolist()
            raise UserError(f"{path}: space {field} is {found}; numbers {wanted} are wanted: save it again with them")
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.transpose(directions), origin
    units = fields.get("space units", ["mm"] * 3)
    if any(unit not in MM_PER_UNIT for unit in units):
        raise UserError(f"{path}: space units {units}; one of {', '.join(MM_PER_UNIT)} is wanted: repair the header")
    to_mm = [sign * MM_PER_UNIT[unit] for sign, unit in zip(signs, units, strict=True)]
    remarks = () if set(units) == {"mm"} else (f"lengths are in {units[0]}; converted to mm",)
    return shape, np.diag([*to_mm, 1.0]) @ affine, dtype, remarks


def _nrrd_voxels(path: Path) -> np.ndarray:
    nrrd = _pynrrd(path)
    try:
        array, _ = nrrd.read(str(path), index_order="F")
    except nrrd.NRRDError as error:
        raise ValueError(str(error)) from error
    return array
