"""Batches of a labelled dataset: slices with their neighbours, or volumes; whole, or windows of them."""

import numpy as np
import torch
from torch import Tensor

from splitshuffle_gan.data.dataset import PreparedDataset, SliceDataset
from splitshuffle_gan.segmentation.network2d import Network2DConfig
from splitshuffle_gan.segmentation.segmenter import SegmenterConfig, class_table

LABELLED_SHARE = 0.5  # of the windows are put over a voxel that has a label


class Cases:
    """What a network trains on. Items are slices that are not near-empty for a 2D network, else volumes."""

    def __init__(self, dataset: PreparedDataset, config: SegmenterConfig):
        self.dataset, self.config = dataset, config
        self.slices = config.slices if isinstance(config, Network2DConfig) else None
        self.index = SliceDataset(dataset).index if self.slices else np.arange(len(dataset))[:, None]
        self.table = class_table(config.labels)

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, items: list[int], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Images, float32 `[N, C, *S]`, and classes, int64 `[N, 1, *S]`; `rng` places the windows."""
        pairs = [self._pair(*self.index[item], rng=rng) for item in items]
        images, classes = (np.stack(part) for part in zip(*pairs, strict=True))
        return torch.from_numpy(images), torch.from_numpy(classes).long()

    def _pair(self, row: int, depth: int | None = None, *, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        image, labels = self.dataset.volumes[row], self.dataset.labels[row]
        if depth is not None:
            reach = self.slices // 2
            near = np.clip(np.arange(depth - reach, depth + reach + 1), 0, image.shape[1] - 1)
            image, labels = image[0, near], labels[:, depth]
        window = (slice(None), *place_window(labels[0], self.config.shape[-labels[0].ndim :], rng))
        return np.array(image[window], np.float32), self.table[labels[window]]


def place_window(labels: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, ...]:
    """A window of `shape` in `labels`; in half of the cases over a random voxel that has a label, if there is one."""
    room = [have - want for have, want in zip(labels.shape, shape, strict=True)]
    if not any(room):
        return (slice(None),) * len(shape)
    starts = [int(rng.integers(free + 1)) for free in room]
    if rng.random() < LABELLED_SHARE:
        spots = np.flatnonzero(labels)
        if len(spots):
            spot = np.unravel_index(rng.choice(spots), labels.shape)
            starts = [
                int(np.clip(at - rng.integers(want), 0, free)) for at, want, free in zip(spot, shape, room, strict=True)
            ]
    return tuple(slice(start, start + want) for start, want in zip(starts, shape, strict=True))
