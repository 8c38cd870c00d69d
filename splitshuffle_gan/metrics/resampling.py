"""Which samples: disjoint splits, bootstrap intervals, and the exception for sets that are too small."""

from collections.abc import Callable, Sequence

import numpy as np


class TooFewSamples(ValueError):
    """A number that these samples cannot give: too few of them, or too few voxels in each.

    The message is the reason in words, fit for a card: the number is left out, the others are computed.
    """


def split_pairs(n: int, size: int, splits: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """`splits` random pairs of disjoint index sets, each `size` out of `n` without replacement.

    Within a pair the two sets share nothing; different pairs overlap, so the values of a statistic on them are not
    independent. Raises TooFewSamples when two sets of `size` do not fit into `n`.
    """
    if size < 1 or 2 * size > n:
        raise TooFewSamples(f"two disjoint sets of {size} samples need {2 * size}, there are {n}")
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(n) for _ in range(splits)]
    return [(order[:size], order[size : 2 * size]) for order in orders]


def interval(values: np.ndarray, level: float = 0.95) -> list[float]:
    """[low, high] that hold the middle `level` of `values`, by linear interpolation between order statistics."""
    if not 0 < level < 1:
        raise ValueError(f"level: {level}; a share between 0 and 1 is wanted")
    tail = 50 * (1 - level)
    return [float(bound) for bound in np.percentile(values, [tail, 100 - tail])]


def recentred(values: np.ndarray, estimate: float, level: float = 0.95) -> list[float]:
    """`interval` of the resampled `values`, moved so that their mean falls on `estimate`, which it always holds."""
    low, high = interval(np.asarray(values) - np.mean(values), level)
    return [float(estimate) + min(low, 0.0), float(estimate) + max(high, 0.0)]


def bootstrap(
    statistic: Callable[..., float],
    arrays: Sequence[np.ndarray],
    repeats: int,
    seed: int,
    estimate: float,
    level: float = 0.95,
) -> list[float]:
    """[low, high] around `estimate`, the value of `statistic(*arrays)`, by resampling rows with replacement.

    Each array (generated, real, or just one of them) is resampled on its own. A resampled set holds about a third of
    its rows twice or more: as a distribution it is narrower and stands for fewer samples, so a distance that falls
    with n, as Fréchet's does, comes out too high on it. The plain percentile interval may then leave the estimate
    itself out. So the spread is taken from the resampled values and the place from the estimate: the percentiles are
    moved by estimate - mean. The interval is one for the expected value at this n, not for the value at infinite n.

    It errs on the wide side where both sides follow the same distribution: there the distance is a square of small
    errors, and resampling adds its own to them. It is not cut off at 0.
    """
    rng = np.random.default_rng(seed)
    values = [
        statistic(*(array[rng.integers(len(array), size=len(array))] for array in arrays)) for _ in range(repeats)
    ]
    return recentred(np.array(values), estimate, level)


def half_samples(*lengths: int, repeats: int, seed: int) -> list[tuple[np.ndarray, ...]]:
    """`repeats` times a random half of each of `range(length)`, without replacement, sorted.

    For statistics that duplicates would break, such as those of nearest neighbours. A statistic whose variance falls
    as 1/n varies over the halves of one sample by 1/(n/2) - 1/n = 1/n of the same constant: as much as from sample to
    sample. So its values over halves, `recentred` on the estimate, give the interval with no further scaling.
    """
    rng = np.random.default_rng(seed)
    return [
        tuple(np.sort(rng.choice(length, length // 2, replace=False)) for length in lengths) for _ in range(repeats)
    ]


def kid_bootstrap(
    generated: np.ndarray,
    real: np.ndarray,
    repeats: int,
    seed: int,
    estimate: float | None = None,
    level: float = 0.95,
) -> list[float]:
    """As `bootstrap`, for the kernel distance; around the U-statistic of all pairs unless an `estimate` is given.

    A row drawn twice would meet itself, and k(x, x) is far above k(x, y): the unbiased estimate would no longer be
    one. So a resample is a weight per row (how often it was drawn), and the sum over pairs leaves i = j out:
    sum_{i != j} w_i w_j k(x_i, x_j) / sum_{i != j} w_i w_j. All resamples share one kernel matrix,
    k(x, y) = (x.y / d + 1)^3, torch-fidelity's default. A resample that is one row over and over, as 4 rows give now
    and then, has no pairs and is drawn again.
    """
    if min(len(generated), len(real)) < 2:
        raise TooFewSamples(f"the kernel distance needs 2 samples a side; there are {len(generated)} and {len(real)}")
    rng = np.random.default_rng(seed)
    weights = [_with_pairs(len(rows), repeats, rng) for rows in (generated, real)]
    if estimate is None:
        estimate = float(_weighted_kid(generated, real, *(np.ones((1, len(rows))) for rows in (generated, real)))[0])
    return recentred(_weighted_kid(generated, real, *weights), estimate, level)


def _with_pairs(count: int, repeats: int, rng: np.random.Generator) -> np.ndarray:
    """`repeats` bootstrap weights `[repeats, count]`, each with two rows or more."""
    weights = rng.multinomial(count, np.full(count, 1 / count), repeats)
    while (single := weights.max(1) == count).any():
        weights[single] = rng.multinomial(count, np.full(count, 1 / count), single.sum())
    return weights


def _weighted_kid(
    generated: np.ndarray, real: np.ndarray, generated_weights: np.ndarray, real_weights: np.ndarray
) -> np.ndarray:
    """The kernel distance for each row of the weights `[repeats, n]`."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        pairs = kernel(rows, rows)
        np.fill_diagonal(pairs, 0)
        count = weights.sum(1) ** 2 - np.square(weights).sum(1)
        return np.einsum("ri,ri->r", weights @ pairs, weights) / count

    across = np.einsum("ri,ri->r", generated_weights @ kernel(generated, real), real_weights)
    across /= generated_weights.sum(1) * real_weights.sum(1)
    return within(generated, generated_weights) + within(real, real_weights) - 2 * across
