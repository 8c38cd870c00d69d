"""The whole job on phantoms, for real, at the smallest size."""

import json

import nibabel as nib
import pytest

from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.models.discriminator import Discriminator
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.presets import load_preset
from splitshuffle_gan.training import quickstart as module
from splitshuffle_gan.training.quickstart import quickstart

SHAPE = (8, 16, 8)


def tiny_preset(name: str) -> dict:
    """The quickstart's own sections, with a tiny grid, a few volumes and two steps."""
    assert name == "quickstart"
    preset = load_preset(name)
    grid = {"shape": list(SHAPE), "spacing": [22.0, 14.0, 22.0]}
    preset["phantom"] |= {**grid, "count": 4}
    preset["prepare"] |= grid
    for section in ("train2d", "train3d"):
        preset[section] |= {"kimg": 0.016, "batch_size": 4, "network": {"channels": [8, 8, 8]}}
    return preset


@pytest.fixture
def out(tmp_path, monkeypatch, cpu):
    monkeypatch.setattr(module, "load_preset", tiny_preset)
    return tmp_path / "deep" / "quickstart"


def test_the_whole_way(out):
    said = quickstart(out, seed=5)
    folders = ["dataset", "inflated", "phantoms", "quickstart.json", "run2d", "run3d", "samples"]
    assert sorted(path.name for path in out.iterdir()) == folders
    record = json.loads((out / "quickstart.json").read_text())
    assert (record["seed"], record["preset"]["phantom"]["count"]) == (5, 4)
    assert json.loads((out / "phantoms/factors.json").read_text())["seed"] == 5

    dataset = open_dataset(out / "dataset")
    assert (len(dataset), dataset.shape) == (4, SHAPE)
    for run, rank in (("run2d", 2), ("run3d", 3)):
        started = json.loads((out / run / "run.json").read_text())
        assert (started["rank"], started["config"]["seed"], started["data"]["count"]) == (rank, 5, 4)
        snapshot = out / run / "snapshots" / "kimg00000.016"
        assert (snapshot / "montage.png").is_file()
        assert Generator.from_pretrained(snapshot / "generator").config.rank == rank
        assert Discriminator.from_pretrained(snapshot / "discriminator").config.rank == rank
    assert started["config"]["init"] == str(out / "inflated")
    report = json.loads((out / "inflated/inflation.json").read_text())
    assert report["source"] == str(out / "run2d") and report["discriminator_error"] < 1e-4

    for seed in range(8):
        assert nib.load(out / "samples" / f"seed{seed:04d}.nii.gz").shape == SHAPE[::-1]
    named = [line.split()[0] for line in said.splitlines() if line.startswith("  /") and "montage" in line]
    assert named == [f"{out}/samples/montage.png", f"{out}/run3d/snapshots/kimg00000.016/montage.png"]
    for line in said.splitlines():
        if line.startswith(f"  {out}"):
            assert (out / line.split()[0]).is_file()


def test_what_exists_is_left_alone(out):
    out.mkdir(parents=True)
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists already"):
        quickstart(out)
    with pytest.raises(UserError, match="has no quickstart.json"):
        quickstart(out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
