"""NIfTI in and out, checked against files that nibabel alone wrote or read."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest

from splitshuffle_gan.data.readers.nifti import (
    NiftiScan,
    nifti_scans,
    read_nifti,
    read_spacing,
    with_voxels,
    write_nifti,
)
from splitshuffle_gan.data.readers.nifti_header import SYNTHETIC
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.sampler import DESCRIPTION
from splitshuffle_gan.volume import PLANES, Volume, grid_affine

SHAPE = (5, 6, 7)


def rotation(degrees: float) -> np.ndarray:
    """About the x axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def scan(path, axes: str = "RAS", degrees: float = 0.0):
    """A file stored with `axes` whose values are 1 R + 10 A + 100 S in the (tilted) patient's frame, in voxel steps."""
    spacing = np.array([1.0, 1.5, 2.0])
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) * spacing
    affine[:3, 3] = (-10, 20, 5)
    r, a, s = np.indices(SHAPE)
    image = nib.Nifti1Image((r + 10 * a + 100 * s).astype(np.int16), affine)
    wanted = nib.orientations.axcodes2ornt(axes)
    stored = image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), wanted))
    nib.save(stored, path)
    assert "".join(nib.aff2axcodes(nib.load(path).affine)) == axes
    return affine


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "SAR", "PIR"])
@pytest.mark.parametrize("degrees", [0, 20])
def test_any_orientation_reads_as_ras(tmp_path, axes, degrees):
    affine = scan(tmp_path / "scan.nii.gz", axes, degrees)
    volume = read_nifti(tmp_path / "scan.nii.gz")
    s, a, r = np.indices((7, 6, 5))
    np.testing.assert_array_equal(volume.array[0], r + 10 * a + 100 * s)
    np.testing.assert_allclose(volume.affine, affine[:, [2, 1, 0, 3]], atol=1e-5)
    assert volume.spacing == pytest.approx((2, 1.5, 1), rel=1e-6)
    assert read_spacing(tmp_path / "scan.nii.gz") == volume.spacing


@pytest.mark.parametrize(
    "plane, steps", [("axial", (100, 10, 1)), ("coronal", (10, 100, 1)), ("sagittal", (1, 100, 10))]
)
def test_planes_order_the_axes(tmp_path, plane, steps):
    scan(tmp_path / "scan.nii", "LPS")
    array = read_nifti(tmp_path / "scan.nii", plane).array[0]
    assert tuple(np.diff(array, axis=axis).flat[0] for axis in range(3)) == steps


def test_scale_factors_are_applied(tmp_path):
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4)), path)
    content = bytearray(path.read_bytes())
    # scl_slope and scl_inter, by the NIfTI-1 standard's offsets.
    content[112:120] = struct.pack("<ff", 0.5, -1000)
    path.write_bytes(content)
    expected = np.arange(8).reshape(2, 2, 2).transpose(2, 1, 0) * 0.5 - 1000
    np.testing.assert_array_equal(read_nifti(path).array[0], expected)


def test_a_fourth_axis_of_length_one_is_dropped(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((*SHAPE, 1), np.float32), np.eye(4)), tmp_path / "scan.nii.gz")
    assert read_nifti(tmp_path / "scan.nii.gz").shape == (7, 6, 5)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_what_is_written_is_read_back(tmp_path, plane, suffix):
    array = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    affine = grid_affine((4, 5, 6), (3, 2, 1), plane, (1, 2, 3))
    path = write_nifti(Volume(array, affine), tmp_path / f"volume{suffix}", description="a test")
    again = read_nifti(path, plane)
    np.testing.assert_array_equal(again.array, array)
    np.testing.assert_allclose(again.affine, affine, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_any_viewer_finds_the_geometry_in_the_header(tmp_path):
    tilted = np.eye(4)
    tilted[:3, :3] = (rotation(20) * [1, 1.5, 2])[:, [2, 1, 0]]
    path = write_nifti(Volume(np.zeros((1, 7, 6, 5)), tilted), tmp_path / "volume.nii.gz", description="made up")
    image = nib.load(path)
    assert image.shape == SHAPE
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    for matrix, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        assert code == 1
        np.testing.assert_allclose(matrix, tilted[:, [2, 1, 0, 3]], atol=1e-5)
    assert image.header.get_zooms() == pytest.approx((1, 1.5, 2))
    assert image.header.get_xyzt_units()[0] == "mm"
    assert bytes(image.header["descrip"]).rstrip(b"\0") == b"made up"


def test_labels_are_written_as_whole_numbers(tmp_path):
    labels = np.arange(8).reshape(1, 2, 2, 2)
    path = write_nifti(Volume(labels - 0.3, np.eye(4)[:, [2, 1, 0, 3]]), tmp_path / "labels.nii.gz", dtype=np.uint8)
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), labels[0])


@pytest.mark.parametrize(
    "array, name, dtype, message",
    [
        (np.full((1, 2, 2, 2), 300), "x.nii.gz", np.uint8, "300..300 do not fit uint8"),
        (np.full((1, 2, 2, 2), np.nan), "x.nii.gz", np.int16, "do not fit int16"),
        (np.zeros((2, 2, 2, 2)), "x.nii.gz", None, "has 2"),
        (np.zeros((1, 2, 2, 2)), "x.mha", None, "x.mha"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, array, name, dtype, message):
    with pytest.raises(ValueError, match=message):
        write_nifti(Volume(array, np.eye(4)), tmp_path / name, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = write_nifti(Volume(np.ones((1, 2, 2, 2)), np.eye(4)), tmp_path / "volume.nii.gz")
    before = path.read_bytes()

    def full_disk(image, target):
        target.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(nib, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_nifti(Volume(np.zeros((1, 2, 2, 2)), np.eye(4)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def damage(kind: str, path) -> None:
    """Put a file at `path` that no reader should accept."""
    rng = np.random.default_rng(0)
    good = path.with_name("good.nii.gz")
    nib.save(nib.Nifti1Image(rng.normal(size=(20, 20, 20)).astype(np.float32), np.eye(4)), good)
    content = good.read_bytes()
    good.unlink()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(b"not an image at all" * 100)
    elif kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "flipped":
        path.write_bytes(content[:5000] + bytes(64) + content[5064:])
    elif kind == "4d":
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4, 3), np.float32), np.eye(4)), path)
    elif kind == "2d":
        nib.save(nib.Nifti1Image(np.ones((4, 4), np.float32), np.eye(4)), path)
    elif kind == "colour":
        colour = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
        nib.save(nib.Nifti1Image(colour, np.eye(4)), path)
    elif kind == "complex":
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.complex64), np.eye(4)), path)
    elif kind == "flat":
        image = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4))
        image.set_sform(np.diag([1, 1, 0, 1]), code=1)
        nib.save(image, path)


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "text", "cut", "flipped", "4d", "2d", "colour", "complex", "flat"]
)
def test_a_file_that_is_no_scan_is_named(tmp_path, kind):
    path = tmp_path / "patient7.nii.gz"
    damage(kind, path)
    with pytest.raises(UserError, match="patient7.nii.gz"):
        read_nifti(path)


def test_damage_to_any_header_byte_is_a_user_error_or_harmless(tmp_path):
    rng = np.random.default_rng(1)
    good, path = tmp_path / "good.nii", tmp_path / "bad.nii"
    nib.save(nib.Nifti1Image(rng.normal(size=(4, 4, 4)).astype(np.float32), np.eye(4)), good)
    content = good.read_bytes()
    refused = 0
    for _ in range(300):
        broken = bytearray(content)
        broken[rng.integers(348)] = rng.integers(256)
        path.write_bytes(broken)
        try:
            read_nifti(path)
        except UserError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(("unit", "mm"), [("micron", 1e-3), ("meter", 1e3), ("mm", 1), ("unknown", 1)])
def test_the_headers_unit_of_length_counts(tmp_path, unit, mm):
    image = nib.Nifti1Image(np.arange(64, dtype=np.float32).reshape(4, 4, 4), np.diag([2.0, 3.0, 5.0, 1.0]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(read_nifti(tmp_path / "scan.nii.gz").spacing, np.array([5, 3, 2]) * mm)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR"])
@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.hdr", "scan.mgz"])
def test_the_header_says_what_reading_gives(tmp_path, axes, name):
    scan(tmp_path / "first.nii", axes, 20)
    image = nib.load(tmp_path / "first.nii")
    kind = {"scan.hdr": nib.Nifti1Pair, "scan.mgz": nib.MGHImage}.get(name, nib.Nifti1Image)
    kind(np.asarray(image.dataobj), image.affine).to_filename(tmp_path / name)
    found = NiftiScan(name, with_voxels(tmp_path / name))
    header, volume = found.header(), found.read()
    assert header.shape == SHAPE == volume.shape[::-1]
    assert (header.dtype, header.orientation, header.remarks, header.personal) == ("int16", axes, (), ())
    np.testing.assert_array_equal(header.affine[:, [2, 1, 0, 3]], volume.affine)
    assert header.spacing("axial") == volume.spacing


def test_mgh_without_a_place_is_read_with_a_remark(tmp_path):
    path = tmp_path / "scan.mgh"
    nib.MGHImage(np.ones(SHAPE, np.float32), np.eye(4)).to_filename(path)
    content = bytearray(path.read_bytes())
    content[28:30] = bytes(2)  # goodRASFlag
    path.write_bytes(content)
    (remark,) = NiftiScan("scan.mgh", (path,)).header().remarks
    assert "goodRASFlag" in remark


def test_fields_that_may_hold_personal_data_are_named_never_quoted(tmp_path):
    image = nib.Nifti1Image(np.ones(SHAPE, np.float32), np.eye(4))
    image.header["descrip"], image.header["aux_file"] = b"Jane Doe", b"\0hidden"
    image.header["intent_name"] = b" "
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nib.save(image, tmp_path / "scan.nii.gz")
    header = NiftiScan("scan.nii.gz", (tmp_path / "scan.nii.gz",)).header()
    assert header.personal == ("descrip", "aux_file", "extension 6")
    assert "Jane" not in repr(header)


def test_our_own_samples_hold_nothing_personal(tmp_path):
    path = write_nifti(Volume(np.ones((1, 2, 2, 2)), np.eye(4)), tmp_path / "sample.nii.gz", description=DESCRIPTION)
    assert DESCRIPTION == SYNTHETIC
    assert NiftiScan("sample", (path,)).header().personal == ()


def test_forms_that_differ_by_rounding_are_no_remark(tmp_path):
    image = nib.Nifti1Image(np.ones((64, 64, 64), np.float32), np.eye(4))
    form = np.eye(4)
    for shift, remarked in ((0.09, False), (0.2, True)):
        form[0, 3] = shift
        image.set_sform(np.eye(4), 1)
        image.set_qform(form, 1, update_affine=False)
        nib.save(image, tmp_path / "scan.nii.gz")
        remarks = NiftiScan("scan", (tmp_path / "scan.nii.gz",)).header().remarks
        assert bool(remarks) == remarked
    assert "0.2 mm" in remarks[0]


@pytest.mark.parametrize("name", ["bad.mgh", "bad.hdr"])
def test_damage_to_other_formats_is_a_user_error_or_harmless(tmp_path, name):
    rng = np.random.default_rng(1)
    path = tmp_path / name
    kind = nib.MGHImage if name.endswith("mgh") else nib.Nifti1Pair
    kind(rng.normal(size=(4, 4, 4)).astype(np.float32), np.eye(4)).to_filename(path)
    content, refused = path.read_bytes(), 0
    for _ in range(300):
        broken = bytearray(content)
        broken[rng.integers(90 if name.endswith("mgh") else 348)] = rng.integers(256)
        path.write_bytes(broken)
        try:
            found = NiftiScan(name, with_voxels(path))
            found.header(), found.read()
        except UserError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("volume", [None, 0, "all"])
def test_damage_anywhere_in_a_header_never_hides_the_reason(tmp_path, volume):
    path = tmp_path / "bad.nii"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), path)
    content = path.read_bytes()
    for offset in range(348):
        for value in (0, 4, 127, 255):
            path.write_bytes(content[:offset] + bytes([value]) + content[offset + 1 :])
            try:
                for found in nifti_scans(path, "bad.nii", volume)[:2]:
                    found.header(), found.read()
            except UserError as error:
                assert "bad.nii" in str(error)


def test_no_log_of_nibabels_reaches_the_user(tmp_path, capfd):
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.float32), np.eye(4)), path)
    content = bytearray(path.read_bytes())
    content[80:84] = struct.pack("<f", -1)  # pixdim[1]
    path.write_bytes(content)
    NiftiScan("scan", (path,)).header()
    assert capfd.readouterr().err == ""


def test_a_damaged_shape_does_not_exhaust_the_memory(tmp_path):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.float32), np.eye(4)), path)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[40:50] = struct.pack("<5h", 4, 32767, 32767, 32767, 32767)
    path.write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match="scan.nii.gz.*at most"):
        nifti_scans(path, "scan", "all")
