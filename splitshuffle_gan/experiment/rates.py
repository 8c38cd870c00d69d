"""What a training is, all but its length, and how long a step of it takes: kept in rates.json once it is timed."""

import hashlib
import json
from pathlib import Path

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment.plan import SET_BY_RUNNER, Plan, train_config
from splitshuffle_gan.training.options import TrainConfig, plain

# Options that do not change how long a step takes. Any other is taken to.
SAME_SPEED = {
    "g_lr",
    "d_lr",
    "g_warmup_kimg",
    "jitter",
    "r1_gamma",
    "ema_kimg",
    "ema_rampup",
    "augment_kimg",
    "workers",
}
SAME_SPEED |= {"lr", "warmup"}


def described(plan: Plan, name: str, rank: int) -> dict:
    """The training of an arm at `rank`, all but its length, its seed and its paths, as plain JSON."""
    arm = plan.arms[name]
    options = plain(train_config(plan, name, rank, data=Path(), out=Path()))
    options = {key: value for key, value in options.items() if key not in SET_BY_RUNNER}
    if rank == 3 and arm.share_2d and arm.inflate.depth_upsample:
        options["network"] |= {"depth_upsample": arm.inflate.depth_upsample}
    return {"model": arm.model, "rank": rank, "options": options}


def significant(training: dict) -> dict:
    """The training without options that have their default: what a later release adds does not make it another one."""
    if training["model"] == "diffusion":
        from splitshuffle_gan.experiment.diffusion import DiffusionConfig as Config
    else:
        Config = TrainConfig
    return training | {"options": _differing(training["options"], plain(Config(data=Path(), out=Path())))}


def _differing(options: dict, defaults: dict) -> dict:
    found = {}
    for key, value in options.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            value, default = _differing(value, default), {}
        if value != default:
            found[key] = value
    return found


def speed_key(training: dict) -> str:
    """A short hash of what decides how long a step takes."""
    options = {key: value for key, value in training["options"].items() if key not in SAME_SPEED}
    if training["model"] == "gan":
        options |= {name: float(options[name] > 0) for name in ("augment_target", "pl_weight")}
        if not options["augment_target"]:
            options.pop("augment")
        if training["rank"] == 2:
            options["network"] = {k: v for k, v in options["network"].items() if k != "depth_upsample"}
    text = json.dumps(significant({**training, "options": options}), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_rates(path: Path) -> dict[str, float]:
    """Seconds per step by `speed_key`, of the trainings timed so far. Raises UserError for a damaged file."""
    if not path.is_file():
        return {}
    try:
        return {key: float(entry["seconds_per_step"]) for key, entry in json.loads(path.read_text())["steps"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the timings that this command writes ({error!r}); remove it") from error
