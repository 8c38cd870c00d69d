"""The Fréchet distance between two sets of features, each taken as a Gaussian, and its extrapolation to infinite n."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.metrics.resampling import TooFewSamples, bootstrap, recentred

NEGATIVE_EIGENVALUE = 1e-6  # relative to the largest; what float32 rounding leaves, far below a wrong matrix
SIZES_PER_LINE = 8


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian by its mean `[d]` and a factor `[r, d]` of its covariance, factor.T @ factor.

    `n` samples stand behind it. The covariance is never formed from features: r is at most min(n, d), and nothing is
    squared.
    """

    mean: np.ndarray
    factor: np.ndarray
    n: int

    @classmethod
    def of(cls, features: np.ndarray) -> "Gaussian":
        """The Gaussian of features `[n, d]`, with the unbiased covariance (division by n - 1).

        Raises TooFewSamples for n < 2 and ValueError for features that are not a finite matrix.
        """
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or not np.isfinite(features).all():
            raise ValueError(f"features: finite numbers [n, d] are wanted; found shape {features.shape} or NaN in it")
        n, d = features.shape
        if n < 2:
            raise TooFewSamples(f"a covariance needs 2 samples, there are {n}")
        mean = features.mean(0)
        centred = (features - mean) / np.sqrt(n - 1)
        return cls(mean, np.linalg.qr(centred, mode="r") if n > d else centred, n)

    @classmethod
    def from_moments(cls, mean: np.ndarray, covariance: np.ndarray, n: int) -> "Gaussian":
        """The Gaussian of a mean `[d]` and a covariance `[d, d]`, e.g. published statistics.

        Eigenvalues between 0 and -1e-6 of the largest are rounding and become 0. Raises UserError when one is more
        negative, or when the shapes do not fit, the matrix is not symmetric (to 1e-6 of its largest entry), or a
        number is not finite: the distance to such a thing does not exist.
        """
        mean, covariance = np.asarray(mean, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise UserError(f"covariance: shape {covariance.shape} for a mean of shape {mean.shape}; [d, d] is wanted")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise UserError("mean, covariance: not finite everywhere; compute the statistics again")
        if np.abs(covariance - covariance.T).max(initial=0) > 1e-6 * np.abs(covariance).max(initial=0):
            raise UserError("covariance: not symmetric; compute the statistics again")
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        if values[0] < -NEGATIVE_EIGENVALUE * max(values[-1], 0):
            found = f"covariance: has eigenvalue {values[0]:.3g} beside the largest, {values[-1]:.3g}"
            raise UserError(f"{found}; a covariance has none below 0: compute the statistics again")
        return cls(mean, np.sqrt(np.maximum(values, 0))[:, None] * vectors.T, n)


def frechet_distance(generated: Gaussian, real: Gaussian) -> float:
    """|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), in squared units of the features.

    With S1 = A^T A and S2 = B^T B, the product A^T (A B^T B) has the same non-zero eigenvalues as
    (A B^T B) A^T = M M^T for M = A B^T, and these are the squared singular values of M. So the trace of the root is the
    sum of M's singular values, its nuclear norm. That holds for singular covariances (n < d) too: no inverse, no matrix
    root, no epsilon on the diagonal. Nothing is clamped either: for equal Gaussians the result is 0 up to rounding
    (about 1e-15 of the traces), of either sign.

    Raises ValueError when the dimensions differ.
    """
    if generated.mean.shape != real.mean.shape:
        raise ValueError(f"features of {len(generated.mean)} and {len(real.mean)} dimensions cannot be compared")
    shift = np.square(generated.mean - real.mean).sum()
    traces = np.square(generated.factor).sum() + np.square(real.factor).sum()
    return float(shift + traces - 2 * np.linalg.svd(generated.factor @ real.factor.T, compute_uv=False).sum())


def frechet_of(generated: np.ndarray, real: np.ndarray) -> float:
    """`frechet_distance` between features `[n, d]`; the two n may differ."""
    return frechet_distance(Gaussian.of(generated), Gaussian.of(real))


def frechet_bootstrap(
    generated: np.ndarray, real: np.ndarray, repeats: int, seed: int, estimate: float, level: float = 0.95
) -> list[float]:
    """`bootstrap` of `frechet_of`: [low, high] around `estimate`."""
    return bootstrap(frechet_of, _in_joint_span(generated, real), repeats, seed, estimate, level)


@dataclass(frozen=True)
class Extrapolation:
    """The Fréchet distance at infinite n: `value`, its 95 % `interval`, and the line that gave it.

    `means` are the distances at the `sizes`, averaged over subsets; `slope` is d distance / d (1/m), the bias at size
    m being slope / m.
    """

    value: float
    interval: list[float]
    slope: float
    sizes: list[int]
    means: list[float]


def frechet_infinity(
    generated: np.ndarray,
    real: np.ndarray,
    seed: int,
    sizes: Sequence[int] | None = None,
    subsets: int = 8,
    resamples: int = 100,
) -> Extrapolation:
    """The Fréchet distance at infinite n, by Chong and Forsyth 2020 (arXiv 1911.07023).

    At m samples a side the distance is biased upward by c / m + O(1 / m^2), with c unlike from network to network. So:
    the distance at several sizes m (the same on both sides, means over random `subsets`), a straight line in 1/m, its
    value at 1/m = 0. It may be slightly negative where the distributions are alike.

    The line holds while m > d. Below, covariances are singular and the curve bends: for Gaussians with equal
    covariances, sizes from m to 2m leave 30 % of the bias at m = d/2, 3 % at 3d/4, and less than the noise from m = d
    on. The rule is therefore: every size is above d, and the smallest is at most 2/3 of n, so that there is a line to
    see. `sizes` are by default 8 of them between n/2, or d + 1 if that is more, and n, the smaller of the two sets:
    n >= 3/2 (d + 1) is needed. Raises TooFewSamples otherwise.

    The interval is for the sampling of the n volumes: a line is laid through each of `resamples` resampled sets too
    (there through the smallest and the largest size only, from half as many subsets), and its percentiles are moved to
    the value, as in `bootstrap`. Where both sides follow one distribution it is about twice as wide as it need be.
    """
    n, d = min(len(generated), len(real)), generated.shape[1]
    smallest = max(n // 2, d + 1) if sizes is None else min(sizes)
    if smallest <= d or 3 * smallest > 2 * n:
        raise TooFewSamples(
            f"a line through subsets of more than {d} samples, one per feature, needs at least "
            f"{-(-3 * (d + 1) // 2)} samples a side; the smaller side has {n}"
        )
    if sizes is None:
        sizes = np.unique(np.linspace(smallest, n, SIZES_PER_LINE).astype(int))
    if max(sizes) > n:
        raise TooFewSamples(f"sizes up to {max(sizes)} need as many samples; the smaller side has {n}")
    sizes = np.sort(sizes)
    rng = np.random.default_rng(seed)

    means = _subset_means(generated, real, sizes, subsets, rng)
    slope, value = (float(number) for number in np.polyfit(1 / sizes, means, 1))
    ends, resampled = sizes[[0, -1]], []
    for _ in range(resamples):
        drawn = (rows[rng.integers(len(rows), size=len(rows))] for rows in (generated, real))
        resampled.append(np.polyfit(1 / ends, _subset_means(*drawn, ends, max(subsets // 2, 1), rng), 1)[1])
    return Extrapolation(value, recentred(np.array(resampled), value), slope, sizes.tolist(), means.tolist())


def _subset_means(
    generated: np.ndarray, real: np.ndarray, sizes: np.ndarray, subsets: int, rng: np.random.Generator
) -> np.ndarray:
    """The mean distance over random subsets of each size; once only where a subset is all there is."""

    def distance(size: int) -> float:
        return frechet_of(*(rows[rng.choice(len(rows), size, replace=False)] for rows in (generated, real)))

    everything = max(len(generated), len(real))
    return np.array([np.mean([distance(size) for _ in range(1 if size == everything else subsets)]) for size in sizes])


def _in_joint_span(generated: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sets in an orthonormal basis of their joint span, where that has fewer dimensions.

    A rotation changes no Fréchet distance, neither of the sets nor of any resampling of their rows.
    """
    together = np.concatenate([generated, real])
    if together.shape[0] >= together.shape[1]:
        return generated, real
    # Q R = rows^T: the columns of R are the rows in the basis Q.
    coordinates = np.linalg.qr(together.T, mode="r").T
    return coordinates[: len(generated)], coordinates[len(generated) :]
