"""A DICOM series says where its voxels are, what they are worth, and that they are nobody's."""

from itertools import product

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, MRImageStorage
from scipy.spatial.transform import Rotation

from splitshuffle_gan import __version__
from splitshuffle_gan.data import dicom_out
from splitshuffle_gan.data.dicom_out import write_dicom
from splitshuffle_gan.data.readers.dicom import find_series
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.volume import IntensityMap, Volume, grid_affine

SHAPE, SPACING = (5, 6, 7), (3.0, 1.25, 0.7)
PLANES = ("axial", "coronal", "sagittal")
LPS = np.array([-1.0, -1.0, 1.0])

# PS3.3, A.3.3 and A.4.3: attributes of type 1 (a value is needed) and 2 (may be empty) of the mandatory modules.
TYPE_1 = {
    "General Study": "StudyInstanceUID",
    "General Series": "Modality SeriesInstanceUID",
    "Frame of Reference": "FrameOfReferenceUID",
    "Image Plane": "PixelSpacing ImageOrientationPatient ImagePositionPatient",
    "Image Pixel": "SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit "
    "PixelRepresentation PixelData",
    "SOP Common": "SOPClassUID SOPInstanceUID",
    "CT Image": "ImageType RescaleIntercept RescaleSlope",
    "MR Image": "ImageType ScanningSequence SequenceVariant",
}
TYPE_2 = {
    "Patient": "PatientName PatientID PatientBirthDate PatientSex",
    "General Study": "StudyDate StudyTime ReferringPhysicianName StudyID AccessionNumber",
    "General Series": "SeriesNumber PatientPosition",
    "Frame of Reference": "PositionReferenceIndicator",
    "General Equipment": "Manufacturer",
    "General Image": "InstanceNumber",
    "Image Plane": "SliceThickness",
    "CT Image": "KVP AcquisitionNumber",
    "MR Image": "ScanOptions MRAcquisitionType RepetitionTime EchoTime EchoTrainLength",
}
# Of a person, an institution or a moment; none may have a value.
PERSONAL = (
    "PatientBirthDate PatientSex PatientAge PatientAddress OtherPatientIDs StudyDate StudyTime SeriesDate "
    "AcquisitionDate ContentDate StudyID AccessionNumber ReferringPhysicianName PerformingPhysicianName OperatorsName "
    "InstitutionName InstitutionAddress StationName DeviceSerialNumber"
).split()


def make_volume(plane="axial", oblique=False, low=-250, high=650, whole=True) -> Volume:
    affine = grid_affine(SHAPE, SPACING, plane, centre=(11.0, -22.0, 333.0))
    if oblique:
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("xyz", (17, -31, 12), degrees=True).as_matrix()
        affine = turn @ affine
    values = np.random.default_rng(0).uniform(low, high, (1, *SHAPE))
    return Volume(np.rint(values) if whole else values, affine)


def write(volume, folder, **changes):
    settings = {"modality": "CT", "name": "seed0000", "description": "synthetic volume", "uid_seed": "abc"}
    return write_dicom(volume, folder, **(settings | changes))


def read(folder) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def by_pydicom(folder):
    """World positions (RAS mm) and values of all pixels, by the equation of PS3.3 C.7.6.2.1.1."""
    positions, values = [], []
    for image in read(folder):
        down, across = map(float, image.PixelSpacing)
        along_row, along_column = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
        for row, column in product(range(image.Rows), range(image.Columns)):
            place = np.array(image.ImagePositionPatient, float)
            positions.append(place + along_row * across * column + along_column * down * row)
        values.append(image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept))
    return np.array(positions) * LPS, np.concatenate([v.ravel() for v in values])


def by_itk(folder):
    itk = pytest.importorskip("SimpleITK")
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(itk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    index = list(product(*map(range, image.GetSize())))
    positions = np.array([image.TransformIndexToPhysicalPoint(i) for i in index]) * LPS
    return positions, np.array([image[i] for i in index], dtype=float)


def compare(volume: Volume, positions, values, tolerance):
    """Every voxel is there once, within 0.01 mm of its place."""
    index = (np.linalg.inv(volume.affine) @ np.column_stack([positions, np.ones(len(positions))]).T)[:3].T
    nearest = np.rint(index).astype(int)
    moved = (nearest - index) @ volume.affine[:3, :3].T
    assert np.linalg.norm(moved, axis=1).max() < 0.01
    assert len({tuple(i) for i in nearest}) == len(nearest) == volume.array.size
    np.testing.assert_allclose(values, volume.array[0][tuple(nearest.T)], atol=tolerance, rtol=0)


@pytest.mark.parametrize("reader", [by_pydicom, by_itk])
@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("plane", PLANES)
def test_every_voxel_is_read_back_in_its_place(tmp_path, plane, oblique, modality, reader):
    if modality == "CT":
        volume, tolerance = make_volume(plane, oblique), 1e-9
    else:
        volume = make_volume(plane, oblique, 13.7, 9876.5, whole=False)
        tolerance = (volume.array.max() - volume.array.min()) / 4095 / 2 * 1.01
    folder = write(volume, tmp_path / "series", modality=modality)
    assert folder == tmp_path / "series" and len(list(folder.iterdir())) == SHAPE[0]
    compare(volume, *reader(folder), tolerance)


@pytest.mark.parametrize("plane,directions", [
    ("axial", [1, 0, 0, 0, 1, 0]), ("coronal", [1, 0, 0, 0, 0, -1]), ("sagittal", [0, 1, 0, 0, 0, -1]),
])  # fmt: skip
def test_slices_are_as_radiologists_look_at_them(tmp_path, plane, directions):
    images = read(write(make_volume(plane), tmp_path / "series"))
    positions = []
    for number, image in enumerate(images, start=1):
        assert list(image.ImageOrientationPatient) == directions
        assert image.InstanceNumber == number
        normal = np.cross(directions[:3], directions[3:])
        positions.append(normal @ np.array(image.ImagePositionPatient, float))
        assert float(image.SliceLocation) == pytest.approx(positions[-1])
        assert [float(mm) for mm in image.PixelSpacing] == [SPACING[1], SPACING[2]]
        assert float(image.SliceThickness) == float(image.SpacingBetweenSlices) == SPACING[0]
    np.testing.assert_allclose(np.diff(positions), SPACING[0])


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_required_attributes(tmp_path, modality):
    other = {"CT": "MR Image", "MR": "CT Image"}[modality]
    for image in read(write(make_volume(), tmp_path / modality, modality=modality)):
        for module in TYPE_1.keys() - {other}:
            for keyword in TYPE_1[module].split():
                assert keyword in image and image[keyword].value not in ("", None), f"{module}: {keyword}"
        for module in TYPE_2.keys() - {other}:
            for keyword in TYPE_2[module].split():
                assert keyword in image, f"{module}: {keyword}"
        assert image.SOPClassUID == {"CT": CTImageStorage, "MR": MRImageStorage}[modality]
        assert image.file_meta.MediaStorageSOPClassUID == image.SOPClassUID
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
        assert image.Modality == modality
        stored = (image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation)
        assert stored == {"CT": (16, 16, 15, 1), "MR": (16, 12, 11, 0)}[modality]
        assert image.RescaleType == {"CT": "HU", "MR": "US"}[modality]
        for element in image:
            for text in map(str, element.value if element.VM > 1 else [element.value]):
                assert element.VR != "DS" or len(text) <= 16
                assert element.VR not in ("LO", "PN") or len(text) <= 64


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_it_is_marked_as_synthetic_and_is_nobodys(tmp_path, modality):
    folder = write(make_volume(), tmp_path / "s", modality=modality, description="synthetic volume, splitshuffle_gan")
    for image in read(folder):
        assert list(image.ImageType) == [
            "DERIVED", "SECONDARY", {"CT": "AXIAL", "MR": "OTHER"}[modality], "SYNTHETIC",
        ]  # fmt: skip
        assert image.SeriesDescription == "synthetic volume, splitshuffle_gan"
        assert image.DerivationDescription
        assert (image.SyntheticData, image.ContentQualification, image.BurnedInAnnotation) == ("YES", "RESEARCH", "NO")
        assert (image.Manufacturer, image.SoftwareVersions) == ("splitshuffle_gan", __version__)
        assert image.PatientName == image.PatientID == "SYNTHETIC^seed0000"
        for keyword in PERSONAL:
            assert not image.get(keyword), keyword
        assert not any(element.tag.is_private for element in image)
    (scan,), _ = find_series(sorted(folder.iterdir()), tmp_path)
    assert scan.header().personal == ()


def test_uids(tmp_path):
    """One each; equal volumes have equal ones, and whatever differs gives others."""

    def uids(folder):
        images = read(folder)
        shared = {(i.StudyInstanceUID, i.SeriesInstanceUID, i.FrameOfReferenceUID) for i in images}
        assert len(shared) == 1
        found = {*shared.pop(), *(i.SOPInstanceUID for i in images)}
        assert len(found) == 3 + SHAPE[0] and all(uid.is_valid for uid in found)
        return found

    first, again = write(make_volume(), tmp_path / "first"), write(make_volume(), tmp_path / "again")
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    seen = uids(first)
    one_voxel = make_volume()
    one_voxel.array[0, 0, 0, 0] += 1
    moved = Volume(make_volume().array, grid_affine(SHAPE, SPACING))
    for number, (volume, changes) in enumerate([
        (make_volume(), {"name": "seed0001"}), (make_volume(), {"uid_seed": "abd"}),
        (make_volume(), {"modality": "MR"}), (one_voxel, {}), (moved, {}),
    ]):  # fmt: skip
        others = uids(write(volume, tmp_path / str(number), **changes))
        assert not seen & others
        seen |= others


def test_hu_come_back_from_the_window_to_half_a_unit(tmp_path):
    hu = make_volume(low=-1200, high=1800)
    window = IntensityMap("window", -250, 650)
    drawn = Volume(window.from_unit(window.to_unit(hu.array)), hu.affine)
    _, values = by_pydicom(write(drawn, tmp_path / "series", bounds=(-250, 650)))
    assert set(values) == set(np.clip(hu.array, -250, 650).ravel())
    compare(Volume(np.clip(hu.array, -250, 650), hu.affine), *by_pydicom(tmp_path / "series"), 1e-9)
    image = read(tmp_path / "series")[0]
    assert (float(image.WindowCenter), float(image.WindowWidth)) == (200, 900)


def test_a_real_series_comes_back_as_it_was_inside_the_window(tmp_path, real_data):
    """Its HU and its place, through this package's arrays and back, by an independent reader."""
    itk = pytest.importorskip("SimpleITK")
    folder = real_data / "dicom" / "ct-heart-generated"
    if not folder.is_dir():
        pytest.skip("no dicom/ct-heart-generated among the real scans")

    def load(path):
        reader = itk.ImageSeriesReader()
        reader.SetFileNames(itk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)))
        return reader.Execute()

    source = load(folder)
    corner = np.array(source.TransformIndexToPhysicalPoint((0, 0, 0)))
    steps = [np.array(source.TransformIndexToPhysicalPoint(i)) - corner for i in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert np.sign([steps[0][0], steps[1][1], steps[2][2]]).tolist() == [1, 1, 1]  # to the left, back and head
    array = np.clip(itk.GetArrayFromImage(source).astype(np.float32), -250, 650)[:, ::-1, ::-1]
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([steps[2], -steps[1], -steps[0]]) * LPS[:, None]
    affine[:3, 3] = np.array(source.TransformIndexToPhysicalPoint((*(n - 1 for n in source.GetSize()[:2]), 0))) * LPS
    window = IntensityMap("window", -250, 650)
    volume = Volume(window.from_unit(window.to_unit(array))[None], affine)
    back = load(write(volume, tmp_path / "series", bounds=(-250, 650)))
    wanted = np.clip(itk.GetArrayFromImage(source), -250, 650)
    np.testing.assert_array_equal(itk.GetArrayFromImage(back), wanted)
    for index in ((0, 0, 0), (3, 200, 60), tuple(n - 1 for n in source.GetSize())):
        here, there = (np.array(i.TransformIndexToPhysicalPoint(index)) for i in (back, source))
        assert np.linalg.norm(here - there) < 0.01


@pytest.mark.parametrize("low,high", [(0, 1), (0, 1.7e6), (-3e-7, 2e-7), (5, 5)])
def test_mr_resolves_any_range_in_4095_steps(tmp_path, low, high):
    volume = make_volume(low=low, high=high, whole=False)
    compare(volume, *by_pydicom(write(volume, tmp_path / "s", modality="MR", bounds=(low, high))), (high - low) / 8000)
    stored = np.array([image.pixel_array for image in read(tmp_path / "s")])
    assert stored.min() >= 0 and stored.max() <= 4095


def test_the_bounds_are_the_scale_of_all_series_of_a_set(tmp_path):
    dim = make_volume(low=100, high=300, whole=False)
    images = read(write(dim, tmp_path / "s", modality="MR", bounds=(0, 4095)))
    assert {(float(i.RescaleSlope), float(i.RescaleIntercept)) for i in images} == {(1, 0)}


def test_axes_that_are_not_at_right_angles_are_refused(tmp_path):
    affine = make_volume().affine.copy()
    tilted = affine.copy()
    tilted[1, 0] += 0.3  # a gantry's tilt
    with pytest.raises(UserError, match="seed0000: its axes are not at right angles"):
        write(Volume(make_volume().array, tilted), tmp_path / "series")
    assert not list(tmp_path.iterdir())
    affine[1, 0] += 1e-3
    volume = Volume(make_volume().array, affine)
    write(volume, tmp_path / "series")
    compare(volume, *by_pydicom(tmp_path / "series"), 1e-9)


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="taken exists already"):
        write(make_volume(), tmp_path / "taken")
    real, written = pydicom.dcmwrite, []

    def full_disk(path, *arguments, **options):
        written.append(path)
        if len(written) > 2:
            raise OSError(28, "No space left on device")
        real(path, *arguments, **options)

    monkeypatch.setattr(dicom_out.pydicom, "dcmwrite", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(make_volume(), tmp_path / "series")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("changes,told", [
    ({"modality": "PT"}, "modality: found 'PT'"), ({"name": "Doe^Jane"}, "name: found"), ({"name": ""}, "name: found"),
])  # fmt: skip
def test_bad_arguments(tmp_path, changes, told):
    with pytest.raises(ValueError, match=told):
        write(make_volume(), tmp_path / "series", **changes)
    for value in (np.nan, 4e4):
        volume = make_volume()
        volume.array[0, 0, 0, 0] = value
        with pytest.raises(ValueError, match="seed0000"):
            write(volume, tmp_path / "series")
    assert not list(tmp_path.iterdir())
