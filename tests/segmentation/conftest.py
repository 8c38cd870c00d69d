"""A small labelled dataset of thick slices, bright balls in dim ones; runs of both networks on it, made once."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.segmentation.options import Network2DOptions, Network3DOptions, Segment2DConfig, Segment3DConfig
from splitshuffle_gan.segmentation.training import train_segmenter

SHAPE, SPACING, WINDOW = (8, 32, 32), (4.0, 1.0, 1.0), (-250, 650)
SHELL, CORE = 2, 5
SMALLEST = (1, 1, 1, 1)


def ball(shape: tuple[int, int, int], spacing: tuple[float, float, float], rng: np.random.Generator):
    """Image in HU and label, both (x, y, z): label 2 a shell of 100, label 5 its core of 300, in air of -200."""
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape[::-1], spacing[::-1], strict=True)]
    offset = rng.uniform(-2, 2, 3)
    radius = np.sqrt(sum(np.square(a - o) for a, o in zip(np.meshgrid(*axes, indexing="ij"), offset, strict=True)))
    outer = rng.uniform(10, 13)
    label = np.where(radius < outer * 0.5, CORE, np.where(radius < outer, SHELL, 0)).astype(np.uint8)
    image = np.select([label == CORE, label == SHELL], [300.0, 100.0], -200.0) + rng.normal(0, 20, label.shape)
    return image.astype(np.float32), label


def write_balls(folder: Path, count: int, seed: int, shape: tuple = SHAPE, spacing: tuple = SPACING) -> Path:
    """A prepared dataset of balls, its scans beside it in images/ and labels/."""
    rng, affine = np.random.default_rng(seed), np.diag([*spacing[::-1], 1.0])
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        for part, array in zip(("images", "labels"), ball(shape, spacing, rng), strict=True):
            nib.save(nib.Nifti1Image(array, affine), folder / part / f"ball-{seed}-{number}.nii.gz")
    return prepare(PrepareConfig(folder / "images", folder / "dataset", shape, window=WINDOW, workers=1,
                                 labels=folder / "labels"))  # fmt: skip


@pytest.fixture(scope="session")
def balls(tmp_path_factory) -> SimpleNamespace:
    """Datasets of balls, `train` and `val`."""
    folder = tmp_path_factory.mktemp("balls")
    return SimpleNamespace(train=write_balls(folder / "a", 6, 1), val=write_balls(folder / "b", 2, 2))


@pytest.fixture(scope="session")
def one_core() -> Iterator[None]:
    """As the fixture `cpu`, for what is made once."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        patch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
        AcceleratorState._reset_state(reset_partial_state=True)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def run2d(balls, one_core, tmp_path_factory) -> Path:
    """A 2D network that has learnt to tell the balls."""
    config = Segment2DConfig(
        data=balls.train,
        val=balls.val,
        out=tmp_path_factory.mktemp("run2d") / "run",
        steps=40,
        batch_size=12,
        validations=2,
        learning_rate=2e-3,
        augment_p=0.0,
        mixed_precision="no",
        network=Network2DOptions(layers=SMALLEST, width=8),
    )
    return train_segmenter(config)


@pytest.fixture(scope="session")
def run3d(balls, run2d, one_core, tmp_path_factory) -> Path:
    """A 3D network that was started from the 2D one and has hardly learnt more."""
    config = Segment3DConfig(
        data=balls.train,
        val=balls.val,
        init=run2d,
        out=tmp_path_factory.mktemp("run3d") / "run",
        steps=2,
        batch_size=2,
        validations=1,
        mixed_precision="no",
        network=Network3DOptions(scale=(8, 1, 1)),
    )
    return train_segmenter(config)
