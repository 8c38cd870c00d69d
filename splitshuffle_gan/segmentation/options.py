"""What can be told to a training of a segmentation network, and to its use."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.training.augment import AugmentConfig

DEFAULT_STEPS = 2000


@dataclass(frozen=True, kw_only=True)
class Network2DOptions:
    """The 2D network.

    Attributes:
        layers: residual blocks of the encoder's four stages; 3 4 6 3 is ResNet-50, 1 1 1 1 the smallest.
        slices: neighbouring slices that enter as channels, odd; only 3 can be transferred to 3D.
        width: channels of the decoder.
        scale: whole factors by which H and W are magnified first: the encoder's stride is 32, so slices of less than
            about 64 pixels need it.
        pretrained: state dict of torchvision's ResNet on disk, for the encoder.
    """

    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    slices: int = 3
    width: int = 16
    scale: tuple[int, int] = (1, 1)
    pretrained: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Network3DOptions:
    """The 3D network.

    Attributes:
        layers: residual blocks of the encoder's four stages; default those of `init`, else 3 4 6 3.
        psp_blocks: levels of pyramid volumetric pooling, 0 to 4; default as many as the size allows.
        upsample: growth in the decoder; default trilinear. transpose and nearest are reproducible on a GPU.
        scale: whole factors by which D, H, W are magnified first, for small volumes; default in-plane that of `init`.
        pad: whether a volume that does not fit is padded, its border repeated, or refused.
    """

    layers: tuple[int, int, int, int] | None = None
    psp_blocks: int | None = None
    upsample: Literal["trilinear", "transpose", "nearest"] = "trilinear"
    scale: tuple[int, int, int] | None = None
    pad: bool = False


@dataclass(frozen=True, kw_only=True)
class SegmentTraining:
    """What both trainings share.

    Attributes:
        data: prepared dataset with labels.
        out: folder of the run: run.json, log.jsonl, network/, predictions.png; metrics.json with `val`.
        val: prepared dataset with labels, of other subjects: the network that does best on it is kept. Without it, the
            last one.
        steps: of one batch each; default 2000, or as many as `minutes` allow.
        minutes: on the clock, validation included; ends the run if that comes first.
        batch_size: slices or volumes per step, over all processes.
        detect: find the lesions that have this label, instead of telling all labels apart: the network learns a heat
            map of them, and metrics.json and froc.png hold its FROC.
        sigma: mm, with `detect`: width of the Gaussian about each lesion's centre, how far beside a lesion a find
            still hits it, and how close two finds can be.
        window: train on windows of this shape D H W, half of them over a labelled voxel; default whole volumes.
        loss: focal, dice_focal (default) or dice_ce; heat_focal with `detect`, and only there.
        learning_rate: highest, of AdamW, after a twentieth of the run; from there it falls along a cosine to 0.
        weight_decay: of AdamW.
        validations: how many times the network is tried on `val`, evenly over the run.
        augment_p: probability of each random change.
        augment: their strengths.
        mixed_precision: arithmetic of the network; auto: bf16 where the hardware has it.
        seed: of everything random.
        overwrite: delete what is in `out` first.
    """

    data: Path
    out: Path
    val: Path | None = None
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 4
    detect: int | None = None
    sigma: float = 4.0
    window: tuple[int, int, int] | None = None
    loss: Literal["focal", "dice_focal", "dice_ce", "heat_focal"] | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    validations: int = 10
    augment_p: float = 0.5
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mixed_precision: Literal["auto", "bf16", "no"] = "auto"
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("validations", 1), ("seed", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise UserError(f"{name}: found {getattr(self, name)}, must be at least {least}")
        for name in ("minutes", "learning_rate", "sigma"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name}: found {getattr(self, name)}, a number above 0 is wanted")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"weight_decay: found {self.weight_decay}, must not be negative")
        if not 0 <= self.augment_p <= 1:
            raise UserError(f"augment_p: found {self.augment_p}, a probability from 0 to 1 is wanted")
        if self.detect is not None and self.detect not in range(1, 256):
            raise UserError(f"detect: found {self.detect}, a label from 1 to 255 is wanted")
        losses = ("focal", "dice_focal", "dice_ce") if self.detect is None else ("heat_focal",)
        if self.loss is None:
            object.__setattr__(self, "loss", "dice_focal" if self.detect is None else "heat_focal")
        for name, known in (("loss", losses), ("mixed_precision", ("auto", "bf16", "no"))):
            if getattr(self, name) not in known:
                raise UserError(f"{name}: found {getattr(self, name)!r}, must be one of {', '.join(known)}")

    @property
    def last_step(self) -> float:
        """The number of steps; infinite where only the clock ends the run."""
        if self.steps is not None:
            return self.steps
        return DEFAULT_STEPS if self.minutes is None else math.inf


@dataclass(frozen=True, kw_only=True)
class Segment2DConfig(SegmentTraining):
    """Train AH-Net's 2D network to segment the slices of a dataset with labels.

    Attributes:
        network: the network.
        batch_size: slices per step, over all processes.
    """

    network: Network2DOptions = field(default_factory=Network2DOptions)
    batch_size: int = 32


@dataclass(frozen=True, kw_only=True)
class Segment3DConfig(SegmentTraining):
    """Train AH-Net, the anisotropic 3D network, to segment the volumes of a dataset with labels.

    Attributes:
        init: run or checkpoint to start from: of segment2d, whose encoder is transferred, or of segment3d; none:
            from scratch.
        network: the network.
    """

    init: Path | None = None
    network: Network3DOptions = field(default_factory=Network3DOptions)


@dataclass(frozen=True, kw_only=True)
class ScansConfig:
    """What both uses of a trained network on whole scans share.

    Attributes:
        checkpoint: run of segment2d or segment3d, or its network/.
        scans: scans, or folders searched to any depth, in any format that `prepare` reads.
        out: folder to make.
        overlap: share of a window that the next one covers again, from 0 to below 1.
        volume: which volume of 4D files, from 0; all: each is a scan.
        correct_tilt: straighten CT series taken with a tilted gantry, instead of refusing them.
        mixed_precision: arithmetic of the network; auto: bf16 where the hardware has it.
        overwrite: replace the results in `out`.
    """

    checkpoint: tyro.conf.Positional[Path]
    scans: tyro.conf.Positional[tuple[Path, ...]]
    out: Path
    overlap: float = 0.5
    volume: int | Literal["all"] | None = None
    correct_tilt: bool = False
    mixed_precision: Literal["auto", "bf16", "no"] = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise UserError(f"overlap: found {self.overlap}, a share from 0 to below 1 is wanted")
        if self.mixed_precision not in ("auto", "bf16", "no"):
            raise UserError(f"mixed_precision: found {self.mixed_precision!r}, must be one of auto, bf16, no")
        if not self.scans:
            raise UserError("scans: none given; name scans, or folders of them")


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(ScansConfig):
    """Segment scans with a trained network: masks as NIfTI on each scan's own grid.

    Attributes:
        out: folder to make: a mask per scan, of the same name, and segment.json.
    """

    out: Path


@dataclass(frozen=True, kw_only=True)
class DetectConfig(ScansConfig):
    """Find lesions in scans with a network that was trained with --detect: where, how sure, and heat maps as NIfTI.

    Attributes:
        out: folder to make: finds.csv and detect.json, places in RAS mm; a heat map per scan, of the same name, on its
            own grid.
        least: confidence, 0 to 1, below which nothing is reported; the run's metrics.json says what each value costs.
    """

    out: Path
    least: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.least <= 1:
            raise UserError(f"least: found {self.least}, a confidence above 0, up to 1 is wanted")
