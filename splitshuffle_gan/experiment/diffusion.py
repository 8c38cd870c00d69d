"""The outside arm: MONAI's 3D diffusion network, trained on the same volumes as the GANs, sampled with DDIM.

Beyond MONAI's tutorial, and in favour of short trainings: the network predicts the velocity (see `denoiser`), the
timesteps of a batch are spread evenly (arXiv 2107.00630, appendix I), and weights are averaged as a generator's are.
"""

import json
import math
import time
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader
from tqdm import tqdm

from splitshuffle_gan import __version__
from splitshuffle_gan.data.dataset import PreparedDataset, VolumeDataset, open_dataset
from splitshuffle_gan.devices import make_accelerator, resolve_precision, use_all_cores, wants_cpu
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment.denoiser import SCHEDULE, TIMESTEPS, Denoiser, DenoiserConfig, ddim
from splitshuffle_gan.metrics.source import VolumeSet, rule_of_geometry, training_data
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json
from splitshuffle_gan.training.ema import ema_beta, ema_update
from splitshuffle_gan.training.loop import STATUS_STEPS
from splitshuffle_gan.training.options import check_same_options, plain
from splitshuffle_gan.training.state import cut_log, load_state, save_state
from splitshuffle_gan.training.step import average_gradients, share_of
from splitshuffle_gan.training.stream import BatchStream, derived_seed, latents

MAX_GRADIENT = 1.0
DRAWN_TOGETHER = 4


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """One training of a diffusion model.

    Attributes:
        data: prepared dataset.
        out: folder of the run; must not exist unless `resume`.
        resume: go on with the run in `out`, exactly where it stopped.
        kimg: length of training, in thousands of volumes shown; rounded up to multiples of 4 steps, as is the next.
        snapshot_kimg: thousands of volumes between snapshots.
        batch_size: volumes per step, over all processes.
        lr: learning rate of AdamW.
        warmup: steps in which it rises from 0.
        channels: per level, fine to coarse; attention at the coarsest.
        num_res_blocks: residual blocks per level.
        ema_kimg, ema_rampup: half-life of the weight average, see `training.options.TrainConfig`.
        mixed_precision: arithmetic of the network; auto: bf16 where the hardware has it.
        seed: of everything random.
    """

    data: Path
    out: Path
    resume: bool = False
    kimg: float = 8.0
    snapshot_kimg: float = 2.0
    batch_size: int = 8
    lr: float = 1e-3
    warmup: int = 50
    channels: tuple[int, ...] = (16, 32, 64, 64)
    num_res_blocks: int = 1
    ema_kimg: float = 5.0
    ema_rampup: float = 0.1
    mixed_precision: Literal["auto", "bf16", "no"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("kimg", "snapshot_kimg", "batch_size", "lr", "ema_kimg"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name}: found {getattr(self, name)}, must be positive and finite")
        for name in ("warmup", "ema_rampup", "seed"):
            if not 0 <= getattr(self, name) < 2**63:
                raise UserError(f"{name}: found {getattr(self, name)}, must not be negative, and below 2^63")


class DiffusionTraining:
    """Network, weight average, optimiser and all that a step changes; no files, no clock."""

    def __init__(self, config: DiffusionConfig, dataset: PreparedDataset, accelerator: Accelerator) -> None:
        self.config, self.accelerator, self.device = config, accelerator, accelerator.device
        network = DenoiserConfig(shape=dataset.shape, channels=config.channels, num_res_blocks=config.num_res_blocks)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network = Denoiser(network, dataset.geometry()).to(self.device).train()
        self.average = deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=config.lr, fused=True)
        self.scheduler = DDPMScheduler(prediction_type="v_prediction", **SCHEDULE)
        self.share = share_of(config.batch_size, accelerator)
        self.step = 0

    @property
    def seen(self) -> int:
        """Volumes shown so far."""
        return self.step * self.config.batch_size

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step on this process's share of the volumes, "image" `[N, 1, D, H, W]`; returns its loss, on the device.

        Noise and timesteps follow from (seed, step) alone: a resumed run repeats them, on any number of processes.
        """
        config, images = self.config, batch["image"].to(self.device, non_blocking=True)
        noise = latents(config.seed, self.step, 0, config.batch_size, images[0].numel(), self.share)
        noise = noise.view_as(images).to(self.device)
        timesteps = spread_timesteps(config.seed, self.step, config.batch_size)[self.share].to(self.device)
        with self.accelerator.autocast():
            predicted = self.network(self.scheduler.add_noise(images, noise, timesteps), timesteps)
        loss = mse_loss(predicted.float(), self.scheduler.get_velocity(images, noise, timesteps))
        loss.backward()
        if self.accelerator.num_processes > 1:
            average_gradients(self.network, lambda flat: self.accelerator.reduce(flat, reduction="mean"))
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT)
        self.optimizer.param_groups[0]["lr"] = config.lr * min(1.0, (self.step + 1) / max(config.warmup, 1))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        beta = ema_beta(config.batch_size, self.seen, config.ema_kimg * 1000, config.ema_rampup)
        ema_update(self.average, self.network, beta)
        return {"loss": loss.detach()}

    def state_dict(self) -> dict:
        """Everything that `load_state_dict` needs to go on exactly."""
        parts = {name: getattr(self, name).state_dict() for name in ("network", "average", "optimizer")}
        return {"step": self.step, **parts}

    def load_state_dict(self, state: dict) -> None:
        """Go back to a saved state."""
        self.step = state["step"]
        for name in ("network", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])


def spread_timesteps(seed: int, step: int, batch_size: int) -> Tensor:
    """Timesteps `[batch_size]` of the global batch, int64: each uniform, together evenly spaced."""
    start = torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(derived_seed(seed, step, 1)))
    return ((start + torch.arange(batch_size) / batch_size) % 1 * TIMESTEPS).long()


def train_diffusion(config: DiffusionConfig) -> Path:
    """Train on a prepared dataset and return the last snapshot's folder.

    The run's folder holds `run.json`, `log.jsonl` (a line every 4 steps), `state.pt` for resuming and
    `snapshots/kimg*/`, the averaged network as a checkpoint.

    Raises:
        UserError: a config, dataset or folder that does not fit.
        FloatingPointError: the loss became NaN or infinite.
    """
    accelerator = make_accelerator(config.mixed_precision)
    dataset = open_dataset(config.data)
    training = DiffusionTraining(config, dataset, accelerator)
    elapsed = _open_run(config, dataset, training)
    stream = BatchStream(len(dataset), config.batch_size, training.share, config.seed, training.step)
    batches = iter(DataLoader(VolumeDataset(dataset), batch_sampler=stream))
    last, between = (
        STATUS_STEPS * math.ceil(round(kimg * 1000 / config.batch_size / STATUS_STEPS, 6))
        for kimg in (config.kimg, config.snapshot_kimg)
    )
    bar = tqdm(total=last, initial=training.step, desc="train diffusion", unit="step",
               disable=not accelerator.is_main_process)  # fmt: skip
    losses, tick = [], time.perf_counter()
    while training.step < last:
        losses.append(training.train_step(next(batches))["loss"])
        bar.update()
        if training.step % STATUS_STEPS:
            continue
        loss = float(accelerator.reduce(torch.stack(losses).mean(), reduction="mean"))
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss became {loss} at step {training.step}; lower lr, or mixed_precision no")
        elapsed, losses, tick = elapsed + time.perf_counter() - tick, [], time.perf_counter()
        bar.set_postfix_str(f"loss {loss:.4f}")
        if accelerator.is_main_process:
            line = {"step": training.step, "kimg": training.seen / 1000, "seconds": round(elapsed, 3), "loss": loss}
            with open(config.out / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
        if training.step % between == 0 or training.step >= last:
            if accelerator.is_main_process:
                _snapshot(config, dataset, training, elapsed)
            accelerator.wait_for_everyone()
            tick = time.perf_counter()
    bar.close()
    return _latest(config.out)


def _open_run(config: DiffusionConfig, dataset: PreparedDataset, training: DiffusionTraining) -> float:
    """Make the folder, or take up the run in it; returns the seconds of training that it holds already."""
    main, current = training.accelerator.is_main_process, plain(config)
    if not config.resume:
        refuse_existing(config.out, False, mark="run.json")
    training.accelerator.wait_for_everyone()  # nobody creates the folder before all have looked
    if not config.resume:
        if main:
            (config.out / "snapshots").mkdir(parents=True)
            data = {"folder": str(config.data), "count": len(dataset), "data_hash": dataset.data_hash}
            write_json(config.out / "run.json", {"created_with": __version__, "config": current, "data": data})
        return 0.0
    state = load_state(config.out)
    check_same_options(state["config"], config)
    if state["data_hash"] != dataset.data_hash:
        raise UserError(f"data: {config.data} is not the dataset that the run in {config.out} was started with")
    training.load_state_dict(state["training"])
    if main:
        cut_log(config.out / "log.jsonl", training.step)
    return state["elapsed"]


def _snapshot(config: DiffusionConfig, dataset: PreparedDataset, training: DiffusionTraining, elapsed: float) -> None:
    """The snapshot, then the state to resume from."""
    with whole_folder(config.out / "snapshots" / f"kimg{training.seen / 1000:09.3f}") as folder:
        training.average.save_pretrained(folder)
    values = {"config": plain(config), "data_hash": dataset.data_hash, "elapsed": elapsed}
    save_state(config.out, {"training": training.state_dict(), **values})


def _latest(folder: Path) -> Path:
    """The last snapshot of a run; any other folder itself."""
    return max(folder.glob("snapshots/kimg*"), default=folder)


@torch.no_grad()
def draw_volumes(folder: str | Path, n: int, seed: int = 0, steps: int = 50) -> np.ndarray:
    """Draw from a snapshot, or from the last one of a run: float32 `[n, D, H, W]` in [-1, 1].

    Volume i depends on `seed` and i alone, not on `n`. `steps`: of DDIM, at most 1000.
    Raises UserError for other steps, and where no denoiser is.
    """
    state = PartialState(cpu=wants_cpu())
    use_all_cores(state)
    denoiser = Denoiser.from_pretrained(_latest(Path(folder))).to(state.device)
    volumes = np.empty((n, *denoiser.config.shape), dtype=np.float32)
    shape = (1, 1, *denoiser.config.shape)
    with tqdm(total=n, desc="draw", unit="volume", disable=not state.is_main_process) as bar:
        for first in range(0, n, DRAWN_TOGETHER):
            # Always as many, for the same rounding whatever n is.
            seeds = [derived_seed(seed, index) for index in range(first, first + DRAWN_TOGETHER)]
            noise = [torch.randn(shape, generator=torch.Generator().manual_seed(number)) for number in seeds]
            with torch.autocast(state.device.type, torch.bfloat16, enabled=resolve_precision("auto") == "bf16"):
                drawn = ddim(denoiser, torch.cat(noise).to(state.device), steps)[: n - first, 0]
            volumes[first : first + len(drawn)] = drawn.cpu().numpy()
            bar.update(len(drawn))
    return volumes


def volume_set(folder: str | Path, n: int, seed: int = 0) -> VolumeSet:
    """`n` volumes of a snapshot or run, to be scored; drawn all at once when the first one is read."""
    found = _latest(Path(folder))
    denoiser = Denoiser.from_pretrained(found)
    geometry = denoiser.geometry
    volumes = cache(lambda: draw_volumes(found, n, seed))
    names = tuple(f"seed {seed}, volume {index}" for index in range(n))
    details = {"checkpoint": str(found), "seed": seed} | training_data(found)
    return VolumeSet(
        str(folder), "checkpoint", denoiser.config.shape, tuple(geometry["spacing"]), geometry["plane"],
        rule_of_geometry(geometry), names, lambda index: volumes()[index], details,
    )  # fmt: skip
