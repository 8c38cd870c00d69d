"""The pool of processes."""

import os
import signal
import subprocess
import sys
import time

from splitshuffle_gan.parallel import parallel_map

SCRIPT = r"""
import os, sys, time
from splitshuffle_gan.parallel import parallel_map
def work(task):
    os.write(1, b"%d\n" % os.getpid())
    time.sleep(0.2)
list(parallel_map(work, range(1000), workers=2))
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_results_come_in_the_tasks_order():
    assert list(parallel_map(abs, [-3, 2, -1], workers=2)) == [3, 2, 1]
    assert list(parallel_map(abs, [-3], workers=0)) == [3]


def test_workers_do_not_outlive_a_killed_parent():
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True)
    workers = {int(process.stdout.readline()) for _ in range(6)}
    assert process.pid not in workers and len(workers) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))
