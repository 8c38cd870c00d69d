"""Fixtures shared by the whole suite."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from splitshuffle_gan import cli
from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.training.options import NetworkOptions, TrainConfig

REPOSITORY = Path(__file__).resolve().parent.parent
TINY_SHAPE, TINY_SPACING = (8, 16, 8), (2.0, 1.0, 1.5)
TINY_NETWORK = {"channels": (8, 8, 8), "z_dim": 8, "w_dim": 8, "mapping_layers": 2, "group_size": 2}


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans (hippocampus/images, ...); skips where there is none."""
    folder = Path(os.environ.get("SPLITSHUFFLE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "hippocampus" / "images").is_dir():
        pytest.skip("no real scans: set SPLITSHUFFLE_TEST_DATA to a folder that holds hippocampus/images")
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    """Six prepared volumes of TINY_SHAPE: ellipsoids of various places and sizes, the end slices empty."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "scans").mkdir()
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side) for side in TINY_SHAPE[::-1]], indexing="ij"))  # x, y, z
    for number in range(6):
        centre, radius = rng.uniform(-0.15, 0.15, (3, 1, 1, 1)), rng.uniform(0.5, 0.8)
        inside = np.square(grid - centre).sum(0) < radius**2
        scan = (inside * rng.uniform(600, 1000) + rng.uniform(0, 20, inside.shape)).astype(np.float32)
        affine = np.diag([*TINY_SPACING[::-1], 1.0])
        nib.save(nib.Nifti1Image(scan, affine), folder / "scans" / f"{number}.nii.gz")
    return prepare(PrepareConfig(folder / "scans", folder / "dataset", TINY_SHAPE, window=(0, 1000), workers=1))


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory) -> Path:
    """Six prepared volumes of TINY_SHAPE with labels: an ellipsoid of label 2, a core of label 5 in it."""
    folder = tmp_path_factory.mktemp("pairs")
    rng, affine = np.random.default_rng(0), np.diag([*TINY_SPACING[::-1], 1.0])
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side) for side in TINY_SHAPE[::-1]], indexing="ij"))  # x, y, z
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for number in range(6):
        radius = np.sqrt(np.square(grid - rng.uniform(-0.15, 0.15, (3, 1, 1, 1))).sum(0)) / rng.uniform(0.7, 0.9)
        label = np.select([radius < 0.5, radius < 1], [5, 2], 0).astype(np.uint8)
        scan = label * rng.uniform(150, 190) + rng.uniform(0, 20, label.shape)
        for part, array in (("images", scan.astype(np.float32)), ("labels", label)):
            nib.save(nib.Nifti1Image(array, affine), folder / part / f"{number}.nii.gz")
    config = {"window": (0, 1000), "workers": 1, "labels": "auto"}
    return prepare(PrepareConfig(folder / "images", folder / "dataset", TINY_SHAPE, **config))


@pytest.fixture
def cpu(monkeypatch) -> None:
    """Train on the CPU, each test with an Accelerate of its own.

    One thread: on networks this small, threads that wait for a busy core cost far more than they bring.
    """
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    threads = torch.get_num_threads()
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_config(tiny_dataset, tmp_path, cpu) -> Callable[..., TrainConfig]:
    """`tiny_config(**changes)`: a run of 16 steps of 8 images; `network` changes single options of the networks."""

    def make(network: dict | None = None, **changes) -> TrainConfig:
        values = {
            "data": tiny_dataset,
            "out": tmp_path / "run",
            "kimg": 0.128,
            "batch_size": 8,
            "mixed_precision": "no",
            "network": NetworkOptions(**(TINY_NETWORK | (network or {}))),
        }
        return TrainConfig(**(values | changes))

    return make


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., SimpleNamespace]:
    """`run("prepare", folder, ...)`: the command in this process. An exception, which is a traceback, passes."""

    def call(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["splitshuffle", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call
