"""What the 2D and the 3D network share: what they tell apart, window, checkpoint, and logits of volumes."""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from splitshuffle_gan.checkpoint import CONFIG, Pretrained
from splitshuffle_gan.config import CheckpointConfig
from splitshuffle_gan.data.dataset import PreparedDataset, open_dataset
from splitshuffle_gan.errors import UserError

STAGES = 4
NETWORK = "network"  # in the folder of a run


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(CheckpointConfig):
    """What every segmentation network has to know.

    Attributes:
        labels: the label of each class, ascending, 0 (the background) first.
        shape: voxels (D, H, W) that the network was trained on, whole volumes or windows; inference takes as many.
        percentiles: of each scan that become -1 and 1; None where all scans share the geometry's window.
        layers: residual blocks of the encoder's four stages; (3, 4, 6, 3) is ResNet-50.
        sigma: None: the network tells the labels' voxels apart. Else mm: it finds lesions of the one label there is
            besides 0, and its one logit is that of a heat map, Gaussians of this width about their centres.
    """

    labels: tuple[int, ...]
    shape: tuple[int, int, int]
    percentiles: tuple[float, float] | None = None
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    sigma: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        labels = self.labels
        if labels[:1] != (0,) or list(labels) != sorted(set(labels)) or not 2 <= len(labels) or labels[-1] > 255:
            raise UserError(f"labels: found {labels}; 0 and at least one more, ascending, up to 255 are wanted")
        check_whole("shape", self.shape, 3)
        check_whole("layers", self.layers, STAGES)
        if self.sigma is not None and not (0 < self.sigma < math.inf and len(labels) == 2):
            raise UserError(f"sigma: found {self.sigma} with labels {labels}; mm above 0 and one label are wanted")

    @property
    def outputs(self) -> int:
        """Logits of each voxel."""
        return len(self.labels) if self.sigma is None else 1


class Segmenter(nn.Module, Pretrained):
    """A network of rank 2 or 3 that gives the voxels of volumes logits: of `config.labels`, or of a heat map."""

    rank: int
    config: SegmenterConfig
    geometry: dict | None

    def predict(self, volumes: Tensor) -> Tensor:
        """Logits `[N, config.outputs, D, H, W]`, float32, of volumes `[N, 1, D, H, W]` in [-1, 1]."""
        raise NotImplementedError


def check_whole(name: str, values: tuple[int, ...], count: int) -> None:
    """Raise UserError unless `values` are `count` positive whole numbers."""
    if len(values) != count or not all(type(value) is int and value > 0 for value in values):
        raise UserError(f"{name}: found {values}, {count} positive whole numbers are wanted")


def open_labelled(folder: Path, label: int | None = None) -> PreparedDataset:
    """A prepared dataset that has labels. Raises UserError where there are none, or none but 0, or not `label`."""
    dataset = open_dataset(folder)
    if dataset.labels is None:
        raise UserError(f"{folder}: has no labels; prepare it with --labels DIR (or auto)")
    if not any(labels_of(dataset)):
        raise UserError(f"{folder}: no voxel has a label other than 0; there is nothing to segment")
    if label is not None and label not in labels_of(dataset):
        raise UserError(f"{folder}: no voxel has the label {label}, which is to be found; it has {labels_of(dataset)}")
    return dataset


def labels_of(dataset: PreparedDataset) -> tuple[int, ...]:
    """The labels of a dataset, the background 0 first."""
    return tuple(sorted({0, *dataset.manifest["labels"]["values"]}))


def class_table(labels: tuple[int, ...]) -> np.ndarray:
    """uint8 `[256]`: from a label to its class."""
    table = np.zeros(256, np.uint8)
    table[list(labels)] = np.arange(len(labels))
    return table


def network_folder(path: Path) -> Path:
    """The folder of the network that a user names: itself, or the run it is in. Raises UserError for anything else."""
    for folder in (path, path / NETWORK):
        if (folder / CONFIG).is_file():
            return folder
    raise UserError(f"{path}: no segmentation network here; wanted a run of segment2d or segment3d, or a checkpoint")


def class_of(folder: Path) -> str:
    """The class that a checkpoint's `config.json` names."""
    try:
        return str(json.loads((folder / CONFIG).read_text())["class"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG}: not the header of a checkpoint ({error!r})") from error
