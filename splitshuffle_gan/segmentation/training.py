"""Training of the 2D and of the 3D segmentation network: set up, steps, validation, the best network kept."""

import dataclasses
import json
import math
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from monai.losses import DiceCELoss, DiceLoss, FocalLoss
from torch import Tensor, nn
from tqdm import tqdm

from splitshuffle_gan import __version__, nd
from splitshuffle_gan.data.dataset import PreparedDataset
from splitshuffle_gan.data.union import check_alike
from splitshuffle_gan.devices import make_accelerator
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json
from splitshuffle_gan.segmentation.augment import augment_pairs
from splitshuffle_gan.segmentation.batches import Cases
from splitshuffle_gan.segmentation.building import build
from splitshuffle_gan.segmentation.options import Segment2DConfig, Segment3DConfig
from splitshuffle_gan.segmentation.picture import save_froc, save_predictions
from splitshuffle_gan.segmentation.predict import classes_of, evaluate, probabilities, score_name
from splitshuffle_gan.segmentation.segmenter import NETWORK, Segmenter, class_table, labels_of, open_labelled
from splitshuffle_gan.segmentation.transfer import Transfer
from splitshuffle_gan.training.step import average_gradients, share_of
from splitshuffle_gan.training.stream import BatchStream, derived_seed

WARMUP = 0.05  # of the run
LARGEST_GRADIENT = 5.0
SHOW_EVERY = 10  # steps
PICTURED = 6
PREDICTIONS = "predictions.png"  # the last file that a run writes


def dice_focal() -> Callable[[Tensor, Tensor], Tensor]:
    """Dice and focal loss, both of the softmax. MONAI's `DiceFocalLoss` takes the sigmoid in its focal half."""
    dice, focal = DiceLoss(to_onehot_y=True, softmax=True, batch=True), LOSSES["focal"]()
    return lambda logits, classes: dice(logits, classes) + focal(logits, classes)


def heat_focal(logits: Tensor, heat: Tensor) -> Tensor:
    """The focal loss for targets between 0 and 1 (arXiv 2006.04388, beta 2) of the sigmoid, summed over each sample.

    Least where the sigmoid is the target; where that is 0 or 1 it is the focal loss that AH-Net was trained with.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, heat, reduction="none")
    return ((heat - logits.sigmoid()).square() * entropy).sum() / len(heat)


LOSSES: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
    "focal": lambda: FocalLoss(to_onehot_y=True, use_softmax=True),
    "dice_focal": dice_focal,
    "dice_ce": lambda: DiceCELoss(to_onehot_y=True, softmax=True, batch=True),
    "heat_focal": lambda: heat_focal,
}
"""Functions of logits `[N, outputs, *S]` and classes or heat maps `[N, 1, *S]`, by name."""


def train_segmenter(config: Segment2DConfig | Segment3DConfig) -> Path:
    """Train, keep the best network on `val` (without it, the last), measure it there; returns the run's folder.

    Raises:
        UserError: datasets, sizes, a checkpoint or a folder that do not fit.
        FloatingPointError: the loss became NaN or infinite.
    """
    accelerator = make_accelerator(config.mixed_precision)
    dataset = open_labelled(config.data, config.detect)
    val = None if config.val is None else _open_val(config.val, dataset, config.detect)
    segmenter, moved = build(config, dataset)
    run = Run(config, segmenter, dataset, val, accelerator)
    run.open(moved)
    run.steps()
    run.close()
    return config.out


def one_step(config: Segment2DConfig | Segment3DConfig, accelerator: Accelerator) -> Callable[[], object]:
    """A step of this training, to be timed: the same one whenever it is called; no file is written.

    Raises UserError for a dataset or sizes that do not fit.
    """
    dataset = open_labelled(config.data, config.detect)
    run = Run(config, build(config, dataset)[0], dataset, None, accelerator)
    items = next(iter(BatchStream(len(run.cases), config.batch_size, slice(None), config.seed)))
    return lambda: run.step(items, 0)


class Run:
    """The files, the clock and the steps of one training."""

    def __init__(
        self,
        config: Segment2DConfig | Segment3DConfig,
        segmenter: Segmenter,
        dataset: PreparedDataset,
        val: PreparedDataset | None,
        accelerator: Accelerator,
    ):
        self.config, self.dataset, self.val, self.accelerator = config, dataset, val, accelerator
        self.segmenter = segmenter.to(accelerator.device, memory_format=nd.channels_last(segmenter.rank))
        self.cases = Cases(dataset, segmenter.config)
        self.score = score_name(segmenter)
        self.loss_of = LOSSES[config.loss]()
        self.optimizer = torch.optim.AdamW(
            segmenter.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.best: dict | None = None  # validation of the network that was kept
        self.last: dict | None = None

    def open(self, moved: Transfer | None) -> None:
        """Make the folder and say in it what is about to happen."""
        keep = [path for path in (self.config.data, self.config.val, getattr(self.config, "init", None)) if path]
        refuse_existing(self.config.out, self.config.overwrite, "run.json", keep=tuple(keep))
        self.accelerator.wait_for_everyone()  # nobody creates the folder before all have looked
        if self.accelerator.is_main_process:
            if self.config.out.exists():
                shutil.rmtree(self.config.out)
            self.config.out.mkdir(parents=True)
            write_json(self.config.out / "run.json", self._describe(moved))

    def steps(self) -> None:
        """Steps until `steps` or `minutes` are spent, with validations at even distances."""
        config, last = self.config, self.config.last_step
        share = share_of(config.batch_size, self.accelerator)
        stream = iter(BatchStream(len(self.cases), config.batch_size, share, config.seed))
        started, step, progress, validated = time.perf_counter(), 0, 0.0, 0
        bar = tqdm(total=None if math.isinf(last) else last, desc=f"segment {self.segmenter.rank}D", unit="step",
                   disable=not self.accelerator.is_main_process)  # fmt: skip
        while progress < 1:
            self._set_rate(max(progress, 1 / last))
            loss = self.step(next(stream), step)
            step += 1
            progress = self._progress(step, time.perf_counter() - started)
            bar.update()
            if step % SHOW_EVERY == 0 or progress >= 1:
                shown = float(self.accelerator.reduce(loss.detach(), reduction="mean"))
                if not math.isfinite(shown):
                    raise FloatingPointError(f"step {step}: the loss is {shown}; lower --learning-rate")
                rate = self.optimizer.param_groups[0]["lr"]
                self._log({"step": step, "seconds": time.perf_counter() - started, "loss": shown, "rate": rate})
                best = f" {self.score} {self.best[self.score]:.3f}" if self.best else ""
                bar.set_postfix_str(f"loss {shown:.3f}{best}")
            if math.floor(progress * config.validations + 1e-9) > validated:
                validated = math.floor(progress * config.validations + 1e-9)
                self._validate(step, time.perf_counter() - started)
        bar.close()

    def close(self) -> None:
        """Write `metrics.json` and `predictions.png`, of a detector `froc.png` too, of the network that was kept.

        "last" in the metrics is the last validation: it was not chosen for being the best on `val`.
        """
        if self.accelerator.is_main_process:
            segmenter = type(self.segmenter).from_pretrained(self.config.out / NETWORK).to(self.accelerator.device)
            if self.val is not None:
                result = {"data": str(self.config.val), "step": self.best["step"], "last": self.last}
                result |= evaluate(segmenter, self.val, self.accelerator)
                write_json(self.config.out / "metrics.json", result)
                if segmenter.config.sigma is not None:
                    save_froc(result, self.config.out / "froc.png")
            shown = self.dataset if self.val is None else self.val
            what = "training" if shown is self.dataset else "validation"
            _picture(segmenter, shown, self.config.out / PREDICTIONS, self.accelerator, what)
        self.accelerator.wait_for_everyone()

    def step(self, items: list[int], step: int) -> Tensor:
        """One step on this process's share; augmentation and windows follow from (seed, step, process) alone."""
        config, device = self.config, self.accelerator.device
        seed = derived_seed(config.seed, step, self.accelerator.process_index)
        images, targets = self.cases.batch(items, np.random.default_rng(seed))
        spacing = self.dataset.spacing[-self.segmenter.rank :]
        images, targets = augment_pairs(
            images.to(device), targets.to(device), len(self.segmenter.config.labels), config.augment, config.augment_p,
            torch.Generator().manual_seed(seed), spacing,
        )  # fmt: skip
        self.segmenter.train()
        with self.accelerator.autocast():
            logits = self.segmenter(images)
        loss = self.loss_of(logits.float(), targets)
        self.optimizer.zero_grad()
        loss.backward()
        if self.accelerator.num_processes > 1:
            average_gradients(self.segmenter, lambda flat: self.accelerator.reduce(flat, reduction="mean"))
        nn.utils.clip_grad_norm_(self.segmenter.parameters(), LARGEST_GRADIENT)
        self.optimizer.step()
        return loss

    def _set_rate(self, progress: float) -> None:
        """Linear warm-up, then half a cosine down to 0 at the end of the run."""
        factor = min(1.0, progress / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor

    def _progress(self, step: int, seconds: float) -> float:
        """How much of the run is over, by steps or by the clock; all processes agree."""
        progress = step / self.config.last_step
        if self.config.minutes is None:
            return progress
        spent = torch.tensor(seconds / (60 * self.config.minutes), device=self.accelerator.device)
        return max(progress, float(self.accelerator.reduce(spent, reduction="mean")))

    def _validate(self, step: int, seconds: float) -> None:
        """Keep the network if it is the best so far; without `val`, always."""
        if self.accelerator.is_main_process:
            result = None
            if self.val is not None:
                result = evaluate(self.segmenter, self.val, self.accelerator, thorough=False)
                result = {"step": step, "seconds": seconds} | {key: result[key] for key in result if key != "cases"}
                self._log(result)
            self.last = result
            if result is None or self.best is None or (result[self.score] or 0) > (self.best[self.score] or 0):
                self.best = result
                with whole_folder(self.config.out / NETWORK) as folder:
                    self.segmenter.save_pretrained(folder)
        self.accelerator.wait_for_everyone()

    def _log(self, line: dict) -> None:
        if self.accelerator.is_main_process:
            with open(self.config.out / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")

    def _describe(self, moved: Transfer | None) -> dict:
        sets = {"data": self.dataset} | ({"val": self.val} if self.val else {})
        return {
            "created_with": __version__,
            "class": type(self.segmenter).__name__,
            "config": json.loads(json.dumps(dataclasses.asdict(self.config), default=str)),
            "network": self.segmenter.config.to_dict(),
            "parameters": sum(parameter.numel() for parameter in self.segmenter.parameters()),
            "transfer": moved and {"origin": moved.origin, "left": list(moved.left)},
            "items": len(self.cases),
            "sets": {
                name: {"folder": str(part.folder), "count": len(part), "data_hash": part.data_hash,
                       "labels_hash": part.manifest["labels"]["data_hash"]}
                for name, part in sets.items()
            },
            "machine": {
                "device": str(self.accelerator.device),
                "processes": self.accelerator.num_processes,
                "threads": torch.get_num_threads(),
                "mixed_precision": self.accelerator.mixed_precision,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }  # fmt: skip


def _open_val(folder: Path, dataset: PreparedDataset, label: int | None) -> PreparedDataset:
    val = open_labelled(folder, label)
    check_alike(val, dataset, "val", ("spacing", "plane", "intensity"))
    if shared := val.shared_with(dataset):
        raise UserError(
            f"val: {len(shared)} of its volumes, such as {shared[0]}, are in {dataset.folder} as well; other subjects "
            "are wanted: set some aside before training, with `splitshuffle split`"
        )
    unknown = set(labels_of(val)) - set(labels_of(dataset))
    if label is None and unknown:
        raise UserError(f"val: {folder} has the labels {sorted(unknown)}, which the training set lacks")
    return val


def _picture(segmenter: Segmenter, dataset: PreparedDataset, path: Path, accelerator: Accelerator, what: str) -> None:
    rows = range(min(PICTURED, len(dataset)))
    images = [dataset.volumes[row][0] for row in rows]
    truths = [class_table(segmenter.config.labels)[dataset.labels[row][0]] for row in rows]
    found = [classes_of(probabilities(segmenter, image, accelerator)) for image in images]
    titles = [f"{dataset.manifest['volumes'][row]['source']}, {what}" for row in rows]
    save_predictions(images, truths, found, path, dataset.spacing, titles)
