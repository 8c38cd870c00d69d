"""COCA's outlines: the voxels they name, wherever the series' slices and rows run."""

import json
import os
import plistlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from splitshuffle_gan.data.known.coca import VESSELS, draw_labels, fill, read_outlines
from splitshuffle_gan.data.known.fetch import FetchConfig, fetch
from splitshuffle_gan.data.readers.scan import Header
from splitshuffle_gan.errors import UserError

COLUMNS, ROWS, SLICES = 40, 32, 12
SPACING = (0.5, 0.7, 3.0)  # along a row (x), along a column (y), between slices
ORIGIN = np.array([-80.0, -120.0, 30.0])  # LPS mm of the lowest slice's first pixel
LAD, RCA = "Left Anterior Descending Artery", "Right Coronary Artery"


def place(column: float, row: float, level: float) -> np.ndarray:
    """LPS mm of a pixel's centre in an axial series: columns run to the left, rows to the back, levels up."""
    return ORIGIN + np.array([column, row, level]) * SPACING


def header() -> Header:
    """The grid after it was brought to RAS+."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = place(COLUMNS - 1, ROWS - 1, 0) * (-1, -1, 1)
    return Header((COLUMNS, ROWS, SLICES), affine, "int16", "CT", "LPS")


def voxel(column: int, row: int, level: int) -> tuple[int, int, int]:
    return COLUMNS - 1 - column, ROWS - 1 - row, level


def roi(name: str, corners: list[tuple[float, float]], level: float, mm: bool = True) -> dict:
    """An outline as OsiriX writes it: pixels from the outer corner, mm of the same points."""
    points = [place(x - 0.5, y - 0.5, level) for x, y in corners]
    return {
        "Name": name,
        "NumberOfPoints": len(corners),
        "Area": 1.0,
        "Point_px": [f"({x:f}, {y:f})" for x, y in corners],
        **({"Point_mm": ["({:f}, {:f}, {:f})".format(*point) for point in points]} if mm else {}),
    }


def write_list(path: Path, *images: tuple[int, list[dict]]) -> Path:
    content = [{"ImageIndex": index, "NumberOfROIs": len(rois), "ROIs": rois} for index, rois in images]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(plistlib.dumps({"Images": content}))
    return path


# Pixels 10..13 of rows 5..6, exactly.
BLOCK = [(10, 5), (14, 5), (14, 7), (10, 7)]
BLOCK_PIXELS = {(column, row) for column in range(10, 14) for row in (5, 6)}


def labelled(array: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(i) for i in index) for index in np.argwhere(array)}


def test_an_outline_is_the_pixels_whose_centres_it_holds(tmp_path):
    path = write_list(
        tmp_path / "1.xml", (3, [roi(LAD, BLOCK, 3)]), (9, [roi(RCA, [(1, 1), (2, 1), (2, 2), (1, 2)], 9)])
    )
    labels = draw_labels(read_outlines(path), header(), "1.xml")
    assert labelled(labels.array == VESSELS["LAD"]) == {voxel(column, row, 3) for column, row in BLOCK_PIXELS}
    assert labelled(labels.array == VESSELS["RCA"]) == {voxel(1, 1, 9)}
    assert labels.voxels == {"LAD": 8, "LCX": 0, "RCA": 1, "LCA": 0} and labels.remarks == ()


def test_mm_count_more_than_the_viewers_number(tmp_path):
    path = write_list(tmp_path / "1.xml", (SLICES - 1 - 3, [roi(LAD, BLOCK, 3)]))
    labels = draw_labels(read_outlines(path), header(), "1.xml")
    assert {index[2] for index in labelled(labels.array)} == {3} and "ImageIndex" in labels.remarks[0]


def test_without_mm_the_number_counts_from_the_lowest(tmp_path):
    path = write_list(tmp_path / "1.xml", (3, [roi(LAD, BLOCK, 3, mm=False)]))
    labels = draw_labels(read_outlines(path), header(), "1.xml")
    assert labelled(labels.array) == {voxel(column, row, 3) for column, row in BLOCK_PIXELS}
    assert "no Point_mm" in labels.remarks[0]
    oblique = Header(header().shape, header().affine, "int16", "CT", "PSR")
    with pytest.raises(UserError, match="not axial"):
        draw_labels(read_outlines(path), oblique, "1.xml")


def test_a_speck_between_all_centres_is_one_voxel():
    plane = np.zeros((9, 9), np.uint8)
    fill(plane, np.array([(4.1, 6.1), (4.3, 6.1), (4.2, 6.4)]), 2)
    fill(plane, np.array([(1.2, 1.1)]), 3)
    assert labelled(plane) == {(4, 6), (1, 1)} and plane[4, 6] == 2


def test_filling_agrees_with_an_independent_polygon():
    from matplotlib.path import Path as Polygon

    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(30), np.arange(20), indexing="ij"), axis=-1)
    for corners in (3, 5, 12, 40):
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        radii = rng.uniform(3, 9, corners)
        polygon = np.column_stack([14.3 + radii * np.cos(angles), 9.6 + radii * np.sin(angles)])
        plane = np.zeros((30, 20), np.uint8)
        fill(plane, polygon, 1)
        wanted = Polygon(polygon).contains_points(grid.reshape(-1, 2)).reshape(30, 20)
        assert np.array_equal(plane.astype(bool), wanted) and wanted.any()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: r | {"Name": "Aorta"}, "'Aorta' is unknown"),
        (lambda r: r | {"Point_px": ["(1, 2, 3)"] * 4}, "Point_px holds"),
        (lambda r: r | {"Point_px": ["(nan, 2)"] * 4}, "Point_px holds"),
        (lambda r: r | {"Point_mm": r["Point_mm"][:3]}, "4 Point_px but 3 Point_mm"),
        (lambda r: {key: value for key, value in r.items() if key != "Name"}, "field is missing"),
        (lambda r: roi(LAD, BLOCK, 3.5), "slices off"),
        (lambda r: roi(LAD, BLOCK, 77), "another series"),
        (lambda r: roi(LAD, [(x + 38, y) for x, y in BLOCK], 3), "another series"),
        (lambda r: r | {"Point_px": roi(LAD, [(x + 3, y) for x, y in BLOCK], 3)["Point_px"]}, "disagree by 3.0 pixels"),
    ],
)
def test_outlines_that_do_not_fit_are_refused(tmp_path, change, match):
    path = write_list(tmp_path / "1.xml", (3, [change(roi(LAD, BLOCK, 3))]))
    with pytest.raises(UserError, match=match) as caught:
        draw_labels(read_outlines(path), header(), str(path))
    assert "1.xml" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not xml",
        b"<?xml version='1.0'?><plist><dict><key>Images</key><array><dict/></array></dict></plist>",
        b"<?xml version='1.0'?><plist><array/></plist>",
        b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'aaaa'>]><plist><string>&a;</string></plist>",
        plistlib.dumps({"Images": [{"ImageIndex": "3", "ROIs": [{"Name": LAD, "Point_px": ["(1, 2)"]}]}]}),
    ],
)
def test_broken_lists_are_refused_by_name(tmp_path, content):
    (tmp_path / "7.xml").write_bytes(content)
    with pytest.raises(UserError, match="7.xml"):
        read_outlines(tmp_path / "7.xml")


def test_an_outline_without_points_is_passed_over(tmp_path):
    empty = {"Name": LAD, "Point_px": [], "Point_mm": [], "Area": 0.0}
    assert read_outlines(write_list(tmp_path / "1.xml", (3, [empty]), (4, []))) == []


def write_series(folder: Path, top_first: bool) -> None:
    """An axial CT series; pixel values are their own column, row and level."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    column, row = np.meshgrid(np.arange(COLUMNS), np.arange(ROWS))
    for level in range(SLICES):
        number = SLICES - level if top_first else level + 1
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        data.Modality, data.PatientID, data.PatientName = "CT", "1", ""
        data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = series, study, frame
        data.InstanceNumber, data.SeriesNumber = number, 1
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [float(x) for x in place(0, 0, level)]
        data.PixelSpacing = [SPACING[1], SPACING[0]]  # between rows first
        data.SliceThickness = SPACING[2]
        data.Rows, data.Columns, data.SamplesPerPixel = ROWS, COLUMNS, 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.RescaleSlope, data.RescaleIntercept, data.RescaleType = 1, -1024, "HU"
        data.PixelData = (column + 40 * row + 1280 * level).astype(np.int16).tobytes()
        data.save_as(folder / f"IM-0001-{number:04d}.dcm", enforce_file_format=True)


def test_a_tree_becomes_images_and_labels(tmp_path, run):
    root = tmp_path / "Gated_release_final"
    for patient in range(4):
        write_series(root / f"patient/{patient}/Pro_Gated_CS_3.0_I30f_3_70%", top_first=patient % 2 == 0)
    (root / "patient/0/Pro_Gated_CS_3.0_I30f_3_70%/.azDownload-IM-0001-0003.dcm").write_bytes(b"cruft")
    (root / "patient/9").mkdir()
    for patient in (0, 1):
        write_list(root / f"calcium_xml/{patient}.xml", (3, [roi(LAD, BLOCK, 3)]))
    write_list(root / "calcium_xml/2.xml", (3, [roi(LAD, BLOCK, 99)]))
    write_list(root / "calcium_xml/77.xml", (3, [roi(LAD, BLOCK, 3)]))
    to = fetch(FetchConfig(name="coca-gated", to=tmp_path / "coca", source=tmp_path))
    # 2 has outlines that fit nothing; 3 has none, which is not the same as no calcium.
    assert sorted(os.listdir(to / "images")) == ["0", "1", "3"]
    assert sorted(os.listdir(to / "labels")) == ["0", "1"]
    record = json.loads((to / "fetched.json").read_text())
    assert {entry["name"] for entry in record["skipped"]} == {"9", "2", "calcium_xml/77.xml"}
    assert record["files"]["labels/0/series-001.nii.gz"]["voxels"]["LAD"] == 8
    for patient in (0, 1):
        label = nib.load(to / f"labels/{patient}/series-001.nii.gz")
        to_index = np.linalg.inv(label.affine)
        wanted = set()
        for column, row in BLOCK_PIXELS:
            world = place(column, row, 3) * (-1, -1, 1)
            index = to_index @ [*world, 1]
            assert np.allclose(index, np.rint(index), atol=1e-3)
            wanted.add(tuple(np.rint(index[:3]).astype(int).tolist()))
        assert labelled(np.asarray(label.dataobj) == 1) == wanted
    fetch(FetchConfig(name="coca-gated", to=tmp_path / "coca"))
    words = ["--shape", 12, 32, 40, "--window", -1024, 15000, "--labels", "auto", "--skip-bad", "--workers", 1]
    prepared = run("prepare", to / "images", "--out", tmp_path / "set", *words)
    assert prepared.code == 0 and "2 volumes (1 skipped)" in prepared.out, prepared.err


def test_a_folder_that_is_not_coca_is_told(tmp_path):
    with pytest.raises(UserError, match="calcium_xml"):
        fetch(FetchConfig(name="coca-gated", to=tmp_path / "coca", source=tmp_path))
