"""The plan of an experiment: arms (ways of training), seeds, and what all of them share. Read from YAML, strictly."""

from collections.abc import Callable, Hashable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.training.options import NetworkOptions, TrainConfig

T = TypeVar("T")
# What a training is told by the runner, so that a plan must not.
SET_BY_RUNNER = {"data", "out", "init", "resume", "overwrite", "kimg", "minutes", "snapshot_kimg", "seed"}


@dataclass(frozen=True, kw_only=True)
class Inflate:
    """How the 2D networks become 3D ones; see `transfer.apply`. `depth_upsample`: by default that of the network."""

    method: Literal["center", "mean", "binomial", "triaxial", "random"] = "center"
    depth_upsample: Literal["nearest", "linear"] | None = None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of training.

    Attributes:
        title: for tables; default its name.
        group: heading of the table that it stands in, such as an ablation; default the main table.
        against: the arm it is compared with; default the plan's baseline.
        model: gan, or diffusion for the network of `experiment.diffusion`.
        minutes: of one core, for each run, 2D training included; default the plan's.
        share_2d: share of the minutes that is spent in 2D; with 0 the 3D networks start at random.
        inflate: how the 2D networks become 3D ones.
        network: fields of `NetworkOptions`, in 2D and in 3D.
        train2d: fields of `TrainConfig` for the 2D training, over those of the plan.
        train3d: the same for the 3D training; for diffusion, fields of `DiffusionConfig`.
        train: number of volumes to train on; default all that are not held out.
        seeds: default the plan's.
        evaluations: default the plan's; 1 judges the end only, where sampling is slow.
    """

    title: str = ""
    group: str = ""
    against: str | None = None
    model: Literal["gan", "diffusion"] = "gan"
    minutes: float | None = None
    share_2d: float = 0.0
    inflate: Inflate = field(default_factory=Inflate)
    network: dict[str, Any] = field(default_factory=dict)
    train2d: dict[str, Any] = field(default_factory=dict)
    train3d: dict[str, Any] = field(default_factory=dict)
    train: int | None = None
    seeds: tuple[int, ...] | None = None
    evaluations: int | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run and how to judge it.

    Attributes:
        title: for the report.
        minutes: of one core, for each run, 2D training included.
        seeds: of the runs.
        evaluations: during the 3D training, evenly spaced, the last at its end.
        draws: sets of generated volumes that an evaluation averages over.
        held_out: volumes that are set aside and judged against, by `splitshuffle split`.
        patient: regular expression for the patient in a scan's name; see `splitshuffle split`.
        extractor: network that scores see with; default the best at hand.
        baseline: the arm that others are compared with.
        train2d: fields of `TrainConfig` for every 2D training.
        train3d: fields of `TrainConfig` for every 3D training.
        arms: by name.
    """

    title: str
    minutes: float
    seeds: tuple[int, ...] = (0, 1, 2)
    evaluations: int = 5
    draws: int = 3
    held_out: int
    patient: str | None = None
    extractor: str | None = None
    baseline: str
    train2d: dict[str, Any] = field(default_factory=dict)
    train3d: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, Arm]

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """The seeds of an arm."""
        return self.seeds if self.arms[name].seeds is None else self.arms[name].seeds

    def against(self, name: str) -> str:
        """The arm that an arm is compared with."""
        return self.arms[name].against or self.baseline

    def minutes_of(self, name: str) -> float:
        """The minutes of one core that a run of an arm may take."""
        return self.minutes if self.arms[name].minutes is None else self.arms[name].minutes

    def evaluations_of(self, name: str) -> int:
        """How often a run of an arm is judged."""
        return self.evaluations if self.arms[name].evaluations is None else self.arms[name].evaluations


def read_plan(path: Path) -> Plan:
    """The plan in a YAML file. Raises UserError that names the file and the field that is unknown, missing or wrong."""
    return read_yaml(path, parse_plan)


def read_yaml(path: Path, parse: Callable[[Any], T]) -> T:
    """What `parse` makes of the values in a YAML file, no key of which comes twice.

    Raises UserError that names the file: it cannot be read, or `parse` raised UserError.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; a plan in YAML is wanted") from error
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML ({error})") from error
    try:
        return parse(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def parse_plan(values: Any) -> Plan:
    """The plan of plain values, checked. Raises UserError that names the field."""
    arms = values.get("arms") if isinstance(values, dict) else None
    if isinstance(arms, dict):
        values = values | {"arms": {name: _inherited(arms, name) for name in arms}}
    plan = typed(Plan, values)
    _check_numbers(plan)
    _check_sections(plan)
    for name in plan.arms:
        _check_arm(plan, name)
    return plan


def train_config(plan: Plan, name: str, rank: int, **given: Any) -> Any:
    """What the arm `name` trains with at `rank`, a `TrainConfig` or `DiffusionConfig`.

    `given`: the fields that the runner sets; what the plan says for all 3D trainings is said of GANs.
    """
    arm = plan.arms[name]
    if arm.model == "diffusion":
        from splitshuffle_gan.experiment.diffusion import DiffusionConfig

        return typed(DiffusionConfig, arm.train3d | given, f"arms.{name}.train3d")
    values = merged(getattr(plan, f"train{rank}d"), {"network": arm.network}, getattr(arm, f"train{rank}d"))
    return typed(TrainConfig, values | given, f"arms.{name}.train{rank}d")


def merged(*mappings: dict) -> dict:
    """One mapping of several, later ones over earlier ones, mappings in them likewise."""
    result: dict = {}
    for mapping in mappings:
        for key, value in mapping.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def typed(kind: Any, value: Any, where: str = "") -> Any:
    """`value`, as YAML gives it, as `kind`: a dataclass of these, a tuple, a mapping, a choice or a plain value.

    Raises UserError that names the field, what was found and what is wanted. A value that is a `kind` already stays.
    """
    if is_dataclass(kind):
        return _typed_fields(kind, value, where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and type(None) in inner:
            return None
        kinds = [option for option in inner if option is not type(None)]
        return typed(kinds[0], value, where)
    if origin is Literal:
        return _wanted(value in inner and isinstance(value, str), value, where, f"one of {', '.join(inner)}")
    if origin is tuple:
        _wanted(isinstance(value, list | tuple), value, where, "a list")
        return tuple(typed(inner[0], item, where) for item in value)
    if origin is dict:
        _wanted(isinstance(value, dict) and all(isinstance(key, str) for key in value), value, where, "fields by name")
        return {key: item if inner[1] is Any else typed(inner[1], item, _at(where, key)) for key, item in value.items()}
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(_wanted(number, value, where, "a number, as 0.001 or 1.0e-3"))
    if kind is Path:
        return Path(_wanted(isinstance(value, str | Path), value, where, "a path"))
    words = {int: "a whole number", bool: "true or false", str: "text"}
    return _wanted(type(value) is kind, value, where, words[kind])


def _typed_fields(kind: type, value: Any, where: str) -> Any:
    if isinstance(value, kind):
        return value
    _wanted(isinstance(value, dict), value, where or "the plan", "fields by name")
    hints, known = get_type_hints(kind), {f.name: f for f in fields(kind)}
    for name in value:
        if name not in known:
            raise UserError(f"{_at(where, name)}: unknown; known are {', '.join(known)}")
    for name, f in known.items():
        if name not in value and f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"{_at(where, name)}: missing; it has no default")
    values = {name: typed(hints[name], item, _at(where, name)) for name, item in value.items()}
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{where}.{error}" if where else str(error)) from error


def _wanted(good: bool, value: Any, where: str, words: str) -> Any:
    if not good:
        raise UserError(f"{where}: found {value!r}, {words} is wanted")
    return value


def _at(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)


def _inherited(arms: dict, name: str, seen: tuple[str, ...] = ()) -> Any:
    """The fields of an arm with those of the arm it is `like` under them; a title is not inherited."""
    own = arms[name] if arms[name] is not None else {}
    if not isinstance(own, dict) or "like" not in own:
        return own
    like = own["like"]
    if not isinstance(like, Hashable) or like not in arms:
        raise UserError(f"arms.{name}.like: found {like!r}, one of {', '.join(map(str, arms))} is wanted")
    if like in (*seen, name):
        chain = (*seen, name, like)
        raise UserError(f"arms.{chain[0]}.like: {' is like '.join(map(str, chain))}, which never ends")
    base = _inherited(arms, like, (*seen, name))
    if not isinstance(base, dict):
        return own
    return merged({k: v for k, v in base.items() if k != "title"}, {k: v for k, v in own.items() if k != "like"})


def _check_numbers(plan: Plan) -> None:
    least = {"evaluations": 1, "draws": 1, "held_out": 4}
    for name, lowest in least.items():
        if getattr(plan, name) < lowest:
            raise UserError(f"{name}: found {getattr(plan, name)}, at least {lowest} is wanted")
    if not plan.minutes > 0:
        raise UserError(f"minutes: found {plan.minutes}, a positive number is wanted")
    _check_seeds("seeds", plan.seeds)
    if plan.baseline not in plan.arms:
        raise UserError(f"baseline: found {plan.baseline!r}, one of the arms is wanted: {', '.join(plan.arms)}")


def _check_seeds(where: str, seeds: tuple[int, ...]) -> None:
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise UserError(f"{where}: found {list(seeds)}, different whole numbers from 0 are wanted, at least one")


def _check_sections(plan: Plan) -> None:
    for section in ("train2d", "train3d"):
        values = getattr(plan, section)
        _check_left_to_runner(section, values)
        typed(TrainConfig, values | {"data": Path(), "out": Path()}, section)


def _check_left_to_runner(section: str, values: dict) -> None:
    if taken := sorted(SET_BY_RUNNER & set(values)):
        raise UserError(f"{section}.{taken[0]}: the runner sets it; leave it out")


def _check_arm(plan: Plan, name: str) -> None:
    arm, where = plan.arms[name], f"arms.{name}"
    if not name.replace("_", "").replace("-", "").isalnum():
        raise UserError(f"{where}: the name of an arm becomes a folder's; letters, digits, _ and - are wanted")
    if not 0 <= arm.share_2d < 1:
        raise UserError(f"{where}.share_2d: found {arm.share_2d}, a share from 0 to below 1 is wanted")
    if arm.against is not None and arm.against not in plan.arms:
        raise UserError(f"{where}.against: found {arm.against!r}, one of the arms is wanted: {', '.join(plan.arms)}")
    if arm.minutes is not None and not arm.minutes > 0:
        raise UserError(f"{where}.minutes: found {arm.minutes}, a positive number is wanted")
    for field_name in ("train", "evaluations"):
        value = getattr(arm, field_name)
        if value is not None and value < 1:
            raise UserError(f"{where}.{field_name}: found {value}, at least 1 is wanted")
    if arm.seeds is not None:
        _check_seeds(f"{where}.seeds", arm.seeds)
    for section in ("train2d", "train3d"):
        _check_left_to_runner(f"{where}.{section}", getattr(arm, section))
    if arm.model == "diffusion":
        if arm.share_2d or arm.network or arm.train2d:
            raise UserError(f"{where}: a diffusion model has no share_2d, network or train2d; leave them out")
        train_config(plan, name, 3, data=Path(), out=Path())
        return
    typed(NetworkOptions, arm.network, f"{where}.network")
    in_2d, in_3d = (vars(train_config(plan, name, rank, data=Path(), out=Path()).network) for rank in (2, 3))
    for option in in_2d if arm.share_2d else ():
        if option != "depth_upsample" and in_2d[option] != in_3d[option]:
            raise UserError(
                f"{where}: network.{option} is {in_2d[option]!r} in 2D and {in_3d[option]!r} in 3D, but the 3D "
                "networks are inflated from the 2D ones; give both the same"
            )


class _Loader(yaml.SafeLoader):
    """Refuses a key that comes twice: the second would silently replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} comes twice", node.start_mark)
        return super().construct_mapping(node, deep)
