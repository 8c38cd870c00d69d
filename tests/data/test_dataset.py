"""Opening a prepared dataset, and the torch datasets over it."""

import json
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from splitshuffle_gan.data.dataset import PreparedDataset, SliceDataset, VolumeDataset, open_dataset
from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.errors import UserError

DEPTH = 12
# Per volume, the axial slices that hold something.
CONTENT = [range(2, 9), range(0, 12), range(5, 6)]


def save_scans(folder: Path) -> None:
    """Noise in the slices of CONTENT, faint noise elsewhere; one origin each."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number, content in enumerate(CONTENT):
        array = rng.normal(0, 1, size=(10, 8, DEPTH)).astype(np.float32)
        array[:, :, list(content)] = rng.uniform(0, 1000, size=(10, 8, len(content)))
        affine = np.diag([1.0, 1.5, 2.0, 1.0])
        affine[:3, 3] = (number**2, 10, -10 * number)
        nib.save(nib.Nifti1Image(array, affine), folder / f"{number}.nii.gz")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    save_scans(folder / "scans")
    return prepare(PrepareConfig(folder / "scans", folder / "out", (DEPTH, 8, 10), window=(0, 1000), workers=1))


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """A dataset folder that a test may spoil."""
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_an_opened_dataset_knows_its_grid(made):
    prepared = open_dataset(made)
    assert len(prepared) == 3
    assert prepared.volumes.shape == (3, 1, DEPTH, 8, 10)
    assert isinstance(prepared.volumes, np.memmap)
    assert (prepared.shape, prepared.spacing, prepared.plane) == ((DEPTH, 8, 10), (2, 1.5, 1), "axial")
    assert prepared.data_hash == json.loads((made / "manifest.json").read_text())["data_hash"]


def test_shared_scans_are_found_however_they_were_prepared(made, tmp_path):
    one = open_dataset(made)
    again = made.parent / "scans"
    (tmp_path / "scans").mkdir()
    for name in ("0.nii.gz", "2.nii.gz"):
        (tmp_path / "scans" / f"renamed{name}").write_bytes((again / name).read_bytes())
    other = PrepareConfig(tmp_path / "scans", tmp_path / "out", (16, 8, 8), spacing=(1, 2, 2), workers=1)
    other = open_dataset(prepare(other))
    assert one.shared_with(other) == ["0.nii.gz", "2.nii.gz"]
    assert other.shared_with(one) == ["renamed0.nii.gz", "renamed2.nii.gz"]
    assert one.shared_with(one) == [entry["source"] for entry in one.manifest["volumes"]]


def test_volumes_of_one_4d_file_are_different_scans(tmp_path):
    array = np.random.default_rng(0).normal(size=(8, 8, 8, 4))
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "scans" / "many.nii.gz")

    def made_of(volume) -> PreparedDataset:
        config = PrepareConfig(tmp_path / "scans", tmp_path / f"{volume}", (8, 8, 8), volume=volume, workers=1)
        return open_dataset(prepare(config))

    third = made_of(2)
    assert made_of("all").shared_with(third) == ["many.nii.gz#2"]
    assert made_of(1).shared_with(third) == []


def test_the_geometry_of_samples_is_typical_of_the_set(made):
    geometry = open_dataset(made).geometry()
    assert json.loads(json.dumps(geometry)) == geometry
    assert (geometry["spacing"], geometry["plane"]) == ([2, 1.5, 1], "axial")
    assert geometry["intensity"] == {"kind": "window", "low": 0, "high": 1000}
    # Columns S, A, R; medians of the origins (0, 1, 4), 10 and (0, -10, -20).
    np.testing.assert_allclose(geometry["affine"], [[0, 0, 1, 1], [0, 1.5, 0, 10], [2, 0, 0, -10], [0, 0, 0, 1]])


def test_the_geometry_of_percentiles_holds_the_median_bounds(made, tmp_path):
    out = prepare(
        PrepareConfig(made.parent / "scans", tmp_path / "out", (DEPTH, 8, 10), percentiles=(0, 100), workers=1)
    )
    highs = [nib.load(path).get_fdata().max() for path in (made.parent / "scans").iterdir()]
    intensity = open_dataset(out).geometry()["intensity"]
    assert intensity["kind"] == "percentiles"
    assert intensity["high"] == pytest.approx(np.median(highs))


def test_volumes_are_the_stored_ones(made):
    dataset = VolumeDataset(open_dataset(made))
    stored = np.load(made / "volumes.npy")
    assert len(dataset) == 3
    for index in range(3):
        image = dataset[index]["image"]
        assert image.dtype == torch.float32
        np.testing.assert_array_equal(image, stored[index])


def test_items_are_copies_that_may_be_written(made):
    prepared = open_dataset(made)
    VolumeDataset(prepared)[0]["image"].zero_()
    SliceDataset(prepared)[0]["image"].zero_()
    assert np.abs(open_dataset(made).volumes[0]).min() > 0


def test_slices_are_those_with_content_and_know_their_depth(made):
    dataset = SliceDataset(open_dataset(made))
    stored = np.load(made / "volumes.npy")
    wanted = [(number, depth) for number, content in enumerate(CONTENT) for depth in content]
    assert len(dataset) == len(wanted)
    for item, (number, depth) in zip((dataset[i] for i in range(len(dataset))), wanted, strict=True):
        assert item["depth"].dtype == torch.int64
        assert item["depth"].item() == depth
        assert item["image"].shape == (1, 8, 10)
        np.testing.assert_array_equal(item["image"][0], stored[number, 0, depth])


def test_every_slice_can_be_asked_for(made):
    assert len(SliceDataset(open_dataset(made), min_contrast=0)) == 3 * DEPTH
    with pytest.raises(UserError, match="min_contrast: 2"):
        SliceDataset(open_dataset(made), min_contrast=2)


def test_padding_is_not_a_slice(made, tmp_path):
    out = prepare(PrepareConfig(made.parent / "scans" / "1.nii.gz", tmp_path / "out", (DEPTH + 6, 8, 10), workers=1))
    depths = SliceDataset(open_dataset(out)).index[:, 1]
    assert depths.tolist() == list(range(3, DEPTH + 3))


def test_a_loader_with_processes_reads_the_same(made):
    prepared = open_dataset(made)
    batch = next(iter(DataLoader(VolumeDataset(prepared), batch_size=3, num_workers=2)))
    np.testing.assert_array_equal(batch["image"], np.load(made / "volumes.npy"))


def test_pickling_sends_the_path_and_not_the_voxels(made):
    dataset = VolumeDataset(open_dataset(made))
    message = pickle.dumps(dataset)
    assert len(message) < 1000
    np.testing.assert_array_equal(pickle.loads(message)[1]["image"], dataset[1]["image"])


@pytest.mark.parametrize("name", ["manifest.json", "volumes.npy"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name} does not exist"):
        open_dataset(copy)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="absent does not exist"):
        open_dataset(tmp_path / "absent")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": "other"}, "format"),
        ({"version": 2}, "version 2; this release reads version 1"),
        ({"plane": "oblique"}, "plane is 'oblique'"),
        ({"count": 4}, "count is 4, volumes lists 3"),
        ({"shape": [DEPTH, 8, 11]}, r"\(3, 1, 12, 8, 10\).*\(3, 1, 12, 8, 11\)"),
        ({"shape": "12"}, "shape is '12'"),
        ({"data_hash": None}, "data_hash is None"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(copy, changes, message):
    path = copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        open_dataset(copy)


def test_a_manifest_without_a_field_is_refused(copy):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["spacing"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="spacing is missing"):
        open_dataset(copy)
    path.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        open_dataset(copy)


def test_a_damaged_array_is_refused(copy):
    path = copy / "volumes.npy"
    content = path.read_bytes()
    for broken in (content[:-100], content[:10], b"", b"not an array"):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="volumes.npy"):
            open_dataset(copy)
    np.save(path, np.zeros((3, 1, DEPTH, 8, 10)))
    with pytest.raises(UserError, match="float64"):
        open_dataset(copy)
