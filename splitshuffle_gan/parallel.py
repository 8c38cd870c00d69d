"""Map a function over tasks in a pool of processes that does not outlive its parent."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from splitshuffle_gan.errors import UserError


def parallel_map(function: Callable, tasks: list, workers: int = 0) -> Iterator:
    """Results in the tasks' order from `workers` processes (0: one per core).

    What has not started is cancelled when the caller stops. Raises UserError when a process is killed.
    """
    workers = min(workers or os.cpu_count() or 1, len(tasks))
    if workers == 1:
        yield from map(function, tasks)
        return
    # Forked workers need no importable main module, so an unguarded script can call this.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=die_with, initargs=(os.getpid(),))
    try:
        yield from pool.map(function, tasks)
    except BrokenProcessPool as error:
        raise UserError(f"workers: one of {workers} processes was killed, often for memory; use fewer") from error
    finally:
        pool.shutdown(cancel_futures=True)


def die_with(parent: int) -> None:
    """End this worker when its parent is gone: a killed parent cannot say goodbye, and workers wait for it for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
