"""Finding scans: names, order, formats side by side, what is passed over and what is told."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from splitshuffle_gan.data.readers.nifti import NiftiScan
from splitshuffle_gan.data.readers.scans import all_scans, find_scans
from splitshuffle_gan.errors import UserError

ARRAY = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


def save(path: Path, array=ARRAY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    return path


def names(found) -> list[str]:
    return [scan.name for scan in found.scans]


def test_names_are_relative_sorted_and_unique_whatever_the_format(tmp_path):
    save(tmp_path / "b" / "scan.nii.gz")
    save(tmp_path / "a.nii")
    save(tmp_path / "B.nii")
    nib.Nifti1Pair(ARRAY, np.eye(4)).to_filename(tmp_path / "b" / "pair.hdr")
    nib.MGHImage(ARRAY, np.eye(4)).to_filename(tmp_path / "c.mgz")
    (tmp_path / "b" / "scan.json").write_text("{}")
    (tmp_path / "README").mkdir()
    found = find_scans(tmp_path)
    assert names(found) == ["B.nii", "a.nii", "b/pair.hdr", "b/scan.nii.gz", "c.mgz"]
    assert [path.name for path in found.scans[2].paths] == ["pair.hdr", "pair.img"]
    assert (found.rejected, found.passed_over, found.labels) == ((), 1, ())
    assert find_scans(tmp_path) == found
    for scan in found.scans:
        np.testing.assert_array_equal(np.sort(scan.read().array, axis=None), np.arange(24))


def test_a_dicom_series_beside_nifti_is_found_whole(real_data, tmp_path):
    pytest.importorskip("pydicom", reason="pydicom is not installed")
    save(tmp_path / "scan.nii.gz")
    (tmp_path / "series").symlink_to(real_data / "dicom" / "mr-brain-t1post")
    found = find_scans(tmp_path)
    assert len(found.scans) == 2 and not found.rejected
    series = next(scan for scan in found.scans if scan.name != "scan.nii.gz")
    assert series.name.startswith("series") and len(series.paths) == 22
    assert series.read().shape[0] == 22 or 22 in series.header().shape


@pytest.mark.parametrize("name", ["scan.nii.gz", "pair.hdr", "pair.img"])
def test_one_file_is_a_source(tmp_path, name):
    save(tmp_path / "scan.nii.gz")
    nib.Nifti1Pair(ARRAY, np.eye(4)).to_filename(tmp_path / "pair.hdr")
    (scan,) = find_scans(tmp_path / name).scans
    assert scan.name == name.replace(".img", ".hdr")
    scan.read()


def test_several_volumes_are_chosen_never_guessed(tmp_path):
    save(tmp_path / "one.nii.gz")
    volumes = np.stack([ARRAY + 100 * part for part in range(3)], axis=-1)
    save(tmp_path / "three.nii.gz", volumes)
    save(tmp_path / "three.nii", volumes)

    found = find_scans(tmp_path)
    assert names(found) == ["one.nii.gz"]
    assert [bad.name for bad in found.rejected] == ["three.nii", "three.nii.gz"]
    assert all(
        "holds 3" in bad.reason and "--volume K (0 to 2) or --volume all" in bad.reason for bad in found.rejected
    )

    for volume in (1, "1"):
        found = find_scans(tmp_path, volume=volume)
        assert names(found) == ["one.nii.gz", "three.nii#1", "three.nii.gz#1"]
        for scan in found.scans[1:]:
            np.testing.assert_array_equal(scan.read().array[0], ARRAY.transpose(2, 1, 0) + 100)
            assert scan.header().shape == ARRAY.shape

    found = find_scans(tmp_path, volume="all")
    assert len(found.scans) == 7
    for part in range(3):
        scan = next(scan for scan in found.scans if scan.name == f"three.nii.gz#{part}")
        np.testing.assert_array_equal(scan.read().array[0], ARRAY.transpose(2, 1, 0) + 100 * part)

    found = find_scans(tmp_path, volume=3)
    assert names(found) == ["one.nii.gz"]
    assert all("volume 3 is not among its 3" in bad.reason for bad in found.rejected)


def test_a_volume_before_the_cut_is_not_taken_from_a_cut_file(tmp_path):
    noise = np.random.default_rng(0).normal(size=(9, 9, 9, 4)).astype(np.float32)
    for name in ("cut.nii", "cut.nii.gz"):
        path = save(tmp_path / name, noise)
        path.write_bytes(path.read_bytes()[:-3000])
        with pytest.raises(UserError, match=name):
            NiftiScan(name, (path,), 0).read()


@pytest.mark.parametrize("volume", [-1, "last", "1.5", ""])
def test_a_volume_is_a_number_or_all(tmp_path, volume):
    save(tmp_path / "scan.nii.gz")
    with pytest.raises(UserError, match="volume: .*; a whole number from 0, or all"):
        find_scans(tmp_path, volume=volume)


def test_labels_beside_images_are_passed_over_unless_asked_for(tmp_path):
    for folder in ("images", "labels", "imagesTr", "labelsTr", "deep/images", "deep/labels", "lone/labels"):
        save(tmp_path / folder / "scan.nii.gz")
    found = find_scans(tmp_path)
    assert names(found) == [f"{folder}/scan.nii.gz" for folder in ("deep/images", "images", "imagesTr", "lone/labels")]
    assert found.labels == ("deep/labels", "labels", "labelsTr")
    assert names(find_scans(tmp_path / "labels")) == ["scan.nii.gz"]


def test_hidden_names_are_passed_over(tmp_path):
    save(tmp_path / "scan.nii.gz")
    save(tmp_path / ".scan.nii.gz")
    save(tmp_path / ".cache" / "scan.nii.gz")
    assert names(find_scans(tmp_path)) == ["scan.nii.gz"]
    assert names(find_scans(tmp_path / ".cache")) == ["scan.nii.gz"]


def test_a_folder_that_two_links_reach_is_walked_once(tmp_path):
    save(tmp_path / "elsewhere" / "scan.nii.gz")
    (tmp_path / "source").mkdir()
    for name in ("a", "b"):
        (tmp_path / "source" / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "source" / "c.nii.gz").symlink_to(tmp_path / "elsewhere" / "scan.nii.gz")
    assert names(find_scans(tmp_path / "source")) == ["a/scan.nii.gz", "c.nii.gz"]


def test_a_folder_that_cannot_be_listed_is_told(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may list every folder")
    save(tmp_path / "scan.nii.gz")
    save(tmp_path / "closed" / "scan.nii.gz").parent.chmod(0)
    (bad,) = find_scans(tmp_path).rejected
    (tmp_path / "closed").chmod(0o700)
    assert bad.name == "closed" and "Permission denied" in bad.reason


def test_what_a_folder_without_scans_holds_is_counted(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.zip").touch()
    (tmp_path / "notes.TXT").touch()
    with pytest.raises(UserError) as caught:
        find_scans(tmp_path)
    told = str(caught.value)
    assert str(tmp_path) in told and "6 files seen; 1 plainly no scans (1 .txt); 5 rejected" in told
    assert told.count("unpack it first") == 3 and "and 2 more" in told


def test_all_scans_or_none(tmp_path):
    for name in ("a.nii", "b/c.nii.gz"):
        save(tmp_path / name)
    (tmp_path / "readme.txt").touch()
    assert all_scans(tmp_path) == find_scans(tmp_path).scans
    (tmp_path / "b" / "d.tif").touch()
    with pytest.raises(UserError, match=r"b/d.tif: .tif is not a format that is read; convert it to NIfTI$"):
        all_scans(tmp_path)
    (tmp_path / "b" / "e.zip").touch()
    with pytest.raises(UserError, match=r"b/d.tif: .* \(1 more cannot be read; `splitshuffle doctor` lists them\)"):
        all_scans(tmp_path)


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_scans(tmp_path / "nowhere")


def test_a_prepared_datasets_array_is_no_scan(tiny_dataset):
    with pytest.raises(UserError, match="volumes.npy: where its voxels lie is not known"):
        find_scans(tiny_dataset)


def test_real_scans_are_all_found(real_data):
    found = find_scans(real_data / "hippocampus")
    assert len(found.scans) == 200 and not found.rejected and found.labels == ("labels",)
    for scan in found.scans[::40]:
        image, header = nib.load(scan.paths[0]), scan.header()
        assert header.orientation == "".join(nib.aff2axcodes(image.affine))
        np.testing.assert_allclose(header.affine, image.affine)
        assert header.dtype == image.get_data_dtype().name
