"""Scans to datasets and back: geometry, intensities, bad input."""

import hashlib
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from splitshuffle_gan.data import prepare as module
from splitshuffle_gan.data.prepare import PrepareConfig, prepare, restore, to_source_units
from splitshuffle_gan.data.readers.nifti import read_nifti
from splitshuffle_gan.data.readers.scans import find_scans
from splitshuffle_gan.data.resample import resample
from splitshuffle_gan.errors import UserError


def blob(points: np.ndarray, centre: tuple[float, float, float]) -> np.ndarray:
    """A smooth, lopsided bump of 100..1100 at RAS mm `points` `[..., 3]`."""
    distance = ((points - centre) / (9, 12, 7)) ** 2
    return 100 + 1000 * np.exp(-0.5 * distance.sum(-1)) * (1 + 0.02 * (points[..., 0] - centre[0]))


def save_blob(path: Path, shape=(32, 40, 28), spacing=(1.0, 1.0, 1.0), axes="RAS", degrees=0.0, centre=(5, -8, 3)):
    """A scan of `blob` about its own middle, stored in any orientation, tilted about x."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) * spacing
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    points = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    image = nib.Nifti1Image(blob(points, centre).astype(np.float32), affine)
    codes = nib.orientations.axcodes2ornt
    stored = image.as_reoriented(nib.orientations.ornt_transform(codes("RAS"), codes(axes)))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(stored, path)


def load(folder: Path) -> tuple[np.ndarray, dict]:
    return np.load(folder / "volumes.npy"), json.loads((folder / "manifest.json").read_text())


def world(affine, shape) -> np.ndarray:
    """RAS mm of every voxel, `[D, H, W, 3]`."""
    affine = np.asarray(affine)
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


@pytest.fixture
def scans(tmp_path) -> Path:
    """Three scans of one object, at different depths of the folder and in different orientations."""
    save_blob(tmp_path / "scans" / "a.nii.gz")
    save_blob(tmp_path / "scans" / "more" / "b.nii", axes="LPS")
    save_blob(tmp_path / "scans" / "more" / "c.nii.gz", axes="SAR", degrees=15)
    return tmp_path / "scans"


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.2, 0.8)])
def test_voxels_hold_what_is_at_their_place_in_the_patient(scans, tmp_path, plane, spacing):
    out = prepare(PrepareConfig(scans, tmp_path / "out", (12, 20, 16), spacing, window=(0, 1200), plane=plane))
    volumes, manifest = load(out)
    assert volumes.shape == (3, 1, 12, 20, 16)
    assert volumes.dtype == np.float32
    for row, entry in zip(volumes, manifest["volumes"], strict=True):
        truth = blob(world(entry["affine"], (12, 20, 16)), (5, -8, 3))
        np.testing.assert_allclose(to_source_units(row[0], entry), truth, atol=25)
        assert np.linalg.norm(np.asarray(entry["affine"])[:3, :3], axis=0) == pytest.approx(spacing, rel=1e-5)


def test_the_middle_stays_in_the_middle(scans, tmp_path):
    _, manifest = load(prepare(PrepareConfig(scans, tmp_path / "out", (9, 21, 30), (2.0, 1.2, 0.8))))
    for entry in manifest["volumes"]:
        np.testing.assert_allclose((np.asarray(entry["affine"]) @ [4, 10, 14.5, 1])[:3], (5, -8, 3), atol=1e-4)


def test_equal_spacing_copies_voxels_and_pads_with_the_lower_bound(scans, tmp_path):
    volumes, manifest = load(prepare(PrepareConfig(scans, tmp_path / "out", (30, 37, 32), window=(-200, 1400))))
    source = nib.load(scans / "a.nii.gz").get_fdata().transpose(2, 1, 0)
    expected = np.full((30, 37, 32), -1.0)
    expected[1:29] = (source[:, 1:38] + 200) / 800 - 1
    np.testing.assert_allclose(volumes[0, 0], expected, atol=1e-6)
    assert manifest["spacing"] == [1, 1, 1]


def test_resampling_is_linear_between_voxels_and_fills_beyond_their_faces():
    line = np.random.default_rng(0).normal(size=9).astype(np.float32)
    step, offset, count = 0.7, -2.4, 18
    position = offset + step * np.arange(count)
    expected = np.where((position >= -0.5) & (position <= 8.5), np.interp(position, np.arange(9), line), -7)
    for axis in range(3):
        shape, steps, offsets, counts = [1, 1, 1], [1, 1, 1], [0, 0, 0], [1, 1, 1]
        shape[axis], steps[axis], offsets[axis], counts[axis] = 9, step, offset, count
        result = resample(line.reshape(shape), steps, offsets, counts, fill=-7)
        np.testing.assert_allclose(result.ravel(), expected, atol=1e-5)


def test_reducing_blurs_what_the_new_grid_cannot_show():
    stripes = np.tile(np.array([0, 1, 0, 1], np.float32), 16)[None, None]
    result = resample(stripes, (1, 1, 4), (0, 0, 1), (1, 1, 16), fill=0)
    np.testing.assert_allclose(result[..., 1:-1], 0.5, atol=1e-3)
    aliased = resample(stripes, (1, 1, 4), (0, 0, 1), (1, 1, 16), fill=0, antialias=False)
    np.testing.assert_array_equal(aliased, 1)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 1.2, 0.8)])
def test_a_prepared_volume_goes_back_to_its_scan(scans, tmp_path, plane, spacing):
    out = prepare(PrepareConfig(scans, tmp_path / "out", (64, 64, 64), spacing, percentiles=(0, 100), plane=plane))
    volumes, manifest = load(out)
    # Interpolation mixes the outermost voxels with the padding; inside, it only smooths.
    tolerance, inner = (1e-3, slice(None)) if spacing == (1, 1, 1) else (25, slice(2, -2))
    for row, entry in zip(volumes, manifest["volumes"], strict=True):
        source = read_nifti(scans / entry["source"], plane)
        for array in (row, row[0]):
            again = restore(array, entry, plane)
            np.testing.assert_allclose(again.affine, source.affine)
            part = (0, inner, inner, inner)
            np.testing.assert_allclose(again.array[part], source.array[part], atol=tolerance)


def test_outside_the_crop_a_restored_scan_is_at_its_lower_bound(scans, tmp_path):
    volumes, manifest = load(prepare(PrepareConfig(scans / "a.nii.gz", tmp_path / "out", (8, 8, 8), window=(50, 1200))))
    again = restore(volumes[0], manifest["volumes"][0]).array[0]
    source = nib.load(scans / "a.nii.gz").get_fdata().transpose(2, 1, 0)
    inside = np.zeros(source.shape, bool)
    inside[10:18, 16:24, 12:20] = True
    np.testing.assert_allclose(again[inside], source[inside], atol=1e-3)
    np.testing.assert_allclose(again[~inside], 50)


def test_restore_refuses_another_plane(scans, tmp_path):
    volumes, manifest = load(prepare(PrepareConfig(scans, tmp_path / "out", (8, 8, 8))))
    with pytest.raises(UserError, match="'coronal'"):
        restore(volumes[0], manifest["volumes"][0], "coronal")


def test_real_scans_go_there_and_back(real_data, tmp_path):
    images = real_data / "hippocampus" / "images"
    chosen = sorted(images.glob("*.nii.gz"))[::40]
    (tmp_path / "scans").mkdir()
    for path in chosen:
        (tmp_path / "scans" / path.name).symlink_to(path)
    out = prepare(PrepareConfig(tmp_path / "scans", tmp_path / "out", (64, 64, 64), percentiles=(0, 100)))
    volumes, manifest = load(out)
    for path, row, entry in zip(chosen, volumes, manifest["volumes"], strict=True):
        # An independent reading: these files are stored as RAS.
        source = nib.load(path)
        assert nib.aff2axcodes(source.affine) == ("R", "A", "S")
        truth = source.get_fdata()
        again = restore(row, entry)
        np.testing.assert_allclose(again.array[0].transpose(2, 1, 0), truth, atol=1e-6 * np.ptp(truth))
        np.testing.assert_allclose(again.affine[:, [2, 1, 0, 3]], source.affine)
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_real_scans_lose_only_what_was_cropped_and_clipped(real_data, tmp_path):
    path = min((real_data / "hippocampus" / "images").glob("*.nii.gz"))
    out = prepare(PrepareConfig(path, tmp_path / "out", (32, 48, 32), (1.0, 1.0, 1.0)))
    volumes, manifest = load(out)
    truth = nib.load(path).get_fdata()
    low, high = np.percentile(truth, (0.5, 99.5))
    again = restore(volumes[0], manifest["volumes"][0]).array[0].transpose(2, 1, 0)
    starts = [max((side - kept) // 2, 0) for side, kept in zip(truth.shape, (32, 48, 32), strict=True)]
    inside = tuple(slice(start, start + kept) for start, kept in zip(starts, (32, 48, 32), strict=True))
    np.testing.assert_allclose(again[inside], np.clip(truth, low, high)[inside], atol=1e-5 * (high - low))


def test_percentiles_are_each_scans_own(scans, tmp_path):
    image = nib.load(scans / "a.nii.gz")
    nib.save(nib.Nifti1Image(image.get_fdata() * 1000, image.affine), scans / "d.nii.gz")
    volumes, manifest = load(prepare(PrepareConfig(scans, tmp_path / "out", (16, 16, 16), percentiles=(1, 99))))
    low, high = np.percentile(image.get_fdata(), (1, 99))
    by_name = {entry["source"]: entry for entry in manifest["volumes"]}
    assert by_name["a.nii.gz"]["intensity"] == {
        "kind": "percentiles",
        "low": pytest.approx(low, rel=1e-5),
        "high": pytest.approx(high, rel=1e-5),
    }
    order = list(by_name)
    np.testing.assert_allclose(volumes[order.index("a.nii.gz")], volumes[order.index("d.nii.gz")], atol=1e-4)
    assert manifest["intensity"]["percentiles"] == [1, 99]
    bounds = [entry["intensity"] for entry in manifest["volumes"]]
    assert manifest["intensity"]["source_high"] == pytest.approx(np.median([b["high"] for b in bounds]))
    assert manifest["intensity"]["source_low"] == pytest.approx(np.median([b["low"] for b in bounds]))


def test_the_manifest_says_how_it_was_made(scans, tmp_path):
    out = prepare(PrepareConfig(scans, tmp_path / "out", (8, 9, 10), window=(0, 1000), plane="coronal"))
    volumes, manifest = load(out)
    assert (manifest["format"], manifest["version"]) == ("splitshuffle-dataset", 1)
    assert (manifest["shape"], manifest["plane"], manifest["count"]) == ([8, 9, 10], "coronal", 3)
    assert manifest["intensity"] == {"mode": "window", "low": 0, "high": 1000}
    assert manifest["skipped"] == []
    assert manifest["created_with"]["config"]["source"] == str(scans)
    assert [entry["source"] for entry in manifest["volumes"]] == ["a.nii.gz", "more/b.nii", "more/c.nii.gz"]
    for row, entry in zip(volumes, manifest["volumes"], strict=True):
        assert entry["source_shape"] == [40, 28, 32]
        assert entry["prepared_sha256"] == hashlib.sha256(row.tobytes()).hexdigest()
        np.testing.assert_allclose(entry["slice_std"], row[0].std(axis=(1, 2)), atol=1e-5)
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "volumes.npy"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scans"]


def test_the_hash_follows_the_voxels_and_not_the_number_of_workers(scans, tmp_path):
    def data_hash(name: str, **changes) -> str:
        return load(prepare(PrepareConfig(scans, tmp_path / name, (8, 8, 8), **changes)))[1]["data_hash"]

    alone = data_hash("alone", workers=1)
    assert data_hash("pool", workers=3) == alone
    assert data_hash("other", workers=1, percentiles=(1, 99)) != alone


def test_the_spacing_of_the_set_is_its_median(tmp_path):
    for name, spacing in [("a", (1, 1, 3)), ("b", (0.8, 0.8, 2)), ("c", (0.7, 0.9, 5))]:
        save_blob(tmp_path / "scans" / f"{name}.nii.gz", spacing=spacing)
    _, manifest = load(prepare(PrepareConfig(tmp_path / "scans", tmp_path / "out", (8, 8, 8))))
    assert manifest["spacing"] == [3, 0.9, 0.8]


def test_hidden_files_and_folders_are_passed_over(scans):
    save_blob(scans / ".half.nii.gz")
    save_blob(scans / ".cache" / "x.nii.gz")
    (scans / "notes.txt").write_text("not a scan")
    assert [scan.name for scan in find_scans(scans).scans] == ["a.nii.gz", "more/b.nii", "more/c.nii.gz"]


def spoil(scans: Path, kind: str) -> Path:
    path = scans / "broken.nii.gz"
    array = np.random.default_rng(0).normal(500, 100, size=(16, 16, 16)).astype(np.float32)
    if kind == "constant":
        array[:] = 5
    elif kind == "not finite":
        array[3, 4, 5] = np.nan
    elif kind == "outside the window":
        array += 1e6
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    return path


REASONS = {
    "cut": "cannot be read",
    "constant": "every voxel is 5",
    "not finite": "1 voxels are NaN",
    "outside the window": "are all outside the window",
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", REASONS)
def test_a_bad_scan_is_named_and_nothing_is_written(scans, tmp_path, kind, workers):
    spoil(scans, kind)
    with pytest.raises(UserError, match=f"broken.nii.gz.*{REASONS[kind]}"):
        prepare(PrepareConfig(scans, tmp_path / "out", (8, 8, 8), window=(0, 1200), workers=workers))
    assert [path.name for path in tmp_path.iterdir()] == ["scans"]


@pytest.mark.parametrize("kind", REASONS)
def test_a_bad_scan_can_be_skipped_and_is_listed(scans, tmp_path, kind):
    expected, _ = load(prepare(PrepareConfig(scans, tmp_path / "good", (8, 8, 8), window=(0, 1200))))
    spoil(scans, kind)
    out = prepare(PrepareConfig(scans, tmp_path / "out", (8, 8, 8), window=(0, 1200), skip_bad=True))
    volumes, manifest = load(out)
    np.testing.assert_array_equal(volumes, expected)
    assert manifest["count"] == len(manifest["volumes"]) == 3
    assert [skip["source"] for skip in manifest["skipped"]] == ["broken.nii.gz"]
    assert REASONS[kind] in manifest["skipped"][0]["reason"]
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "volumes.npy"]


def test_only_bad_scans_are_an_error_even_when_skipped(tmp_path):
    (tmp_path / "scans").mkdir()
    spoil(tmp_path / "scans", "constant")
    with pytest.raises(UserError, match="all 1 scans"):
        prepare(PrepareConfig(tmp_path / "scans", tmp_path / "out", (8, 8, 8), skip_bad=True))
    assert not (tmp_path / "out").exists()


def test_a_source_without_scans_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "scan.mha").write_bytes(b"x")
    for name, message in [("empty", "holds no"), ("absent", "does not exist"), ("scan.mha", ".mha is not a format")]:
        with pytest.raises(UserError, match=f"{name}.*{message}"):
            prepare(PrepareConfig(tmp_path / name, tmp_path / "out", (8, 8, 8)))
    assert not (tmp_path / "out").exists()


def test_an_existing_dataset_is_kept_unless_it_may_be_replaced(scans, tmp_path):
    out = prepare(PrepareConfig(scans, tmp_path / "out", (8, 8, 8)))
    with pytest.raises(UserError, match="out.*--overwrite"):
        prepare(PrepareConfig(scans, out, (9, 9, 9)))
    assert load(out)[0].shape == (3, 1, 8, 8, 8)
    prepare(PrepareConfig(scans, out, (9, 9, 9), overwrite=True))
    assert load(out)[0].shape == (3, 1, 9, 9, 9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scans"]


def test_overwriting_with_a_bad_scan_keeps_the_earlier_dataset(scans, tmp_path):
    out = prepare(PrepareConfig(scans, tmp_path / "out", (8, 8, 8)))
    spoil(scans, "cut")
    with pytest.raises(UserError, match="broken"):
        prepare(PrepareConfig(scans, out, (9, 9, 9), overwrite=True))
    assert load(out)[0].shape == (3, 1, 8, 8, 8)


def test_overwriting_never_deletes_what_is_no_dataset(scans, tmp_path):
    with pytest.raises(UserError, match="no manifest.json in it"):
        prepare(PrepareConfig(scans, scans / "more", (8, 8, 8), overwrite=True))
    out = prepare(PrepareConfig(scans, tmp_path / "out", (8, 8, 8)))
    save_blob(out / "mine.nii.gz")
    with pytest.raises(UserError, match="holds the source"):
        prepare(PrepareConfig(out, out, (8, 8, 8), overwrite=True))
    assert (out / "mine.nii.gz").is_file()


def test_a_failure_at_the_last_moment_puts_the_earlier_dataset_back(scans, tmp_path, monkeypatch):
    out = prepare(PrepareConfig(scans, tmp_path / "out", (8, 8, 8)))
    replace = os.replace

    def fails_on_the_new_one(source, target):
        if Path(target) == out and Path(source).suffix != ".previous":
            raise OSError("No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_on_the_new_one)
    with pytest.raises(OSError, match="No space"):
        prepare(PrepareConfig(scans, out, (9, 9, 9), overwrite=True))
    assert load(out)[0].shape == (3, 1, 8, 8, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scans"]


def test_a_killed_worker_is_reported(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_prepare_one", kill_myself)
    with pytest.raises(UserError, match="was killed"):
        prepare(PrepareConfig(scans, tmp_path / "out", (8, 8, 8), workers=2))
    assert not (tmp_path / "out").exists()


def kill_myself(task: tuple) -> dict:
    os._exit(9)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("shape", (8, 0, 8), "shape"),
        ("shape", (8, 8), "shape"),
        ("shape", (8, 8.5, 8), "shape"),
        ("spacing", (1, -1, 1), "spacing"),
        ("spacing", (1, float("nan"), 1), "spacing"),
        ("window", (650, -250), "window"),
        ("window", (5, 5), "window"),
        ("percentiles", (99, 1), "percentiles"),
        ("percentiles", (-1, 99), "percentiles"),
        ("percentiles", (1, 101), "percentiles"),
        ("plane", "oblique", "plane.*oblique"),
        ("workers", -1, "workers"),
        ("spacing", "own", "spacing: own"),
        ("spacing_tolerance", -0.1, "spacing_tolerance"),
        ("crop", "centre", "crop: 'centre'.*center, foreground, label"),
        ("crop", "label", "crop: label needs label maps"),
        ("resample", "cubic", "resample: 'cubic'.*bspline"),
        ("label_resample", "bspline", "label_resample: 'bspline'"),
        ("volume", -1, "volume: -1"),
        ("volume", "both", "volume: 'both'"),
        ("shard_size", 0, "shard_size: 0"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(field, value, message):
    settings = {"source": "in", "out": "out", "shape": (8, 8, 8)} | {field: value}
    with pytest.raises(UserError, match=message):
        PrepareConfig(**settings)


def test_window_and_percentiles_exclude_each_other():
    with pytest.raises(UserError, match="not both"):
        PrepareConfig("in", "out", (8, 8, 8), window=(0, 1), percentiles=(1, 99))
    assert PrepareConfig("in", "out", (8, 8, 8)).percentiles == (0.5, 99.5)


def test_links_are_followed_and_a_broken_one_is_no_silent_loss(scans, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "patient").symlink_to(scans)
    (linked / "loop").symlink_to(linked)
    assert len(find_scans(linked).scans) == len(find_scans(scans).scans)
    (linked / "gone.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    with pytest.raises(UserError, match="gone.nii.gz"):
        prepare(PrepareConfig(linked, tmp_path / "out", (8, 8, 8)))
    out = prepare(PrepareConfig(linked, tmp_path / "out", (8, 8, 8), skip_bad=True))
    assert [entry["source"] for entry in json.loads((out / "manifest.json").read_text())["skipped"]] == ["gone.nii.gz"]


def test_a_scan_that_the_crop_leaves_empty_is_bad(tmp_path):
    array = np.zeros((40, 40, 40), np.float32)
    array[:4, :4, :4] = 90
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "in" / "corner.nii.gz")
    with pytest.raises(UserError, match="corner.nii.gz.*after the crop"):
        prepare(PrepareConfig(tmp_path / "in", tmp_path / "out", (8, 8, 8), window=(0, 100)))
