"""Lesions in whole scans: a network that is known finds them where they are; one that is trained learns to."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest

from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.segmentation import detect as module
from splitshuffle_gan.segmentation.building import build
from splitshuffle_gan.segmentation.detect import detect
from splitshuffle_gan.segmentation.infer import open_segmenter
from splitshuffle_gan.segmentation.network2d import Network2DConfig, SliceSegmenter
from splitshuffle_gan.segmentation.options import (
    DetectConfig,
    Network2DOptions,
    Network3DOptions,
    Segment2DConfig,
    Segment3DConfig,
)
from splitshuffle_gan.segmentation.segmenter import Segmenter, SegmenterConfig, open_labelled
from splitshuffle_gan.segmentation.training import train_segmenter

SPOT, SIGMA = 7, 3.0
SPACING = (1.0, 1.0, 4.0)  # x, y, z
SMALLEST = (1, 1, 1, 1)


def write_spots(path, places, shape=(32, 32, 8), spacing=SPACING, axes="RAS", turn=0.0, noise=0, label=None):
    """A scan of bright spots about `places`, mm from its middle in RAS, in a dim ball; returns `places` in RAS mm.

    Their label reaches 3 mm. The scan is stored along `axes`, oblique by `turn` about z; the label map goes to `label`.
    """
    cos, sin = np.cos(turn), np.sin(turn)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.diag(spacing)
    affine[:3, 3] = (10.0, 20.0, -30.0)
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    image = np.where(np.linalg.norm(points - middle, axis=-1) < 12, 100.0, -200.0)
    image += np.random.default_rng(noise).normal(0, 20, shape)
    classes = (image > -50).astype(np.uint8)
    for place in places:
        distance = np.linalg.norm(points - middle - place, axis=-1)
        image = np.maximum(image, 800 * np.exp(-(distance**2) / 18) - 200)
        classes[distance < 3] = SPOT
    to = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    for target, array in ((path, image.astype(np.float32)), (label, classes)):
        if target is not None:
            nib.save(nib.Nifti1Image(array, affine).as_reoriented(to), target)
    return middle + np.array(places, float).reshape(-1, 3)


def spots_dataset(folder, count, seed):
    rng = np.random.default_rng(seed)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        name = f"spots-{seed}-{number}.nii.gz"
        angle = rng.uniform(0, 2 * np.pi) + np.arange(number % 3) * 2.2
        places = np.stack([9 * np.cos(angle), 9 * np.sin(angle), rng.uniform(-10, 10, len(angle))], 1)
        write_spots(folder / "images" / name, places, noise=seed + number, label=folder / "labels" / name)
    return prepare(PrepareConfig(folder / "images", folder / "dataset", (8, 32, 32), window=(-250, 650), workers=1,
                                 labels=folder / "labels"))  # fmt: skip


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return spots_dataset(tmp_path_factory.mktemp("train"), 6, 100)


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    return spots_dataset(tmp_path_factory.mktemp("val"), 6, 200)


@pytest.fixture
def config2d(train, val, tmp_path):
    def make(**changes):
        values = {"data": train, "val": val, "out": tmp_path / "run", "detect": SPOT, "sigma": SIGMA, "steps": 1,
                  "batch_size": 2, "mixed_precision": "no",
                  "network": Network2DOptions(layers=SMALLEST, width=4)}  # fmt: skip
        return Segment2DConfig(**values | changes)

    return make


@pytest.fixture(scope="module")
def run(train, val, one_core, tmp_path_factory):
    """A 2D network that has learnt to find the spots."""
    config = Segment2DConfig(
        data=train,
        val=val,
        out=tmp_path_factory.mktemp("run") / "run",
        detect=SPOT,
        sigma=SIGMA,
        steps=30,
        batch_size=12,
        validations=2,
        learning_rate=2e-3,
        augment_p=0.2,
        mixed_precision="no",
        network=Network2DOptions(layers=SMALLEST, width=8),
    )
    return train_segmenter(config)


class Bright(Segmenter):
    """Its heat map is the intensity: a half at 335 HU, nothing in the dark."""

    rank = 3

    def __init__(self, geometry):
        super().__init__()
        self.config = SegmenterConfig(labels=(0, SPOT), shape=(8, 32, 32), sigma=SIGMA)
        self.geometry = geometry

    def predict(self, volumes):
        return 10 * (volumes - 0.3)


@pytest.fixture
def call(monkeypatch, train, tmp_path, cpu):
    """`call(*scans, **options)`: detect into `out` with `Bright`, whatever the checkpoint."""
    monkeypatch.setattr(module, "open_segmenter", lambda path, detects: Bright(open_labelled(train).geometry()))
    monkeypatch.setattr(module, "record", lambda *_: {})

    def run(*scans, **options):
        return detect(DetectConfig(checkpoint=tmp_path, scans=scans, out=tmp_path / "out", **options))

    return run


@pytest.mark.parametrize(
    "scan",
    [
        {},
        {"axes": "LPS"},
        {"axes": "SLA"},
        {"shape": (50, 41, 13), "turn": 0.4, "axes": "PIR"},
        {"spacing": (0.8, 1.25, 3.0), "shape": (45, 30, 14), "turn": -0.2},
    ],
    ids=["as trained", "LPS", "SLA", "larger, oblique", "finer, thinner"],
)
def test_spots_are_found_where_they_are_in_mm(call, tmp_path, scan):
    truth = write_spots(tmp_path / "scan.nii.gz", [(7.0, 0.0, 2.0), (-6.0, 5.0, -6.0), (-3.0, -7.0, 6.0)], **scan)
    out = call(tmp_path / "scan.nii.gz", least=0.5)
    finds = json.loads((out / "detect.json").read_text())["files"]["scan.nii.gz"]["finds"]
    places = np.array([[find["x"], find["y"], find["z"]] for find in finds])
    assert len(places) == 3
    nearest = np.linalg.norm(truth[:, None] - places, axis=-1).argmin(0)
    assert sorted(nearest) == [0, 1, 2]
    off = np.abs(places - truth[nearest])
    assert (off[:, :2] < 1.5).all() and (off[:, 2] <= 2.5).all()  # slices are 4 mm apart
    assert [find["confidence"] for find in finds] == sorted((find["confidence"] for find in finds), reverse=True)


@pytest.mark.parametrize("axes", ["RAS", "SLA"])
def test_a_place_in_mm_is_exact_and_the_heat_map_lies_on_the_scans_own_grid(call, tmp_path, axes):
    write_spots(tmp_path / "scan.nii.gz", [], axes=axes, turn=0.3)
    image = nib.load(tmp_path / "scan.nii.gz")
    array, voxel = image.get_fdata(dtype=np.float32), (5, 9, 20) if axes == "SLA" else (9, 20, 5)
    array[voxel] = 640
    nib.save(nib.Nifti1Image(array, image.affine), tmp_path / "scan.nii.gz")
    out = call(tmp_path / "scan.nii.gz", least=0.5)
    with open(out / "finds.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 and rows[0]["scan"] == "scan.nii.gz"
    place = [float(rows[0][axis]) for axis in "xyz"]
    assert place == pytest.approx((image.affine @ [*voxel, 1])[:3], abs=1e-3)
    heat = nib.load(out / "scan.nii.gz")
    assert heat.shape == image.shape and heat.get_data_dtype() == np.float32
    assert np.allclose(heat.affine, image.affine, atol=1e-5)
    assert np.unravel_index(np.argmax(heat.get_fdata()), heat.shape) == voxel
    unit = (640 + 250) / 900 * 2 - 1
    assert heat.get_fdata()[voxel] == pytest.approx(1 / (1 + np.exp(-10 * (unit - 0.3))), rel=1e-4)
    assert float(rows[0]["confidence"]) == pytest.approx(heat.get_fdata()[voxel], abs=1e-4)


def test_the_network_learns_to_find_and_the_run_says_how_well(run, val):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["froc"] > 0.9 and metrics["interval"][0] <= metrics["froc"], metrics["sensitivity"]
    assert (metrics["lesions"], metrics["volumes"]) == (6, 6)
    assert [len(case["found"]) for case in metrics["cases"]] == [0, 1, 2, 0, 1, 2]
    assert {"froc.png", "predictions.png"} < {path.name for path in run.iterdir()}
    record = json.loads((run / "run.json").read_text())
    assert record["config"]["loss"] == "heat_focal" and record["network"]["labels"] == [0, SPOT]
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert max(line["froc"] for line in logged if "froc" in line) == pytest.approx(metrics["froc"], abs=1e-4)


def test_what_it_learnt_holds_for_a_scan(run, tmp_path, cpu):
    truth = write_spots(tmp_path / "scan.nii.gz", [(8.0, -3.0, 2.0)], shape=(45, 40, 14), spacing=(0.9, 0.9, 3.0),
                        axes="LPS", noise=5)  # fmt: skip
    out = detect(DetectConfig(checkpoint=run, scans=(tmp_path / "scan.nii.gz",), out=tmp_path / "out", least=0.02))
    record = json.loads((out / "detect.json").read_text())
    find = record["files"]["scan.nii.gz"]["finds"][0]
    assert np.linalg.norm(truth[0] - [find["x"], find["y"], find["z"]]) < 4
    assert record["least"] == 0.02 and len(record["weights_sha256"]) == 64


def test_a_3d_detector_starts_from_a_2d_one(run, train, tmp_path, cpu):
    config = Segment3DConfig(data=train, out=tmp_path / "run3d", init=run, detect=SPOT, sigma=SIGMA, steps=1,
                             batch_size=1, mixed_precision="no", network=Network3DOptions(scale=(8, 1, 1)))  # fmt: skip
    segmenter, moved = build(config, open_labelled(train))
    assert segmenter.config.sigma == SIGMA and moved.origin["body.bn0.running_mean"] == "copied"
    source = SliceSegmenter.from_pretrained(run / "network")
    assert source.config.outputs == segmenter.config.outputs == 1
    segmenter.save_pretrained(tmp_path / "start")
    go_on = Segment3DConfig(data=train, out=tmp_path / "run3d", init=tmp_path / "start")
    for changes in ({}, {"detect": SPOT, "sigma": 2 * SIGMA}):
        with pytest.raises(UserError, match="labels: .* this run wants|sigma: .* has 3.0, this run wants 6.0"):
            build(Segment3DConfig(**vars(go_on) | {"loss": None} | changes), open_labelled(train))


def test_masks_and_finds_are_not_mixed_up(run, train, tmp_path):
    masks = Network2DConfig(labels=(0, SPOT), shape=(8, 32, 32), layers=SMALLEST, width=4)
    SliceSegmenter(masks, open_labelled(train).geometry()).save_pretrained(tmp_path / "masks")
    assert open_segmenter(run, detects=True).config.sigma == SIGMA
    with pytest.raises(UserError, match="was trained with --detect; use `splitshuffle detect`"):
        open_segmenter(run)
    with pytest.raises(UserError, match="without --detect; use `splitshuffle segment`"):
        open_segmenter(tmp_path / "masks", detects=True)


def test_what_cannot_be_found_is_refused_before_anything_is_written(config2d, balls, cpu):
    for changes, message in (
        ({"detect": 9}, "no voxel has the label 9, which is to be found; it has .0, 1, 7."),
        ({"val": balls.val}, "no voxel has the label 7"),
        ({"sigma": 1.9}, "sigma: found 1.9 mm, voxels are up to 4 mm long"),
    ):
        with pytest.raises(UserError, match=message):
            train_segmenter(config2d(**changes))
    assert not config2d().out.exists()


def test_options_that_make_no_sense_are_refused(config2d, tmp_path):
    for changes, message in (
        ({"detect": 0}, "detect: found 0"),
        ({"sigma": 0.0}, "sigma: found 0"),
        ({"loss": "dice_ce"}, "loss: found 'dice_ce', must be one of heat_focal"),
        ({"loss": "heat_focal", "detect": None}, "loss: found 'heat_focal'"),
    ):
        with pytest.raises(UserError, match=message):
            config2d(**changes)
    assert config2d(detect=None).loss == "dice_focal"
    with pytest.raises(UserError, match="least: found 0"):
        DetectConfig(checkpoint=tmp_path, scans=(tmp_path,), out=tmp_path, least=0.0)
    with pytest.raises(UserError, match="sigma: found 3.0 with labels .0, 2, 5."):
        SegmenterConfig(labels=(0, 2, 5), shape=(8, 8, 8), sigma=3.0)
