"""Distributions of the factors of a phantom: each draws a value and says in words what it draws from."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Value = float | int | str


@dataclass(frozen=True)
class Uniform:
    """Uniform between two bounds."""

    low: float
    high: float
    meaning: str

    def draw(self, rng: np.random.Generator, _: dict[str, Value]) -> float:
        """One value."""
        return float(rng.uniform(self.low, self.high))

    def __str__(self) -> str:
        return f"{self.meaning}; uniform on [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class Normal:
    """Normal, clipped to three standard deviations."""

    mean: float
    sd: float
    meaning: str

    def draw(self, rng: np.random.Generator, _: dict[str, Value]) -> float:
        """One value."""
        return float(self.mean + self.sd * np.clip(rng.normal(), -3, 3))

    def __str__(self) -> str:
        return f"{self.meaning}; normal with mean {self.mean:g} and sd {self.sd:g}, clipped at 3 sd"


@dataclass(frozen=True)
class Choice:
    """One of a few names, with probabilities."""

    options: dict[str, float]
    meaning: str

    def draw(self, rng: np.random.Generator, _: dict[str, Value]) -> str:
        """One name."""
        return str(rng.choice(list(self.options), p=list(self.options.values())))

    def __str__(self) -> str:
        return f"{self.meaning}; " + ", ".join(f"{name} with probability {p:g}" for name, p in self.options.items())


@dataclass(frozen=True)
class Given:
    """A value drawn from a distribution that depends on the factors drawn before it."""

    function: Callable[[np.random.Generator, dict[str, Value]], Value]
    text: str

    def draw(self, rng: np.random.Generator, drawn: dict[str, Value]) -> Value:
        """One value."""
        return self.function(rng, drawn)

    def __str__(self) -> str:
        return self.text


Distribution = Uniform | Normal | Choice | Given


def draw_factors(table: dict[str, Distribution], rng: np.random.Generator) -> dict[str, Value]:
    """Draw every factor of `table` in its order."""
    drawn: dict[str, Value] = {}
    for name, distribution in table.items():
        drawn[name] = distribution.draw(rng, drawn)
    return drawn
