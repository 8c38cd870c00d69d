"""Small labelled datasets of balls, to learn from and to be judged by."""

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from splitshuffle_gan.data.prepare import PrepareConfig, prepare

SHAPE, SPACING = (16, 16, 16), (1.0, 1.0, 1.0)


def write_balls(folder: Path, count: int, seed: int) -> Path:
    """A dataset: label 1 a shell of 100, label 2 its core of 300, in air of -200, with noise."""
    rng, affine = np.random.default_rng(seed), np.diag([*SPACING[::-1], 1.0])
    grid = np.stack(np.meshgrid(*[np.arange(side) - (side - 1) / 2 for side in SHAPE[::-1]], indexing="ij"))
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        centre = rng.uniform(-0.5, 0.5, (3, 1, 1, 1))  # so that no two are of the same size
        radius, outer = np.sqrt(np.square(grid - centre).sum(0)), rng.uniform(3.5, 7)
        label = (radius < outer).astype(np.uint8) + (radius < outer * rng.uniform(0.3, 0.8))
        image = np.array([-200, 100, 300])[label] + rng.normal(0, 20, label.shape)
        for part, array in (("images", image.astype(np.float32)), ("labels", label)):
            nib.save(nib.Nifti1Image(array, affine), folder / part / f"ball-{seed}-{number}.nii.gz")
    return prepare(PrepareConfig(folder / "images", folder / "dataset", SHAPE, window=(-250, 650), workers=1,
                                 labels=folder / "labels"))  # fmt: skip


@pytest.fixture(scope="session")
def balls(tmp_path_factory) -> SimpleNamespace:
    """`root`, and in it the datasets `train` and `test`, relative to it."""
    root = tmp_path_factory.mktemp("balls")
    write_balls(root / "a", 12, 1)
    write_balls(root / "b", 10, 2)
    return SimpleNamespace(root=root, train=Path("a/dataset"), test=Path("b/dataset"))
