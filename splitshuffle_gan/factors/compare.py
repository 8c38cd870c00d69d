"""How far two samples of a factor lie apart, with an interval and a floor: numbers in, numbers out."""

import numpy as np
from scipy.stats import ks_2samp, wasserstein_distance

from splitshuffle_gan.metrics.resampling import TooFewSamples, bootstrap, interval, split_pairs

LEAST = 8  # volumes a side, so that the floor is between 4 and 4


def compare(
    generated: np.ndarray,
    real: np.ndarray,
    other: np.ndarray | None = None,
    resamples: int = 1000,
    splits: int = 200,
    seed: int = 0,
) -> dict:
    """The comparison of one factor, values `[n]` on each side, as JSON.

    real, generated: n, mean, sd, median and quartiles. distance: Wasserstein's, in standard deviations of `real`: how
    far the mass of one distribution has to be moved on average to become the other; "interval" by bootstrap. shift:
    difference of the medians in the same units. spread: sd over the real sd. ks_p: of Kolmogorov's and Smirnov's test.
    floor: the same distance where nothing is wrong: between halves of `real`, or between `real` and as many of `other`
    real values as are generated; its "interval" is what chance makes of two groups of these sizes, drawn from all real
    values. It falls with n, so `at_floor_n` is the distance from as many generated values to the same real ones,
    `over_floor` that over the floor, and `above_floor` whether it lies above the floor and above 97.5 % of chance's.
    Raises TooFewSamples below 8 values a side, and where all real values are the same.
    """
    sides = [np.asarray(values, np.float64) for values in (generated, real, other) if values is not None]
    fewest = min(map(len, sides))
    if fewest < LEAST:
        raise TooFewSamples(f"{fewest} values; at least {LEAST} a side are wanted")
    sd = sides[1].std(ddof=1)
    if not sd > 1e-9 * np.abs(sides[1]).max():
        raise TooFewSamples(f"all real values are {sides[1][0]:g}; there is no distribution to compare with")

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(wasserstein_distance(a, b) / sd)

    generated, real = sides[:2]
    value = distance(generated, real)
    draws = _draws(generated, real, sides[2] if other is not None else None, splits, seed)
    floors, values = (np.array([distance(row[side], row[2]) for row in draws]) for side in (0, 1))
    sizes = [len(draws[0][0]), len(draws[0][2])]
    chance = interval(floors)
    if other is not None:  # of which all may be taken, and then every draw is the same
        everything = np.concatenate(sides[1:])
        chance = interval(np.array([
            distance(everything[a], everything[b]) for a, b in _groups(len(everything), sizes, splits, seed)
        ]))  # fmt: skip
    return {
        "real": _summary(real),
        "generated": _summary(generated),
        "distance": value,
        "interval": bootstrap(distance, (generated, real), resamples, seed, value),
        "shift": float((np.median(generated) - np.median(real)) / sd),
        "spread": float(generated.std(ddof=1) / sd),
        "ks_p": float(ks_2samp(generated, real).pvalue),
        "floor": {
            "value": float(floors.mean()),
            "interval": chance,
            "n": sizes,
            "splits": splits,
        },
        "at_floor_n": float(values.mean()),
        "over_floor": float(values.mean() / floors.mean()),
        "above_floor": bool(values.mean() > max(chance[1], floors.mean())),
    }


def _draws(
    generated: np.ndarray, real: np.ndarray, other: np.ndarray | None, splits: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`splits` triples: real values that stand in for generated ones, as many generated ones, and the real ones."""
    rng = np.random.default_rng(seed)
    if other is None:
        size = min(len(real) // 2, len(generated))
        pairs = [(real[a], real[b]) for a, b in split_pairs(len(real), size, splits, seed)]
    else:
        size = min(len(other), len(generated))
        pairs = [(rng.choice(other, size, replace=False), real) for _ in range(splits)]
    return [(stand_in, rng.choice(generated, size, replace=False), reference) for stand_in, reference in pairs]


def _groups(count: int, sizes: list[int], splits: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """`splits` pairs of disjoint groups of rows."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(count) for _ in range(splits)]
    return [(order[: sizes[0]], order[sizes[0] : sum(sizes)]) for order in orders]


def _summary(values: np.ndarray) -> dict:
    low, median, high = np.percentile(values, (25, 50, 75))
    return {
        "n": len(values),
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)),
        "median": float(median),
        "quartiles": [float(low), float(high)],
    }
