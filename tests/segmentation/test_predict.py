"""Volumes of any size, with networks whose answer is known voxel by voxel."""

import numpy as np
import pytest
import torch

from splitshuffle_gan.devices import make_accelerator
from splitshuffle_gan.segmentation.network2d import neighbours
from splitshuffle_gan.segmentation.predict import evaluate, probabilities
from splitshuffle_gan.segmentation.segmenter import Segmenter, SegmenterConfig, open_labelled

SHAPE = (4, 6, 8)


class Voxelwise(Segmenter):
    """The logit of class 1 is ten times the voxel, that of class 2 ten times the voxel below. Notes its calls."""

    def __init__(self, rank, labels=(0, 1, 2)):
        super().__init__()
        self.rank, self.config, self.sizes = rank, SegmenterConfig(labels=labels, shape=SHAPE), []

    def predict(self, volumes):
        self.sizes.append(tuple(volumes.shape[2:]))
        below = neighbours(volumes, 3)[:, 0].unflatten(0, (len(volumes), -1))[:, None]
        return 10 * torch.cat([torch.zeros_like(volumes), volumes, below], dim=1)


@pytest.fixture
def accelerator(cpu):
    return make_accelerator("no")


def expected(volume):
    below = np.concatenate([volume[:1], volume[:-1]])
    logits = torch.from_numpy(10 * np.stack([np.zeros_like(volume), volume, below]))
    return logits.softmax(0)


@pytest.mark.parametrize("shape", [SHAPE, (4, 13, 9), (9, 6, 20), (2, 5, 3)])
def test_a_2d_network_takes_all_slices_window_by_window(shape, accelerator):
    volume = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    segmenter = Voxelwise(rank=2)
    found = probabilities(segmenter, volume, accelerator)
    torch.testing.assert_close(found, expected(volume), rtol=1e-4, atol=1e-4)
    assert set(segmenter.sizes) == {(shape[0], *SHAPE[1:])}


def test_a_3d_network_takes_windows_of_its_own_shape(accelerator):
    volume = np.random.default_rng(0).uniform(-1, 1, (11, 6, 9)).astype(np.float32)
    segmenter = Voxelwise(rank=3)
    found = probabilities(segmenter, volume, accelerator)
    assert set(segmenter.sizes) == {SHAPE} and len(segmenter.sizes) > 4
    torch.testing.assert_close(found[1].log() - found[0].log(), torch.from_numpy(10 * volume), rtol=1e-3, atol=1e-3)


def test_evaluation_compares_classes_with_the_datasets_labels(balls, accelerator):
    dataset = open_labelled(balls.val)
    segmenter = Voxelwise(rank=2, labels=(0, 2, 5))
    result = evaluate(segmenter, dataset, accelerator)
    assert [case["source"] for case in result["cases"]] == [e["source"] for e in dataset.manifest["volumes"]]
    volume, labels = dataset.volumes[0][0], dataset.labels[0][0]
    found = expected(volume).argmax(0).numpy() == 1
    wanted = 2 * np.sum(found & (labels == 2)) / (found.sum() + np.sum(labels == 2))
    assert result["cases"][0]["dice"]["2"] == pytest.approx(wanted, abs=1e-6)
    assert "hd95" not in evaluate(segmenter, dataset, accelerator, thorough=False)
