"""What is learnt from in 2D: label maps counted by hand, MedMNIST files and folders of images as they were written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.probe.plan import Source
from splitshuffle_gan.probe.slices import open_source


@pytest.fixture
def npz(tmp_path):
    """`npz(train_images=...)`: a MedMNIST 2D file, arrays changed or, with None, left out; its path."""

    def make(**changes) -> Path:
        rng = np.random.default_rng(0)
        arrays = {"train_images": rng.integers(0, 256, (6, 8, 9), dtype=np.uint8),
                  "train_labels": np.array([[0], [1], [2], [2], [1], [0]], np.uint8)} | changes  # fmt: skip
        np.savez(tmp_path / "some.npz", **{name: array for name, array in arrays.items() if array is not None})
        return tmp_path / "some.npz"

    return make


def test_slices_of_a_dataset_ask_for_depth_and_for_how_much_there_is(balls):
    source = open_source(Source(dataset=balls.train), balls.root)
    dataset = open_dataset(balls.root / balls.train)
    assert source.tasks == (8, 4, 4)
    images, classes = source.batch(list(range(len(source))))
    assert images.shape == (len(source), 1, 16, 16) and images.dtype == torch.float32
    areas = []
    for (volume, depth), image, (at, *_) in zip(source.index, images, classes, strict=True):
        np.testing.assert_array_equal(image[0], dataset.volumes[volume, 0, depth])
        assert at == depth // 2
        areas.append([(dataset.labels[volume, 0, depth] == label).sum() for label in (1, 2)])
    for area, found in zip(np.array(areas).T, classes[:, 1:].T.numpy(), strict=True):
        assert ((found == 0) == (area == 0)).all()
        sizes = [area[found == size] for size in (1, 2, 3)]
        assert sizes[0].max() < sizes[1].min() and sizes[1].max() < sizes[2].min()
        assert max(map(len, sizes)) < 2 * min(map(len, sizes))  # thirds, but for ties


def test_a_dataset_without_labels_is_refused(tiny_dataset):
    with pytest.raises(UserError, match="has no labels.*--labels DIR"):
        open_source(Source(dataset=tiny_dataset), Path())


def test_a_medmnist_file(npz):
    path = npz()
    source = open_source(Source(npz=path), Path())
    images, classes = source.batch([4, 1])
    assert (len(source), source.tasks, classes.tolist()) == (6, (3,), [[1], [1]])
    with np.load(path) as file:
        np.testing.assert_allclose((images[0, 0] + 1) * 127.5, file["train_images"][4], atol=1e-4)


def test_colours_become_grey_and_columns_tasks(npz):
    colours = np.zeros((3, 4, 5, 3), np.uint8)
    colours[0], colours[1, ..., 1] = 255, 255
    source = open_source(Source(npz=npz(train_images=colours, train_labels=np.eye(3, dtype=np.uint8)[:, :2])), Path())
    images, classes = source.batch([0, 1, 2])
    assert source.tasks == (2, 2) and classes.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert [round(float(image.mean()), 3) for image in images] == [1.0, round(2 * 0.587 - 1, 3), -1.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": None}, "has no train_labels, only train_images"),
        ({"train_images": np.zeros((6, 8, 8), np.float32)}, r"train_images is float32 \[6, 8, 8\]; uint8 \[N, H, W\]"),
        ({"train_images": np.zeros((6, 8, 8, 8), np.uint8)}, "a MedMNIST 3D file is a target"),
        ({"train_labels": np.zeros((5, 1), np.uint8)}, "train_labels is 5 long; one for each of the 6"),
        ({"train_labels": np.zeros((6, 1), np.uint8)}, "classes 0, 1, ... are wanted"),
        ({"train_labels": np.full((6, 1), 0.5)}, "classes 0, 1, ... are wanted"),
        ({"train_labels": np.array([object()] * 6)}, "not readable as .npz"),
    ],
)
def test_other_files_are_refused(npz, changes, message):
    path = npz(**changes)
    with pytest.raises(UserError, match=f"some.npz: .*{message}"):
        open_source(Source(npz=path), Path())


def test_no_file_and_no_npz(tmp_path):
    with pytest.raises(UserError, match="some.npz: no such file"):
        open_source(Source(npz=tmp_path / "some.npz"), Path())
    (tmp_path / "some.npz").write_bytes(b"not a zip")
    with pytest.raises(UserError, match="not readable as .npz"):
        open_source(Source(npz=tmp_path / "some.npz"), Path())


def write_images(folder: Path) -> Path:
    """Two classes in RadImageNet's manner, one of them a level deeper."""
    for number, (name, value) in enumerate([("CT/lung/cyst/a.png", 255), ("CT/lung/cyst/b.JPG", 0), ("MR/c.png", 51)]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20 + number, 10), value, np.uint8)).save(path)
    (folder / "MR" / "notes.txt").write_text("not an image")
    return folder


def test_a_folder_of_images(tmp_path):
    source = open_source(Source(images=write_images(tmp_path), size=(8, 12)), Path())
    images, classes = source.batch([2, 0, 1])
    assert source.names == ["CT/lung/cyst", "MR"] and source.tasks == (2,) and classes.tolist() == [[1], [0], [0]]
    assert images.shape == (3, 1, 8, 12) and images.dtype == torch.float32
    assert [round(float(image.mean()), 2) for image in images] == [-0.6, 1.0, -1.0]
    assert open_source(Source(images=tmp_path, size=(8, 8)), Path()).fingerprint != source.fingerprint


def test_folders_and_images_that_do_not_serve(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_source(Source(images=tmp_path / "none"), Path())
    with pytest.raises(UserError, match="found 0 images in 0 folders"):
        open_source(Source(images=tmp_path), Path())
    folder = write_images(tmp_path / "set")
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(folder / "MR" / "deep.png")
    (folder / "MR" / "torn.png").write_bytes(b"\x89PNG torn")
    source = open_source(Source(images=folder), Path())
    for item, message in ((3, "deep.png: has I;16 pixels"), (4, "torn.png: not readable as an image")):
        with pytest.raises(UserError, match=message):
            source.batch([item])
