"""What the measurement of utility can be told, and how one of its trainings is told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.segmentation.options import (
    Network2DOptions,
    Network3DOptions,
    Segment2DConfig,
    Segment3DConfig,
)

BATCH_SIZES = {2: 32, 3: 4}


@dataclass(frozen=True, kw_only=True)
class UtilityConfig:
    """Train AH-Net on real volumes, on synthetic ones and on both, as long each; test all on other real volumes.

    The last network of each training is tested, none is chosen by the test volumes. Killed, the same command goes on.

    Attributes:
        real_train: prepared dataset with labels.
        synthetic: prepared dataset with labels: pairs that `splitshuffle sample` drew from a generator trained on
            `real_train` with --channels image,label; prepared by the command that `sample` names.
        real_test: prepared dataset with labels, of subjects that neither the generator nor `real_train` saw.
        out: folder for everything, results.jsonl, table.md and dice.png first of all.
        seeds: trainings of each kind; they differ in everything random.
        rank: 3 for volumes, 2 for slices. Every training starts from nothing.
        steps: of each training, the same for all.
        batch_size: volumes or slices per step; default 4 volumes or 32 slices.
        window: train on windows of this shape D H W, half of them over a labelled voxel; default whole volumes.
        learning_rate: highest, of AdamW; it falls along a cosine to 0.
        augment_p: probability of each random change of the training pairs.
        mixed_precision: arithmetic of the network; auto: bf16 where the hardware has it.
        network2d: the network, at rank 2.
        network3d: the network, at rank 3; volumes are padded where they do not fit.
        resamples: of the test cases, for the intervals.
        keep_networks: keep the weights in runs/, some 100 MB each.
        overwrite: delete what is in `out` first.
    """

    real_train: Path
    synthetic: Path
    real_test: Path
    out: Path
    seeds: int = 3
    rank: Literal[2, 3] = 3
    steps: int = 2000
    batch_size: int | None = None
    window: tuple[int, int, int] | None = None
    learning_rate: float = 1e-3
    augment_p: float = 0.5
    mixed_precision: Literal["auto", "bf16", "no"] = "auto"
    network2d: Network2DOptions = field(default_factory=Network2DOptions)
    network3d: Network3DOptions = field(default_factory=lambda: Network3DOptions(pad=True))
    resamples: int = 10_000
    keep_networks: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("steps", 1), ("resamples", 100)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: found {getattr(self, name)}, must be at least {least}")
        if self.rank not in BATCH_SIZES:
            raise UserError(f"rank: found {self.rank}, must be 2 or 3")
        self.training(self.real_train, self.out, 0)  # which judges the rest

    def training(self, data: Path, out: Path, seed: int) -> Segment2DConfig | Segment3DConfig:
        """One training: without validation, so that its last network is what it leaves."""
        kind, network = (Segment2DConfig, self.network2d) if self.rank == 2 else (Segment3DConfig, self.network3d)
        return kind(
            data=data,
            out=out,
            steps=self.steps,
            batch_size=BATCH_SIZES[self.rank] if self.batch_size is None else self.batch_size,
            window=self.window,
            learning_rate=self.learning_rate,
            augment_p=self.augment_p,
            mixed_precision=self.mixed_precision,
            network=network,
            validations=1,
            seed=seed,
            overwrite=True,  # what a kill left of it
        )
