"""Precision and recall, density and coverage, as one value per sample, whose mean is the metric.

A ball reaches from a sample to its k-th nearest neighbour on the same side, the border included. Distances are float64
and direct, not by |a|^2 + |b|^2 - 2ab: that loses the digits that tell near neighbours apart.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from splitshuffle_gan.metrics.resampling import TooFewSamples, half_samples, recentred

BALL_NEIGHBOURS = 3  # precision and recall: Kynkäänniemi et al. 2019 (arXiv 1904.06991), torch-fidelity's default
DENSITY_NEIGHBOURS = 5  # density and coverage: Naeem et al. 2020 (arXiv 2002.09797)


@dataclass(frozen=True)
class Neighbours:
    """Per-sample values. Fidelity: `precision`, `density` per generated; variety: `recall`, `coverage` per real sample.

    precision: 1 where a generated sample lies in some real ball. recall: 1 where a real sample lies in some generated
    ball. density: the number of real balls a generated sample lies in, over k; its mean is about 1 where the two sides
    are alike and can be above. coverage: 1 where a real ball holds some generated sample.
    """

    precision: np.ndarray
    density: np.ndarray
    recall: np.ndarray
    coverage: np.ndarray

    def means(self) -> dict[str, float]:
        """The four metrics by name."""
        return {name: float(values.mean()) for name, values in vars(self).items()}


def neighbours(
    generated: np.ndarray,
    real: np.ndarray,
    ball_neighbours: int = BALL_NEIGHBOURS,
    density_neighbours: int = DENSITY_NEIGHBOURS,
) -> Neighbours:
    """The four metrics, sample by sample, of features `[n, d]`; float64 arrays of the lengths of the two sides.

    The order of the two matters: swapped, precision and recall change places. Time and memory grow with n^2. Raises
    TooFewSamples when a side has no more samples than neighbours wanted, and ValueError when the dimensions differ.
    """
    _check_enough(min(len(generated), len(real)), max(ball_neighbours, density_neighbours))
    return _Distances.between(generated, real).neighbours(ball_neighbours, density_neighbours)


def neighbour_intervals(
    generated: np.ndarray,
    real: np.ndarray,
    repeats: int,
    seed: int,
    ball_neighbours: int = BALL_NEIGHBOURS,
    density_neighbours: int = DENSITY_NEIGHBOURS,
) -> dict[str, list[float]]:
    """95 % intervals [low, high] of the four means by name, from half samples of both sides, moved to the estimates.

    Resampling the per-sample values alone would leave out that the balls are a matter of chance too: its nominal 95 %
    held the expected value in half to nine tenths of simulated cases, half samples in about nine tenths and more. The
    bounds of the three shares stay within 0 and 1. Raises TooFewSamples when halves are too small for the neighbours.
    """
    _check_enough(min(len(generated), len(real)) // 2, max(ball_neighbours, density_neighbours), "in each half, ")
    distances = _Distances.between(generated, real)
    estimates = distances.neighbours(ball_neighbours, density_neighbours).means()
    resampled = [
        distances.part(*halves).neighbours(ball_neighbours, density_neighbours).means()
        for halves in half_samples(len(generated), len(real), repeats=repeats, seed=seed)
    ]
    intervals = {}
    for name, estimate in estimates.items():
        low, high = recentred(np.array([means[name] for means in resampled]), estimate)
        intervals[name] = [low, high] if name == "density" else np.clip([low, high], 0.0, 1.0).tolist()
    return intervals


@dataclass(frozen=True)
class _Distances:
    """Euclidean distances within and across the two sides."""

    generated: np.ndarray
    real: np.ndarray
    across: np.ndarray

    @classmethod
    def between(cls, generated: np.ndarray, real: np.ndarray) -> "_Distances":
        generated, real = np.asarray(generated, dtype=np.float64), np.asarray(real, dtype=np.float64)
        return cls(cdist(generated, generated), cdist(real, real), cdist(generated, real))

    def part(self, generated: np.ndarray, real: np.ndarray) -> "_Distances":
        """The distances of those samples alone."""
        return _Distances(
            self.generated[np.ix_(generated, generated)],
            self.real[np.ix_(real, real)],
            self.across[np.ix_(generated, real)],
        )

    def neighbours(self, ball_neighbours: int, density_neighbours: int) -> Neighbours:
        # Index 0 of the sorted distances is the sample itself, so index k is its k-th neighbour.
        real_radii = np.sort(self.real, axis=1)
        generated_radii = np.sort(self.generated, axis=1)
        in_real_ball = self.across <= real_radii[:, ball_neighbours]
        in_density_ball = self.across <= real_radii[:, density_neighbours]
        in_generated_ball = self.across <= generated_radii[:, ball_neighbours, None]
        return Neighbours(
            precision=in_real_ball.any(1).astype(np.float64),
            density=in_density_ball.sum(1) / density_neighbours,
            recall=in_generated_ball.any(0).astype(np.float64),
            coverage=in_density_ball.any(0).astype(np.float64),
        )


def _check_enough(smaller: int, wanted: int, where: str = "") -> None:
    if smaller <= wanted:
        raise TooFewSamples(
            f"balls to neighbour {wanted} need {where}{wanted + 1} samples a side; the smaller side has {smaller}"
        )
