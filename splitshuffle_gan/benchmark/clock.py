"""Times taken in turns, and what is said of them: medians, quartiles, ratios.

What is compared is measured side by side: every repetition measures each case once, and a ratio is formed within its
repetition, so that a slow minute of the machine hits both sides of it.
"""

import time
from collections.abc import Callable, Hashable
from typing import TypeVar

import numpy as np
import torch
from tqdm import tqdm

MIN_MS = 5.0  # a measurement repeats its call for this long: clocks and caches blur shorter ones

Key = TypeVar("Key", bound=Hashable)
Measurement = Callable[[], dict[str, float]]


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """How long one call takes, on a GPU until its work is done."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU to finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device) -> Measurement:
    """A measurement of `call`: {"ms": milliseconds per call}, repeated for at least `MIN_MS`."""

    def measure() -> dict[str, float]:
        times = [milliseconds(call, device)]
        while sum(times) < MIN_MS:
            times.append(milliseconds(call, device))
        return {"ms": sum(times) / len(times)}

    return measure


def take_turns(
    cases: dict[Key, Measurement], repetitions: int, label: str, warm_up: bool = True
) -> dict[Key, dict[str, list[float]]]:
    """Measure every case `repetitions` times, taking turns in the order given, after one warm-up of each.

    Args:
        cases: what to measure, by any name.
        repetitions: how often.
        label: of the progress bar.
        warm_up: off where all cases have run already.

    Returns:
        For every case and every name that its measurement gives: the values, in the order of the repetitions.
    """
    values: dict[Key, dict[str, list[float]]] = {key: {} for key in cases}
    turns = range(-1 if warm_up else 0, repetitions)
    with tqdm(total=len(turns) * len(cases), desc=label, unit="call", leave=False) as progress:
        for turn in turns:
            for key, measure in cases.items():
                for name, value in measure().items():
                    if turn >= 0:
                        values[key].setdefault(name, []).append(value)
                progress.update()
    return values


def summary(values: list[float]) -> dict[str, float]:
    """Median, lower and upper quartile, and the number of values."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {"median": float(middle), "q1": float(low), "q3": float(high), "n": len(values)}


def ratio(values: list[float], reference: list[float]) -> dict[str, float]:
    """The summary of the ratios within each repetition."""
    return summary([a / b for a, b in zip(values, reference, strict=True)])


def amortised(without: list[float], with_penalty: list[float], interval: int) -> list[float]:
    """Per step, when one step in `interval` is penalised."""
    return [((interval - 1) * a + b) / interval for a, b in zip(without, with_penalty, strict=True)]
