"""Train an `Estimator` on a dataset with labels, and state its error on volumes that it never saw."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from splitshuffle_gan import __version__
from splitshuffle_gan.data.dataset import PreparedDataset, open_dataset
from splitshuffle_gan.data.split import split_rows_by_name
from splitshuffle_gan.devices import make_accelerator
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.factors.anatomy import (
    ANATOMY,
    BRIGHTNESS,
    Factor,
    classes_of,
    factors_of_labels,
    has_anatomy,
    measure,
)
from splitshuffle_gan.factors.estimator import Estimator, EstimatorConfig
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json

RECORD = "training.json"
BALANCE = 0.5  # power of a class's share by which it counts less: 0 by its voxels, 1 as any other
SHOW_EVERY = 20  # steps
LEAST_VALIDATION = 3  # volumes, for an R^2
LEAST_TRAINING = 4


@dataclass(frozen=True, kw_only=True)
class TrainFactorsConfig:
    """Train the network that measures factors of anatomy, such as the size of the heart, on a dataset with labels.

    Attributes:
        data: prepared dataset with labels, on the grid of the volumes to measure, but of other subjects.
        out: folder to make: config.json, model.safetensors, training.json with the error on volumes set aside.
        anatomy: what to measure: heart or brain for phantoms, labels for the volume of every label.
        held_out: volumes to set aside for the error, chosen by a hash of their names.
        steps: of one batch each.
        batch_size: volumes per step.
        learning_rate: highest, of AdamW on a one-cycle schedule.
        precision: auto, bf16 or no.
        seed: of weights and batches.
        overwrite: replace the estimator in `out`.
    """

    data: Path
    out: Path
    anatomy: Literal["heart", "brain", "labels"] = "heart"
    held_out: int = 60
    steps: int = 2000
    batch_size: int = 2
    learning_rate: float = 3e-3
    precision: str = "auto"
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, least in (("held_out", LEAST_VALIDATION), ("steps", 2), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: found {getattr(self, name)}, must be at least {least}")
        if not 0 < self.learning_rate < float("inf"):
            raise UserError(f"learning_rate: found {self.learning_rate}, a number above 0 is wanted")
        if self.precision not in ("auto", "bf16", "no"):
            raise UserError(f"precision: found {self.precision!r}, must be one of auto, bf16, no")
        if self.anatomy not in (*ANATOMY, "labels"):
            raise UserError(f"anatomy: found {self.anatomy!r}, must be one of {', '.join(ANATOMY)}, labels")


def train_factors(config: TrainFactorsConfig) -> Path:
    """Train, measure the error, write the folder `out` and return it.

    Raises UserError for a dataset without labels, or too small a one, and FloatingPointError when the loss diverges.
    """
    refuse_existing(config.out, config.overwrite, RECORD, keep=(config.data,))
    started = time.time()
    dataset = open_dataset(config.data)
    factors = _factors(config.anatomy, dataset)
    names = [entry["source"] for entry in dataset.manifest["volumes"]]
    held_out, rows = split_rows_by_name(names, config.held_out)
    if len(rows) < LEAST_TRAINING:
        raise UserError(
            f"held_out: {len(held_out)} of {len(names)} volumes leave {len(rows)} to train on, at least "
            f"{LEAST_TRAINING} are wanted; ask for fewer"
        )
    accelerator = make_accelerator(config.precision)
    torch.manual_seed(config.seed)
    estimator = Estimator(EstimatorConfig(factors=factors), dataset.geometry()).to(accelerator.device)
    loss = _fit(estimator, dataset, rows, config, accelerator)
    estimator.eval()
    truth = true_factors(factors, dataset, held_out)
    found = estimate_all(estimator, [dataset.volumes[row, 0] for row in held_out], "error")
    with whole_folder(config.out) as folder:
        estimator.save_pretrained(folder)
        write_json(folder / RECORD, {
            "created_with": __version__,
            "torch": torch.__version__,
            "config": {name: value for name, value in vars(config).items() if name not in ("data", "out", "overwrite")},
            "data_hash": dataset.data_hash,
            "train": len(rows),
            "held_out": [names[row] for row in held_out],
            "last_loss": loss,
            "error": errors(factors, truth, found),
            "seconds": time.time() - started,
        })  # fmt: skip
    return config.out


def true_factors(factors: dict[str, Factor], dataset: PreparedDataset, rows: list[int] | None = None) -> np.ndarray:
    """The factors `[N, factors]` of a dataset's volumes (of its `rows`), from its labels. UserError if it has none."""
    if dataset.labels is None:
        raise UserError(f"{dataset.folder}: has no labels; prepare it with --labels DIR")
    table, members = classes_of(factors)
    counts, sums = [], []
    for row in range(len(dataset)) if rows is None else rows:
        classes = table[dataset.labels[row]].ravel()
        counts.append(np.bincount(classes, minlength=len(members)))
        sums.append(np.bincount(classes, dataset.volumes[row].ravel(), len(members)))
    return measure(factors, np.stack(counts), np.stack(sums), dataset.spacing, dataset.geometry()["intensity"])


def estimate_all(estimator: Estimator, volumes: Sequence[np.ndarray], title: str = "measure") -> np.ndarray:
    """The estimated factors `[N, factors]` of volumes `[D, H, W]` in [-1, 1], one at a time."""
    device = next(estimator.parameters()).device
    rows = []
    for index in tqdm(range(len(volumes)), desc=title, unit="volume"):
        volume = np.array(volumes[index], np.float32)
        rows.append(estimator.estimate(torch.from_numpy(volume)[None, None].to(device)))
    return np.concatenate(rows)


def errors(factors: dict[str, Factor], truth: np.ndarray, found: np.ndarray) -> dict[str, dict]:
    """How far estimates are off, factor by factor, over the volumes where the factor exists.

    mae: mean absolute error. bias: mean error, found - true. sd: the truth's standard deviation. r2: share of its
    variance that the estimates explain; None where nothing varies, or in fewer than 3 volumes. In the factor's unit.
    """
    result = {}
    for column, (name, factor) in enumerate(factors.items()):
        there = np.isfinite(truth[:, column])
        true, off = truth[there, column], (found - truth)[there, column]
        enough = len(true) >= LEAST_VALIDATION and true.std() > 0
        result[name] = {
            "unit": factor.unit,
            "n": len(true),
            "mae": float(np.abs(off).mean()) if len(true) else None,
            "bias": float(off.mean()) if len(true) else None,
            "sd": float(true.std()) if len(true) else None,
            "r2": float(1 - np.square(off).mean() / true.var()) if enough else None,
        }
    return result


def _factors(anatomy: str, dataset: PreparedDataset) -> dict[str, Factor]:
    if dataset.labels is None:
        raise UserError(f"data: {dataset.folder} has no labels; prepare it with --labels DIR")
    present = dataset.manifest["labels"]["values"]
    if anatomy == "labels":
        return factors_of_labels(present)
    factors = ANATOMY[anatomy]
    if not has_anatomy(anatomy, present):
        known = ", ".join(map(str, present))
        raise UserError(f"anatomy: {dataset.folder} has the labels {known}, not those of {anatomy}; try labels")
    absolute = dataset.manifest["intensity"]["mode"] == "window"
    if not absolute and any(factor.unit == BRIGHTNESS for factor in factors.values()):
        raise UserError(f"data: {dataset.folder} has percentiles for intensities; {anatomy} needs HU: use --window")
    return factors


def _fit(
    estimator: Estimator,
    dataset: PreparedDataset,
    rows: list[int],
    config: TrainFactorsConfig,
    accelerator: Accelerator,
) -> float:
    """Train on whole volumes and return the last loss that was looked at.

    A plaque is one voxel in a hundred thousand: in a plain cross entropy nothing but big organs would count, and from
    equal shares the network would need long to learn that plaques are rare. So the classes are weighted, and it starts
    from their weighted shares. By weights w it learns probabilities in proportion to w p, so in the end log w is taken
    off the logits, which leaves p.
    """
    table, members = classes_of(estimator.config.factors)
    voxels = sum(np.bincount(table[dataset.labels[row]].ravel(), minlength=len(members)) for row in rows)
    shares = np.maximum(voxels, 1) / np.maximum(voxels, 1).sum()
    weights = shares**-BALANCE
    estimator.shift(np.log(shares * weights), fresh=True)
    loss = _steps(estimator, dataset, rows, config, accelerator, torch.from_numpy(table), weights)
    estimator.shift(-np.log(weights))
    return loss


def _steps(
    estimator: Estimator,
    dataset: PreparedDataset,
    rows: list[int],
    config: TrainFactorsConfig,
    accelerator: Accelerator,
    table: Tensor,
    weights: np.ndarray,
) -> float:
    weight = torch.as_tensor(weights, dtype=torch.float32, device=accelerator.device)
    rng = np.random.default_rng(config.seed)
    optimizer = torch.optim.AdamW(estimator.parameters(), config.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, config.steps, pct_start=0.2)
    estimator.train()
    shown = float("nan")
    progress = tqdm(range(config.steps), desc="factors", unit="step")
    for step in progress:
        images, classes = _batch(dataset, np.sort(rng.choice(rows, min(config.batch_size, len(rows)), False)), table)
        with accelerator.autocast():
            logits = estimator(images.to(accelerator.device))
        loss = F.cross_entropy(logits.float(), classes.to(accelerator.device), weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(estimator.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % SHOW_EVERY == 0 or step == config.steps - 1:
            shown = loss.item()
            if not np.isfinite(shown):
                raise FloatingPointError(f"step {step}: the loss is {shown}; lower learning_rate")
            progress.set_postfix(loss=f"{shown:.3f}")
    return shown


def _batch(dataset: PreparedDataset, rows: np.ndarray, table: Tensor) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(np.stack([dataset.volumes[row] for row in rows]))
    labels = torch.from_numpy(np.stack([dataset.labels[row, 0] for row in rows]))
    return images, table[labels.long()].long()
