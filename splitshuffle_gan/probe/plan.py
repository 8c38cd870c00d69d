"""The plan of a probe: what is seen in 2D, the ways to 3D, what is asked in 3D. Read from YAML, strictly."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment.plan import read_yaml, typed
from splitshuffle_gan.extractors.slice_resnet import Network

MODES = ("probe", "finetune")
MEAN = "mean"  # of all targets, in tables


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training, the same for every arm: AdamW on a one-cycle schedule.

    Attributes:
        steps: of one batch each.
        batch_size: slices or volumes.
        learning_rate: highest.
        weight_decay: of AdamW.
        shift: each image is moved by up to so many pixels along each axis, edges repeated.
    """

    steps: int
    batch_size: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    shift: int = 2

    def __post_init__(self) -> None:
        _at_least(self, {"steps": 2, "batch_size": 2, "weight_decay": 0, "shift": 0})
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"learning_rate: found {self.learning_rate}, a finite positive number is wanted")
        if not self.weight_decay < math.inf:
            raise UserError(f"weight_decay: found {self.weight_decay}, a finite number is wanted")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What networks see in 2D; one of `dataset`, `npz` and `images`.

    Attributes:
        dataset: prepared dataset with labels: from each slice its depth and, for every structure, how much of it is
            there are to be told.
        npz: MedMNIST 2D file: the labels of its training images.
        images: folder with a folder of PNG or JPEG images for each class, to any depth, as RadImageNet has it.
        size: H and W that images of a folder are brought to.
    """

    dataset: Path | None = None
    npz: Path | None = None
    images: Path | None = None
    size: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        _one_of(self, ("dataset", "npz", "images"))
        if len(self.size) != 2 or min(self.size) < 8:
            raise UserError(f"size: found {list(self.size)}, two numbers H W of at least 8 are wanted")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is asked of volumes: a class. Volumes are two prepared datasets, `train` and `test`, or one `npz`.

    Of prepared datasets a number per volume is cut into two classes, where the *training* volumes' median is, so that
    chance is one half. The number is the size of `labels` (in units of that of `over`, if given), or their mean
    brightness, or a `factor` of a phantom.

    Attributes:
        train: prepared dataset to learn from.
        test: prepared dataset of other subjects to be judged by.
        npz: MedMNIST 3D file, with its own classes and parts.
        title: for tables; default its name.
        labels: of the structure that is measured.
        over: labels of the structure that its size is divided by.
        measure: volume, or brightness, the mean value of its voxels.
        factor: name of a factor in `factors`.
        factors: factors.json that `splitshuffle phantom` wrote.
        above: what the number must exceed; default the training volumes' median.
        volumes: number of training volumes, a part of those that a larger number keeps; default all.
    """

    train: Path | None = None
    test: Path | None = None
    npz: Path | None = None
    title: str = ""
    labels: tuple[int, ...] = ()
    over: tuple[int, ...] = ()
    measure: Literal["volume", "brightness"] = "volume"
    factor: str | None = None
    factors: Path | None = None
    above: float | None = None
    volumes: int | None = None

    def __post_init__(self) -> None:
        if self.npz is not None:
            _none_of(self, ("train", "test", "labels", "over", "factor", "factors", "above"), "npz has its own classes")
        elif self.train is None or self.test is None:
            raise UserError(f"{'test' if self.train else 'train'}: missing; wanted train and test, or npz")
        elif bool(self.labels) == (self.factor is not None):
            raise UserError("labels: wanted either labels or a factor, which say what is asked")
        if (self.factor is None) != (self.factors is None):
            raise UserError("factors: wanted together with factor: its name, and the file that has it")
        if self.over and (self.factor or self.measure == "brightness"):
            raise UserError("over: goes with the volume of labels only")
        _at_least(self, {"volumes": 8})


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to a 3D network.

    Attributes:
        way: scratch (nothing carried), i3d (kernels repeated over depth, divided by its length), acs (a third of the
            output channels in each of the three planes), cross_d (trained as 3D kernels in 2D already).
        title: for tables; default its name.
        phase: of cross_d: how kernels move in 2D; see `nn.cross_d`.
        batch_norm: carry takes scale and shift along, fresh starts at 1 and 0 (as Cross-D's authors do). Statistics
            are measured anew in any case.
    """

    way: Literal["scratch", "i3d", "acs", "cross_d"]
    title: str = ""
    phase: Literal["published", "rotation"] = "published"
    batch_norm: Literal["carry", "fresh"] = "carry"

    @property
    def pretrained(self) -> str | None:
        """Which 2D network it starts from: "plain", "published", "rotation", or None."""
        return {"scratch": None, "cross_d": self.phase}.get(self.way, "plain")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is learnt in 2D, how it is carried, what it is asked in 3D.

    Attributes:
        title: for the report.
        seeds: of everything random.
        baseline: the arm that others are compared with.
        network: the ResNet-18, the same in every arm.
        pretrain: training in 2D; its batches go round the sources.
        finetune: training of whole networks in 3D; without it only linear probes are made.
        precision: arithmetic; auto: bf16 where the hardware has it. On a CPU this is that of 2D, 3D is in float32.
        sources, targets, arms: by name.
    """

    title: str
    seeds: tuple[int, ...] = (0, 1, 2)
    baseline: str
    network: Network = field(default_factory=Network)
    pretrain: Training
    finetune: Training | None = None
    precision: Literal["auto", "bf16", "no"] = "auto"
    sources: dict[str, Source]
    targets: dict[str, Target]
    arms: dict[str, Arm]

    @property
    def modes(self) -> tuple[str, ...]:
        """How networks are judged: "probe" and, if planned, "finetune"."""
        return MODES if self.finetune else MODES[:1]

    def title_of(self, kind: Literal["arms", "targets"], name: str) -> str:
        """For tables."""
        return getattr(self, kind)[name].title or name


def read_plan(path: Path) -> Plan:
    """The plan in a YAML file. Raises UserError that names the file and the field that is unknown, missing or wrong."""
    return read_yaml(path, parse_plan)


def parse_plan(values: Any) -> Plan:
    """The plan of plain values, checked. Raises UserError that names the field."""
    plan = typed(Plan, values)
    if not plan.seeds or min(plan.seeds) < 0 or len(set(plan.seeds)) != len(plan.seeds):
        raise UserError(f"seeds: found {list(plan.seeds)}, different whole numbers from 0 are wanted, at least one")
    for kind in ("sources", "targets", "arms"):
        names = getattr(plan, kind)
        if not names and (kind != "sources" or any(arm.pretrained for arm in plan.arms.values())):
            raise UserError(f"{kind}: none; at least one is wanted")
        for name in names:
            if name == MEAN:
                raise UserError(f"{kind}.{name}: the table has a mean of its own; choose another name")
            if not name.replace("_", "").replace("-", "").isalnum():
                raise UserError(
                    f"{kind}.{name}: letters, digits, _ and - are wanted in names; there is `title` besides"
                )
    if plan.baseline not in plan.arms:
        raise UserError(f"baseline: found {plan.baseline!r}, one of the arms is wanted: {', '.join(plan.arms)}")
    return plan


def _one_of(given: Any, names: tuple[str, ...]) -> None:
    found = [name for name in names if getattr(given, name) is not None]
    if len(found) != 1:
        raise UserError(f"{found[1] if found else names[0]}: wanted exactly one of {', '.join(names)}")


def _none_of(given: Any, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if getattr(given, name) not in (None, ()):
            raise UserError(f"{name}: {why}; leave it out")


def _at_least(given: Any, least: dict[str, float]) -> None:
    for name, lowest in least.items():
        value = getattr(given, name)
        if value is not None and value < lowest:
            raise UserError(f"{name}: found {value}, at least {lowest} is wanted")
