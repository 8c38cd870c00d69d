"""A small labelled dataset of balls: bright ones in dim ones."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from splitshuffle_gan.data.prepare import PrepareConfig, prepare

SHAPE, SPACING = (8, 16, 16), (2.0, 1.0, 1.0)


def write_balls(folder: Path, count: int, seed: int) -> Path:
    """A dataset: label 1 a shell of 100, label 2 the core of 300, in air of -200, with noise."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.arange(side) - (side - 1) / 2 for side in SHAPE[::-1]], indexing="ij")
    radius = np.sqrt(x**2 + y**2 + (2 * z) ** 2)
    pairs = []
    for _ in range(count):
        outer = rng.uniform(3.5, 7.5)
        label = (radius < outer).astype(np.uint8) + (radius < outer * rng.uniform(0.4, 0.8))
        pairs.append((np.array([-200, 100, 300])[label] + rng.normal(0, 20, label.shape), label))
    return write_dataset(folder, pairs, str(seed))


def write_dataset(folder: Path, pairs: list[tuple[np.ndarray, np.ndarray]], name: str = "scan") -> Path:
    """A prepared dataset of images in HU and labels, both (x, y, z)."""
    affine = np.diag([*SPACING[::-1], 1.0])
    for part, dtype, arrays in zip(("images", "labels"), (np.float32, np.uint8), zip(*pairs, strict=True), strict=True):
        (folder / part).mkdir(parents=True)
        for number, array in enumerate(arrays):
            nib.save(nib.Nifti1Image(array.astype(dtype), affine), folder / part / f"{name}-{number}.nii.gz")
    return prepare(PrepareConfig(folder / "images", folder / "dataset", SHAPE, window=(-250, 650), workers=1,
                                 labels=folder / "labels"))  # fmt: skip


@pytest.fixture
def labelled_noise(tmp_path) -> Path:
    """A dataset in which one voxel of 50 has label 1, whatever it looks like."""
    rng = np.random.default_rng(0)
    shape = SHAPE[::-1]
    pairs = [(rng.normal(100, 50, shape), (rng.random(shape) < 0.02).astype(np.uint8)) for _ in range(12)]
    return write_dataset(tmp_path / "noise", pairs)


@pytest.fixture(scope="session")
def balls(tmp_path_factory) -> Callable[..., Path]:
    """`balls(count, seed)`: the dataset's folder, made once."""
    made: dict[tuple[int, int], Path] = {}

    def make(count: int, seed: int = 0) -> Path:
        if (count, seed) not in made:
            made[count, seed] = write_balls(tmp_path_factory.mktemp("balls"), count, seed)
        return made[count, seed]

    return make
