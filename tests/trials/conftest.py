"""Small labelled datasets of balls: real ones, others in the part of synthetic ones, and some to test on."""

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from splitshuffle_gan.data.prepare import PrepareConfig, prepare

SHAPE = (8, 32, 32)


def write_balls(folder: Path, count: int, seed: int) -> Path:
    """A prepared dataset of balls: label 2 a shell, label 5 its core; the last one has no core."""
    rng = np.random.default_rng(seed)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side) for side in SHAPE[::-1]], indexing="ij"))
    for number in range(count):
        radius = np.sqrt(np.square(grid - rng.uniform(-0.1, 0.1, (3, 1, 1, 1))).sum(0)) / rng.uniform(0.7, 0.9)
        label = np.select([radius < 0.5, radius < 1], [2 if number == count - 1 else 5, 2], 0).astype(np.uint8)
        image = np.select([label == 5, label == 2], [300, 100], -200) + rng.normal(0, 20, label.shape)
        for part, array in (("images", image.astype(np.float32)), ("labels", label)):
            nib.save(nib.Nifti1Image(array, np.eye(4)), folder / part / f"{number}.nii.gz")
    return prepare(PrepareConfig(folder / "images", folder / "dataset", SHAPE, window=(-250, 650), workers=1,
                                 labels="auto"))  # fmt: skip


@pytest.fixture(scope="session")
def sets(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("balls")
    return SimpleNamespace(
        train=write_balls(folder / "train", 3, 0),
        synthetic=write_balls(folder / "synthetic", 4, 1),
        test=write_balls(folder / "test", 6, 2),
    )
