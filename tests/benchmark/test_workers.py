"""Processes of their own: what they return, how they fail, whose memory they report."""

import os
from functools import partial

import numpy as np
import pytest
import torch

from splitshuffle_gan.benchmark.workers import Worker, isolated, peak_mib

CPU = torch.device("cpu")


def test_a_function_runs_in_a_process_of_its_own():
    assert isolated(os.getpid) != os.getpid()
    assert isolated(max, 3, 5) == 5


def test_failures_there_are_failures_here():
    with pytest.raises(ValueError, match="invalid literal"):
        isolated(int, "no number")
    with pytest.raises(MemoryError, match="killed"):
        isolated(os._exit, 3)


def test_the_peak_is_that_of_the_process_alone():
    before = peak_mib(CPU)
    block = np.ones(800 * 2**20, np.uint8)  # what the parent holds must not count
    assert peak_mib(CPU) > before + 700
    assert isolated(peak_mib, CPU) < before + 700
    assert block[-1] == 1


def test_a_worker_takes_turns():
    worker = Worker(partial, os.getenv, "SPLITSHUFFLE_TEST", environment={"SPLITSHUFFLE_TEST": "there"})
    try:
        assert worker.answer() is None  # ready
        for _ in range(2):
            worker.ask()
            assert worker.answer() == "there"
    finally:
        worker.close()
    assert "SPLITSHUFFLE_TEST" not in os.environ
    assert not worker.process.is_alive()


@pytest.mark.parametrize(
    ("start", "arguments", "message"),
    [(partial, (int, "no number"), "invalid literal"), (int, ("none",), "invalid literal"),
     (partial, (os._exit, 3), "ended early")],
)  # fmt: skip
def test_a_worker_that_fails_says_so(start, arguments, message):
    worker = Worker(start, *arguments, environment={})
    try:
        with pytest.raises(RuntimeError, match=message):
            worker.answer()
            worker.ask()
            worker.answer()
    finally:
        worker.close()
