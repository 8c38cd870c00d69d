"""What is learnt from in 2D: slices of a prepared dataset, a MedMNIST file, a folder of images. One contract.

A source has `tasks`, the number of classes of each of its tasks, and gives for some of its items images, float32
`[N, 1, H, W]` in [-1, 1], and classes, int64 `[N, tasks]`.
"""

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from splitshuffle_gan.data.dataset import SliceDataset, open_dataset
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.weights import file_sha256
from splitshuffle_gan.probe.npz import grey, read_arrays, whole_classes
from splitshuffle_gan.probe.plan import Source

DEPTHS = 8  # classes of a slice's relative depth
SIZES = 3  # classes of how much there is of a structure, besides none
SUFFIXES = (".png", ".jpg", ".jpeg")


class Slices(Protocol):
    """See the file's head. `fingerprint` changes with what there is to learn."""

    tasks: tuple[int, ...]
    fingerprint: str

    def __len__(self) -> int: ...

    def batch(self, items: list[int]) -> tuple[Tensor, Tensor]:
        """Images and classes of some items."""
        ...


def open_source(source: Source, root: Path) -> Slices:
    """The source, paths starting from `root`. Raises UserError that names the file and what is wrong with it."""
    if source.dataset is not None:
        return LabelledSlices(root / source.dataset)
    if source.npz is not None:
        return ImageArray(root / source.npz)
    return ImageFolder(root / source.images, source.size)


class LabelledSlices:
    """Slices of a prepared dataset; what is asked comes from its label maps and costs nobody anything.

    Tasks: in which eighth of the depth it lies; for each label, whether there is none, little, some or much of it. The
    bounds are the thirds of all slices that have any. What is the same in every slice is not asked. Near-empty slices
    are passed over.
    """

    def __init__(self, folder: Path):
        self.dataset = open_dataset(folder)
        if self.dataset.labels is None:
            raise UserError(f"{folder}: has no labels, so its slices ask nothing; prepare it with --labels DIR")
        self.index = SliceDataset(self.dataset).index
        self.fingerprint = f"{self.dataset.data_hash}-{self.dataset.manifest['labels']['data_hash']}"
        depth = self.index[:, 1] * DEPTHS // self.dataset.shape[0]
        classes = [depth, *(_size_classes(areas) for areas in self._areas().T)]
        classes = [column for column in classes if np.ptp(column) > 0]
        if not classes:
            raise UserError(f"{folder}: its slices have all the same labels, so there is nothing to learn")
        self.classes = np.stack(classes, axis=1).astype(np.int64)
        self.tasks = tuple(int(column.max()) + 1 for column in classes)

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, items: list[int]) -> tuple[Tensor, Tensor]:
        images = np.stack([self.dataset.volumes[volume, :, depth] for volume, depth in self.index[items]])
        return torch.from_numpy(images), torch.from_numpy(self.classes[items])

    def _areas(self) -> np.ndarray:
        """Pixels of each label but the background in each slice of the index, `[slices, labels]`."""
        values = [value for value in self.dataset.manifest["labels"]["values"] if value]
        areas = np.zeros((len(self.dataset), self.dataset.shape[0], 256), np.int64)
        for row in tqdm(range(len(self.dataset)), desc=f"labels of {self.dataset.folder.name}", unit="volume"):
            for depth, labels in enumerate(np.array(self.dataset.labels[row, 0])):
                areas[row, depth] = np.bincount(labels.ravel(), minlength=256)
        return areas[self.index[:, 0], self.index[:, 1]][:, values]


class ImageArray:
    """The training images of a MedMNIST 2D file; each column of its labels is a task."""

    def __init__(self, path: Path):
        found = read_arrays(path, ("train_images", "train_labels"), 2)
        self.images, labels = found["train_images"], found["train_labels"]
        columns = labels.reshape(len(labels), -1)
        self.classes = np.stack(
            [whole_classes(columns[:, task], f"{path}: train_labels") for task in range(columns.shape[1])], axis=1
        )
        self.tasks = tuple(int(c.max()) + 1 for c in self.classes.T)
        self.fingerprint = file_sha256(path)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, items: list[int]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(grey(self.images[items])[:, None]), torch.from_numpy(self.classes[items])


class ImageFolder:
    """PNG and JPEG images; the class is the folder that an image lies in, by its path from `folder`.

    Images are made grey and brought to `size`, and read when they are wanted.
    """

    def __init__(self, folder: Path, size: tuple[int, int]):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; wanted one with a folder of images for each class")
        self.folder, self.size = folder, size
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        names = [path.parent.relative_to(folder).as_posix() for path in self.paths]
        self.names = sorted(set(names))
        if len(self.names) < 2 or "." in self.names:
            found = f"{len(self.paths)} images in {len(self.names)} folders"
            raise UserError(
                f"{folder}: found {found}; wanted PNG or JPEG images in a folder for each class, 2 at least"
            )
        place = {name: number for number, name in enumerate(self.names)}
        self.classes = np.array([[place[name]] for name in names], np.int64)
        self.tasks = (len(self.names),)
        seen = "\n".join(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in self.paths)
        self.fingerprint = hashlib.sha256(f"{size}\n{seen}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, items: list[int]) -> tuple[Tensor, Tensor]:
        images = np.stack([self._read(self.paths[item]) for item in items])
        return torch.from_numpy(images[:, None]), torch.from_numpy(self.classes[items])

    def _read(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise UserError(
                        f"{path}: has {image.mode} pixels; 8 bits each are wanted: convert it, or remove it"
                    )
                small = image.convert("L").resize(self.size[::-1], Image.Resampling.BILINEAR)
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f"{path}: not readable as an image ({error}); repair or remove it") from error
        return np.asarray(small, np.float32) / 127.5 - 1


def _size_classes(areas: np.ndarray) -> np.ndarray:
    """0 where there is none, else 1 to `SIZES` by the quantiles of those that have any."""
    some = areas[areas > 0]
    if not len(some):
        return np.zeros(len(areas), np.int64)
    bounds = np.quantile(some, [part / SIZES for part in range(1, SIZES)])
    return np.where(areas > 0, 1 + np.searchsorted(bounds, areas, side="left"), 0)
