"""The folder in which a dataset grows beside its place: found again after a kill, its finished rows in a journal."""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import put_back, take_place

try:
    import fcntl
except ImportError:  # not on Windows, where two runs at once are the user's to avoid
    fcntl = None

JOURNAL, LOCK, EARLIER = "journal.jsonl", "lock", "dataset.previous"
# The workers of a killed run hold its lock until they notice, within a second.
LOCK_WAIT_S = 10.0


@contextmanager
def build_folder(out: Path, key: str) -> Iterator[Path]:
    """The folder that belongs to `out` and `key` (hexadecimal), made or found again, and locked inside the block.

    Raises UserError when another run holds it.
    """
    out = out.resolve()  # a link keeps pointing to the folder, which is what gets replaced
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.{key[:12]}.building")
    lock = _lock(folder, LOCK_WAIT_S)
    try:
        others = _other_builds(folder, out)
        for build in (folder, *others):
            put_back(build / EARLIER, out)
        if others:
            names = ", ".join(path.name for path in others)
            print(f"prepare: {names}: of other settings or scans; removed when this run is done", file=sys.stderr)
        yield folder
    finally:
        _unlock(lock)


def move_in(folder: Path, ready: Path, out: Path) -> None:
    """Let `ready`, a folder inside `folder`, take the place of `out`, and remove all that was built for `out`."""
    out = out.resolve()
    take_place(ready, out, folder / EARLIER)
    for other in _other_builds(folder, out):
        try:
            lock = _lock(other, wait=0)
        except UserError:
            continue  # another run is at it
        shutil.rmtree(other, ignore_errors=True)
        _unlock(lock)
    shutil.rmtree(folder, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove what was built, unless it is the only place where what was at `out` still is."""
    if not (folder / EARLIER).exists():
        shutil.rmtree(folder, ignore_errors=True)


def forget(folder: Path) -> None:
    """Empty the journal."""
    (folder / JOURNAL).unlink(missing_ok=True)


def record(folder: Path, line: dict) -> None:
    """Append a line to the journal; processes may do so at the same time."""
    # One write in append mode keeps lines whole; the newline before it, that a torn line spoils no other.
    text = f"\n{json.dumps(line, allow_nan=False)}\n".encode()
    handle = os.open(folder / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        if os.write(handle, text) < len(text):
            raise OSError(f"{folder / JOURNAL}: a line was written in part; is the disk full?")
    finally:
        os.close(handle)


def read_journal(folder: Path) -> Iterator[dict]:
    """Every whole line, in the order of writing. A line that a kill cut short is passed over."""
    if not (folder / JOURNAL).is_file():
        return
    with open(folder / JOURNAL, "rb") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line


def _lock(folder: Path, wait: float) -> int:
    """A handle that holds the lock of `folder`, which is made. Raises UserError after `wait` seconds in vain."""
    deadline = time.monotonic() + wait
    while True:
        folder.mkdir(exist_ok=True)
        try:
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            handle = None  # its last user removed the folder just now
        if handle is not None:
            # The same holds for a lock of which only the handle is left.
            if _take(handle) and _is_same_file(handle, folder / LOCK):
                return handle
            os.close(handle)
        if time.monotonic() >= deadline:
            raise UserError(f"out: another run is at {folder}; wait for its end, or choose another folder")
        time.sleep(0.1)


def _take(handle: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return True


def _unlock(handle: int) -> None:
    # Forked processes that still live share the lock; closing alone would leave it with them.
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_UN)
        except OSError:
            pass  # a file system without locks
    os.close(handle)


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _other_builds(folder: Path, out: Path) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{12}}\.building")
    return [path for path in sorted(out.parent.iterdir()) if pattern.fullmatch(path.name) and path != folder]
