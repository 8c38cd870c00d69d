"""Networks on disk: `model.safetensors` and `config.json`, strict and versioned; local, shipped or on the hub.

No pickle: a checkpoint from a stranger can hold numbers and nothing else.
"""

import json
import os
import sysconfig
from pathlib import Path

import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from splitshuffle_gan import __version__
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import write_json
from splitshuffle_gan.volume import check_geometry

FORMAT, VERSION = "splitshuffle_gan", 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
PAIR = ("generator", "discriminator")


def load_strictly(
    module: torch.nn.Module,
    state: dict[str, torch.Tensor],
    source: str,
    remedy: str = "Use the matching config.json.",
) -> None:
    """Load `state` into `module`.

    A missing, extra or misshapen key raises `UserError` that names it and `source` and ends in `remedy`, a sentence.
    """
    own = module.state_dict()
    faults = [f"missing key {key}" for key in own if key not in state]
    faults += [f"extra key {key}" for key in state if key not in own]
    faults += [
        f"key {key} has shape {tuple(state[key].shape)}, wanted {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise UserError(f"{source}: weights do not fit {type(module).__name__}: {shown}. {remedy}")
    module.load_state_dict(state)


class Pretrained(ModelHubMixin, library_name="splitshuffle_gan", tags=["gan", "medical-imaging", "3d"]):
    """`save_pretrained`, `from_pretrained`, `push_to_hub` for a network built from `config` and `geometry`."""

    def _save_pretrained(self, save_directory: Path) -> None:
        header = {
            "format": FORMAT,
            "version": VERSION,
            "class": type(self).__name__,
            "created_with": __version__,
            "config": self.config.to_dict(),
            "geometry": self.geometry,
        }
        weights = save_directory / f".{WEIGHTS}.tmp"
        save_file({key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}, weights)
        os.replace(weights, save_directory / WEIGHTS)
        write_json(save_directory / CONFIG, header)

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> "Pretrained":
        """The network in a local folder (see `find_checkpoint`), of a name that ships, or in a hub repository.

        In eval mode, on the CPU.

        Raises:
            UserError: nothing found there, another format or version, a missing or extra field or key.
        """
        hub = {
            "revision": revision,
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "token": token,
        }
        model_id = find_checkpoint(model_id, cls.__name__.lower())
        config_path = _resolve(model_id, CONFIG, hub)
        header = _read_header(config_path, cls.__name__)
        model = cls(cls.config_class.from_dict(header["config"]), header["geometry"])
        weights = _resolve(model_id, WEIGHTS, hub)
        try:
            state = load_file(weights)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{weights}: not a readable safetensors file ({error}). Save it again.") from error
        load_strictly(model, state, str(weights))
        return model.eval()


def _resolve(model_id: str | Path, name: str, hub: dict) -> Path:
    """The local path of file `name` of a folder or hub repository."""
    if Path(model_id).is_dir():
        return Path(model_id) / name
    try:
        return Path(hf_hub_download(str(model_id), name, **hub))
    except (HFValidationError, EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{model_id}: neither a folder nor a reachable hub repository with {name} ({reason}). "
            "Check the path or the network."
        ) from error


def _read_header(path: Path, class_name: str) -> dict:
    try:
        header = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}). Save or download the checkpoint again.") from error
    for field, wanted in (("format", FORMAT), ("version", VERSION), ("class", class_name)):
        found = header.get(field) if isinstance(header, dict) else None
        if found != wanted:
            raise UserError(f"{path}: field {field!r} is {found!r}, wanted {wanted!r}; this is not such a checkpoint.")
    if missing := {"config", "geometry"} - set(header):
        raise UserError(f"{path}: field {', '.join(sorted(missing))} is missing. Save the checkpoint again.")
    if header["geometry"] is not None:
        check_geometry(header["geometry"], str(path))
    return header


def find_checkpoint(path: str | Path, network: str) -> str:
    """Where `network` ("generator" or "discriminator") is in what a user names.

    A checkpoint folder itself, a pair of networks (`PATH/generator`), or a run, whose latest snapshot counts.
    A string that is not a folder is the name of a checkpoint that ships, or, as OWNER/NAME, a hub id, which is returned
    as it is. A `Path` must be a folder.
    """
    folder = Path(path)
    if not folder.is_dir() and isinstance(path, str):
        if found := shipped(path):
            return str(found)
        if path.count("/") == 1:
            return path
    if not folder.is_dir():
        names = ", ".join(place.name for place in shipped_generators())
        offer = f"a hub id OWNER/NAME, or what ships: {names}" if names else "or a hub id OWNER/NAME"
        raise UserError(f"{folder}: no such folder; wanted a checkpoint, a pair of networks, a run, {offer}.")
    if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        return str(path)
    snapshots = sorted(folder.glob("snapshots/kimg*"))
    for candidate in [folder, *snapshots[::-1]]:
        if (candidate / network / CONFIG).is_file():
            return str(candidate / network)
    if network not in PAIR:
        inside = [path.parent for path in sorted(folder.glob(f"*/{CONFIG}")) if (path.parent / WEIGHTS).is_file()]
        hint = f"; did you mean {inside[0]}?" if inside else "."
        raise UserError(f"{folder}: no network here. Wanted the folder that holds its {CONFIG} and {WEIGHTS}{hint}")
    raise UserError(
        f"{folder}: no {network} here. Wanted a checkpoint ({CONFIG} and {WEIGHTS}), a folder with {network}/, "
        "or a run with snapshots/."
    )


def shipped(name: str) -> Path | None:
    """The folder of a checkpoint that comes with the package, such as "med3d-mini"; None when it is not installed."""
    if Path(name).name != name:
        return None  # a path, not a name
    return next((place / name for place in _shelves() if (place / name / WEIGHTS).is_file()), None)


def shipped_generators() -> list[Path]:
    """The folders of all generators that come with the package, by name."""
    return [folder for folder in shipped_checkpoints() if _class_in(folder / CONFIG) == "Generator"]


def shipped_checkpoints() -> list[Path]:
    """The folders of all networks that come with the package, by name; where a name comes twice, as `shipped` does."""
    names = {weights.parent.name for place in _shelves() for weights in place.glob(f"*/{WEIGHTS}")}
    return [shipped(name) for name in sorted(names)]


def _shelves() -> list[Path]:
    """Where checkpoints that ship may be: `checkpoints/` of a clone, where an editable install also looks, or where a
    wheel puts its data files.
    """
    schemes = sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")
    installed = [Path(sysconfig.get_path("data", scheme)) / "share" / "splitshuffle_gan" for scheme in schemes]
    return [place / "checkpoints" for place in (Path(__file__).parents[1], *installed)]


def _class_in(config: Path) -> str | None:
    """The class that a checkpoint's header names; None where there is no such header."""
    try:
        header = json.loads(config.read_text())
    except (OSError, ValueError):
        return None
    return header.get("class") if isinstance(header, dict) and header.get("format") == FORMAT else None
