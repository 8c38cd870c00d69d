"""Masks of whole scans: on their own grid, true to what is in them, whole or not at all."""

import hashlib
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.segmentation import infer
from splitshuffle_gan.segmentation.infer import open_segmenter, scan_bounds, segment, whole_grid
from splitshuffle_gan.segmentation.network2d import Network2DConfig, SliceSegmenter
from splitshuffle_gan.segmentation.network3d import Network3DConfig, VolumeSegmenter
from splitshuffle_gan.segmentation.options import SegmentConfig
from splitshuffle_gan.segmentation.segmenter import NETWORK, Segmenter, SegmenterConfig, labels_of, open_labelled
from splitshuffle_gan.volume import IntensityMap, Volume

CORE = 5


def write_ball(
    path, shape=(32, 32, 8), spacing=(1.0, 1.0, 4.0), axes="RAS", turn=0.0, centre=(3.0, -2.0, 1.0), parts=0
):
    """A scan (x, y, z) of a ball about `centre` in RAS mm, stored along `axes`; returns the true label of each voxel.

    `turn` is an angle about z, which makes the scan oblique.
    """
    cos, sin = np.cos(turn), np.sin(turn)
    rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing)
    affine[:3, 3] = np.array([10.0, 20.0, -30.0])
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    radius = np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3] - middle - np.array(centre), axis=-1)
    label = np.where(radius < 6, CORE, np.where(radius < 12, 2, 0)).astype(np.uint8)
    image = np.select([label == CORE, label == 2], [300.0, 100.0], -200.0).astype(np.float32)
    stored = nib.Nifti1Image(image, affine)
    to = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    stored = stored.as_reoriented(to)
    if parts:
        stored = nib.Nifti1Image(np.stack([stored.get_fdata(dtype=np.float32)] * parts, -1), stored.affine)
    nib.save(stored, path)
    return nib.orientations.apply_orientation(label, to)


def dice(found, truth):
    return 2 * np.sum(found & truth) / (np.sum(found) + np.sum(truth))


class Nearest(Segmenter):
    """Knows the three intensities of the balls and gives every voxel the nearest."""

    rank = 3

    def __init__(self, geometry):
        super().__init__()
        self.config, self.geometry = SegmenterConfig(labels=(0, 2, CORE), shape=(8, 32, 32)), geometry
        levels = IntensityMap(**geometry["intensity"]).to_unit(np.array([-200.0, 100.0, 300.0]))
        self.register_buffer("levels", torch.from_numpy(levels).reshape(1, 3, 1, 1, 1))

    def predict(self, volumes):
        return -100 * (volumes - self.levels).square()


@pytest.fixture(scope="module")
def checkpoint(balls, tmp_path_factory):
    """An untrained 2D network."""
    folder, dataset = tmp_path_factory.mktemp("untrained"), open_labelled(balls.train)
    config = Network2DConfig(labels=labels_of(dataset), shape=dataset.shape, layers=(1, 1, 1, 1), width=4)
    SliceSegmenter(config, dataset.geometry()).save_pretrained(folder / NETWORK)
    return folder


@pytest.fixture
def call(checkpoint, tmp_path, cpu):
    """`call(*scans, **options)`: segment into `out` with the 2D network."""

    def run(*scans, **options):
        values = {"checkpoint": checkpoint, "out": tmp_path / "out", "mixed_precision": "no"} | options
        return segment(SegmentConfig(scans=scans, **values))

    return run


@pytest.fixture
def nearest(balls, monkeypatch):
    """Whatever the checkpoint, what is opened is `Nearest`."""
    monkeypatch.setattr(infer, "open_segmenter", lambda _: Nearest(open_labelled(balls.train).geometry()))


@pytest.mark.parametrize(
    ("scan", "least"),
    [
        ({}, 1.0),
        ({"axes": "LPS"}, 1.0),
        ({"axes": "SLA", "centre": (-4.0, 3.0, 2.0)}, 1.0),
        ({"shape": (50, 41, 13), "centre": (-8.0, 6.0, 0.0), "turn": 0.2}, 1.0),
        ({"spacing": (0.8, 1.25, 3.0), "shape": (45, 30, 14), "centre": (3.0, 4.0, 0.0)}, 0.9),
        ({"spacing": (1.7, 1.4, 2.0), "shape": (30, 40, 25), "axes": "ARI"}, 0.85),
    ],
    ids=["as trained", "LPS", "SLA", "larger, oblique", "finer, thinner", "coarser, ARI"],
)
def test_a_mask_lies_on_the_scans_own_grid_and_on_the_ball(call, nearest, tmp_path, scan, least):
    truth = write_ball(tmp_path / "scan.nii.gz", **scan)
    out = call(tmp_path / "scan.nii.gz")
    source, mask = nib.load(tmp_path / "scan.nii.gz"), nib.load(out / "scan.nii.gz")
    assert mask.shape == source.shape and mask.get_data_dtype() == np.uint8
    assert np.allclose(mask.affine, source.affine, atol=1e-5)
    found = np.asarray(mask.dataobj)
    assert set(np.unique(found)) == {0, 2, CORE}
    assert dice(found > 0, truth > 0) >= least
    assert dice(found == CORE, truth == CORE) >= least


def test_a_trained_network_finds_the_ball(call, run2d, tmp_path):
    truth = write_ball(tmp_path / "scan.nii.gz", axes="LPS", shape=(45, 30, 14), spacing=(0.8, 1.25, 3.0))
    found = np.asarray(nib.load(call(tmp_path / "scan.nii.gz", checkpoint=run2d) / "scan.nii.gz").dataobj)
    assert dice(found > 0, truth > 0) > 0.85


def test_a_3d_network_segments_too(call, balls, tmp_path):
    dataset = open_labelled(balls.train)
    config = Network3DConfig(labels=labels_of(dataset), shape=dataset.shape, layers=(1, 1, 1, 1), scale=(8, 1, 1),
                             psp_blocks=0)  # fmt: skip
    VolumeSegmenter(config, dataset.geometry()).save_pretrained(tmp_path / "network3d")
    write_ball(tmp_path / "scan.nii.gz", shape=(32, 40, 8))
    out = call(tmp_path / "scan.nii.gz", checkpoint=tmp_path / "network3d", overlap=0.25)
    assert nib.load(out / "scan.nii.gz").shape == (32, 40, 8)
    assert json.loads((out / "segment.json").read_text())["network"]["scale"] == [8, 1, 1]


def test_a_scan_that_nibabel_does_not_read(call, nearest, tmp_path):
    truth = write_ball(tmp_path / "scan.nii.gz")
    nrrd = pytest.importorskip("nrrd", reason="pynrrd is not installed")
    image = nib.load(tmp_path / "scan.nii.gz")
    to_lps = np.diag([-1.0, -1.0, 1.0])  # NRRD's space is named; here it differs from NIfTI's
    nrrd.write(str(tmp_path / "other.nrrd"), image.get_fdata(dtype=np.float32), {
        "space": "left-posterior-superior", "space directions": (to_lps @ image.affine[:3, :3]).T,
        "space origin": to_lps @ image.affine[:3, 3], "kinds": ["domain"] * 3,
    })  # fmt: skip
    mask = nib.load(call(tmp_path / "other.nrrd") / "other.nii.gz")
    assert np.array_equal(np.asarray(mask.dataobj), truth) and np.allclose(mask.affine, image.affine)


def test_a_folder_a_4d_file_and_another_format(call, tmp_path):
    scans = tmp_path / "scans"
    (scans / "a").mkdir(parents=True)
    write_ball(scans / "a" / "one.nii", axes="LPS")
    write_ball(scans / "two.nii.gz", parts=2)
    image = nib.load(scans / "a" / "one.nii")
    nib.save(nib.MGHImage(image.get_fdata(dtype=np.float32), image.affine), scans / "three.mgz")
    out = call(scans, volume="all")
    names = {path.relative_to(out).as_posix() for path in out.rglob("*.nii.gz")}
    assert names == {"a/one.nii.gz", "two-0.nii.gz", "two-1.nii.gz", "three.nii.gz"}
    one, three = (np.asarray(nib.load(out / name).dataobj) for name in ("a/one.nii.gz", "three.nii.gz"))
    assert np.array_equal(one, three)
    assert nib.load(out / "two-1.nii.gz").shape == (32, 32, 8)


def test_the_record_says_how_it_was_made(call, nearest, checkpoint, tmp_path):
    write_ball(tmp_path / "scan.nii.gz", spacing=(0.5, 1.0, 4.0), shape=(60, 32, 8))
    out = call(tmp_path / "scan.nii.gz")
    record = json.loads((out / "segment.json").read_text())
    weights = (checkpoint / NETWORK / "model.safetensors").read_bytes()
    assert record["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    entry = record["files"]["scan.nii.gz"]
    found = np.asarray(nib.load(out / "scan.nii.gz").dataobj)
    assert entry["voxels"] == {"2": np.sum(found == 2), "5": np.sum(found == CORE)}
    assert entry["ml"]["5"] == pytest.approx(np.sum(found == CORE) * 2.0 / 1000)


def test_masks_are_written_all_or_none(call, tmp_path):
    write_ball(tmp_path / "good.nii.gz")
    bad = np.full((32, 32, 8), np.nan, np.float32)
    nib.save(nib.Nifti1Image(bad, np.diag([1.0, 1.0, 4.0, 1.0])), tmp_path / "zbad.nii.gz")
    with pytest.raises(UserError, match="zbad.nii.gz: 8192 voxels are NaN"):
        call(tmp_path / "good.nii.gz", tmp_path / "zbad.nii.gz")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_scans_that_would_share_a_mask_or_an_out_that_exists_are_refused(call, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_ball(tmp_path / folder / "scan.nii.gz")
    with pytest.raises(UserError, match="the results of two would be scan.nii.gz"):
        call(tmp_path / "a" / "scan.nii.gz", tmp_path / "b" / "scan.nii.gz")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        call(tmp_path / "a")


def test_only_a_segmentation_network_is_opened(checkpoint, tmp_path):
    assert open_segmenter(checkpoint).config == open_segmenter(checkpoint / NETWORK).config
    with pytest.raises(UserError, match="no segmentation network here"):
        open_segmenter(tmp_path)
    shutil.copytree(checkpoint / NETWORK, tmp_path / "other")
    header = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(header | {"class": "Generator"}))
    with pytest.raises(UserError, match="holds a Generator"):
        open_segmenter(tmp_path / "other")


def test_the_grid_covers_the_scan_and_is_its_own_where_spacings_agree():
    affine = np.diag([2.0, 1.0, 0.5, 1.0])
    volume = Volume(np.zeros((1, 10, 21, 30)), affine)
    step, offset, shape = whole_grid(volume, (2.0, 2.0, 1.0))
    assert shape == (10, 11, 15) and step.tolist() == [1, 2, 2]
    assert offset[0] == 0
    for axis in (1, 2):
        first, last = offset[axis] - step[axis] / 2, offset[axis] + step[axis] * (shape[axis] - 0.5)
        assert first <= -0.5 and last >= volume.shape[axis] - 0.5
        assert first + last == pytest.approx(volume.shape[axis] - 1)


def test_intensities_are_the_windows_or_percentiles_of_the_scan():
    array = np.arange(101.0)
    window = {"kind": "window", "low": -5.0, "high": 7.0}
    assert scan_bounds(array, window, None, "scan").low == -5
    bounds = scan_bounds(array, {"kind": "percentiles", "low": 0.0, "high": 1.0}, (10, 90), "scan")
    assert (bounds.low, bounds.high) == (10, 90)
    with pytest.raises(UserError, match="scan: percentiles .10, 90. are both 1"):
        scan_bounds(np.ones(9), window, (10, 90), "scan")


def test_no_options_that_make_no_sense(tmp_path):
    for change, message in (({"overlap": 1.0}, "overlap: found 1"), ({"scans": ()}, "scans: none given")):
        with pytest.raises(UserError, match=message):
            SegmentConfig(**{"checkpoint": tmp_path, "scans": (tmp_path,), "out": tmp_path / "out"} | change)
