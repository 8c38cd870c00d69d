"""Batches of a labelled dataset: slices with their neighbours, or volumes; whole, or windows of them.

What is to be learnt are classes, or the heat map of lesions; a slice's is that of the volume, cut.
"""

import numpy as np
import torch
from torch import Tensor

from splitshuffle_gan.data.dataset import PreparedDataset, SliceDataset
from splitshuffle_gan.segmentation.lesions import heat_map, lesion_centres, number_lesions
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
        self.centres: dict[int, np.ndarray] = {}  # of the lesions of volumes that have been seen

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, items: list[int], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Images, float32 `[N, C, *S]`, and classes, int64 `[N, 1, *S]`, or heat maps, float32 `[N, 1, *S]`.

        `rng` places the windows.
        """
        pairs = [self._pair(*self.index[item], rng=rng) for item in items]
        images, targets = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
        return images, targets.long() if self.config.sigma is None else targets

    def _pair(self, row: int, depth: int | None = None, *, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        image, labels = self.dataset.volumes[row], self.dataset.labels[row]
        if depth is not None:
            reach = self.slices // 2
            near = np.clip(np.arange(depth - reach, depth + reach + 1), 0, image.shape[1] - 1)
            image, labels = image[0, near], labels[:, depth]
        classes = self.table[labels]
        window = place_window(classes[0], self.config.shape[-classes[0].ndim :], rng)
        image = np.array(image[(slice(None), *window)], np.float32)
        if self.config.sigma is None:
            return image, classes[(slice(None), *window)]
        if depth is not None:
            return image, self._heat(row, (slice(depth, depth + 1), *window))
        return image, self._heat(row, window)[None]

    def _heat(self, row: int, window: tuple[slice, ...]) -> np.ndarray:
        if row not in self.centres:
            self.centres[row] = lesion_centres(number_lesions(self.table[self.dataset.labels[row][0]]))
        spans = [part.indices(length) for part, length in zip(window, self.dataset.shape, strict=True)]
        starts, stops = np.array(spans)[:, :2].T
        return heat_map(self.centres[row] - starts, tuple(stops - starts), self.dataset.spacing, self.config.sigma)


def place_window(classes: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, ...]:
    """A window of `shape` in `classes`; in half of the cases over a random voxel that is not 0, if there is one."""
    room = [have - want for have, want in zip(classes.shape, shape, strict=True)]
    if not any(room):
        return (slice(None),) * len(shape)
    starts = [int(rng.integers(free + 1)) for free in room]
    if rng.random() < LABELLED_SHARE:
        spots = np.flatnonzero(classes)
        if len(spots):
            spot = np.unravel_index(rng.choice(spots), classes.shape)
            starts = [
                int(np.clip(at - rng.integers(want), 0, free)) for at, want, free in zip(spot, shape, room, strict=True)
            ]
    return tuple(slice(start, start + want) for start, want in zip(starts, shape, strict=True))
