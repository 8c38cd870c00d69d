"""The state file: whole or not there, ours or refused."""

import errno
import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.training.state import STATE, load_state, save_state

STATE_A = {"step": 7, "weights": {"a": torch.arange(1000.0)}, "name": "x", "nested": [1, (2.5, None), True]}


class Runs:
    """Pickles as a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_state_comes_back(tmp_path):
    save_state(tmp_path, STATE_A)
    state = load_state(tmp_path)
    assert torch.equal(state["weights"]["a"], STATE_A["weights"]["a"])
    assert (state["step"], state["name"], state["nested"]) == (7, "x", [1, (2.5, None), True])
    assert names(tmp_path) == [STATE]


def fail(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def write_half(_state, file):
    file.write(b"half")
    fail()


@pytest.mark.parametrize("place", ["torch.save", "os.fsync", "os.replace"])
def test_a_failed_write_keeps_the_earlier_state(tmp_path, monkeypatch, place):
    save_state(tmp_path, STATE_A)
    before = (tmp_path / STATE).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(place, write_half if place == "torch.save" else fail)
        with pytest.raises(OSError, match="No space left"):
            save_state(tmp_path, {"step": 8})
    assert (tmp_path / STATE).read_bytes() == before
    assert names(tmp_path) == [STATE]
    save_state(tmp_path, {"step": 8})
    assert load_state(tmp_path)["step"] == 8


def test_a_kill_while_writing_keeps_the_earlier_state(tmp_path):
    save_state(tmp_path, STATE_A)
    script = (
        "import os, signal, sys, pathlib\n"
        "from splitshuffle_gan.training.state import save_state\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "save_state(pathlib.Path(sys.argv[1]), {'step': 8})\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(names(tmp_path)) == 2  # the half-written temporary file is left, and is no obstacle
    assert load_state(tmp_path)["step"] == 7
    save_state(tmp_path, {"step": 9})
    assert load_state(tmp_path)["step"] == 9
    assert names(tmp_path) == [STATE]


def test_nothing_to_resume(tmp_path):
    with pytest.raises(UserError, match=r"state\.pt does not exist.*without --resume"):
        load_state(tmp_path)


def as_file(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"hello world", bytes(range(256)) * 20, as_file({"version": 1})[:-100]])
def test_a_file_that_is_no_state_is_named(tmp_path, content):
    (tmp_path / STATE).write_bytes(content)
    with pytest.raises(UserError, match=r"state\.pt: not a"):
        load_state(tmp_path)


@pytest.mark.parametrize("value", [{"version": 2}, {"step": 1}, [1, 2]])
def test_another_version_is_refused(tmp_path, value):
    (tmp_path / STATE).write_bytes(as_file(value))
    with pytest.raises(UserError, match=r"state\.pt: field 'version' is (2|None), wanted 1"):
        load_state(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_state_is_refused_and_does_not_run(tmp_path, zipped):
    ran = tmp_path / "ran"
    value = {"version": 1, "step": Runs(ran)}
    torch.save(value, tmp_path / STATE, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"state\.pt: (holds more than tensors|not a training state)"):
        load_state(tmp_path)
    assert not ran.exists()
