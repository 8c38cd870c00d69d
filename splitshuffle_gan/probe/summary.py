"""From the lines of results.jsonl to the numbers of the report: means over seeds, intervals, differences by pairs."""

from dataclasses import dataclass

import numpy as np

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.metrics.resampling import interval
from splitshuffle_gan.probe.measures import MEASURES, chance
from splitshuffle_gan.probe.plan import MEAN, Plan
from splitshuffle_gan.probe.work import key_of, results_in

RESAMPLES = 2000


@dataclass(frozen=True)
class Values:
    """A measure of several seeds: `[seeds, 1 + RESAMPLES]`, first on the test volumes, then on each resample of them.

    All arms meet the same resamples of volumes and of seeds, so differences between arms are differences by pairs.
    """

    seeds: tuple[int, ...]
    values: np.ndarray

    def minus(self, other: "Values") -> "Values":
        """Seed by seed, of the seeds that both have."""
        shared = tuple(seed for seed in self.seeds if seed in other.seeds)
        rows = [[of.seeds.index(seed) for seed in shared] for of in (self, other)]
        return Values(shared, self.values[rows[0]] - other.values[rows[1]])

    def summary(self) -> dict:
        """The mean over seeds, its 95 % interval over resampled volumes and seeds, and the value of each seed."""
        picks = np.random.default_rng(len(self.seeds)).integers(len(self.seeds), size=(len(self.seeds), RESAMPLES))
        resampled = np.take_along_axis(self.values[:, 1:], picks, axis=0).mean(0)
        own = self.values[:, 0]
        return {
            "mean": float(own.mean()),
            "interval": interval(resampled[np.isfinite(resampled)]),
            "by_seed": {str(seed): float(value) for seed, value in zip(self.seeds, own, strict=True)},
        }


def summarise(plan: Plan, lines: list[dict]) -> dict:
    """All that the report says, as plain JSON.

    "modes": by mode and measure: "rows", "differences" (to the baseline), both by arm and target, "mean" among the
    targets being their mean for the seeds that have them all. "targets": what each is. "arms": what each is.
    "missing", "failures": in words.

    Raises UserError when results of one target are of different test volumes.
    """
    results = {key_of(line): line for line in results_in(lines) if _planned(plan, line)}
    _check_same_volumes(results)
    modes = {}
    for mode in plan.modes:
        for measure in MEASURES:
            found = _by_arm(plan, results, mode, measure)
            base = found.get(plan.baseline, {})
            modes.setdefault(mode, {})[measure] = {
                "rows": _table(found),
                "differences": {
                    arm: {target: difference.summary() for target, values in of_arm.items()
                          if target in base and (difference := values.minus(base[target])).seeds}
                    for arm, of_arm in found.items() if arm != plan.baseline
                },
            }  # fmt: skip
    return {
        "title": plan.title,
        "baseline": plan.baseline,
        "seeds": list(plan.seeds),
        "modes": modes,
        "targets": _targets(plan, results),
        "arms": _arms(plan, results),
        "missing": _missing(plan, results),
        "failures": _failures(plan, lines, results),
    }


def resampling(mark: str, count: int) -> np.ndarray:
    """How often each of `count` volumes is in each sample, `[1 + RESAMPLES, count]`: once, then drawn with replacement.

    The same for all targets that are asked of the same volumes, which `mark` names.
    """
    rng = np.random.default_rng(list(mark.encode()))
    drawn = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return np.concatenate([np.ones((1, count), drawn.dtype), drawn])


def _planned(plan: Plan, line: dict) -> bool:
    arm, seed, target, mode = key_of(line)
    return arm in plan.arms and seed in plan.seeds and target in plan.targets and mode in plan.modes


def _by_arm(plan: Plan, results: dict, mode: str, measure: str) -> dict[str, dict[str, Values]]:
    """By arm and target, in the plan's order; the mean last, where it can be had."""
    found: dict[str, dict[str, Values]] = {}
    for arm in plan.arms:
        of_arm = {}
        for target in plan.targets:
            there = {seed: results[arm, seed, target, mode] for seed in plan.seeds
                     if (arm, seed, target, mode) in results}  # fmt: skip
            if there:
                values = [_resampled(line, measure) for line in there.values()]
                of_arm[target] = Values(tuple(there), np.stack(values))
        if of_arm:
            found[arm] = of_arm | _mean(plan, of_arm)
    return found


def _resampled(line: dict, measure: str) -> np.ndarray:
    weights = resampling(line["test"], len(line["truth"]))
    return MEASURES[measure](np.array(line["logits"]), np.array(line["truth"]), weights)


def _mean(plan: Plan, of_arm: dict[str, Values]) -> dict[str, Values]:
    whole = [seed for seed in plan.seeds if all(seed in values.seeds for values in of_arm.values())]
    if len(of_arm) < len(plan.targets) or not whole:
        return {}
    every = [values.values[[values.seeds.index(seed) for seed in whole]] for values in of_arm.values()]
    return {MEAN: Values(tuple(whole), np.mean(every, axis=0))}


def _table(found: dict[str, dict[str, Values]]) -> dict:
    return {arm: {target: values.summary() for target, values in of_arm.items()} for arm, of_arm in found.items()}


def _targets(plan: Plan, results: dict) -> dict[str, dict]:
    about = {}
    for (_, _, target, _), line in results.items():
        about[target] = {
            "title": plan.title_of("targets", target),
            "train": line["train"],
            "test": len(line["truth"]),
            "classes": line["classes"],
            "threshold": line["threshold"],
            "share_of_class_1": float(np.mean(np.array(line["truth"]) == 1)),
            "chance": {measure: chance(measure, line["classes"]) for measure in MEASURES},
        }
    return {target: about[target] for target in plan.targets if target in about}


def _arms(plan: Plan, results: dict) -> dict[str, dict]:
    about = {}
    for arm in plan.arms:
        lines = {seed: line for (name, seed, *_), line in results.items() if name == arm}
        if lines:
            in_2d = [line["in_2d"] for line in lines.values() if line["in_2d"]]
            names = dict.fromkeys(name for found in in_2d for name in found["loss"])
            about[arm] = {
                "title": plan.title_of("arms", arm),
                "parameters": next(iter(lines.values()))["parameters"],
                "loss_2d": {name: float(np.mean([found["loss"][name] for found in in_2d])) for name in names} or None,
                "seconds_2d": float(np.mean([found["seconds"] for found in in_2d])) if in_2d else None,
            }
    return about


def _missing(plan: Plan, results: dict) -> list[str]:
    every = len(plan.seeds) * len(plan.targets) * len(plan.modes)
    counts = {arm: sum(key[0] == arm for key in results) for arm in plan.arms}
    return [f"{arm}: {count} of {every} results" for arm, count in counts.items() if count < every]


def _failures(plan: Plan, lines: list[dict], results: dict) -> list[dict]:
    """The last failure of each arm and seed that still lacks a result."""
    last = {(line["arm"], line["seed"]): line for line in lines if line["kind"] == "failure"}
    wanted = len(plan.targets) * len(plan.modes)
    return [
        {name: line[name] for name in ("arm", "seed", "stage", "message")}
        for key, line in last.items()
        if key[0] in plan.arms and sum(found[:2] == key for found in results) < wanted
    ]


def _check_same_volumes(results: dict) -> None:
    seen: dict[str, dict] = {}
    for (arm, seed, target, _), line in results.items():
        first = seen.setdefault(target, line)
        if (line["test"], line["truth"]) != (first["test"], first["truth"]):
            raise UserError(
                f"results.jsonl: {target}: {arm}, seed {seed}, was judged by other volumes or classes than "
                f"{first['arm']}, seed {first['seed']}; such numbers must not stand in one table: take another --out"
            )
