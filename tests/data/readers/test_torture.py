"""Bad and odd input as real files: NIfTI, MGH, NRRD, NumPy and the file system (DICOM's are in test_dicom.py).

Every case is a folder with one odd file in it, beside a good one that must never be lost. Run as a script,
with the package on its path, this prints the table: the case, and what the user sees.
"""

import gzip
import itertools
import json
import os
import re
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.data.readers.scans import find_scans
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.volume import from_xyz, plane_axes

SHAPE = (5, 6, 7)
SPACING = (1.0, 1.5, 2.0)
ODD = "odd"  # the stem of the case's file
GOOD = "good.nii.gz"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
AXES = [
    "".join(sides)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for sides in itertools.product(*order)
]  # fmt: skip


def reference(degrees: float = 20) -> tuple[np.ndarray, np.ndarray]:
    """The scan of most cases, RAS+: int16 (x, y, z), each voxel its own value, and its tilted affine."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) * SPACING
    affine[:3, 3] = (-10, 20, 5)
    return np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), affine


def turned(array: np.ndarray, affine: np.ndarray, axes: str) -> tuple[np.ndarray, np.ndarray]:
    """The RAS+ scan stored along `axes`, such as "LPS"."""
    source, wanted = nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes)
    orientation = nib.orientations.ornt_transform(source, wanted)
    back = nib.orientations.inv_ornt_aff(orientation, array.shape)
    return nib.orientations.apply_orientation(array, orientation), affine @ back


def save_nifti(path: Path, array=None, affine=None, kind=nib.Nifti1Image, forms="sform", edit=None) -> Path:
    """The reference, or another array, with the forms wanted; `edit` changes the header before it is written."""
    standard, place = reference()
    place = place if affine is None else affine
    image = kind(standard if array is None else array, place)
    image.set_sform(place, int("sform" in forms))
    image.set_qform(place, int("qform" in forms))
    if edit is not None:
        edit(image.header)
    image.to_filename(path)
    return path


def patch(path: Path, *changes: tuple[int, str, tuple]) -> None:
    """Overwrite fields of a NIfTI-1 header, by the standard's offsets: (offset, struct format, values)."""
    packed = path.name.endswith(".gz")
    content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    for offset, form, values in changes:
        content[offset : offset + struct.calcsize(form)] = struct.pack(form, *values)
    path.write_bytes(gzip.compress(content) if packed else content)


DIM, PIXDIM, SLOPE, QUATERN, SROW = 40, 76, 112, 256, 280


def patched(*changes: tuple[int, str, tuple], name: str = f"{ODD}.nii", **options) -> Callable[[Path], object]:
    return lambda folder: patch(save_nifti(folder / name, **options), *changes)


def saved(name: str = f"{ODD}.nii", **options) -> Callable[[Path], object]:
    return lambda folder: save_nifti(folder / name, **options)


def content(change: Callable[[bytes], bytes], name: str = f"{ODD}.nii.gz", source: str = GOOD) -> Callable:
    """A file whose bytes are those of the good one (or of `source`), changed."""

    def write(folder: Path) -> None:
        original = folder / source
        if not original.exists():
            save_any(original)
        changed = change(original.read_bytes())
        if source != GOOD:
            original.unlink()
        (folder / name).write_bytes(changed)

    return write


def noise() -> np.ndarray:
    """Too random for gzip to shrink, so that a cut falls among the voxels."""
    return np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)


def cut_noise(folder: Path) -> None:
    path = save_nifti(folder / f"{ODD}.nii.gz", noise())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped_noise(folder: Path) -> None:
    path = save_nifti(folder / f"{ODD}.nii.gz", noise())
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + bytes(64) + whole[5064:])


def voxels(dtype: type, *values: float) -> np.ndarray:
    """The reference's values as `dtype`, the first ones replaced."""
    array = reference()[0].astype(dtype)
    array.flat[: len(values)] = values
    return array


def save_any(path: Path, array=None, affine=None, forms: str = "sform") -> Path:
    """The reference, or another array, in the format of the suffix."""
    standard, place = reference()
    array, affine = (standard if array is None else array), (place if affine is None else affine)
    if path.name.endswith((".mgz", ".mgh")):
        nib.MGHImage(array, affine).to_filename(path)
    elif path.suffix in (".nrrd", ".nhdr"):
        nrrd = pytest.importorskip("nrrd")
        lps = LPS @ affine
        header = {"space": "left-posterior-superior", "space directions": lps[:3, :3].T, "space origin": lps[:3, 3]}
        nrrd.write(str(path), array, header | {"kinds": ["domain"] * 3})
    elif path.suffix == ".npy":
        np.save(path, array.transpose(2, 1, 0))
        path.with_suffix(".json").write_text(json.dumps({"affine": affine.tolist(), "axes": "zyx"}))
    else:
        save_nifti(path, array, affine, nib.Nifti1Pair if ".hdr" in path.name else nib.Nifti1Image, forms)
    return path


def only(
    suffix: str, *gone: str, change: tuple[bytes, bytes] | None = None, sidecar: str | None = None
) -> Callable[[Path], object]:
    """The reference in some format, less the files with the suffixes `gone`, or with some bytes changed."""

    def write(folder: Path) -> None:
        path = save_any(folder / f"{ODD}{suffix}")
        for other in gone:
            (folder / f"{ODD}{other}").unlink()
        if change is not None:
            before = path.read_bytes()
            assert change[0] in before
            path.write_bytes(before.replace(*change, 1))
        if sidecar is not None:
            path.with_suffix(".json").write_text(sidecar)

    return write


def cut_npy(folder: Path) -> None:
    path = save_any(folder / f"{ODD}.npy")
    path.write_bytes(path.read_bytes()[:300])


def analyze(folder: Path) -> None:
    nib.AnalyzeImage(reference()[0], np.diag([-1, 1.5, 2, 1])).to_filename(folder / f"{ODD}.hdr")


def big_endian(folder: Path) -> None:
    nib.Nifti1Image(*reference(), nib.Nifti1Header(endianness=">")).to_filename(folder / f"{ODD}.nii")
    assert (folder / f"{ODD}.nii").read_bytes()[:4] == struct.pack(">i", 348)


def linked(folder: Path) -> None:
    (folder / "more").mkdir()
    save_nifti(folder / "more" / f"{ODD}.nii.gz")
    (folder / "more" / "up").symlink_to(folder)
    (folder / "more" / "self").symlink_to("self")


def dead_link(folder: Path) -> None:
    (folder / f"{ODD}.nii.gz").symlink_to("nowhere.nii.gz")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / f"{ODD}.nii.gz")


def with_labels(folder: Path) -> None:
    for name in ("images", "labels"):
        (folder / "set" / name).mkdir(parents=True)
        save_nifti(folder / "set" / name / f"{ODD}.nii.gz")


def texts(folder: Path) -> None:
    for name in ("notes.txt", "table.csv", "scan.json"):
        (folder / name).write_text("no scan")


def alone(write: Callable[[Path], object] = lambda folder: None) -> Callable[[Path], object]:
    """Without the good file."""

    def instead(folder: Path) -> None:
        (folder / GOOD).unlink()
        write(folder)

    return instead


def personal(header: nib.Nifti1Header) -> None:
    header["descrip"], header["db_name"] = b"Jane Doe 1970-01-01", b"hospital"
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))


# What must come of a case. READS: the scan, right; the remark or the name is told. FAILS: a scan whose reading names
# the reason. REJECTED: told as no scan. PREPARE: `prepare` skips it and names the reason. NONE: the source has no scan.
READS, FAILS, REJECTED, PREPARE, NONE = "reads", "fails", "rejected", "prepare", "none"

# (case, writer, outcome, what the user sees: a pattern)
CASES: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("gzip cut in half", cut_noise, FAILS, "voxels cannot be read .*end-of-stream"),
    ("gzip cut within its checksum", content(lambda whole: whole[:-6]), FAILS, "voxels cannot be read"),
    ("gzip with 64 damaged bytes", flipped_noise, FAILS, "voxels cannot be read"),
    ("gzip of another length than its checksum says", content(lambda w: w[:-4] + b"\1\0\0\0"), FAILS, "voxels cannot"),
    ("wrong magic", patched((344, "4s", (b"nope",))), FAILS, "magic is b'nope'"),
    ("magic of a pair in a single file", patched((344, "4s", (b"ni1",))), FAILS, "magic is that of a .hdr/.img pair"),
    ("not compressed, but named .nii.gz", content(gzip.decompress), FAILS, "(?i)not a gzipped file"),
    ("compressed, but named .nii", content(bytes, f"{ODD}.nii"), FAILS, "name must end with .gz"),
    ("text named .nii", lambda folder: (folder / f"{ODD}.nii").write_text("hello " * 200), FAILS, "magic is"),
    ("empty file", lambda folder: (folder / f"{ODD}.nii.gz").touch(), FAILS, "0 bytes"),
    ("cut within the header", content(lambda w: gzip.decompress(w)[:346], f"{ODD}.nii"), FAILS, "after 346 bytes"),
    ("shape needs more than the file", patched((DIM, "<4h", (3, 5, 6, 70))), FAILS, "needs 4552 bytes .* holds 772"),
    ("the same, compressed", patched((DIM, "<4h", (3, 5, 6, 70)), name=f"{ODD}.nii.gz"), FAILS,
     "needs 4552 bytes|Expected 4200 bytes"),
    ("shape needs less than the file", patched((DIM, "<4h", (3, 20, 20, 10)), array=noise()),
     FAILS, "needs 16352 .* 32352"),
    ("the same, compressed", patched((DIM, "<4h", (3, 20, 20, 10)), array=noise(), name=f"{ODD}.nii.gz"), FAILS,
     "needs 16352 .* 32352"),
    ("shape of 35 million million voxels", patched((DIM, "<4h", (3, 32767, 32767, 32767)), name=f"{ODD}.nii.gz"), FAILS,
     "at most"),
    ("axis of length 0", patched((DIM, "<4h", (3, 5, 0, 7))), FAILS, r"shape \(5, 0, 7\)"),
    ("axis of negative length", patched((DIM, "<4h", (3, 5, -6, 7))), FAILS, r"shape \(5, -6, 7\)"),
    ("spacing 0, no sform", patched((PIXDIM + 4, "<f", (0,)), forms="qform"), FAILS, "pixdim is 0 x 1.5 x 2"),
    ("spacing -1, no sform", patched((PIXDIM + 4, "<f", (-1,)), forms="qform"), FAILS, "pixdim is -1 x 1.5 x 2"),
    ("spacing NaN, no form", patched((PIXDIM + 4, "<f", (np.nan,)), forms=""), FAILS, "pixdim is nan"),
    ("spacing 0, sform", patched((PIXDIM + 4, "<f", (0,))), READS, "pixdim is 0 x 1.5 x 2, the affine's spacing 1 x"),
    ("spacing -1, sform", patched((PIXDIM + 4, "<f", (-1,))), READS, "pixdim is -1 x 1.5 x 2"),
    ("sform flat", patched((SROW + 32, "<3f", (0, 0, 0))), FAILS, "not invertible"),
    ("sform with NaN", patched((SROW, "<f", (np.nan,))), FAILS, "not invertible"),
    ("qform and sform 30 mm apart", patched((QUATERN + 12, "<f", (20,)), forms="sform qform"), READS,
     "disagree by up to 30.0 mm; the sform is used"),
    ("qform without sform", saved(forms="qform"), READS, ""),
    ("sform without qform", saved(forms="sform"), READS, ""),
    ("neither qform nor sform", saved(forms="", affine=LPS @ np.diag([1, -1.5, 2, 1])), READS, "left and right may be"),
    ("qform no rotation, sform", patched((QUATERN, "<3f", (1, 1, 1)), forms="sform qform"),
     READS, "qform is not usable"),
    ("qform no rotation, no sform", patched((QUATERN, "<3f", (1, 1, 1)), forms="qform"), FAILS, "not a readable"),
    ("lengths in microns", saved(affine=np.diag([1e3, 1e3, 1e3, 1]) @ reference()[1],
                                 edit=lambda header: header.set_xyzt_units("micron")), READS, "converted to mm"),
    ("axes not at right angles", saved(affine=np.diag([1, 1.5, 2, 1]) + 0.3 * np.eye(4, k=1) * [1, 1, 1, 0]), READS,
     "not at right angles"),
    ("voxels NaN", saved(array=voxels(np.float32, np.nan)), PREPARE, "NaN or infinite"),
    ("voxels infinite", saved(array=voxels(np.float32, np.inf, -np.inf)), PREPARE, "2 voxels are NaN or infinite"),
    ("every voxel the same", saved(array=np.full(SHAPE, 7, np.int16)), PREPARE, "every voxel is 7"),
    ("int16 overflows float32 when scaled", patched((SLOPE, "<2f", (3e38, 0))), FAILS, "208 voxels overflow float32"),
    ("float64 beyond float32", saved(array=voxels(np.float64, 1e300)), FAILS, "1 voxels overflow float32"),
    ("scl_slope 0: not scaled", patched((SLOPE, "<2f", (0, 5))), READS, ""),
    ("scl_slope NaN: not scaled", patched((SLOPE, "<2f", (np.nan, np.nan))), READS, ""),
    ("scl_slope infinite: not scaled", patched((SLOPE, "<2f", (np.inf, 0))), READS, "scl_slope is infinite"),
    ("scl_inter infinite", patched((SLOPE, "<2f", (1, np.inf))), FAILS, "invalid intercept inf"),
    ("voxels that start at an infinite byte", patched((108, "<f", (np.inf,))), FAILS, "not a readable"),
    ("voxels that start at no byte", patched((108, "<f", (np.nan,))), FAILS, "not a readable"),
    ("length of the header 0", patched((0, "<i", (0,))), READS, ""),
    ("unknown type of voxel", patched((70, "<h", (77,))), FAILS, "data code 77"),
    ("two axes", saved(array=np.ones((5, 6), np.int16)), FAILS, r"shape \(5, 6\); one 3D volume"),
    ("four axes, no --volume", saved(array=np.ones((5, 6, 7, 3), np.int16)),
     REJECTED, "holds 3 .*--volume K.*--volume all"),
    ("five axes", saved(array=np.ones((5, 6, 7, 1, 3), np.int16)), FAILS, r"shape \(5, 6, 7, 1, 3\)"),
    ("a fourth and fifth axis of length 1", saved(array=reference()[0][..., None, None]), READS, ""),
    ("RGB", saved(array=np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])), FAILS, "real numbers are wanted"),
    ("complex", saved(array=np.ones(SHAPE, np.complex64)), FAILS, "voxels of type complex64"),
    ("big-endian", big_endian, READS, ""),
    ("NIfTI-2", saved(kind=nib.Nifti2Image), READS, ""),
    (".hdr/.img pair", only(".hdr"), READS, ""),
    (".hdr.gz/.img.gz pair", only(".hdr.gz"), READS, ""),
    ("pair without .img", only(".hdr", ".img"), FAILS, "voxels are missing"),
    ("pair without .hdr", only(".hdr", ".hdr"), REJECTED, "header is missing"),
    ("Analyze 7.5", analyze, FAILS, "does not say where left is"),
    ("MGZ", only(".mgz"), READS, ""),
    ("MGZ cut in half", content(lambda w: w[: len(w) // 2], f"{ODD}.mgz", "whole.mgz"),
     FAILS, "cannot be read|not a read"),
    ("MGH cut in half", content(lambda w: w[: len(w) // 2], f"{ODD}.mgh", "whole.mgh"), FAILS, "needs 704 bytes"),
    ("MGH of another version", content(lambda w: b"\0\0\0\7" + w[4:], f"{ODD}.mgh", "whole.mgh"), FAILS, "version"),
    ("NRRD", only(".nrrd"), READS, ""),
    ("NRRD header with a data file", only(".nhdr"), READS, ""),
    ("NRRD header without its data file", only(".nhdr", ".raw.gz"), FAILS, "data file 'odd.raw.gz' is not"),
    ("NRRD without space", only(".nrrd", change=(b"space: left-posterior-superior\n", b"")),
     FAILS, "place in the patient"),
    ("NRRD with spacings alone", only(".nrrd", change=(b"space directions", b"directions")),
     FAILS, "directions is None"),
    ("NRRD in an unknown space", only(".nrrd", change=(b"left-posterior-superior", b"scanner-xyz")),
     FAILS, "scanner-xyz"),
    ("NRRD cut in half", content(lambda w: w[: len(w) - 200], f"{ODD}.nrrd", "whole.nrrd"), FAILS, "cannot be read"),
    ("NRRD whose data file is a device", only(".nrrd", change=(b"encoding:", b"data file: /dev/zero\nencoding:")),
     FAILS, "/dev/zero"),
    (".npy with JSON", only(".npy"), READS, ""),
    (".npy without JSON", only(".npy", ".json"), REJECTED, "write odd.json beside it"),
    (".npy of Python objects", lambda folder: np.save(save_any(folder / f"{ODD}.npy"), np.full(SHAPE, None)), FAILS,
     "not readable|type object"),
    (".npy cut in half", cut_npy, FAILS, "not readable .*mmap length"),
    (".npy whose JSON is no affine", only(".npy", sidecar="{}"), FAILS, "odd.json: .*wanted"),
    ("a format that is not read", lambda folder: (folder / f"{ODD}.mha").touch(), REJECTED, "convert it to NIfTI"),
    ("packed scans", lambda folder: (folder / f"{ODD}.zip").touch(), REJECTED, "unpack it first"),
    ("a file that is nothing", lambda folder: (folder / ODD).write_bytes(bytes(300)), REJECTED, "(?i)dicom"),
    ("a folder that links to its parent, a link to itself", linked,
     READS, "self: a link that leads nowhere.*odd.nii.gz"),
    ("a link that leads nowhere", dead_link, REJECTED, "a link that leads nowhere"),
    ("a pipe named as a scan", pipe, REJECTED, "not a regular file"),
    ("blanks and umlauts in the name", saved(f"{ODD} Schädel №1 头.nii.gz"), READS, "Schädel №1 头"),
    ("a name that is no UTF-8", saved(os.fsdecode(b"odd\xff.nii.gz")), READS, r"odd\\xff"),
    ("suffix in capitals", lambda folder: os.rename(save_nifti(folder / "x.nii.gz"), folder / f"{ODD}.NII.GZ"),
     READS, ""),
    ("suffix half in capitals", lambda f: os.rename(save_nifti(f / "x.nii.gz"), f / f"{ODD}.Nii.gz"), READS, ""),
    ("labels beside images", with_labels, READS, "set/images/odd"),
    ("personal data in the header", saved(edit=personal), READS, "descrip, db_name, extension 6"),
    ("empty folder", alone(), NONE, "0 files seen"),
    ("folder of text files", alone(texts), NONE, r"3 plainly no scans \(1 .csv, 1 .json, 1 .txt\)"),
    ("folder of damaged names only", alone(lambda folder: (folder / "x.zip").touch()), NONE, "1 rejected.*\n.*unpack"),
]  # fmt: skip


def expected(folder: Path, name: str) -> np.ndarray:
    """The affine that an odd file which reads must have, by nibabel where that is an independent word."""
    if "right angles" in name:
        return np.diag([1, 1.5, 2, 1]) + 0.3 * np.eye(4, k=1) * [1, 1, 1, 0]
    if "neither" in name:  # about the middle, the first axis to the left
        middle = np.array(SPACING) * (np.array(SHAPE) - 1) / 2
        return np.vstack([np.column_stack([np.diag(SPACING), -middle]), [0, 0, 0, 1]])
    return reference()[1]


def run_case(folder: Path, write: Callable[[Path], object]) -> tuple[list, str, str]:
    """The odd scans that were read, (name, header, volume); what came of the case; and what the user sees."""
    save_nifti(folder / GOOD)
    write(folder)
    try:
        found = find_scans(folder)
    except UserError as error:
        return [], NONE, str(error)
    if (folder / GOOD).exists():
        good = next(scan for scan in found.scans if scan.name == GOOD)
        np.testing.assert_array_equal(good.read().array[0], reference()[0].transpose(2, 1, 0))
    read, told = [], [f"{rejected.name}: {rejected.reason}" for rejected in found.rejected]
    if [scan.name for scan in found.scans] == [GOOD]:
        return [], REJECTED, "; ".join(told)
    for scan in found.scans:
        if scan.name != GOOD:
            try:
                read.append((scan.name, scan.header(), scan.read()))
            except UserError as error:
                return [], FAILS, str(error)
            _, header, volume = read[-1]
            assert header.shape == volume.shape[::-1]
            np.testing.assert_array_equal(header.affine[:, [2, 1, 0, 3]], volume.affine)
            told += [scan.name, *header.remarks, ", ".join(header.personal)]
    array = read[0][2].array
    if not np.isfinite(array).all() or array.min() == array.max():
        out = prepare(PrepareConfig(folder, folder / "out", (4, 4, 4), skip_bad=True, workers=1))
        skipped = json.loads((out / "manifest.json").read_text())["skipped"]
        return [], PREPARE, "; ".join(entry["reason"] for entry in skipped)
    return read, READS, "; ".join(part for part in told if part)


@pytest.mark.parametrize(
    ("case", "write", "outcome", "sees"), CASES, ids=[f"{number:02d} {case[0]}" for number, case in enumerate(CASES, 1)]
)
def test_each_gets_a_named_error_or_a_documented_correction(tmp_path, case, write, outcome, sees):
    folder = tmp_path / "scans"
    folder.mkdir()
    read, came, told = run_case(folder, write)
    assert came == outcome, told
    assert re.search(sees, told), told
    if outcome in (FAILS, REJECTED, PREPARE):
        assert ODD in told
    if outcome == READS:
        assert len(read) == 1
        _, _, volume = read[0]
        flipped = "neither" in case
        values = reference()[0].transpose(2, 1, 0)
        np.testing.assert_array_equal(volume.array[0], values[:, :, ::-1] if flipped else values)
        np.testing.assert_allclose(volume.affine, expected(folder, case)[:, [2, 1, 0, 3]], atol=1e-4)


def test_the_torture_set_is_large_enough():
    assert len(CASES) >= 45
    assert len(AXES) == len(set(AXES)) == 48


@pytest.mark.parametrize(
    ("suffix", "forms"), [(".nii", "sform"), (".nii.gz", "qform"), (".hdr", "sform qform"), (".mgz", ""), (".nrrd", ""),
                          (".npy", "")]
)  # fmt: skip
def test_all_48_axis_orders_of_one_scan_are_the_same_array(tmp_path, suffix, forms):
    standard, affine = reference()
    for axes in AXES:
        array, place = turned(standard, affine, axes)
        assert "".join(nib.aff2axcodes(place)) == axes
        save_any(tmp_path / f"{axes}{suffix}", np.ascontiguousarray(array), place, forms)
    found = find_scans(tmp_path)
    assert len(found.scans) == 48
    wanted = from_xyz(standard, affine, "axial")
    handedness = set()
    for scan in found.scans:
        header, volume = scan.header(), scan.read()
        assert header.orientation == scan.name[:3]
        handedness.add(np.sign(np.linalg.det(turned(standard, affine, scan.name[:3])[1])))
        assert volume.array.tobytes() == wanted.array.tobytes()
        np.testing.assert_allclose(volume.affine, wanted.affine, atol=1e-4)
    assert handedness == {1, -1}


@st.composite
def placed_scans(draw) -> tuple[str, np.ndarray, np.ndarray]:
    """A suffix, an array and an affine: any shape, type and spacing, any rotation or reflection, oblique or not."""
    suffix = draw(st.sampled_from([".nii", ".nii.gz", ".hdr", ".mgz", ".nrrd", ".npy"]))
    kinds = {".mgz": ["u1", "i2", "i4", "f4"]}.get(suffix, ["u1", "i2", "u2", "i4", "f4", "f8", "i1", "u4"])
    dtype, seed = np.dtype(draw(st.sampled_from(kinds))), draw(st.integers(0, 2**32 - 1))
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.05, 12)] * 3))
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    if draw(st.booleans()):
        directions = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    array = rng.integers(0, 120, shape) if dtype.kind in "iu" else rng.normal(scale=1000, size=shape)
    return suffix, array.astype(dtype), affine


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scan=placed_scans(), plane=st.sampled_from(["axial", "coronal", "sagittal"]))
def test_every_voxel_keeps_its_place_and_value(tmp_path, scan, plane):
    suffix, array, affine = scan
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        path = save_any(Path(folder, f"scan{suffix}"), array, affine)
        (found,) = find_scans(path).scans
        volume = found.read(plane)
    # Where each voxel of the file lies, and which voxel of the volume lies there.
    indices = np.indices(array.shape).reshape(3, -1)
    world = affine[:3, :3] @ indices + affine[:3, 3:]
    back = np.linalg.inv(volume.affine)
    nearest = np.rint(back[:3, :3] @ world + back[:3, 3:]).astype(int)
    there = volume.affine[:3, :3] @ nearest + volume.affine[:3, 3:]
    assert np.abs(there - world).max() < 0.01
    assert len(np.unique(nearest, axis=1).T) == array.size == volume.array.size
    np.testing.assert_array_equal(volume.array[0][tuple(nearest)], array.reshape(-1).astype(np.float32))
    assert all(volume.affine[axis, index] > 0 for index, axis in enumerate(plane_axes(plane)))


def table() -> str:
    """The torture set as a Markdown table: the case, and what the user sees."""
    lines = ["| case | outcome | what the user sees |", "|---|---|---|"]
    for case, write, _, _ in CASES:
        with tempfile.TemporaryDirectory() as folder:
            _, came, told = run_case(Path(folder), write)
            told = " ".join(told.replace(f"{folder}/", "").replace(folder, "FOLDER").replace("|", "\\|").split())
        lines.append(f"| {case} | {came} | {told} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
