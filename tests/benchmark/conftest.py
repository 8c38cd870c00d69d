"""Everything tiny, in this process, on one core."""

from collections.abc import Callable

import pytest
import torch

from splitshuffle_gan.benchmark import (
    cases,
    clock,
    cross_d,
    memory,
    operators,
    processes,
    rates,
    run,
    sampling,
    setting,
    sizes,
)
from splitshuffle_gan.benchmark.setting import Compilation, Setting

TINY_SHAPE = [8, 16, 8]


class InProcess:
    """A `Worker` without a process."""

    def __init__(self, start: Callable, *arguments: object, environment: dict[str, str]) -> None:
        self.call, self.results = start(*arguments), [None]

    def ask(self) -> None:
        self.results.append(self.call())

    def answer(self) -> object:
        return self.results.pop(0)

    def close(self) -> None:
        pass


def tiny_preset(name: str) -> dict:
    train3d = {"network": {"channels": [8, 8, 8]}, "checkpoint_above": 8 if name == "heart-ct" else None}
    return {"prepare": {"shape": TINY_SHAPE}, "train3d": train3d}


@pytest.fixture
def tiny(monkeypatch, cpu):
    """Every preset and every grid is tiny; nothing runs in a process of its own; both precisions, no compiler."""
    for module in (cases, sizes):
        monkeypatch.setattr(module, "load_preset", tiny_preset)
    for module in (memory, sizes):
        monkeypatch.setattr(module, "isolated", lambda function, *arguments: function(*arguments))
    for module in (memory, processes):
        monkeypatch.setattr(module, "Worker", InProcess)
    monkeypatch.setattr(processes, "ARRANGEMENTS", ((1, 1), (1, 2)))
    monkeypatch.setattr(run, "available_dtypes", lambda: ("float32", "bf16"))
    monkeypatch.setattr(setting, "compile_passes", lambda device, enable=True: "no g++")
    monkeypatch.setattr(clock, "MIN_MS", 0.01)
    monkeypatch.setattr(rates, "MATRIX_SIDE", {"cpu": 16})
    monkeypatch.setattr(rates, "CONV_SIZES", ((2, 4), (4, 4)))
    monkeypatch.setattr(operators, "CUBES", ((1, 4, 4, 4, 4), (1, 2, 8, 8, 8)))
    monkeypatch.setattr(cross_d, "STAGES", ((4, 4, 4), (8, 2, 2)))
    monkeypatch.setattr(sizes, "SIDES", (4, 8))
    monkeypatch.setattr(sampling, "SHAPE", (8, 8, 8))
    monkeypatch.setattr(sampling, "DIFFUSION_CHANNELS", (32, 32, 32))
    monkeypatch.setattr(sampling, "DIFFUSION_STEPS", 2)


@pytest.fixture
def make_setting(tiny):
    """`make_setting(dtypes, compile)`: two repetitions of a batch of two; a compiler that leaves all as it is."""

    def make(dtypes=("float32",), compile=False, repetitions=2) -> Setting:
        compilation = Compilation(torch.device("cpu"))
        assert compilation.reason == "no g++"
        if compile:
            compilation.reason = None
        return Setting(torch.device("cpu"), dtypes, compilation, "hippocampus", 2, repetitions, 0)

    return make
