"""Turns, medians, quartiles and ratios."""

import time

import pytest
import torch

from splitshuffle_gan.benchmark import clock

CPU = torch.device("cpu")


def test_quartiles_by_hand():
    assert clock.summary([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0, "n": 5}
    assert clock.summary([1.0, 2.0]) == {"median": 1.5, "q1": 1.25, "q3": 1.75, "n": 2}
    assert clock.summary([7.0]) == {"median": 7.0, "q1": 7.0, "q3": 7.0, "n": 1}


def test_ratios_are_formed_within_a_repetition():
    # Everything three times as slow in the second repetition: the ratio does not notice.
    assert clock.ratio([1.0, 3.0, 1.0], [2.0, 6.0, 2.0]) == {"median": 0.5, "q1": 0.5, "q3": 0.5, "n": 3}
    with pytest.raises(ValueError):
        clock.ratio([1.0, 2.0], [1.0])


def test_a_penalty_is_spread_over_its_interval():
    assert clock.amortised([10.0, 20.0], [26.0, 20.0], 16) == [11.0, 20.0]
    assert clock.amortised([10.0], [26.0], 1) == [26.0]


@pytest.mark.parametrize("warm_up", [True, False])
def test_cases_take_turns(warm_up):
    order = []

    def case(name: str):
        def measure() -> dict[str, float]:
            order.append(name)
            return {"ms": len(order), "other": -len(order)}

        return measure

    values = clock.take_turns({name: case(name) for name in "ab"}, 2, "test", warm_up)
    assert order == list("ab" * (2 + warm_up))
    first = 3 if warm_up else 1
    assert values == {
        "a": {"ms": [first, first + 2], "other": [-first, -first - 2]},
        "b": {"ms": [first + 1, first + 3], "other": [-first - 1, -first - 3]},
    }


def test_milliseconds_are_milliseconds():
    assert 20 <= clock.milliseconds(lambda: time.sleep(0.02), CPU) < 2000


def test_short_calls_are_repeated_and_averaged(monkeypatch):
    durations = iter([1.0, 2.0, 3.0, 100.0])
    monkeypatch.setattr(clock, "milliseconds", lambda call, device: next(durations))
    measure = clock.timed(lambda: None, CPU)
    assert measure() == {"ms": 2.0}  # 1 + 2 + 3 ms reach MIN_MS
    assert measure() == {"ms": 100.0}
