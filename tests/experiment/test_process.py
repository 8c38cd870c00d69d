"""A task in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from splitshuffle_gan.experiment.process import start

CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
SCRIPT = r"""
import sys
from pathlib import Path
from splitshuffle_gan.experiment.process import start
if __name__ == "__main__":
    process = start("time:sleep", (1000,), Path(sys.argv[1]), "sleep", {int(sys.argv[2])})
    print(process.pid, flush=True)
    process.join()
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not pin processes to cores")
def test_a_process_has_its_cores_and_its_log(tmp_path):
    core = max(os.sched_getaffinity(0))
    code = "import os, sys; print(os.sched_getaffinity(0)); print('torch' in sys.modules, file=sys.stderr)"
    process = start("builtins:exec", (code,), tmp_path / "run", "task", {core})
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "run" / "task.log").read_text().split("\n")[:2] == [f"{{{core}}}", "False"]
    assert not (tmp_path / "run" / "failed.json").exists()


def test_what_it_raises_is_kept(tmp_path):
    process = start("builtins:int", ("five",), tmp_path, "task", CORES)
    process.join()
    assert process.exitcode == 1
    found = json.loads((tmp_path / "failed.json").read_text())
    assert found["stage"] == "task" and "invalid literal for int()" in found["message"]
    assert "Traceback" in (tmp_path / "task.log").read_text()
    process = start("builtins:int", ("5",), tmp_path, "task", CORES)
    process.join()
    assert process.exitcode == 0 and not (tmp_path / "failed.json").exists()


def test_it_does_not_outlive_a_killed_parent(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py", tmp_path, str(min(CORES))]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    while not (tmp_path / "sleep.log").exists():  # its watch begins before
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"{child} is alive")
