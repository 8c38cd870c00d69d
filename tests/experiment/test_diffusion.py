"""The outside arm: it learns, goes on as if nothing had happened, and draws what it was taught."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from monai.utils import OptionalImportError

from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.devices import make_accelerator
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment import denoiser, diffusion
from splitshuffle_gan.experiment.denoiser import SCHEDULE, Denoiser, DenoiserConfig, ddim
from splitshuffle_gan.experiment.diffusion import (
    DiffusionConfig,
    DiffusionTraining,
    draw_volumes,
    spread_timesteps,
    train_diffusion,
    volume_set,
)
from splitshuffle_gan.metrics.source import check_same_grid, open_volumes

pytest.importorskip("einops", reason="MONAI's diffusion network needs einops")

STEP = 0.002  # kimg of a step of 2 volumes


@pytest.fixture
def config(tiny_dataset, tmp_path, cpu):
    """`config(**changes)`: 12 steps of 2 volumes, a snapshot every 4."""

    def make(**changes) -> DiffusionConfig:
        values = {"kimg": 12 * STEP, "snapshot_kimg": 4 * STEP, "batch_size": 2, "channels": (8, 8), "warmup": 2}
        values |= {"data": tiny_dataset, "out": tmp_path / "run", "mixed_precision": "no"}
        return DiffusionConfig(**(values | changes))

    return make


def alphas() -> torch.Tensor:
    """Signal kept at each timestep, squared; worked out afresh."""
    roots = torch.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000, dtype=torch.float64)
    return torch.cumprod(1 - roots**2, 0)


def test_it_learns_one_volume(config):
    training = DiffusionTraining(config(lr=1e-2), open_dataset(config().data), make_accelerator("no"))
    batch = {"image": torch.as_tensor(np.array(open_dataset(config().data).volumes[:1])).expand(2, -1, -1, -1, -1)}
    losses = [float(training.train_step(batch)["loss"]) for _ in range(40)]
    assert np.mean(losses[-10:]) < 0.4 * np.mean(losses[:5])
    assert training.seen == 80


def test_the_target_is_the_velocity(config):
    """Of a network that predicts 0, as a fresh one does, the loss is the mean square of sqrt(a) noise - sqrt(1-a) x."""
    training = DiffusionTraining(config(), open_dataset(config().data), make_accelerator("no"))
    images = torch.as_tensor(np.array(open_dataset(config().data).volumes[:2]))
    noise = diffusion.latents(0, 0, 0, 2, images[0].numel(), slice(0, 2)).view_as(images)
    kept = alphas()[spread_timesteps(0, 0, 2)].view(2, 1, 1, 1, 1)
    wanted = (kept.sqrt() * noise - (1 - kept).sqrt() * images).square().mean()
    assert float(training.train_step({"image": images})["loss"]) == pytest.approx(float(wanted), rel=1e-5)


def test_a_batch_holds_timesteps_from_everywhere():
    drawn = torch.stack([spread_timesteps(3, step, 8) for step in range(500)])
    assert ((drawn // 125).sort(1).values == torch.arange(8)).all()
    assert drawn.min() < 5 and drawn.max() > 994
    assert (drawn.double().mean(0) - 499.5).abs().max() < 4 * 1000 / (12 * 500) ** 0.5  # each position is uniform


def test_a_run_goes_on_exactly(config, tmp_path):
    whole = train_diffusion(config())
    assert whole == tmp_path / "run" / "snapshots" / "kimg00000.024"
    parts = config(out=tmp_path / "parts", kimg=8 * STEP)
    train_diffusion(parts)
    with open(parts.out / "log.jsonl", "a") as log:
        log.write('{"step": 12, "kim')  # a kill
    resumed = train_diffusion(dataclasses.replace(parts, kimg=12 * STEP, resume=True))
    for name in ("model.safetensors", "config.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    logs = [[json.loads(line) for line in (out / "log.jsonl").open()] for out in (config().out, parts.out)]
    straight, taken_up = ([(line["step"], line["loss"]) for line in log] for log in logs)
    assert straight == taken_up and [step for step, _ in straight] == [4, 8, 12]
    assert [folder.name for folder in sorted((parts.out / "snapshots").iterdir())] == [
        "kimg00000.008", "kimg00000.016", "kimg00000.024"
    ]  # fmt: skip


def test_another_run_is_not_taken_up(config, tmp_path):
    train_diffusion(config(kimg=4 * STEP))
    with pytest.raises(UserError, match="exists already"):
        train_diffusion(config())
    with pytest.raises(UserError, match=r"lr: the run in .* was started with 0.001, found 0.01"):
        train_diffusion(config(resume=True, lr=0.01))
    other = tmp_path / "other"
    shutil.copytree(config().data, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"data_hash": "0" * 64}))
    with pytest.raises(UserError, match="is not the dataset"):
        train_diffusion(config(resume=True, data=other))


def test_a_broken_loss_ends_the_run(config, monkeypatch):
    monkeypatch.setattr(diffusion, "mse_loss", lambda predicted, target: predicted.sum() * float("nan"))
    with pytest.raises(FloatingPointError, match="loss became nan at step 4"):
        train_diffusion(config())


def test_a_volume_depends_on_its_seed_and_place_alone(config):
    run = config().out
    snapshot = train_diffusion(config(kimg=4 * STEP))
    volumes = draw_volumes(run, 6, seed=1, steps=4)
    assert volumes.shape == (6, 8, 16, 8) and volumes.dtype == np.float32
    assert np.abs(volumes).max() <= 1
    assert np.array_equal(draw_volumes(snapshot, 2, seed=1, steps=4), volumes[:2])
    assert not np.allclose(volumes[0], volumes[1])
    assert not np.allclose(draw_volumes(run, 1, seed=2, steps=4)[0], volumes[0])


def test_the_average_is_drawn_from(config):
    snapshot = train_diffusion(config(kimg=4 * STEP))
    state = torch.load(config().out / "state.pt", weights_only=True)["training"]
    saved = Denoiser.from_pretrained(snapshot).state_dict()
    assert all(torch.equal(saved[key], value) for key, value in state["average"].items())
    assert any(not torch.equal(saved[key], value) for key, value in state["network"].items())


def test_a_set_draws_once_and_only_when_read(config, monkeypatch):
    snapshot = train_diffusion(config(kimg=4 * STEP))
    drawn = []

    def draw(folder, n, seed):
        drawn.append((folder, n, seed))
        return np.random.default_rng(seed).uniform(-1, 1, (n, 8, 16, 8)).astype(np.float32)

    monkeypatch.setattr(diffusion, "draw_volumes", draw)
    volumes, real = volume_set(config().out, 3, seed=5), open_volumes(config().data)
    check_same_grid(volumes, real)
    assert drawn == [] and len(volumes) == 3
    assert volumes.array().shape == (3, 8, 16, 8) and not np.array_equal(volumes[0], volumes[2])
    assert drawn == [(snapshot, 3, 5)]
    assert volumes.details["trained_on"] == real.details["dataset_hash"]


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_ddim_recovers_the_volume_that_a_perfect_model_knows(steps):
    random = torch.Generator().manual_seed(0)
    truth = torch.rand(2, 1, 4, 4, 4, generator=random) * 2 - 1
    seen = []

    def velocity(x, timesteps):
        seen.append(int(timesteps[0]))
        kept = alphas()[timesteps].view(-1, 1, 1, 1, 1).float()
        noise = (x - kept.sqrt() * truth) / (1 - kept).sqrt()
        return kept.sqrt() * noise - (1 - kept).sqrt() * truth

    drawn = ddim(velocity, torch.randn(truth.shape, generator=random), steps)
    assert torch.allclose(drawn, truth, atol=1e-4)
    assert len(seen) == steps and seen[0] == 999 and seen[-1] == (0 if steps > 1 else 999)


def test_ddim_follows_the_flow_of_a_distribution():
    """For voxels of mean m and deviation s the best prediction is linear, and the flow has a closed form."""
    mean, deviation, total = 0.2, 0.1, alphas()

    def velocity(x, timesteps):
        kept = total[timesteps].view(-1, 1, 1, 1, 1)
        gain = kept.sqrt() * deviation**2 / (kept * deviation**2 + 1 - kept)
        volume = mean + gain * (x - kept.sqrt() * mean)
        noise = (x - kept.sqrt() * volume) / (1 - kept).sqrt()
        return kept.sqrt() * noise - (1 - kept).sqrt() * volume

    noise = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    last = total[-1]
    exact = mean + deviation * (noise - last.sqrt() * mean) / (last * deviation**2 + 1 - last).sqrt()
    assert torch.allclose(ddim(velocity, noise, 1000), exact, atol=0.02)
    assert 0.8 < ddim(velocity, noise, 50).std() / exact.std() < 0.84  # 50 steps lose that much of fine detail


def test_what_makes_no_sense_is_refused(config, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="steps: found 0"):
        ddim(lambda x, t: x, torch.zeros(1, 1, 4, 4, 4), 0)
    with pytest.raises(UserError, match="lr: found nan"):
        config(lr=float("nan"))
    with pytest.raises(UserError, match="seed: found -1"):
        config(seed=-1)
    for channels in ((), (16, 33), (0, 8)):
        with pytest.raises(UserError, match="channels: found"):
            DenoiserConfig(shape=(8, 16, 8), channels=channels, num_res_blocks=1)
    with pytest.raises(UserError, match="must be a multiple of 16; give fewer"):
        DenoiserConfig(shape=(8, 16, 8), channels=(8,) * 5, num_res_blocks=1)
    with pytest.raises(UserError, match="DenoiserConfig: unknown field wide"):
        DenoiserConfig.from_dict({"shape": (8, 16, 8), "channels": (8,), "num_res_blocks": 1, "wide": 2})
    with pytest.raises(UserError, match="no such folder"):
        draw_volumes(tmp_path / "nothing", 1)


def test_a_missing_package_is_named(monkeypatch):
    def lacking(*_):
        raise OptionalImportError("from einops.layers.torch import Rearrange (No module named 'einops').\n\nDetails")

    monkeypatch.setattr(denoiser, "diffusion_network", lacking)
    with pytest.raises(UserError, match=r"No module named 'einops'.*pip install einops"):
        Denoiser(DenoiserConfig(shape=(8, 16, 8), channels=(8,), num_res_blocks=1))
