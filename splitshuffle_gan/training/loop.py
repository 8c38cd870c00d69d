"""The training run: set up, resume, steps, status, snapshots. The same for slices and volumes."""

import json
import math
import platform
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from tqdm import tqdm

from splitshuffle_gan import __version__
from splitshuffle_gan.data.dataset import PreparedDataset, open_dataset
from splitshuffle_gan.devices import make_accelerator, start_compiler
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.models.discriminator import group_within
from splitshuffle_gan.montage import save_montage
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json
from splitshuffle_gan.sampler import sample_pairs
from splitshuffle_gan.training.options import TrainConfig, check_same_options, plain
from splitshuffle_gan.training.pair import build_networks, items_of
from splitshuffle_gan.training.state import cut_log, load_state, save_state
from splitshuffle_gan.training.step import Trainer
from splitshuffle_gan.training.stream import BatchStream

# Between status lines; the loop waits for the device, steers the augmentation, and may stop only there. The same
# steps whatever the length of a run and of its parts: resuming and prolonging change nothing.
STATUS_STEPS = 4
MONTAGE_SEEDS = range(8)


def train(config: TrainConfig, rank: int) -> Path:
    """Train a GAN of `rank` on a prepared dataset and return the last snapshot's folder.

    The run's folder holds `run.json` (resolved config, versions, data hash), `log.jsonl`, `tensorboard/`,
    `snapshots/kimg*/` (EMA generator, discriminator, montage.png) and `state.pt` for resuming.

    Raises:
        UserError: a config, dataset, checkpoint or folder that does not fit.
        FloatingPointError: a loss became NaN or infinite; the message names the last good snapshot.
    """
    accelerator = make_accelerator(config.mixed_precision, config.out)
    if config.compile:
        start_compiler(accelerator.device)
    dataset = open_dataset(config.data)
    state = load_state(config.out) if config.resume else None
    generator, discriminator = build_networks(config, rank, dataset, state)
    trainer = Trainer(config, dataset.spacing, generator, discriminator, accelerator)
    run = Run(config, rank, trainer, dataset, accelerator)
    run.open(state)
    return run.loop()


class Run:
    """The files, the clock and the status of one run."""

    def __init__(
        self, config: TrainConfig, rank: int, trainer: Trainer, dataset: PreparedDataset, accelerator: Accelerator
    ) -> None:
        self.config, self.rank, self.trainer, self.dataset = config, rank, trainer, dataset
        self.accelerator, self.out = accelerator, config.out.resolve() if config.out.is_symlink() else config.out
        self.items = items_of(config, rank, dataset)
        self.labels_hash = dataset.labels_hash if config.labelled else None
        self.elapsed = 0.0  # seconds of training, earlier parts of a resumed run included
        self.last_snapshot: Path | None = None

    def open(self, state: dict | None) -> None:
        """Make the folder, or take up the run in it from its saved `state`."""
        main, config = self.accelerator.is_main_process, self.config
        if state is not None:
            self._resume(state)
        else:
            inputs = [path for path in (config.data, config.init) if path is not None]
            refuse_existing(self.out, config.overwrite, mark="run.json", keep=tuple(inputs))
        self.accelerator.wait_for_everyone()  # nobody creates the folder before all have looked
        if main:
            if self.out.exists() and not config.resume:
                shutil.rmtree(self.out)
            (self.out / "snapshots").mkdir(parents=True, exist_ok=True)
            write_json(self.out / "run.json", self._describe())
        self.accelerator.wait_for_everyone()
        self.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": self.trainer.step}})

    def _resume(self, state: dict) -> None:
        if state["generator"]["rank"] != self.rank:
            raise UserError(f"resume: the run in {self.out} is of rank {state['generator']['rank']}, not {self.rank}.")
        check_same_options(state["config"], self.config)
        if (state["data_hash"], state.get("labels_hash")) != (self.dataset.data_hash, self.labels_hash):
            raise UserError(f"data: {self.config.data} is not the dataset that the run in {self.out} was started with.")
        self.trainer.load_state_dict(state["trainer"])
        self.elapsed = state["elapsed"]
        self.last_snapshot = max((self.out / "snapshots").glob("kimg*"), default=None)
        if self.accelerator.is_main_process:
            for leftover in (self.out / "snapshots").glob(".kimg*"):  # of a killed snapshot
                shutil.rmtree(leftover, ignore_errors=True)
            cut_log(self.out / "log.jsonl", self.trainer.step)

    def loop(self) -> Path:
        """Steps until `kimg` or `minutes` are spent; returns the last snapshot."""
        config, trainer = self.config, self.trainer
        stream = self._stream()
        pinned = self.accelerator.device.type == "cuda"
        loader = DataLoader(self.items, batch_sampler=stream, num_workers=config.workers, pin_memory=pinned)
        last_step, snapshot_steps = (self._steps(kimg) for kimg in (config.kimg, config.snapshot_kimg))
        clock = "{elapsed}<{remaining}" if config.minutes is None else f"{{elapsed}} of {config.minutes:g} min"
        bar = tqdm(
            total=last_step * config.batch_size / 1000,
            initial=trainer.seen / 1000,
            unit="kimg",
            desc=f"train {self.rank}D",
            disable=not self.accelerator.is_main_process,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n:.2f}/{total:.1f} kimg [" + clock + "]{postfix}",
        )
        if config.minutes is not None and not bar.disable:
            bar.start_t -= self.elapsed  # the clock counts the earlier parts, as `minutes` does
        sums, since, waited, tick = {}, trainer.step, 0.0, time.perf_counter()
        batches = iter(loader)
        while trainer.step < last_step:
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            for name, value in trainer.train_step(batch).items():
                total, count = sums.get(name, (0.0, 0))
                sums[name] = (total + value, count + 1)
            if trainer.step % STATUS_STEPS:
                continue
            status = self._status(sums, trainer.step - since, tick, waited)
            sums, since, waited, tick = {}, trainer.step, 0.0, time.perf_counter()
            bar.n = trainer.seen / 1000
            bar.set_postfix_str(
                f"{status['img_s']:.1f} img/s G {status['loss_g']:.2f} D {status['loss_d']:.2f} "
                f"r_t {status['r_t']:.2f} p {status['p']:.2f}"
            )
            over = config.minutes is not None and self.elapsed >= config.minutes * 60
            if over or trainer.step % snapshot_steps == 0 or trainer.step >= last_step:
                self._snapshot()
                tick = time.perf_counter()
            if over:
                break
        bar.close()
        if self.last_snapshot is None:
            self._snapshot()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.wait_for_everyone()
        return self.last_snapshot

    def _steps(self, kimg: float) -> int:
        """Steps that show `kimg` thousand images, rounded up to a whole number of status lines."""
        return STATUS_STEPS * math.ceil(round(kimg * 1000 / self.config.batch_size / STATUS_STEPS, 6))

    def _stream(self) -> BatchStream:
        network, trainer = self.trainer.D.config, self.trainer
        arguments = (len(self.items), self.config.batch_size, trainer.share, self.config.seed, trainer.step)
        if self.rank == 3 or not network.depth_aware:
            return BatchStream(*arguments)
        # The minibatch statistic tells variety from collapse only among slices of one depth: across depths, anatomy
        # varies even where all subjects look the same. So each of its groups holds slices of one depth.
        group = group_within(trainer.micro, network.group_size)
        return BatchStream(*arguments, strata=self.items.index[:, 1], run=group)

    def _status(self, sums: dict, steps: int, tick: float, waited: float) -> dict:
        """Average over steps and processes, steer the augmentation, write the log line. Raises on NaN."""
        sums = {name: torch.as_tensor(total) / count for name, (total, count) in sorted(sums.items())}
        means = torch.stack(list(sums.values())).float().to(self.trainer.device)
        means = dict(zip(sums, self.accelerator.reduce(means, reduction="mean").tolist(), strict=True))
        # Reading the means waited for the device: only now has the time of the steps passed. All processes must agree.
        seconds = torch.tensor(time.perf_counter() - tick, dtype=torch.float32, device=self.trainer.device)
        seconds = float(self.accelerator.reduce(seconds, reduction="mean"))
        self._stop_unless_finite(means)
        self.elapsed += seconds
        images = steps * self.config.batch_size
        if self.config.augment_target > 0:
            self.trainer.adaptive.update(means["r_t"], images, self.config.augment_target, self.config.augment_kimg)
        status = {
            "step": self.trainer.step,
            "kimg": self.trainer.seen / 1000,
            "seconds": round(self.elapsed, 3),
            "img_s": images / max(seconds, 1e-9),
            "data_wait": waited / max(seconds, 1e-9),  # share of the time, in the main process
            "p": self.trainer.adaptive.p,
            **means,
        }
        if self.accelerator.is_main_process:
            with open(self.out / "log.jsonl", "a") as log:
                log.write(json.dumps(status) + "\n")
        self.accelerator.log({k: v for k, v in status.items() if k != "step"}, step=self.trainer.step)
        return status

    def _stop_unless_finite(self, values: dict[str, float]) -> None:
        """Raise FloatingPointError for the first value that is NaN or infinite."""
        kept = f"the last good snapshot is {self.last_snapshot}" if self.last_snapshot else "no snapshot was made"
        for name, value in values.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} became {value} at step {self.trainer.step}; {kept}. "
                    "Start from it with a lower learning rate, a higher r1_gamma or --mixed-precision no."
                )

    def _snapshot(self) -> None:
        """Write a snapshot, then the state to resume from; the earlier ones stay whole whatever happens."""
        # A last update can spoil the weights after finite losses. All processes hold the same weights and agree.
        networks = {"generator": self.trainer.G, "average": self.trainer.average, "discriminator": self.trainer.D}
        norms = {n: torch.nn.utils.get_total_norm(list(m.parameters())) for n, m in networks.items()}
        self._stop_unless_finite({f"norm of the {name}'s weights": float(norm) for name, norm in norms.items()})
        target = self.out / "snapshots" / f"kimg{self.trainer.seen / 1000:09.3f}"
        if self.accelerator.is_main_process:
            self.trainer.average.update_w_avg()
            pairs = list(sample_pairs(self.trainer.average, MONTAGE_SEEDS))
            try:
                self._write_snapshot(target, pairs)
            except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap a full disk
                kept = f"{self.last_snapshot} is whole" if self.last_snapshot else "there is none before it"
                raise UserError(f"{target}: the snapshot could not be written ({error}); {kept}.") from error
        self.last_snapshot = target
        self.accelerator.wait_for_everyone()

    def _write_snapshot(self, target: Path, pairs: list[tuple[np.ndarray, np.ndarray | None]]) -> None:
        images, maps = zip(*pairs, strict=True)
        with whole_folder(target) as folder:
            self.trainer.average.save_pretrained(folder / "generator")
            self.trainer.D.save_pretrained(folder / "discriminator")
            save_montage(
                images,
                folder / "montage.png",
                spacing=self.dataset.spacing[3 - images[0].ndim :],
                titles=[f"seed {seed}" for seed in MONTAGE_SEEDS],
                plane=self.dataset.plane,
                labels=maps if self.config.labelled else None,
                caption=f"{self.rank}D generator after {self.trainer.seen / 1000:g} kimg, truncation_psi 1",
            )
        state = {
            "trainer": self.trainer.state_dict(),
            "config": plain(self.config),
            "generator": self.trainer.G.config.to_dict(),
            "discriminator": self.trainer.D.config.to_dict(),
            "data_hash": self.dataset.data_hash,
            "labels_hash": self.labels_hash,
            "elapsed": self.elapsed,
        }
        save_state(self.out, state)

    def _describe(self) -> dict:
        return {
            "created_with": __version__,
            "rank": self.rank,
            "config": plain(self.config),
            "generator": self.trainer.G.config.to_dict(),
            "discriminator": self.trainer.D.config.to_dict(),
            "r1_gamma": self.trainer.r1_gamma,
            "data": {
                "folder": str(self.config.data),
                "count": len(self.dataset),
                "items": len(self.items),
                "data_hash": self.dataset.data_hash,
                **({"labels_hash": self.labels_hash} if self.config.labelled else {}),
            },
            "machine": {
                "device": str(self.accelerator.device),
                "processes": self.accelerator.num_processes,
                "threads": torch.get_num_threads(),
                "mixed_precision": self.accelerator.mixed_precision,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
