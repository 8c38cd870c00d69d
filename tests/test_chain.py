"""The whole way, from phantoms to volumes in a viewer, in the processes that a user would start."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from splitshuffle_gan.data.dataset import open_dataset

REPOSITORY = Path(__file__).resolve().parent.parent
TINY_NETWORK = "--network.channels 8 8 8 --network.z-dim 8 --network.w-dim 8 --network.mapping-layers 2".split()
WINDOW, SPACING, SHAPE = (-350, 1000), (16.0, 24.0, 20.0), (8, 16, 8)  # coronal: D H W are A S R
CONSOLE = Path(sysconfig.get_path("scripts")) / "splitshuffle"


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    """phantom -> prepare -> train2d -> inflate -> train3d -> sample, as the README starts them."""
    folder = tmp_path_factory.mktemp("chain")
    # Threads that wait do not spin: on busy cores they would take the time of those that work.
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HOME": str(folder / "hf"),
        "OMP_WAIT_POLICY": "passive",
    }

    def start(*command: object, cwd: Path = folder) -> None:
        done = subprocess.run(
            [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        (folder / "printed.txt").open("a").write(done.stdout)

    short = ("--kimg", 0.016, "--batch-size", 8, "--mixed-precision", "no")
    spacing = (SPACING[1], SPACING[0], SPACING[2])  # phantoms are axial: D H W are S A R
    start(CONSOLE, "phantom", "--kind", "heart", "--count", 5, "--out", "phantoms", "--shape", 20, 10, 12,
          "--spacing", *spacing)  # fmt: skip
    start(CONSOLE, "prepare", "phantoms/images", "--out", "dataset", "--shape", *SHAPE, "--plane", "coronal",
          "--window", *WINDOW)  # fmt: skip
    start(sys.executable, REPOSITORY / "train/train2d.py", "--data", "dataset", "--out", "run2d", *short,
          *TINY_NETWORK)  # fmt: skip
    start(sys.executable, REPOSITORY / "train/inflate.py", "run2d", "--out", "inflated")
    start(sys.executable, "-m", "accelerate.commands.launch", "train3d.py", "--data", folder / "dataset",
          "--init", folder / "inflated", "--out", folder / "run3d", *short, cwd=REPOSITORY / "train")  # fmt: skip
    start(CONSOLE, "sample", "run3d", "--seeds", "0,2-3", "--out", "samples")
    return folder


def test_every_step_leaves_a_folder_that_tells_how_it_was_made(chain):
    for record in ("phantoms/factors.json", "dataset/manifest.json", "run2d/run.json", "inflated/inflation.json",
                   "run3d/run.json", "samples/samples.json"):  # fmt: skip
        assert json.loads((chain / record).read_text())["created_with"]
    for run, rank in (("run2d", 2), ("run3d", 3)):
        record = json.loads((chain / run / "run.json").read_text())
        assert (record["rank"], record["generator"]["rank"], record["machine"]["processes"]) == (rank, rank, 1)
        assert record["generator"]["channels"] == record["discriminator"]["channels"] == [8, 8, 8]
    printed = (chain / "printed.txt").read_text()
    assert "5 heart phantoms in phantoms/images" in printed
    assert "5 volumes (0 skipped) of 8x16x8 voxels, 16 x 24 x 20 mm, coronal: dataset" in printed
    assert "generator      relative error, slices against 2D images" in printed
    assert f"done: {chain}/run3d/snapshots/kimg00000.032; look at" in printed
    assert "volumes in samples; look at samples/montage.png" in printed


def test_the_inflated_start_was_exact(chain):
    report = json.loads((chain / "inflated/inflation.json").read_text())
    assert report["method"] == "center"
    assert max(report["generator_error_per_depth"]) < 1e-5 and len(report["generator_error_per_depth"]) == SHAPE[0]
    assert report["discriminator_error"] < 1e-5


def test_samples_are_volumes_that_a_viewer_places_right(chain):
    names = ["seed0000.nii.gz", "seed0002.nii.gz", "seed0003.nii.gz"]
    assert sorted(path.name for path in (chain / "samples").iterdir()) == ["montage.png", "samples.json", *names]
    # The phantoms' middle is at 0 mm, and so is what is cut about it; x, y, z of the coronal D H W are W, D, H.
    shape, spacing = (np.array((v[2], v[0], v[1])) for v in (SHAPE, SPACING))
    affine = np.diag([*spacing, 1])
    affine[:3, 3] = -(shape - 1) / 2 * spacing
    for name in names:
        image = nib.load(chain / "samples" / name)
        assert image.shape == tuple(shape)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        np.testing.assert_allclose(image.affine, affine, atol=1e-4)
        assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
        assert image.header.get_xyzt_units()[0] == "mm"
        values = np.asanyarray(image.dataobj)
        assert values.dtype == np.int16
        assert WINDOW[0] <= values.min() < values.max() <= WINDOW[1]
    a, b = (np.asanyarray(nib.load(chain / "samples" / name).dataobj) for name in names[:2])
    assert (a != b).any()
    with Image.open(chain / "samples" / "montage.png") as montage:
        assert min(montage.size) > 100


def test_the_affine_is_the_datasets(chain):
    geometry = open_dataset(chain / "dataset").geometry()
    image = nib.load(chain / "samples" / "seed0000.nii.gz")
    index = np.array([3, 5, 1, 1.0])  # d, h, w
    x, y, z = index[2], index[0], index[1]
    np.testing.assert_allclose(image.affine @ [x, y, z, 1], np.array(geometry["affine"]) @ index, atol=1e-4)


def test_samples_json(chain):
    record = json.loads((chain / "samples" / "samples.json").read_text())
    assert record["checkpoint"] == "run3d/snapshots/kimg00000.032/generator"
    assert record["files"] == ["seed0000.nii.gz", "seed0002.nii.gz", "seed0003.nii.gz"]
    assert (record["truncation_psi"], record["noise_mode"], record["synthetic"]) == (0.7, "const", True)
    assert record["geometry"] == open_dataset(chain / "dataset").geometry()
    assert (record["generator"]["rank"], tuple(record["generator"]["shape"])) == (3, SHAPE)


def test_a_seed_is_the_same_volume_in_another_run(chain, run, tmp_path, cpu):
    assert run("sample", chain / "run3d", "--seeds", "3", "--out", tmp_path / "again").code == 0
    first, again = (nib.load(f / "seed0003.nii.gz") for f in (chain / "samples", tmp_path / "again"))
    # The other process rounds with another number of threads, perhaps.
    assert np.abs(np.asanyarray(first.dataobj) - np.asanyarray(again.dataobj)).max() <= 1


def test_interpolation_and_mixing(chain, run, tmp_path, cpu):
    walk = run("sample", chain / "run3d", "--interpolate", 0, 2, "--steps", 3, "--out", tmp_path / "walk")
    mix = run("sample", chain / "run3d", "--style-mix", 0, 2, "--out", tmp_path / "mix")
    assert (walk.code, mix.code) == (0, 0)
    files = {name: json.loads((tmp_path / name / "samples.json").read_text())["files"] for name in ("walk", "mix")}
    assert files["walk"] == [f"step{i:04d}.nii.gz" for i in range(3)]
    assert files["mix"] == ["seed0000.nii.gz", "seed0002.nii.gz", "mix0000-0002.nii.gz"]
    step0, last, seed0, seed2 = (
        np.asanyarray(nib.load(tmp_path / path).dataobj).astype(int)
        for path in ("walk/step0000.nii.gz", "walk/step0002.nii.gz", "mix/seed0000.nii.gz", "mix/seed0002.nii.gz")
    )
    assert np.abs(step0 - seed0).max() <= 1 and np.abs(last - seed2).max() <= 1


def test_outputs_are_not_replaced_unasked(chain, run, tmp_path, cpu):
    copy = tmp_path / "samples"
    shutil.copytree(chain / "samples", copy)
    for command in (
        ("sample", chain / "run3d", "--out", copy),
        ("inflate", chain / "run2d", "--out", chain / "inflated"),
        ("train3d", "--data", chain / "dataset", "--out", chain / "run3d"),
        ("phantom", "--out", chain / "phantoms"),
    ):
        outcome = run(*command)
        assert outcome.code == 1 and "exists already" in outcome.err
    assert (copy / "seed0002.nii.gz").exists()
    assert run("sample", chain / "run3d", "--out", copy, "--seeds", "5", "--overwrite").code == 0
    assert sorted(path.name for path in copy.iterdir()) == ["montage.png", "samples.json", "seed0005.nii.gz"]


def test_what_does_not_fit_together(chain, run, tmp_path, cpu):
    data, out = ("--data", chain / "dataset"), ("--out", tmp_path / "out")
    for command, told in (
        (("inflate", chain / "run3d", *out), "rank: found 3, only a network of rank 2 can be inflated"),
        (("inflate", chain / "run2d", *out, "--shape", 8, 32, 8), "only the depth may change"),
        (("inflate", chain / "run2d", *out, "--shape", 8, 17, 8), "Use 8x16x8"),
        (("train3d", *data, *out, "--init", chain / "run2d"), "rank: "),
        (("train3d", *data, *out, "--init", chain / "inflated", "--network.conv", "plain"), "conv: "),
    ):
        outcome = run(*command)
        assert outcome.code == 1 and told in outcome.err
        assert not list(tmp_path.glob("out*"))
