"""What is asked in 3D: numbers counted by hand, cut at the training median; MedMNIST 3D files; what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.data.phantom import write_phantoms
from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.probe.plan import Target
from splitshuffle_gan.probe.tasks import open_task


def counts(folder: Path, label: int) -> np.ndarray:
    """Voxels of a label in each volume."""
    return (open_dataset(folder).labels[:] == label).reshape(len(open_dataset(folder)), -1).sum(1)


def asked(balls, **changes):
    """The task of these labels on the balls."""
    return open_task(Target(**{"train": balls.train, "test": balls.test, "labels": (2,)} | changes), balls.root)


def test_a_volume_is_cut_at_the_training_median(balls):
    task, folders = asked(balls), (balls.root / balls.train, balls.root / balls.test)
    train, test = (counts(folder, 2) for folder in folders)
    assert task.threshold == pytest.approx(np.median(train) / 1000)  # ml, of 1 mm voxels
    assert task.train.classes.tolist() == (train > np.median(train)).tolist() and task.train.classes.sum() == 6
    assert task.test.classes.tolist() == (test > np.median(train)).tolist()
    np.testing.assert_array_equal(task.test.batch([3, 0])[:, 0], open_dataset(folders[1]).volumes[[3, 0], 0])


def test_ratios_brightness_and_bounds(balls):
    folder = balls.root / balls.train
    ratio = counts(folder, 2) / counts(folder, 1)
    assert asked(balls, over=(1,)).train.classes.tolist() == (ratio > np.median(ratio)).tolist()
    bright = asked(balls, measure="brightness")
    dataset = open_dataset(folder)
    means = [dataset.volumes[row][dataset.labels[row] == 2].mean() for row in range(12)]
    assert bright.train.classes.tolist() == (means > np.median(means)).tolist()
    assert asked(balls, above=0.1).threshold == 0.1


def test_fewer_training_volumes_are_a_part_of_more(balls):
    eight, ten = (asked(balls, volumes=count) for count in (8, 10))
    first, second = ({part.train.read(i).tobytes() for i in range(len(part.train))} for part in (eight, ten))
    assert (len(first), len(second)) == (8, 10) and first < second
    assert eight.train.mark != ten.train.mark and len(eight.test) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": (7,)}, r"has \[0, 1, 2\], not 7"),
        ({"above": 1000.0}, r"training volumes per class are \[12, 0\], cut at 1000"),
        ({"test": Path("a/dataset")}, "12 of its volumes are in"),
        ({"train": Path("none")}, "none does not exist"),
        ({"labels": (), "factor": "age", "factors": Path("none.json")}, "none.json: no such file"),
    ],
)
def test_what_cannot_be_asked(balls, changes, message):
    with pytest.raises(UserError, match=message):
        asked(balls, **changes)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """Brains in `train` and `test`, their scans in `scans`; `others` are scans of the same names."""
    root, shape = tmp_path_factory.mktemp("phantoms"), (8, 8, 8)
    for name, seed in (("scans", 0), ("more", 1)):
        write_phantoms("brain", 9, shape, (24.0, 24.0, 24.0), seed, root / name)
        prepare(PrepareConfig(root / name / "images", root / f"{name}_data", shape, workers=1))
    return root


def of_phantoms(root: Path, **changes) -> Target:
    return open_task(
        Target(**{"train": Path("scans_data"), "test": Path("more_data"), "factor": "age", "factors": "f.json"}
               | changes), root,
    )  # fmt: skip


def test_factors_are_found_by_name(phantoms, tmp_path):
    # One file may speak of both parts, as when one set of phantoms was split.
    records = [json.loads((phantoms / name / "factors.json").read_text())["volumes"] for name in ("scans", "more")]
    ages = [[volume["factors"]["age"] for volume in volumes] for volumes in records]
    for number, volume in enumerate(records[1]):
        volume["file"] = f"other{number}.nii.gz"
    shutil.copytree(phantoms, tmp_path / "set")
    manifest = tmp_path / "set" / "more_data" / "manifest.json"
    text = json.loads(manifest.read_text())
    for number, entry in enumerate(text["volumes"]):
        entry["source"] = f"other{number}.nii.gz"
    manifest.write_text(json.dumps(text))
    (tmp_path / "set" / "f.json").write_text(json.dumps({"volumes": [*records[0], *records[1]]}))
    task = of_phantoms(tmp_path / "set")
    assert task.threshold == np.median(ages[0])
    assert task.test.classes.tolist() == (ages[1] > np.median(ages[0])).tolist()
    for factor in ("phase", "none"):
        with pytest.raises(UserError, match=f"factor: found '{factor}'; one of age, ventricle_scale"):
            of_phantoms(tmp_path / "set", factor=factor)
    (tmp_path / "set" / "f.json").write_text(json.dumps({"volumes": records[1]}))
    with pytest.raises(UserError, match="has no volume brain0000.nii.gz"):
        of_phantoms(tmp_path / "set")
    (tmp_path / "set" / "f.json").write_text("[]")
    with pytest.raises(UserError, match="not a factors.json"):
        of_phantoms(tmp_path / "set")


def test_factors_of_other_phantoms_of_the_same_names_are_noticed(phantoms):
    with pytest.raises(UserError, match="brain0000.nii.gz beside it is not the one"):
        of_phantoms(phantoms, factors="more/factors.json")


@pytest.fixture
def npz(tmp_path):
    """`npz(test_labels=...)`: a MedMNIST 3D file, arrays changed or, with None, left out; its target."""

    def make(**changes) -> Target:
        rng, arrays = np.random.default_rng(0), {}
        for part, count in (("train", 9), ("val", 4), ("test", 6)):
            arrays[f"{part}_images"] = rng.integers(0, 256, (count, 8, 9, 10), dtype=np.uint8)
            arrays[f"{part}_labels"] = (np.arange(count) % 3)[:, None].astype(np.uint8)
        arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
        np.savez(tmp_path / "some.npz", **arrays)
        return Target(npz=tmp_path / "some.npz")

    return make


def test_a_medmnist_file(npz):
    target = npz()
    task = open_task(target, Path())
    assert (task.classes, task.threshold, len(task.train), len(task.val), len(task.test)) == (3, None, 9, 4, 6)
    assert task.test.classes.tolist() == [0, 1, 2, 0, 1, 2]
    with np.load(target.npz) as file:
        np.testing.assert_allclose((task.val.batch([2])[0, 0] + 1) * 127.5, file["val_images"][2], atol=1e-4)
    assert open_task(npz(val_images=None), Path()).val is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_images": None}, "has no test_images"),
        ({"train_images": np.zeros((9, 8, 8), np.uint8)}, r"train_images is uint8 \[9, 8, 8\].*2D file is a source"),
        ({"test_labels": np.zeros((6, 2), np.uint8)}, "test_labels has 2 columns"),
        ({"test_labels": np.array([[0], [1], [0], [1], [0], [1]])}, r"test volumes per class are \[3, 3, 0\]"),
        ({"train_labels": -np.ones((9, 1), int)}, "train_labels: found"),
    ],
)
def test_other_files_are_refused(npz, changes, message):
    with pytest.raises(UserError, match=message):
        open_task(npz(**changes), Path())
