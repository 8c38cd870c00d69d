"""Outputs that appear complete or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitshuffle_gan.errors import UserError


def refuse_existing(out: Path, overwrite: bool, mark: str, keep: tuple[Path, ...] = ()) -> None:
    """Raise UserError when `out` exists and may not be replaced.

    Even with `overwrite` only an empty folder, or one that holds the file or folder `mark`, is replaced: a mistyped
    path must not delete someone's home. Nor is one that holds any of `keep`, what the work itself reads.
    """
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise UserError(f"out: {out} exists already; choose another folder, or pass --overwrite to replace it")
    if not out.is_dir() or (any(out.iterdir()) and not (out / mark).exists()):
        raise UserError(f"out: {out} exists and has no {mark} in it, so it is not overwritten; choose another folder")
    for path in keep:
        if path.resolve().is_relative_to(out.resolve()):
            raise UserError(f"out: {out} holds the source {path} and is not replaced; choose another folder")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when the block ends well and vanishes when it does not.

    What was at `out` before is replaced: whether that may be is the caller's to decide.
    """
    out = out.resolve()  # a link keeps pointing to the folder, which is what gets replaced
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.{os.getpid()}")
    previous = building.with_name(f"{building.name}.previous")
    shutil.rmtree(building, ignore_errors=True)  # of a killed process that had this number
    building.mkdir()
    try:
        yield building
        take_place(building, out, previous)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        if out.exists():
            shutil.rmtree(previous, ignore_errors=True)


def take_place(ready: Path, out: Path, previous: Path) -> None:
    """Let the folder `ready` take the place of `out`; what was there is at `previous` then, or back if that fails."""
    try:
        if out.exists():
            os.replace(out, previous)
        os.replace(ready, out)
    finally:
        put_back(previous, out)


def put_back(previous: Path, out: Path) -> None:
    """What was at `out` comes back from `previous` when nothing took its place."""
    if previous.exists() and not out.exists():
        os.replace(previous, out)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it becomes `path` when the block ends well and vanishes when it does not.

    It ends as `path` does, for libraries that go by the suffix, and starts with a dot, which hides it from searches.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, whole; NaN and infinity raise ValueError."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
