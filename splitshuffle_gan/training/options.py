"""What a training run can be told."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

from splitshuffle_gan.config import ConvKind
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.training.augment import AugmentConfig

Channels = Literal["image", "image,label"]
# What may differ between a run and its continuation.
RESUMABLE = {"data", "out", "init", "resume", "overwrite", "kimg", "minutes", "snapshot_kimg", "workers", "compile"}
RESUMABLE |= {"checkpoint_above"}


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Networks to build when there is no `init`; left out, a value comes from `init` or the default.

    Attributes:
        channels: channels per level, coarse to fine, even; default 32 at the finest level, doubled up to 128.
        conv: kind of convolution; default split_shuffle. For comparison: plain (k x k x k), split_pointwise, and
            cross_d (one 3D kernel in 2D and 3D; slow). separable is what `inflate --method anisotropic` makes, of a
            plain 2D pair.
        depth_aware: tell the networks the depth of each slice (beyond the paper); default yes.
        z_dim: size of the latent; default 128.
        w_dim: size of the intermediate latent; default 128.
        mapping_layers: layers of the mapping network; default 2.
        noise: per-layer noise inputs; default yes.
        depth_knots: values of a depth-aware bias over depth, joined by straight lines; default one for each slice.
        depth_upsample: growth over depth at rank 3; default nearest.
        group_size: samples per group of the minibatch standard deviation; default 4.
    """

    channels: tuple[int, ...] | None = None
    conv: ConvKind | None = None
    depth_aware: bool | None = None
    z_dim: int | None = None
    w_dim: int | None = None
    mapping_layers: int | None = None
    noise: bool | None = None
    depth_knots: int | None = None
    depth_upsample: Literal["nearest", "linear"] | None = None
    group_size: int | None = None

    def given(self, config_class: type) -> dict:
        """The values that were given and that `config_class` knows."""
        known = {f.name for f in fields(config_class)}
        return {k: v for k, v in vars(self).items() if v is not None and k in known}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, 2D or 3D.

    Attributes:
        data: prepared dataset (from `splitshuffle prepare`).
        out: folder of the run; must not exist unless `resume` or `overwrite`.
        init: checkpoint to start from (an inflated pair, a run), or none.
        resume: go on with the run in `out`, exactly where it stopped.
        overwrite: delete what is in `out` first.
        channels: what is drawn: image; or image,label: volume and label map together, of a dataset with labels. Each
            structure has a channel of its own, above 0 inside of it (in one channel of the labels' numbers every
            edge from 0 to 2 would have a rim of 1). A sample's label is the structure with the greatest value above 0.
        kimg: length of training, in thousands of real images shown.
        minutes: stop after this many minutes of training instead, if that comes first; earlier parts of a resumed run
            count.
        batch_size: images per step, over all processes.
        micro_batch: images per process and forward pass; smaller than the share accumulates gradients. Default: all.
        g_lr: learning rate of the generator.
        d_lr: learning rate of the discriminator.
        g_warmup_kimg: the generator's learning rate rises from 0 over so many thousand images, while the discriminator
            of an inflated pair, which has never seen a volume, learns what one is.
        r1_gamma: weight of the R1 penalty; default 0.0002 voxels / batch.
        r1_interval: steps between R1 penalties.
        pl_weight: weight of path length regularisation, every 4 steps; 0 is off.
        ema_kimg: half-life of the weight average, in thousands of images.
        ema_rampup: the half-life is at most this share of the images seen; keeps early averages fresh.
        jitter: real images are shifted by up to so many whole voxels along each axis, at random. Where the grid lies is
            arbitrary to that extent; the generator learns it so, and the discriminator has more to learn by heart.
        augment_target: value of the overfitting signal r_t at which augmentation holds still; 0 switches it off.
        augment_kimg: thousands of images in which the augmentation probability can move by 1.
        augment: strengths of the transforms.
        snapshot_kimg: thousands of images between snapshots.
        mixed_precision: arithmetic of the networks; auto: bf16 where the hardware has it.
        checkpoint_above: recompute in the backward pass the levels of more than this many rows or columns, instead of
            storing them: less memory, more time. 0 recomputes all levels; default none.
        compile: compile what lies between convolutions: in C++ on a CPU (needs a compiler, for seconds, once), by
            torch.compile on a GPU. The same results, but for rounding.
        workers: processes that read data, per training process; 0 reads in the training process.
        seed: of everything random.
        network: the networks, when they are not read from `init`.
    """

    data: Path
    out: Path
    init: Path | None = None
    resume: bool = False
    overwrite: bool = False
    channels: Channels = "image"
    kimg: float = 100.0
    minutes: float | None = None
    batch_size: int = 8
    micro_batch: int | None = None
    g_lr: float = 0.002
    d_lr: float = 0.002
    g_warmup_kimg: float = 0.0
    r1_gamma: float | None = None
    r1_interval: int = 16
    pl_weight: float = 0.0
    ema_kimg: float = 5.0
    ema_rampup: float = 0.1
    jitter: int = 0
    augment_target: float = 0.6
    augment_kimg: float = 50.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    snapshot_kimg: float = 5.0
    mixed_precision: Literal["auto", "bf16", "no"] = "auto"
    checkpoint_above: int | None = None
    compile: bool = False
    workers: int = 0
    seed: int = 0
    network: NetworkOptions = field(default_factory=NetworkOptions)

    def __post_init__(self) -> None:
        if self.channels not in get_args(Channels):
            raise UserError(f"channels: found {self.channels!r}, must be one of {' or '.join(get_args(Channels))}")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{name}: found {value}, must be a finite number")
        if self.checkpoint_above is not None and self.checkpoint_above < 0:
            raise UserError(f"checkpoint_above: found {self.checkpoint_above}, must not be negative")
        if self.seed >= 2**63:
            raise UserError(f"seed: found {self.seed}, must be below 2^63")
        if self.r1_gamma is not None and self.r1_gamma < 0:
            raise UserError(f"r1_gamma: found {self.r1_gamma}, must not be negative")
        positive = ("kimg", "batch_size", "g_lr", "d_lr", "r1_interval", "ema_kimg", "augment_kimg", "snapshot_kimg")
        for name in positive:
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: found {getattr(self, name)}, must be positive")
        for name in ("minutes", "micro_batch"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UserError(f"{name}: found {getattr(self, name)}, must be positive or left out")
        for name in ("g_warmup_kimg", "pl_weight", "ema_rampup", "jitter", "augment_target", "workers", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: found {getattr(self, name)}, must not be negative")
        if self.resume and self.overwrite:
            raise UserError("resume and overwrite: both given; resume keeps the run in out, overwrite deletes it")

    @property
    def labelled(self) -> bool:
        """Whether label maps are drawn as well."""
        return self.channels == "image,label"


def plain(config: object) -> dict:
    """The config, a dataclass, as JSON values."""
    return json.loads(json.dumps(asdict(config), default=str))


def check_same_options(started: dict, config: object) -> None:
    """Nothing but `RESUMABLE` options of `config` may differ from those that the run in its folder was `started` with.

    An option that the release which started it did not have had its default.

    Raises:
        UserError: naming the first option that differs.
    """
    defaults = plain(type(config)(data=Path(), out=Path()))
    for name, was, now in _differences(started, plain(config), defaults):
        if name not in RESUMABLE:
            raise UserError(
                f"{name}: the run in {config.out} was started with {was!r}, found {now!r}. "
                "Resume with the options (and --preset) it was started with, or start a new run."
            )


def _differences(was: dict, now: dict, defaults: dict, prefix: str = "") -> Iterator[tuple[str, object, object]]:
    """Dotted name and both values of each option that differs."""
    for name in {**now, **was}:
        default = defaults.get(name)
        old, new = was.get(name, default), now.get(name, default)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, default or {}, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}", old, new
