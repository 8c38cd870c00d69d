"""Processes of their own: for a peak of memory, for what cannot be undone, for several at once."""

import multiprocessing
import os
import resource
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

MIB = 2**20


def isolated(function: Callable, *arguments: object) -> Any:
    """Call in a fresh process, so that its peak memory is its own.

    Raises:
        MemoryError: the process was killed, or the device's memory did not suffice.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise MemoryError("the process was killed, probably for lack of memory") from error
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error).splitlines()[0]) from error


def peak_mib(device: torch.device) -> float:
    """The most memory that this process has held so far, on a GPU that of its tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    # Of this program; `ru_maxrss` starts with what the program that started this one held.
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text().splitlines()
        found = [line for line in lines if line.startswith("VmHWM:")]
        if found:
            return int(found[0].split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 2**10)


class Worker:
    """A process that does one thing whenever asked. Several take turns, or work at once: ask all, then collect.

    Args:
        start: called once in the process, with `arguments`; what it returns is called at every turn.
        environment: variables of the process.
    """

    def __init__(self, start: Callable[..., Callable[[], Any]], *arguments: object, environment: dict[str, str]):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, environment, start, arguments), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does

    def ask(self) -> None:
        """Begin a turn."""
        self.pipe.send(True)

    def answer(self) -> Any:
        """What `start` (first None, when it is ready) or the turn that was asked for returned.

        Raises:
            RuntimeError: it failed there; the message holds the traceback.
        """
        try:
            result, failure = self.pipe.recv()
        except EOFError as error:
            raise RuntimeError("a process of the benchmark ended early, probably for lack of memory") from error
        if failure is not None:
            raise RuntimeError(f"a process of the benchmark failed:\n{failure}")
        return result

    def close(self) -> None:
        """End the process."""
        if self.process.is_alive():
            self.process.terminate()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, environment: dict[str, str], start: Callable, arguments: tuple) -> None:
    os.environ.update(environment)
    try:
        call = start(*arguments)
        pipe.send((None, None))
        while pipe.recv():
            pipe.send((call(), None))
    except EOFError:  # whoever asked is gone
        return
    except Exception:  # to be raised again where it was asked for
        pipe.send((None, traceback.format_exc()))
