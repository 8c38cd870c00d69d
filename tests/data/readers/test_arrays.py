"""NRRD and NumPy files, checked against the place and values that pynrrd and NumPy wrote."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from splitshuffle_gan.data.readers.arrays import array_scan
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.volume import from_xyz

SHAPE = (4, 5, 6)
ARRAY = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
# Index (x, y, z) to RAS mm; along RAS+ already.
AFFINE = np.array([[0.7, 0, 0, -20], [0, 0.9, -0.4, 31], [0, 0.3, 2.5, 7], [0, 0, 0, 1]])


def nrrd_file(path: Path, signs=(-1, -1, 1), array=ARRAY, **header) -> Path:
    """`signs` takes RAS to the space's axes; `header` fields come last, None removes one."""
    nrrd = pytest.importorskip("nrrd", reason="pynrrd is not installed")
    placed = np.diag([*signs, 1]) @ AFFINE
    fields = {"space": "left-posterior-superior", "space directions": placed[:3, :3].T, "space origin": placed[:3, 3]}
    fields |= {name.replace("_", " "): value for name, value in header.items()}
    nrrd.write(str(path), array, {name: value for name, value in fields.items() if value is not None})
    return path


def numpy_file(path: Path, array=ARRAY, axes="xyz", affine=AFFINE) -> Path:
    np.save(path, array)
    path.with_suffix(".json").write_text(json.dumps({"affine": np.asarray(affine).tolist(), "axes": axes}))
    return path


def is_the_scan(path: Path, plane: str = "axial") -> None:
    scan = array_scan(path, "scan")
    volume, wanted = scan.read(plane), from_xyz(ARRAY, AFFINE, plane)
    np.testing.assert_array_equal(volume.array, wanted.array)
    np.testing.assert_allclose(volume.affine, wanted.affine, atol=1e-9)
    header = scan.header()
    assert header.shape == SHAPE
    np.testing.assert_allclose(header.affine, AFFINE, atol=1e-9)
    assert header.dtype == "int16"


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
    ],
)
@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_nrrd_spaces_lead_to_one_place(tmp_path, space, signs, plane):
    is_the_scan(nrrd_file(tmp_path / "scan.nrrd", signs, space=space), plane)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
def test_nrrd_encodings(tmp_path, encoding):
    is_the_scan(nrrd_file(tmp_path / "scan.nrrd", encoding=encoding))


def test_a_detached_header_and_its_voxels_are_one_scan(tmp_path):
    path = nrrd_file(tmp_path / "scan.nhdr")
    is_the_scan(path)
    assert [part.name for part in array_scan(path, "scan").paths] == ["scan.nhdr", "scan.raw.gz"]


def test_nrrd_in_the_same_place_as_an_independent_reader_has_it(tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    path = nrrd_file(tmp_path / "scan.nrrd", kinds=["domain"] * 3)
    image, volume = sitk.ReadImage(str(path)), array_scan(path, "scan").read()
    for index in np.ndindex(SHAPE):
        world = np.array([-1, -1, 1]) * image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose((volume.affine @ [*index[::-1], 1])[:3], world, atol=0.01)
        assert volume.array[(0, *index[::-1])] == image[index]


def test_nrrd_units_become_mm(tmp_path):
    path = nrrd_file(tmp_path / "scan.nrrd", space_units=["cm"] * 3)
    scan = array_scan(path, "scan")
    np.testing.assert_allclose(scan.header().affine, np.diag([10, 10, 10, 1]) @ AFFINE)
    assert scan.header().remarks == ("lengths are in cm; converted to mm",)


def test_free_text_may_be_personal(tmp_path):
    path = nrrd_file(tmp_path / "scan.nrrd", content="Jane Doe", DICOM_0010_0010_PatientName="Doe")
    personal = array_scan(path, "scan").header().personal
    assert set(personal) == {"content", "DICOM 0010 0010 PatientName"}


@pytest.mark.parametrize("axes", ["xyz", "zyx", "yzx"])
def test_the_sidecar_says_in_which_order_the_axes_are(tmp_path, axes):
    array = np.transpose(ARRAY, ["xyz".index(axis) for axis in axes])
    is_the_scan(numpy_file(tmp_path / "scan.npy", array, axes))


def test_a_left_handed_sidecar_is_turned_to_ras(tmp_path):
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    is_the_scan(numpy_file(tmp_path / "scan.npy", ARRAY[::-1], affine=AFFINE @ flip))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: numpy_file(path, axes="xyy"), "axes 'xyy'; wanted"),
        (lambda path: numpy_file(path, axes=3), "axes"),
        (lambda path: numpy_file(path, affine=np.eye(3)), "affine .*; wanted"),
        (lambda path: numpy_file(path, affine=np.ones((4, 4))), "affine .*; wanted"),
        (lambda path: numpy_file(path, affine=np.diag([1, 1, 0, 1])), "not invertible"),
        (lambda path: numpy_file(path, np.ones((4, 4))), r"shape \(4, 4\)"),
        (lambda path: numpy_file(path, np.ones((4, 4, 4, 2))), r"shape \(4, 4, 4, 2\)"),
        (lambda path: numpy_file(path, np.ones(SHAPE, complex)), "complex128"),
        (lambda path: numpy_file(path, np.full(SHAPE, 1e300)), "overflow float32"),
        (lambda path: numpy_file(path).with_suffix(".json").write_text("nonsense"), "scan.json"),
        (lambda path: numpy_file(path).with_suffix(".json").unlink(), "scan.json"),
        (lambda path: numpy_file(path).write_bytes(b"nonsense"), "scan.npy"),
        (lambda path: numpy_file(path).write_bytes(b""), "0 bytes"),
        (lambda path: numpy_file(path).unlink(), "no such file"),
    ],
)
def test_what_is_no_scan_is_named(tmp_path, write, message):
    write(tmp_path / "scan.npy")
    with pytest.raises(UserError, match=message):
        array_scan(tmp_path / "scan.npy", "scan").read()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"space": None, "space_dimension": 3}, "space is ''"),
        ({"space": "scanner-xyz"}, "scanner-xyz"),
        ({"space_origin": None}, "space origin is None"),
        ({"space_units": ["furlong"] * 3}, "furlong"),
        ({"kinds": ["RGB-color", "domain", "domain"]}, "RGB-color"),
        ({"array": np.ones((3, *SHAPE))}, r"shape \(3, 4, 5, 6\)"),
    ],
)
def test_nrrd_that_is_no_placed_scan_is_named(tmp_path, header, message):
    path = nrrd_file(tmp_path / "scan.nrrd", **header)
    with pytest.raises(UserError, match=f"scan.nrrd: .*{message}"):
        array_scan(path, "scan").read()


@pytest.mark.parametrize("suffix", [".nrrd", ".npy"])
def test_damage_to_any_header_byte_is_a_user_error_or_harmless(tmp_path, suffix):
    rng = np.random.default_rng(1)
    path = tmp_path / f"scan{suffix}"
    (nrrd_file if suffix == ".nrrd" else numpy_file)(path)
    content, refused = path.read_bytes(), 0
    for _ in range(300):
        broken = bytearray(content)
        broken[rng.integers(min(len(content), 300))] = rng.integers(256)
        path.write_bytes(broken)
        try:
            scan = array_scan(path, "scan")
            scan.header(), scan.read()
        except UserError:
            refused += 1
    assert refused > 10


def test_without_pynrrd_the_hint_says_what_to_install(tmp_path, monkeypatch):
    path = nrrd_file(tmp_path / "scan.nrrd")
    monkeypatch.setitem(sys.modules, "nrrd", None)
    with pytest.raises(UserError, match="scan.nrrd.*pip install pynrrd"):
        array_scan(path, "scan").header()
