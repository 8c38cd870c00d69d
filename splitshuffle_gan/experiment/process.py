"""One task in a process of its own: on cores of its own, its output in a file, gone when its parent is.

Light on purpose: what counts cores does so when it is imported, which must come after the process is pinned.
"""

import os
import sys
import traceback
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path

from splitshuffle_gan.output import write_json
from splitshuffle_gan.parallel import die_with

FAILURE = "failed.json"


def start(function: str, arguments: tuple, folder: Path, name: str, cores: set[int]) -> SpawnProcess:
    """Call `function(*arguments)` in a new process that may use `cores`, its output appended to `folder/name.log`.

    `function` is "module:name", imported there. What it raises is kept in `folder/failed.json`, and the exit code is 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)
    process = get_context("spawn").Process(target=_run, args=(function, arguments, folder, name, cores, os.getpid()))
    process.start()
    return process


def _run(function: str, arguments: tuple, folder: Path, name: str, cores: set[int], parent: int) -> None:
    die_with(parent)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    with open(folder / f"{name}.log", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.exit(attempt(function, arguments, folder, name))


def attempt(function: str, arguments: tuple, folder: Path, name: str) -> int:
    """Call "module:name"; 0, or 1 when it raised, with `folder/failed.json` then."""
    module, _, attribute = function.partition(":")
    try:
        getattr(import_module(module), attribute)(*arguments)
    except Exception as error:  # the edge of the process: whatever it is, the others go on
        traceback.print_exc()
        write_json(folder / FAILURE, {"stage": name, "message": str(error) or type(error).__name__})
        return 1
    return 0
