"""DICOM series, checked against files that pydicom alone wrote, and against SimpleITK."""

import io
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    MRImageStorage,
    RLELossless,
    RTDoseStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from splitshuffle_gan.data.readers import dicom_file
from splitshuffle_gan.data.readers.dicom import find_series
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.volume import PLANES

SLICES, ROWS, COLUMNS = 6, 8, 10
SERIES, STUDY, SPACE = "1.2.826.0.1.1", "1.2.826.0.1.2", "1.2.826.0.1.3"


def turned(*degrees: float) -> np.ndarray:
    """A rotation about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = [k for k in range(3) if k != axis]
        one = np.eye(3)
        one[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = one @ matrix
    return matrix


class Truth:
    """A volume of stored values `[slice, row, column]`, and where each of its voxels is, in LPS mm."""

    def __init__(self, rotation=None, spacing=(2.5, 1.25, 0.75), origin=(-20.0, 11.0, 7.0), dtype=np.int16, seed=0):
        self.axes = np.eye(3) if rotation is None else rotation  # columns: along a row, along a column, the normal
        self.spacing, self.origin = spacing, np.array(origin)
        low, high = (0, 250) if np.dtype(dtype).itemsize == 1 else (-1000 if np.dtype(dtype).kind == "i" else 0, 3000)
        self.stored = np.random.default_rng(seed).integers(low, high, (SLICES, ROWS, COLUMNS)).astype(dtype)
        self.slope, self.intercept = np.ones(SLICES), np.zeros(SLICES)

    @property
    def positions(self) -> np.ndarray:
        """Of each slice's first pixel."""
        return self.origin + np.arange(len(self.stored))[:, None] * self.spacing[0] * self.axes[:, 2]

    @property
    def values(self) -> np.ndarray:
        return self.stored * self.slope[:, None, None] + self.intercept[:, None, None]

    def ras(self) -> np.ndarray:
        """`[slice, row, column, 3]`."""
        rows, columns = np.arange(self.stored.shape[1]), np.arange(self.stored.shape[2])
        along_row = columns[:, None] * self.spacing[2] * self.axes[:, 0]
        along_column = rows[:, None] * self.spacing[1] * self.axes[:, 1]
        lps = self.positions[:, None, None] + along_column[None, :, None] + along_row[None, None]
        return lps * [-1, -1, 1]


def digits(numbers) -> list[str]:
    """At most 16 characters each, as DICOM's decimal strings are."""
    return [f"{number:.16g}"[:16] if abs(number) >= 1e-4 else f"{number:.10f}" for number in numbers]


def one_slice(truth: Truth, index: int) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, f"{SERIES}.{index + 1}"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = STUDY, SERIES, SPACE
    data.Modality, data.SeriesNumber, data.InstanceNumber = "MR", 3, 1
    data.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    data.ImagePositionPatient = digits(truth.positions[index])
    data.ImageOrientationPatient = digits([*truth.axes[:, 0], *truth.axes[:, 1]])
    data.PixelSpacing, data.SliceThickness = digits(truth.spacing[1:]), truth.spacing[0]
    data.RescaleSlope, data.RescaleIntercept = digits([truth.slope[index], truth.intercept[index]])
    set_pixels(data, truth.stored[index])
    return data


def set_pixels(data: Dataset, pixels: np.ndarray) -> None:
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW"


def save(data: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(path, enforce_file_format=True)
    return path


def write(folder: Path, truth: Truth, edit=None, indices=None, order=None) -> list[Path]:
    """One file per slice, named by `order`; `edit(data, index)` may change a slice, or leave it out: False."""
    paths = []
    for index in range(SLICES) if indices is None else indices:
        data = one_slice(truth, index)
        if edit is None or edit(data, index) is not False:
            paths.append(save(data, folder / f"im{order[index] if order is not None else index:03d}.dcm"))
    return paths


def find(folder: Path, **options):
    return find_series([path for path in sorted(folder.rglob("*")) if not path.is_dir()], folder, **options)


def only_scan(folder: Path, **options):
    scans, rejected = find(folder, **options)
    assert (len(scans), rejected) == (1, [])
    return scans[0]


def check(volume, truth: Truth, within: float = 0.001) -> None:
    """Every voxel of the truth, and no other, is in the volume: its value exactly, its place to `within` mm."""
    ras, values = truth.ras().reshape(-1, 3), truth.values.ravel()
    assert volume.array[0].size == len(values)
    index = (np.linalg.inv(volume.affine) @ np.c_[ras, np.ones(len(ras))].T).T[:, :3]
    nearest = np.rint(index).astype(int)
    placed = nearest @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    assert np.linalg.norm(placed - ras, axis=1).max() < within
    assert (nearest >= 0).all()
    np.testing.assert_array_equal(volume.array[0][tuple(nearest.T)], values.astype(np.float32))


def reasons(rejected) -> str:
    return "\n".join(f"{bad.name}: {bad.reason}" for bad in rejected)


# --- What is right --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("degrees", [(0, 0, 0), (20, -10, 5), (90, 0, 0), (180, 5, 0), (0, 90, 90)])
def test_any_orientation_is_where_it_was(tmp_path, plane, degrees):
    truth = Truth(turned(*degrees))
    write(tmp_path, truth, order=[3, 0, 5, 1, 4, 2])
    scan = only_scan(tmp_path)
    volume, header = scan.read(plane), scan.header()
    check(volume, truth)
    columns = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    largest = np.abs(columns).argmax(axis=0)
    assert (columns[largest, range(3)] > 0).all(), "RAS+"
    assert header.shape == tuple(np.array(volume.shape)[np.argsort(PLANES[plane])])
    np.testing.assert_array_equal(header.affine[:, [*PLANES[plane], 3]], volume.affine)
    assert header.spacing(plane) == pytest.approx(volume.spacing)


def test_header_says_what_the_files_say(tmp_path):
    def edit(data, index):
        data.PatientName, data.PatientID, data.StudyDate, data.InstitutionName = "Doe^Jane", "123", "20200101", ""

    write(tmp_path / "mr brain", Truth(), edit)
    scan = only_scan(tmp_path)
    header = scan.header()
    assert scan.name == "mr brain/series-003"
    assert len(scan.paths) == SLICES
    assert (header.dtype, header.modality, header.orientation, header.remarks) == ("int16", "MR", "LPS", ())
    assert header.personal == ("PatientName", "PatientID", "StudyDate")
    assert "Doe" not in repr(scan) + repr(header)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32])
def test_every_type_with_slope_and_intercept_of_its_own_per_slice(tmp_path, dtype):
    truth = Truth(dtype=dtype)
    truth.slope, truth.intercept = np.linspace(0.5, 3, SLICES), np.linspace(-1024, 8, SLICES)
    write(tmp_path, truth)
    scan = only_scan(tmp_path)
    check(scan.read(), truth)
    assert scan.header().dtype == np.dtype(dtype).name
    assert any("each slice has its own" in remark for remark in scan.header().remarks)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
def test_transfer_syntaxes_that_need_no_decoder(tmp_path, syntax):
    truth = Truth()

    def edit(data, index):
        if syntax == RLELossless:
            data.compress(RLELossless)
        elif syntax == ExplicitVRBigEndian:
            data.PixelData = truth.stored[index].astype(">i2").tobytes()
        data.file_meta.TransferSyntaxUID = syntax

    write(tmp_path, truth, edit)
    check(only_scan(tmp_path).read(), truth)


def test_float_pixels(tmp_path):
    truth = Truth()
    truth.stored = np.random.default_rng(1).normal(size=truth.stored.shape).astype(np.float32)

    def edit(data, index):
        del data.PixelData, data.PixelRepresentation, data.BitsStored, data.HighBit
        data.FloatPixelData = truth.stored[index].tobytes()

    write(tmp_path, truth, edit)
    scan = only_scan(tmp_path)
    check(scan.read(), truth)
    assert scan.header().dtype == "float32"


def test_files_without_a_preamble_named_dcm(tmp_path):
    truth = Truth()
    for path in write(tmp_path, truth):
        data = pydicom.dcmread(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data.save_as(path, enforce_file_format=False)
        path.write_bytes(path.read_bytes()[132:])
    check(only_scan(tmp_path).read(), truth)


def enhanced(truth: Truth, shuffle=(4, 0, 5, 2, 1, 3)) -> Dataset:
    """One file with all slices, in any order; what is shared stands in the shared groups."""
    data = one_slice(truth, 0)
    data.SOPClassUID, data.NumberOfFrames = EnhancedMRImageStorage, SLICES
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        del data[keyword]
    del data.RescaleIntercept, data.SliceThickness
    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = digits([*truth.axes[:, 0], *truth.axes[:, 1]])
    measures.PixelSpacing, measures.SliceThickness = digits(truth.spacing[1:]), truth.spacing[0]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([plane]), Sequence([measures])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for index in shuffle:
        group, place, scaling = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = digits(truth.positions[index])
        scaling.RescaleSlope, scaling.RescaleIntercept = digits([truth.slope[index], truth.intercept[index]])
        group.PlanePositionSequence, group.PixelValueTransformationSequence = Sequence([place]), Sequence([scaling])
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = Sequence(groups)
    set_pixels(data, truth.stored[list(shuffle)])
    return data


@pytest.mark.parametrize("compressed", [False, True])
def test_a_multi_frame_file(tmp_path, compressed):
    truth = Truth(turned(15, 25, -30))
    truth.slope, truth.intercept = np.linspace(1, 2, SLICES), np.linspace(-5, 5, SLICES)
    data = enhanced(truth)
    if compressed:
        data.compress(RLELossless)
    save(data, tmp_path / "all")
    scan = only_scan(tmp_path)
    check(scan.read("coronal"), truth)
    assert scan.paths == (tmp_path / "all",)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    degrees=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 8)] * 3),
    origin=st.tuples(*[st.floats(-400, 400)] * 3),
    order=st.permutations(range(SLICES)),
    dtype=st.sampled_from([np.uint8, np.int16, np.uint16]),
    plane=st.sampled_from(list(PLANES)),
    multi_frame=st.booleans(),
)
def test_property_every_voxel_keeps_its_place_and_value(
    tmp_path_factory, degrees, spacing, origin, order, dtype, plane, multi_frame
):
    folder, truth = tmp_path_factory.mktemp("any"), Truth(turned(*degrees), spacing, origin, dtype)
    if multi_frame:
        save(enhanced(truth, order), folder / "all.dcm")
    else:
        write(folder, truth, order=order)
    check(only_scan(folder).read(plane), truth, within=0.01)


# --- Many series ----------------------------------------------------------------------------------------------------


def test_two_series_in_one_folder_and_one_in_another(tmp_path):
    def of(uid, number):
        def edit(data, index):
            data.SeriesInstanceUID, data.SeriesNumber = uid, number

        return edit

    first, second, third = Truth(seed=1), Truth(seed=2), Truth(seed=3)
    write(tmp_path / "a", first, of("1.2.3", 3), order=range(SLICES))
    write(tmp_path / "a", second, of("1.2.4", 4), order=range(10, 10 + SLICES))
    write(tmp_path / "b" / "c", third, of("1.2.5", 3))
    scans, rejected = find(tmp_path)
    assert [scan.name for scan in scans] == ["a/series-003", "a/series-004", "b/c/series-003"] and not rejected
    for scan, truth in zip(scans, (first, second, third), strict=True):
        check(scan.read(), truth)


def test_equal_numbers_get_names_that_last(tmp_path):
    for number, uid in enumerate(("1.2.3", "1.2.4")):
        truth = Truth(seed=number)
        write(tmp_path, truth, lambda data, _, uid=uid: setattr(data, "SeriesInstanceUID", uid), order=range(
            10 * number, 10 * number + SLICES))  # fmt: skip
    names = [scan.name for scan in find(tmp_path)[0]]
    assert len(set(names)) == 2 and all(name.startswith("series-003-") for name in names)
    files = list(tmp_path.iterdir())
    assert [scan.name for scan in find_series(files[::-1], tmp_path)[0]] == names


def test_mixed_sizes_become_parts(tmp_path):
    small, large = Truth(seed=1), Truth(seed=2, origin=(0, 0, 100))
    large.stored = np.repeat(large.stored, 2, axis=2)
    write(tmp_path / "x", small, order=range(SLICES))
    write(tmp_path / "x", large, order=range(10, 10 + SLICES))
    scans, rejected = find(tmp_path)
    assert [scan.name for scan in scans] == ["x/series-003-part-1", "x/series-003-part-2"] and not rejected
    for scan, truth in zip(scans, (small, large), strict=True):
        check(scan.read(), truth)
        assert "one part of a mixed series: 6 of 10x8, 6 of 20x8" in scan.header().remarks


def test_a_scan_crosses_processes_and_many_files_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.setattr("splitshuffle_gan.data.readers.dicom.CHUNK", 2)
    truth = Truth()
    write(tmp_path, truth)
    scans, rejected = find(tmp_path, workers=2)
    assert not rejected
    check(pickle.loads(pickle.dumps(scans[0])).read(), truth)


# --- What is odd, and corrected -------------------------------------------------------------------------------------


def jitter(amount):
    def edit(data, index):
        position = np.array(data.ImagePositionPatient, float) + [0, 0, amount * (-1) ** index * (0 < index < 5)]
        data.ImagePositionPatient = digits(position)

    return edit


def test_small_jitter_is_tolerated_and_said(tmp_path):
    truth = Truth()
    write(tmp_path, truth, jitter(0.05))
    scan = only_scan(tmp_path)
    check(scan.read(), truth)
    assert any("0.050 mm off an even spacing of 2.500 mm" in remark for remark in scan.header().remarks)


def test_equal_duplicates_are_dropped(tmp_path):
    truth = Truth()
    write(tmp_path / "a", truth)
    write(tmp_path / "b", truth, indices=[0, 3])
    scan = only_scan(tmp_path)
    check(scan.read(), truth)
    assert "2 duplicate slices of the same content were dropped" in scan.header().remarks


@pytest.mark.parametrize(
    "edit, phrase",
    [
        (lambda data, _: setattr(data, "PhotometricInterpretation", "MONOCHROME1"), "not inverted"),
        (lambda data, _: data.add_new("PixelPaddingValue", "SS", -2000), "stored value -2000 marks pixels outside"),
        (lambda data, _: setattr(data, "SliceThickness", 2), "2 mm thick and 2.5 mm apart (gaps"),
        (lambda data, _: setattr(data, "SliceThickness", 4), "4 mm thick and 2.5 mm apart (they overlap)"),
        (lambda data, _: setattr(data, "LossyImageCompression", "01"), "compressed with loss"),
        (lambda data, _: (setattr(data, "Modality", "CT"), data.__delitem__("RescaleIntercept"))[:0], "may not be HU"),
        (lambda data, _: data.private_block(0x11, "ACME", create=True).add_new(1, "UN", b"\0" * 64), None),
    ],
    ids=["monochrome1", "padding", "gaps", "overlap", "lossy", "not HU", "private"],
)
def test_remarks_leave_the_values_alone(tmp_path, edit, phrase):
    truth = Truth()
    write(tmp_path, truth, edit)
    scan = only_scan(tmp_path)
    check(scan.read(), truth)
    assert phrase is None or any(phrase in remark for remark in scan.header().remarks)


def tilted(degrees):
    """Slices that slide along their columns, as with a tilted gantry."""

    def edit(data, index):
        position = np.array(data.ImagePositionPatient, float)
        position[1] += index * 2.5 * np.tan(np.radians(degrees))
        data.ImagePositionPatient = digits(position)

    return edit


@pytest.mark.parametrize("degrees, more_rows", [(12, 3), (-20, 4)])
def test_a_tilt_is_refused_and_sheared_back_when_asked(tmp_path, degrees, more_rows):
    truth, tangent = Truth(), np.tan(np.radians(degrees))
    columns, rows = np.arange(COLUMNS), np.arange(ROWS)
    for index in range(SLICES):  # linear in the patient's frame, which linear interpolation restores
        y = truth.origin[1] + rows * 1.25 + index * 2.5 * tangent
        truth.stored[index] = np.rint(100 * y[:, None] + 50 * columns[None] + 1000 * index)
    write(tmp_path, truth, tilted(degrees))
    scans, rejected = find(tmp_path)
    assert (
        not scans
        and f"leans {abs(degrees)}.00 degrees" in rejected[0].reason
        and "--correct-tilt" in rejected[0].reason
    )
    scan = only_scan(tmp_path, correct_tilt=True)
    assert any(f"a tilt of {abs(degrees)}.00 degrees was corrected" in remark for remark in scan.header().remarks)
    volume = scan.read()
    assert volume.shape == (SLICES, ROWS + more_rows, COLUMNS)
    assert volume.spacing == pytest.approx((2.5, 1.25, 0.75))
    np.testing.assert_allclose(volume.affine[:3, 0] / 2.5, [0, 0, 1], atol=1e-9)
    d, h, w = np.indices(volume.shape).reshape(3, -1)
    ras = volume.affine[:3, :3] @ [d, h, w] + volume.affine[:3, 3:]
    y, value = -ras[1], volume.array[0].ravel()
    expected = 100 * y + 50 * np.rint((-ras[0] + 20) / 0.75) + 1000 * d
    start = truth.origin[1] + d * 2.5 * tangent
    inside = (y >= start) & (y <= start + (ROWS - 1) * 1.25)
    assert inside.sum() >= SLICES * (ROWS - 1) * COLUMNS
    assert abs(value - expected)[inside].max() <= 1.01  # what was rounded
    far = (y < start - 0.7) | (y > start + (ROWS - 1) * 1.25 + 0.7)
    assert far.any() and (value[far] == truth.stored.min()).all()


# --- What is refused ------------------------------------------------------------------------------------------------


def without(keyword):
    return lambda data, index: data.__delitem__(keyword) if index == 2 else None


def every(**values):
    def edit(data, index):
        for keyword, value in values.items():
            setattr(data, keyword, value)

    return edit


def colour(data, index):
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.PixelData = bytes(3 * 2 * ROWS * COLUMNS)


def three_planes(data, index):
    axes = turned(*[(0, 0, 0), (90, 0, 0), (0, 90, 0)][index % 3])
    data.ImageOrientationPatient = digits([*axes[:, 0], *axes[:, 1]])


def echoes(data, index):
    data.ImagePositionPatient = digits([-20, 11, 7 + 2.5 * (index // 2)])
    data.EchoTime = 10 + 5 * (index % 2)


def side_by_side(data, index):
    data.ImagePositionPatient = digits([30 * index, 0, 0])


def zigzag(data, index):
    position = np.array(data.ImagePositionPatient, float)
    position[0] += 5 * (index % 2) * (index < 5)
    data.ImagePositionPatient = digits(position)


def table(name, edit=None, phrase="", indices=None):
    return pytest.param(edit, indices, phrase, id=name)


SERIES_CASES = [
    table("missing position", without("ImagePositionPatient"), "im002.dcm: ImagePositionPatient is missing"),
    table("missing orientation", without("ImageOrientationPatient"), "im002.dcm: ImageOrientationPatient is missing"),
    table("missing spacing", without("PixelSpacing"), "im002.dcm: PixelSpacing is missing"),
    table("missing series UID", without("SeriesInstanceUID"), "im002.dcm: SeriesInstanceUID is missing"),
    table("zero spacing", every(PixelSpacing=["0", "1"]), "PixelSpacing is (0.0, 1.0); positive"),
    table("negative spacing", every(PixelSpacing=["-1", "1"]), "PixelSpacing is (-1.0, 1.0); positive"),
    table("two positions of three", every(ImagePositionPatient=["1", "2"]), "ImagePositionPatient is (1.0, 2.0); 3"),
    table("skewed orientation", every(ImageOrientationPatient=["1", "0", "0", "1", "0", "0"]), "at right angles"),
    table("zero orientation", every(ImageOrientationPatient=["0"] * 6), "two unit vectors"),
    table("zero slope", every(RescaleSlope="0"), "RescaleSlope is 0"),
    table("missing slice", None, "between 12.00 to 17.00 mm along", [0, 1, 2, 4, 5]),
    table("missing slice counted", None, "slices that seem to be missing: 1", [0, 1, 2, 4, 5]),
    table("uneven spacing", jitter(0.4), "unevenly spaced: 2.10 mm as a rule"),
    table("one slice", None, "one slice only", [0]),
    table("different slices at one position", echoes, "several echoes, time points"),
    table("what tells them apart", echoes, "they differ in EchoTime"),
    table("side by side", side_by_side, "lie side by side in one plane"),
    table("shifted in plane", zigzag, "shifted against each other within their plane"),
    table("localizer by type", every(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "a localizer (ImageType"),
    table("localizer by geometry", three_planes, "slices are not parallel (up to 90 degrees apart)"),
    table("mosaic", every(ImageType=["DERIVED", "PRIMARY", "MOSAIC"]), "a mosaic of slices"),
    table("gantry tilt", tilted(20), "leans 20.00 degrees from their normal"),
    table("too much tilt", tilted(60), "that is too much to correct"),
    table("colour", colour, "PhotometricInterpretation is RGB with 3 samples"),
    table("palette", every(PhotometricInterpretation="PALETTE COLOR"), "is PALETTE COLOR with 1 samples"),
    table("secondary capture", every(SOPClassUID=SecondaryCaptureImageStorage), "Secondary Capture Image Storage"),
    table("segmentation", every(SOPClassUID=SegmentationStorage), "a Segmentation Storage object, not a scan"),
    table("dose", every(SOPClassUID=RTDoseStorage), "a RT Dose Storage object, not a scan"),
    table("no pixels", lambda data, _: data.__delitem__("PixelData"), "has no pixel data"),
    table("no rows", lambda data, _: data.__delitem__("Rows"), "Rows or Columns are missing"),
    table("one bit", every(BitsAllocated=1), "BitsAllocated is 1"),
    table("frames without places", every(NumberOfFrames=2), "2 frames, and PerFrameFunctionalGroupsSequence places 0"),
    table("pixels cut", lambda data, _: setattr(data, "PixelData", data.PixelData[:50]), "50 of 160 bytes of pixels"),
    table("table of values", every(ModalityLUTSequence=Sequence([Dataset()])), "has a ModalityLUTSequence"),
]


@pytest.mark.parametrize("edit, indices, phrase", SERIES_CASES)
def test_torture_of_series(tmp_path, edit, indices, phrase):
    write(tmp_path, Truth(), edit, indices)
    scans, rejected = find(tmp_path, correct_tilt="too much" in phrase)
    assert phrase in reasons(rejected)
    for scan in scans:  # never a wrong volume: what is left says that something is missing
        assert any("files of the series that are left out" in remark for remark in scan.header().remarks)


def structure_set() -> Dataset:
    data = one_slice(Truth(), 0)
    for keyword in ("Rows", "Columns", "PixelData", "ImagePositionPatient", "ImageOrientationPatient"):
        del data[keyword]
    data.SOPClassUID = RTStructureSetStorage
    return data


def dicomdir() -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.1.3.10")
    data.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    data.FileSetID = "X"
    return data


FILE_CASES = {
    "text": (lambda path: path.write_text("patient list\n" * 99), "not a DICOM file"),
    "text named dcm": (lambda path: path.with_suffix(".dcm").write_text("hello" * 99), "not a DICOM file"),
    "empty": (lambda path: path.with_suffix(".dcm").write_bytes(b""), "an empty file .0 bytes."),
    "preamble alone": (lambda path: path.write_bytes(bytes(128) + b"DICM"), "damaged DICOM|holds no image"),
    "noise after the preamble": (
        lambda path: path.write_bytes(bytes(128) + b"DICM" + np.random.default_rng(0).bytes(999)),
        "damaged DICOM|holds no image",
    ),
    "link to nowhere": (lambda path: path.symlink_to("nowhere"), "not a file that can be read"),
    "named pipe": (lambda path: os.mkfifo(path), "not a file that can be read"),
    "structure set": (lambda path: save(structure_set(), path), "holds no image .RT Structure Set Storage."),
    "DICOMDIR": (lambda path: save(dicomdir(), path), "a DICOMDIR, the index"),
}


@pytest.mark.parametrize("case", FILE_CASES)
def test_torture_of_files_beside_a_good_series(tmp_path, case):
    make, phrase = FILE_CASES[case]
    truth = Truth()
    write(tmp_path, truth)
    make(tmp_path / "Øther file")
    scans, rejected = find(tmp_path)
    check(scans[0].read(), truth)
    assert len(rejected) == 1 and rejected[0].name.startswith("Øther file")
    assert any(part in rejected[0].reason.replace("(", ".").replace(")", ".") for part in phrase.split("|"))


def test_a_scout_within_a_series_is_left_out_alone(tmp_path):
    truth, scout = Truth(), one_slice(Truth(turned(90, 0, 0)), 0)
    write(tmp_path, truth)
    save(scout, tmp_path / "scout.dcm")
    scans, rejected = find(tmp_path)
    check(scans[0].read(), truth)
    assert rejected[0].name == "scout.dcm" and "not parallel" in rejected[0].reason
    assert any("files of the series that are left out: 1" in remark for remark in scans[0].header().remarks)


def test_pixels_without_a_decoder_come_with_the_remedy(tmp_path):
    def edit(data, index):
        data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9" * 20])
        data["PixelData"].VR = "OB"
        data.file_meta.TransferSyntaxUID = JPEGLosslessSV1

    write(tmp_path, Truth(), edit)
    if not dicom_file.decoder_missing(JPEGLosslessSV1):
        pytest.skip("a decoder for JPEG Lossless is installed")
    scans, rejected = find(tmp_path)
    assert not scans and len(rejected) == 1
    assert "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg" in rejected[0].reason


def test_damaged_compressed_pixels_are_a_user_error(tmp_path):
    paths = write(tmp_path, Truth(), lambda data, _: data.compress(RLELossless))
    content = paths[2].read_bytes()
    paths[2].write_bytes(content[:-150] + bytes(142) + content[-8:])
    scan = only_scan(tmp_path)
    with pytest.raises(UserError, match=r"im002\.dcm: the pixels cannot be read"):
        scan.read()
    paths[2].write_bytes(content[:-60])
    assert "im002.dcm: is cut short within its compressed pixels" in reasons(find(tmp_path)[1])


def test_a_series_that_was_cut_at_its_end_says_so(tmp_path):
    paths = write(tmp_path, Truth())
    paths[-1].write_bytes(paths[-1].read_bytes()[:-20])
    scans, rejected = find(tmp_path)
    assert scans[0].read().shape[0] == SLICES - 1
    assert "files of the series that are left out: 1; see what was rejected" in scans[0].header().remarks
    assert reasons(rejected).startswith("im005.dcm: is cut short: 140 of 160 bytes of pixels")


def test_a_hole_left_by_a_bad_file_is_explained(tmp_path):
    write(tmp_path, Truth(), without("PixelSpacing"))
    scans, rejected = find(tmp_path)
    assert not scans and rejected[1].reason.startswith(
        "the series without 1 files that are rejected themselves: slices"
    )


def test_a_radial_series_of_many_directions_is_refused_at_once(tmp_path):
    def edit(data, index):
        axes = turned(0, 0, 3 * index)
        data.ImageOrientationPatient = digits([*axes[:, 2], *axes[:, 0]])

    truth = Truth()
    truth.stored = np.zeros((60, ROWS, COLUMNS), np.int16)
    truth.slope, truth.intercept = np.ones(60), np.zeros(60)
    write(tmp_path, truth, edit, indices=range(60))
    scans, rejected = find(tmp_path)
    assert not scans and "different sizes or directions" in rejected[0].reason


def test_jpeg_2000_through_an_optional_decoder(tmp_path):
    truth = Truth(dtype=np.uint16)

    def edit(data, index):
        stream = io.BytesIO()
        Image.fromarray(truth.stored[index]).save(stream, "JPEG2000", no_jp2=True)
        data.PixelData = pydicom.encaps.encapsulate([stream.getvalue()])
        data["PixelData"].VR = "OB"
        data.file_meta.TransferSyntaxUID = JPEG2000Lossless

    if dicom_file.decoder_missing(JPEG2000Lossless):
        pytest.skip("no decoder for JPEG 2000 is installed")
    write(tmp_path, truth, edit)
    check(only_scan(tmp_path).read(), truth)


def test_a_copy_of_a_multi_frame_file_is_a_duplicate(tmp_path):
    truth = Truth()
    save(enhanced(truth), tmp_path / "a.dcm")
    save(enhanced(truth), tmp_path / "b.dcm")
    scan = only_scan(tmp_path)
    check(scan.read(), truth)
    assert scan.paths == (tmp_path / "a.dcm",)


def test_a_deflated_bomb_is_not_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_file, "MAX_INFLATED", 2**20)

    def edit(data, index):
        data.private_block(0x11, "ACME", create=True).add_new(1, "OB", bytes(2**22))
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    write(tmp_path, Truth(), edit)
    scans, rejected = find(tmp_path)
    assert not scans and "inflates to more than" in rejected[0].reason


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda path: path.unlink(), "im002.dcm"),
        (lambda path: path.write_text("gone"), "not a DICOM file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "im002.dcm"),
        (lambda path: path.write_bytes(path.with_name("im003.dcm").read_bytes()), "has changed since"),
    ],
    ids=["removed", "replaced", "cut", "another slice"],
)
def test_files_that_change_between_finding_and_reading(tmp_path, change, message):
    paths = write(tmp_path, Truth())
    scan = only_scan(tmp_path)
    change(paths[2])
    with pytest.raises(UserError, match=message):
        scan.read()


def test_damage_to_any_header_byte_is_rejected_or_harmless(tmp_path):
    rng = np.random.default_rng(2)
    path = write(tmp_path, Truth(), lambda data, index: index == 0)[0]
    write(tmp_path, Truth(), indices=range(1, SLICES))
    save(enhanced(Truth()), tmp_path / "x" / "all.dcm")
    content, length = path.read_bytes(), 160
    outcomes = set()
    for victim in (path, tmp_path / "x" / "all.dcm"):
        content = victim.read_bytes()
        for _ in range(60):
            broken = bytearray(content)
            for _ in range(rng.integers(1, 4)):
                broken[rng.integers(128, len(content) - length)] = rng.integers(256)
            victim.write_bytes(broken)
            scans, rejected = find_series([victim, *sorted(tmp_path.glob("im*.dcm"))], tmp_path)
            outcomes.add(bool(rejected))
            for scan in scans:
                try:
                    scan.read()
                except UserError:
                    outcomes.add("unreadable")
        victim.write_bytes(content)
    assert True in outcomes


# --- An independent reader ------------------------------------------------------------------------------------------


def compare_with_itk(folder: Path, root: Path):
    sitk = pytest.importorskip("SimpleITK")
    scans, rejected = find_series(sorted(folder.iterdir()), root)
    assert len(scans) == 1 and not rejected
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    array = sitk.GetArrayFromImage(image)
    volume = scans[0].read()
    assert array.size == volume.array.size
    index = np.indices(array.shape).reshape(3, -1)[::-1]  # x, y, z
    direction = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    ras = (direction @ index + np.reshape(image.GetOrigin(), (3, 1))) * [[-1], [-1], [1]]
    ours = np.linalg.inv(volume.affine) @ np.r_[ras, np.ones((1, ras.shape[1]))]
    nearest = np.rint(ours[:3]).astype(int)
    placed = volume.affine[:3, :3] @ nearest + volume.affine[:3, 3:]
    assert np.linalg.norm(placed - ras, axis=0).max() < 0.01
    np.testing.assert_array_equal(volume.array[0][tuple(nearest)], array.ravel().astype(np.float32))
    return scans[0], volume


def test_synthetic_oblique_series_agrees_with_itk(tmp_path):
    truth = Truth(turned(30, -20, 75))
    truth.slope, truth.intercept = np.full(SLICES, 2.0), np.full(SLICES, -1024.0)
    write(tmp_path, truth, lambda data, _: setattr(data, "SOPClassUID", CTImageStorage), order=[5, 2, 0, 1, 4, 3])
    compare_with_itk(tmp_path, tmp_path)


def test_real_oblique_mr_agrees_with_itk(real_data):
    folder = real_data / "dicom" / "mr-brain-t1post"
    if not folder.is_dir():
        pytest.skip("no dicom/mr-brain-t1post among the real scans")
    scan, volume = compare_with_itk(folder, real_data)
    assert volume.shape == (22, 320, 280)
    # 5 mm thick, and 6.5 mm from one to the next.
    assert volume.spacing == pytest.approx((6.5, 0.6875, 0.6875), abs=1e-5)
    assert scan.name == "dicom/mr-brain-t1post/series-011"
    assert "PatientName" in scan.header().personal and scan.header().modality == "MR"


def test_real_ct_is_in_hu_and_agrees_with_itk(real_data):
    folder = real_data / "dicom" / "ct-heart-generated"
    if not folder.is_dir():
        pytest.skip("no dicom/ct-heart-generated among the real scans")
    scan, volume = compare_with_itk(folder, real_data)
    assert volume.shape == (64, 256, 256)
    assert volume.spacing == pytest.approx((2.5, 0.4921875, 0.4921875), abs=1e-5)
    assert volume.array.min() == -450 and scan.header().modality == "CT"
