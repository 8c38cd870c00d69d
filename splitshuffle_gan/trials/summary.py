"""From the lines of results.jsonl to the numbers of the report: Dice of each arm, and differences with intervals."""

from collections.abc import Callable

import numpy as np

from splitshuffle_gan.metrics.resampling import interval
from splitshuffle_gan.trials.question import Question

LEAST_CASES = 5  # an interval over fewer says nothing
SEED = 0


def summarise(question: Question, record: dict, lines: list[dict], resamples: int) -> dict:
    """All that the report says, as plain JSON.

    "arms": by name, what it was given, seeds and for "mean" (over the structures) and each label the Dice of `dice_of`.
    "differences": the others against the question's base, of seeds that both have, likewise as by `difference`. The
    95 % intervals resample the test cases, the same ones for all arms, each case being the mean over the seeds; None
    where there are fewer than 5 cases. A structure counts in the cases that have it. "missing" are (arm, seed) to come.

    Args:
        record: "labels", and "cases", the number of test volumes.
        lines: of results.jsonl.
        resamples: of the intervals.
    """
    names, base = tuple(question.arms), question.base
    labels = [str(label) for label in record["labels"]]
    found = {(line["arm"], line["seed"]): _values(line, labels) for line in lines}
    seeds = {arm: sorted(seed for name, seed in found if name == arm) for arm in names}
    given = {line["arm"]: line["given"] for line in lines}
    count = record["cases"]
    draws = None
    if count >= LEAST_CASES:  # how often each case is in each resample
        draws = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), resamples)
    arms = {
        arm: {"given": given[arm], "seeds": seeds[arm], **_each(labels, dice_of, draws, _stack(found, arm, of))}
        for arm, of in seeds.items()
        if of
    }
    differences = {}
    for arm in names:
        common = [seed for seed in seeds[arm] if seed in seeds[base]]
        if arm != base and common:
            stacks = (_stack(found, name, common) for name in (arm, base))
            differences[arm] = {"against": base, "seeds": common, **_each(labels, difference, draws, *stacks)}
    every = sorted({seed for of in seeds.values() for seed in of})
    missing = [[arm, seed] for seed in every for arm in names if seed not in seeds[arm]]
    return {"labels": labels, "test_cases": count, "arms": arms, "differences": differences, "missing": missing}


def dice_of(values: np.ndarray, draws: np.ndarray | None) -> dict:
    """Dice of one arm from `[seeds, cases, structures]`, NaN where a case lacks a structure.

    Mean, median, lowest, highest and standard deviation over the seeds, each a mean over the cases; an interval.
    """
    by_seed = mean_dice(values)
    return {
        "by_seed": by_seed.tolist(),
        "mean": float(by_seed.mean()),
        "median": float(np.median(by_seed)),
        "lowest": float(by_seed.min()),
        "highest": float(by_seed.max()),
        "deviation": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None,
        "interval": _interval(values.mean(0), draws),
    }


def difference(values: np.ndarray, others: np.ndarray, draws: np.ndarray | None) -> dict:
    """Mean Dice of `values` less that of `others`, both `[seeds, cases, structures]`, paired by case; an interval."""
    paired = values.mean(0) - others.mean(0)
    by_seed = mean_dice(values) - mean_dice(others)
    return {
        "by_seed": by_seed.tolist(),
        "mean": float(mean_dice(paired)),
        "interval": _interval(paired, draws),
    }


def mean_dice(values: np.ndarray) -> np.ndarray:
    """`[..., cases, structures]` to `[...]`: of each structure over the cases that have it, then over structures."""
    return _mean(_mean(values, -2), -1)


def _each(labels: list[str], measure: Callable[..., dict], draws: np.ndarray | None, *stacks: np.ndarray) -> dict:
    """What `measure` says of all structures together, and of each by itself."""
    single = {label: measure(*(stack[..., [place]] for stack in stacks), draws) for place, label in enumerate(labels)}
    return {"mean": measure(*stacks, draws), "structures": single}


def _values(line: dict, labels: list[str]) -> np.ndarray:
    """`[cases, structures]`, NaN where a case lacks a structure."""
    return np.array([[case["dice"][label] for label in labels] for case in line["cases"]], dtype=np.float64)


def _stack(found: dict[tuple[str, int], np.ndarray], arm: str, seeds: list[int]) -> np.ndarray:
    return np.stack([found[arm, seed] for seed in seeds])


def _interval(values: np.ndarray, draws: np.ndarray | None) -> list[float] | None:
    """Of the mean Dice of `[cases, structures]`, from `draws` `[resamples, cases]`: how often each has each case.

    A resample without a single case that has any of the structures does not count.
    """
    if draws is None:
        return None
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        of_structures = (draws @ np.where(there, values, 0)) / (draws @ there)
    means = _mean(of_structures, -1)
    means = means[np.isfinite(means)]
    return interval(means) if len(means) else None


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is not NaN; NaN where nothing else is."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0).sum(axis) / there.sum(axis)
