"""What the trial of AH-Net's transfer can be told, and how one of its trainings is told."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.segmentation.options import (
    Network2DOptions,
    Network3DOptions,
    Segment2DConfig,
    Segment3DConfig,
)


@dataclass(frozen=True, kw_only=True)
class AHNetConfig:
    """Find out what AH-Net's transfer is worth: 2D only, 3D from scratch and 3D from 2D, at equal compute.

    A step of each network is timed, in processor time of one core, and every training gets the same minutes in steps;
    3D from 2D pays for its 2D part. The last network of each is tested. Killed, the same command goes on.

    Attributes:
        train: prepared dataset with labels.
        test: prepared dataset with labels, of other subjects.
        out: folder for everything, results.jsonl, table.md and dice.png first of all.
        minutes: of one core for each training.
        share_2d: of these for the 2D part of 3D from 2D.
        seeds: trainings of each kind; they differ in everything random.
        jobs: trainings at a time, each on its own share of the cores.
        batch_size_2d: slices per step.
        batch_size_3d: volumes per step.
        learning_rate: highest, of AdamW; it falls along a cosine to 0.
        augment_p: probability of each random change of the training pairs.
        mixed_precision: arithmetic of the networks; auto: bf16 where the hardware has it.
        network2d: the 2D network.
        network3d: the 3D network, the same from scratch; layers and in-plane scale default to those of the 2D one, and
            volumes are padded where they do not fit.
        resamples: of the test cases, for the intervals.
        keep_networks: keep the weights in runs/.
    """

    train: Path
    test: Path
    out: Path
    minutes: float = 10.0
    share_2d: float = 0.3
    seeds: int = 3
    jobs: int = 1
    batch_size_2d: int = 32
    batch_size_3d: int = 4
    learning_rate: float = 1e-3
    augment_p: float = 0.5
    mixed_precision: Literal["auto", "bf16", "no"] = "auto"
    network2d: Network2DOptions = field(default_factory=lambda: Network2DOptions(layers=(1, 1, 1, 1)))
    network3d: Network3DOptions = field(default_factory=lambda: Network3DOptions(pad=True))
    resamples: int = 10_000
    keep_networks: bool = False

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("jobs", 1), ("resamples", 100)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: found {getattr(self, name)}, must be at least {least}")
        if not 0 < self.minutes < math.inf:
            raise UserError(f"minutes: found {self.minutes}, a finite number above 0 is wanted")
        if not 0 < self.share_2d < 1:
            raise UserError(f"share_2d: found {self.share_2d}, a share between 0 and 1 is wanted")
        for rank in (2, 3):
            self.training(rank, 1, self.out, 0)  # which judges the rest

    def training(
        self, rank: int, steps: int, out: Path, seed: int, init: Path | None = None
    ) -> Segment2DConfig | Segment3DConfig:
        """One training: without validation, so that its last network is what it leaves."""
        shared = {
            "data": self.train,
            "out": out,
            "steps": steps,
            "learning_rate": self.learning_rate,
            "augment_p": self.augment_p,
            "mixed_precision": self.mixed_precision,
            "validations": 1,
            "seed": seed,
            "overwrite": True,  # what a kill left of it
        }
        if rank == 2:
            return Segment2DConfig(**shared, batch_size=self.batch_size_2d, network=self.network2d)
        network = replace(
            self.network3d,
            layers=self.network3d.layers or self.network2d.layers,
            scale=self.network3d.scale or (1, *self.network2d.scale),
        )
        return Segment3DConfig(**shared, batch_size=self.batch_size_3d, network=network, init=init)
