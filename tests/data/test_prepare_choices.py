"""What can be asked of `prepare` beyond a shape: plane, own spacing, crop, resampling, labels, shards."""

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from splitshuffle_gan.data.dataset import SliceDataset, VolumeDataset, open_dataset
from splitshuffle_gan.data.labels import resample_labels
from splitshuffle_gan.data.phantom import write_phantoms
from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.errors import UserError


def save(path: Path, array: np.ndarray, spacing=(1.0, 1.0, 1.0), axes="RAS", dtype=np.float32) -> Path:
    """A scan (x, y, z), stored in any orientation."""
    codes = nib.orientations.axcodes2ornt
    image = nib.Nifti1Image(array.astype(dtype), np.diag([*spacing, 1.0]))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(nib.orientations.ornt_transform(codes("RAS"), codes(axes))), path)
    return path


def noise(seed: int, shape=(12, 14, 10)) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 200, shape)


def labels_of(seed: int, shape=(12, 14, 10)) -> np.ndarray:
    """Whole boxes of labels 1, 2 and 5 on 0."""
    array = np.zeros(shape, np.uint8)
    x, y, z = np.random.default_rng(seed).integers(1, 4, 3)
    array[x : x + 6, y : y + 8, z : z + 5] = 1
    array[x + 2 : x + 5, y : y + 4, z + 1 : z + 4] = 2
    array[x : x + 3, y + 5 : y + 8, z : z + 4] = 5
    return array


@pytest.fixture
def labelled(tmp_path) -> Path:
    """images/ and labels/ in which every image equals its label map; orientations and formats differ."""
    for number, axes in enumerate(["RAS", "LPS", "SAR", "AIL"]):
        array, spacing = labels_of(number), (1.0, 1.0, 2.0)
        save(tmp_path / "images" / f"{number}.nii.gz", array, spacing, axes)
        save(tmp_path / "labels" / f"{number}.nii{'.gz' if number % 2 else ''}", array, spacing, axes, np.uint8)
    return tmp_path / "images"


def made(source: Path, shape=(8, 12, 10), **changes):
    settings = {"labels": "auto", "window": (0, 5), "workers": 1} | changes
    return open_dataset(prepare(PrepareConfig(source, source.parent / "out", shape, **settings)))


def test_auto_puts_the_coarsest_axis_first(tmp_path):
    for name, spacing, plane in [("x", (4, 1, 1), "sagittal"), ("y", (1, 3, 2), "coronal"), ("z", (1, 1, 1), "axial")]:
        for number in range(3):
            save(tmp_path / name / f"{number}.nii.gz", noise(number), spacing, "LIP")
        save(tmp_path / name / "odd.nii.gz", noise(9), spacing[::-1])
        out = prepare(PrepareConfig(tmp_path / name, tmp_path / f"out-{name}", (8, 8, 8), plane="auto"))
        dataset = open_dataset(out)
        assert dataset.plane == plane
        assert dataset.spacing[0] == max(spacing)
        assert {entry["plane"] for entry in dataset.manifest["volumes"]} == {plane}


def test_native_spacing_never_interpolates(tmp_path):
    spacings = [(1.0, 1.0, 2.0), (1.02, 1.0, 2.05), (0.98, 1.01, 1.95)]
    for number, spacing in enumerate(spacings):
        save(tmp_path / "in" / f"{number}.nii.gz", noise(number), spacing)
    dataset = open_dataset(
        prepare(PrepareConfig(tmp_path / "in", tmp_path / "out", (8, 8, 16), spacing="native", window=(0, 200)))
    )
    assert dataset.spacing == (2, 1, 1)
    for number, entry in enumerate(dataset.manifest["volumes"]):
        source = noise(number).astype(np.float32).transpose(2, 1, 0)[1:9, 3:11]
        expected = np.pad(source, ((0, 0), (0, 0), (2, 2)))
        np.testing.assert_allclose(dataset.volumes[number, 0], expected / 100 - 1, atol=1e-6)
        lengths = np.linalg.norm(np.asarray(entry["affine"])[:3, :3], axis=0)
        np.testing.assert_allclose(lengths, spacings[number][::-1], rtol=1e-6)


def test_native_spacing_is_refused_where_scans_differ_unless_allowed(tmp_path):
    for number, spacing in enumerate([(1, 1, 1), (1, 1, 1), (1, 1, 1.2), (1, 1.06, 1)]):
        save(tmp_path / "in" / f"{number}.nii.gz", noise(number), spacing)
    config = {"source": tmp_path / "in", "out": tmp_path / "out", "shape": (8, 8, 8), "spacing": "native"}
    with pytest.raises(UserError, match=r"2 of 4 scans.*2.nii.gz with 1.2 x 1 x 1 mm.*--spacing-tolerance"):
        prepare(PrepareConfig(**config))
    assert open_dataset(prepare(PrepareConfig(**config, spacing_tolerance=0.25))).spacing == (1, 1, 1)


@pytest.mark.parametrize("crop", ["center", "foreground", "label"])
def test_the_crop_follows_the_body_or_its_labels(tmp_path, crop):
    array = np.random.default_rng(0).uniform(0, 5, (40, 30, 30))
    array[25:37, 5:15, 10:20] += 100
    label = np.zeros((40, 30, 30), np.uint8)
    label[26:30, 8:12, 14:18] = 3
    save(tmp_path / "images" / "a.nii.gz", array, axes="LAS")
    save(tmp_path / "labels" / "a.nii.gz", label, axes="PIR", dtype=np.uint8)
    dataset = made(tmp_path / "images", (8, 8, 8), crop=crop, window=(0, 105))
    middle = np.asarray(dataset.manifest["volumes"][0]["affine"]) @ [3.5, 3.5, 3.5, 1]
    expected = {"center": (19.5, 14.5, 14.5), "foreground": (30.5, 9.5, 14.5), "label": (27.5, 9.5, 15.5)}[crop]
    np.testing.assert_allclose(middle[:3], expected)


@pytest.mark.parametrize("kind", ["linear", "bspline", "nearest"])
def test_every_kind_of_resampling_stays_in_place(tmp_path, kind):
    x, y, z = np.indices((30, 28, 26))
    smooth = 100 + 50 * np.sin(x / 4) * np.cos(y / 5 + z / 6)
    save(tmp_path / "in" / "a.nii.gz", smooth)
    grid = {"shape": (20, 20, 20), "spacing": (0.8, 0.9, 0.7)}
    config = PrepareConfig(tmp_path / "in", tmp_path / "out", **grid, window=(0, 200), resample=kind)
    dataset = open_dataset(prepare(config))
    affine = np.asarray(dataset.manifest["volumes"][0]["affine"])
    points = np.moveaxis(np.indices((20, 20, 20)), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    truth = 100 + 50 * np.sin(points[..., 0] / 4) * np.cos(points[..., 1] / 5 + points[..., 2] / 6)
    error = np.abs((dataset.volumes[0, 0] + 1) * 100 - truth).max()
    assert error < {"linear": 1.5, "bspline": 0.1, "nearest": 15}[kind]


@pytest.mark.parametrize("crop", ["center", "foreground", "label"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("spacing", [None, (1.3, 0.7, 0.9), "native"])
def test_an_image_that_equals_its_label_map_still_does_once_prepared(labelled, crop, plane, spacing):
    dataset = made(labelled, (7, 12, 14), crop=crop, plane=plane, spacing=spacing, resample="nearest")
    assert dataset.labels.shape == dataset.volumes.shape and dataset.labels.dtype == np.uint8
    assert isinstance(dataset.labels, np.memmap)
    np.testing.assert_allclose((dataset.volumes + 1) * 2.5, dataset.labels, atol=1e-5)
    assert dataset.labels.max() == 5


def test_linear_labels_are_those_that_weigh_most(labelled):
    dataset = made(labelled, (20, 24, 24), spacing=(0.8, 0.6, 0.6), label_resample="linear")
    assert dataset.manifest["labels"] == {
        "values": [0, 1, 2, 5],
        "resample": "linear",
        "data_hash": dataset.manifest["labels"]["data_hash"],
    }
    nearest = made(labelled, (20, 24, 24), spacing=(0.8, 0.6, 0.6), overwrite=True)
    assert nearest.data_hash == dataset.data_hash
    assert nearest.manifest["labels"]["data_hash"] != dataset.manifest["labels"]["data_hash"]
    agree = (dataset.labels == nearest.labels).mean()
    assert 0.95 < agree < 1


def test_a_label_map_that_reducing_would_scatter_is_smoothed_by_linear(tmp_path):
    save(tmp_path / "images" / "a.nii.gz", noise(0, (32, 32, 32)))
    label = np.zeros((32, 32, 32), np.uint8)
    label[8:24, 8:24, 8:24] = 9
    label[::4, ::4, ::4] = 7  # single voxels, which a coarser grid cannot show
    save(tmp_path / "labels" / "a.nii.gz", label, dtype=np.uint8)
    dataset = made(tmp_path / "images", (8, 8, 8), spacing=(4, 4, 4), label_resample="linear", window=(0, 200))
    assert dataset.manifest["labels"]["values"] == [0, 9]


def test_labels_are_put_together(labelled):
    dataset = made(labelled, structures=("5", "1,2"), resample="nearest")
    plain = made(labelled, resample="nearest", overwrite=True)
    assert plain.data_hash == dataset.data_hash
    wanted = {0: 0, 5: 1, 1: 2, 2: 2}
    np.testing.assert_array_equal(dataset.labels, np.vectorize(wanted.get)(plain.labels))
    assert (dataset.structures, plain.structures) == ((1, 2), (1, 2, 5))
    rest = made(labelled, structures=("2-4",), overwrite=True)
    np.testing.assert_array_equal(rest.labels, plain.labels == 2)


def test_put_together_before_the_grid_is_changed(tmp_path):
    """Where labels 1, 2 and 3 each weigh less than the background, together they weigh more."""
    save(tmp_path / "images" / "a.nii.gz", noise(0, (8, 8, 8)))
    label = np.zeros((8, 8, 8), np.uint8)
    label[::2, ::2], label[1::2, ::2], label[::2, 1::2] = 1, 2, 3
    save(tmp_path / "labels" / "a.nii.gz", label, dtype=np.uint8)
    settings = {"spacing": (2, 2, 2), "label_resample": "linear", "window": (0, 200), "overwrite": True}
    assert 1 in made(tmp_path / "images", (4, 4, 4), **settings, structures=("1-3",)).structures
    assert (made(tmp_path / "images", (4, 4, 4), **settings, structures=("1-3",)).labels == 1).all()
    assert not (made(tmp_path / "images", (4, 4, 4), **settings).labels == 1).all()


@pytest.mark.parametrize(
    ("structures", "message"),
    [
        (("1,x",), "structures: found '1,x', wanted labels from 1 to 255 such as"),
        (("0",), "structures: found '0'"),
        (("4-2",), "structures: found '4-2'"),
        (("200-256",), "structures: found '200-256'"),
        (("1,2", "5,2"), "structures: label 2 comes twice in 1,2 5,2"),
        (("1", "77,78"), "structures: no prepared volume has any of the labels 77,78"),
    ],
)
def test_structures_that_make_no_sense_are_named(labelled, structures, message):
    with pytest.raises(UserError, match=message):
        made(labelled, structures=structures)
    with pytest.raises(UserError, match="structures: .* there are none; give --labels"):
        PrepareConfig("in", "out", (8, 8, 8), structures=("1",))


def test_half_way_between_two_labels_the_lower_one_wins():
    labels = np.array([2, 2, 7, 7, 0, 0], np.uint8)[None, None]
    found = resample_labels(labels, (1, 1, 0.5), (0, 0, -1), (1, 1, 14), "linear")
    assert found.ravel().tolist() == [0, 2, 2, 2, 2, 2, 7, 7, 7, 0, 0, 0, 0, 0]
    found = resample_labels(labels, (1, 1, 0.5), (0, 0, -0.8), (1, 1, 13), "nearest")
    assert found.ravel().tolist() == [0, 2, 2, 2, 2, 7, 7, 7, 7, 0, 0, 0, 0]


def test_the_manifest_says_where_labels_came_from(labelled):
    dataset = made(labelled)
    assert dataset.manifest["labels"]["values"] == [0, 1, 2, 5]
    for number, entry in enumerate(dataset.manifest["volumes"]):
        assert entry["labels"]["source"] == f"{number}.nii{'.gz' if number % 2 else ''}"
        assert entry["labels"]["values"] == np.unique(dataset.labels[number]).tolist()
        assert entry["labels"]["prepared_sha256"] == hashlib.sha256(dataset.labels[number].tobytes()).hexdigest()
        path = labelled.parent / "labels" / entry["labels"]["source"]
        assert entry["labels"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_labels_inside_the_source_are_found_beside_their_images(labelled):
    dataset = open_dataset(
        prepare(PrepareConfig(labelled.parent, labelled.parent / "out", (8, 12, 10), window=(0, 5), labels="auto"))
    )
    assert [entry["source"] for entry in dataset.manifest["volumes"]] == [f"images/{i}.nii.gz" for i in range(4)]
    np.testing.assert_allclose((dataset.volumes + 1) * 2.5, dataset.labels, atol=1e-5)


def test_without_labels_there_are_none(labelled):
    dataset = made(labelled, labels=None)
    assert dataset.labels is None
    assert "labels" not in dataset.manifest and "labels" not in dataset.manifest["volumes"][0]


def spoil(labelled: Path, kind: str) -> None:
    path = labelled.parent / "labels" / "1.nii.gz"
    image = nib.load(path)
    array, affine = image.get_fdata(), image.affine.copy()
    if kind == "moved":
        affine[:3, 3] += 0.3
    elif kind == "flipped":
        affine[:3, 0] *= -1
    elif kind == "cut":
        array = array[:, :, 1:]
    elif kind == "fraction":
        array[3, 3, 3] = 0.5
    elif kind == "large":
        array[3, 3, 3] = 256
    elif kind == "not finite":
        array[3, 3, 3] = np.nan
    path.unlink()
    if kind == "twice":
        save(path.with_name("1.nii"), labels_of(1), dtype=np.uint8)
        save(path.with_name("1.mgz"), labels_of(1), dtype=np.uint8)
    elif kind != "missing":
        nib.save(nib.Nifti1Image(array.astype(np.float32), affine), path)


REASONS = {
    "moved": "voxels away from it",
    "flipped": "voxels away from it",
    "cut": r"its label map has \(12, 14, 9\) voxels",
    "fraction": "not all whole numbers",
    "large": "0..256, not all whole numbers",
    "not finite": "not all whole numbers",
    "missing": "no label map of this name",
    "twice": "several label maps for it",
}


@pytest.mark.parametrize("kind", REASONS)
def test_a_label_map_that_does_not_fit_its_scan_makes_it_bad(labelled, kind):
    spoil(labelled, kind)
    with pytest.raises(UserError, match=f"1.nii.gz.*{REASONS[kind]}"):
        made(labelled)
    dataset = made(labelled, skip_bad=True)
    assert [entry["source"] for entry in dataset.manifest["volumes"]] == ["0.nii.gz", "2.nii.gz", "3.nii.gz"]
    assert [entry["source"] for entry in dataset.manifest["skipped"]] == ["1.nii.gz"]
    np.testing.assert_allclose((dataset.volumes + 1) * 2.5, dataset.labels, atol=1e-5)


def test_labels_that_are_not_there_are_an_error(labelled):
    with pytest.raises(UserError, match="labels: .*nowhere is no folder"):
        made(labelled, labels=labelled / "nowhere")
    with pytest.raises(UserError, match="labels: auto found no folder"):
        made(labelled.rename(labelled.with_name("scans")))


def test_channel_numbers_of_nnunet_are_understood(tmp_path):
    save(tmp_path / "imagesTr" / "case_07_0000.nii.gz", labels_of(0))
    save(tmp_path / "labelsTr" / "case_07.nii.gz", labels_of(0), dtype=np.uint8)
    dataset = made(tmp_path / "imagesTr", (10, 14, 12))
    np.testing.assert_allclose((dataset.volumes + 1) * 2.5, dataset.labels, atol=1e-5)


def test_every_volume_of_a_4d_file_has_the_files_labels(tmp_path):
    image = nib.Nifti1Image(np.stack([labels_of(0), labels_of(0)], -1).astype(np.float32), np.eye(4))
    (tmp_path / "images").mkdir()
    nib.save(image, tmp_path / "images" / "a.nii.gz")
    save(tmp_path / "labels" / "a.nii.gz", labels_of(0), dtype=np.uint8)
    with pytest.raises(UserError, match="a.nii.gz"):
        made(tmp_path / "images", (10, 14, 12))
    assert len(made(tmp_path / "images", (10, 14, 12), volume=1)) == 1
    dataset = made(tmp_path / "images", (10, 14, 12), volume="all", overwrite=True)
    assert [entry["source"] for entry in dataset.manifest["volumes"]] == ["a.nii.gz#0", "a.nii.gz#1"]
    np.testing.assert_allclose((dataset.volumes + 1) * 2.5, dataset.labels, atol=1e-5)


def test_shards_hold_the_same_as_one_file(labelled):
    whole = made(labelled)
    volumes, labels = np.array(whole.volumes), np.array(whole.labels)
    sharded = made(labelled, shard_size=3, overwrite=True)
    names = ["labels-00000.npy", "labels-00001.npy", "manifest.json", "volumes-00000.npy", "volumes-00001.npy"]
    assert sorted(path.name for path in sharded.folder.iterdir()) == names
    assert sharded.manifest["shards"] == [3, 1]
    assert sharded.data_hash == whole.data_hash
    np.testing.assert_array_equal(np.array(sharded.volumes), volumes)
    np.testing.assert_array_equal(np.array(sharded.labels), labels)
    for number in range(4):
        np.testing.assert_array_equal(VolumeDataset(sharded)[number]["image"], volumes[number])
    slices = SliceDataset(sharded, 0)
    np.testing.assert_array_equal(slices[25]["image"], volumes[3, :, 1])


def test_a_bad_scan_leaves_a_shard_shorter(labelled):
    array = noise(0)
    array[0, 0, 0] = np.nan
    save(labelled / "1.nii.gz", array, (1, 1, 2), "LPS")
    dataset = made(labelled, shard_size=2, skip_bad=True)
    assert dataset.manifest["shards"] == [1, 2]
    np.testing.assert_allclose((np.array(dataset.volumes) + 1) * 2.5, np.array(dataset.labels), atol=1e-5)
    save(labelled / "0.nii.gz", array, (1, 1, 2))
    assert made(labelled, shard_size=2, skip_bad=True, overwrite=True).manifest["shards"] == [2]


def test_shards_that_do_not_add_up_are_refused(labelled):
    folder = made(labelled, shard_size=2).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    for shards in ([2, 1], [4], "22", [2, 2.0]):
        (folder / "manifest.json").write_text(json.dumps(manifest | {"shards": shards}))
        with pytest.raises(UserError, match="manifest.json"):
            open_dataset(folder)


def test_all_rejected_files_are_counted_and_the_first_are_told(tmp_path):
    save(tmp_path / "in" / "good.nii.gz", noise(0))
    for number in range(5):
        (tmp_path / "in" / f"bad{number}.nii.gz").write_bytes(b"no scan")
    (tmp_path / "in" / "old.mha").write_bytes(b"x")
    with pytest.raises(UserError, match=r"6 scans cannot be used: .*bad0.*bad1.*bad2(?!.*bad4).*--skip-bad"):
        prepare(PrepareConfig(tmp_path / "in", tmp_path / "out", (8, 8, 8)))
    out = prepare(PrepareConfig(tmp_path / "in", tmp_path / "out", (8, 8, 8), skip_bad=True))
    skipped = json.loads((out / "manifest.json").read_text())["skipped"]
    assert [entry["source"] for entry in skipped] == [*[f"bad{number}.nii.gz" for number in range(5)], "old.mha"]
    assert all(entry["reason"] for entry in skipped)


def test_phantoms_and_their_labels_from_the_command_line(run, tmp_path):
    write_phantoms("brain", 3, (16, 16, 16), (11.0, 11.0, 11.0), 0, tmp_path / "phantoms")
    arguments = ("--shape", 8, 16, 16, "--orientation", "auto", "--spacing", "native", "--crop", "foreground")
    outcome = run(
        *("prepare", tmp_path / "phantoms" / "images", "--out", tmp_path / "out", *arguments),
        *("--labels", "auto", "--resample", "bspline", "--shard-size", 2, "--volume", "all"),
    )
    assert outcome.code == 0, outcome.err
    assert "labels 0, 1, " in outcome.out
    assert len(open_dataset(tmp_path / "out").labels) == 3
