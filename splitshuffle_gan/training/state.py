"""The whole state of a training run in one file, replaced in one step: `state.pt`; and the log, cut back to it."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import torch

from splitshuffle_gan.errors import UserError

STATE, VERSION = "state.pt", 1


def save_state(folder: Path, state: dict) -> None:
    """Write `folder/state.pt` through a temporary name: killed or out of disk, the previous file stays whole."""
    temporary = folder / f".{STATE}.tmp"
    try:
        with open(temporary, "wb") as file:
            torch.save({"version": VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / STATE)
    finally:
        temporary.unlink(missing_ok=True)


def load_state(folder: Path) -> dict:
    """Read `folder/state.pt`, tensors and plain values only, onto the CPU.

    Raises:
        UserError: no such file, unreadable, or of another version.
    """
    path = folder / STATE
    if not path.is_file():
        raise UserError(f"resume: {path} does not exist; there is nothing to resume. Start without --resume.")
    if not zipfile.is_zipfile(path):  # older pickle streams too: this package never wrote one
        raise UserError(f"{path}: not a training state, or cut short. Start a new run.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: holds more than tensors and plain values. Start a new run.") from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: not a readable training state ({error!r:.200}). Start a new run.") from error
    version = state.get("version") if isinstance(state, dict) else None
    if version != VERSION:
        raise UserError(f"{path}: field 'version' is {version!r}, wanted {VERSION}. Start a new run.")
    return state


def cut_log(log: Path, last_step: int) -> None:
    """Drop the lines after `last_step`, and a last line that a kill cut short."""
    kept = []
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            if json.loads(line)["step"] > last_step:
                break
        except json.JSONDecodeError:
            break
        kept.append(f"{line}\n")
    temporary = log.with_name(f".{log.name}.tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, log)
