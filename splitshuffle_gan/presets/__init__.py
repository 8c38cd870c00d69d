"""Named rows of configuration, one YAML file each: how to prepare a set and how to train on it."""

from importlib.resources import files

import yaml

from splitshuffle_gan.errors import UserError


def preset_names() -> list[str]:
    """The presets that ship, sorted."""
    names = (entry.name for entry in files(__name__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_preset(name: str) -> dict:
    """The sections (`prepare`, `train2d`, `train3d`, ...) of preset `name`. Raises UserError for an unknown name."""
    if name not in preset_names():
        raise UserError(f"preset: found {name!r}, must be one of {', '.join(preset_names())}")
    return yaml.safe_load((files(__name__) / f"{name}.yaml").read_text())
