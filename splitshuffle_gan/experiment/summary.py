"""From the lines of results.jsonl to the numbers of the report: means over seeds, pairs by seed, times to a FID."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import ttest_rel

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment.plan import Plan
from splitshuffle_gan.experiment.results import evaluations, failures

FID = "fid_3d"
LEAST_FOR_INTERVAL = 3
Lines = dict[int, list[dict]]  # of one arm: by seed, in the order of the evaluations


def summarise(plan: Plan, lines: list[dict]) -> dict:
    """All that the report says, as plain JSON: "sets" by name (see `summarise_set`), what is missing, what failed.

    Raises UserError when lines of one set were measured with different rulers or volumes.
    """
    names = dict.fromkeys(line["set"] for line in lines if line["kind"] == "evaluation")
    failed = [{k: line[k] for k in ("arm", "seed", "stage", "message")} for line in failures(lines).values()]
    return {
        "title": plan.title,
        "baseline": plan.baseline,
        "sets": {name: summarise_set(plan, lines, name) for name in names},
        "missing": _missing(plan, lines),
        "failures": failed,
    }


def summarise_set(plan: Plan, lines: list[dict], of_set: str) -> dict:
    """The numbers by one set of real volumes.

    "rows": an arm each, from the last evaluations of its finished seeds. "paired": each arm against the one that the
    plan compares it with. "curves": FID against minutes, by arm. "floor": of every metric. "n", "ruler".
    """
    arms = _by_arm(plan, lines, of_set)
    every = [line for seeds in arms.values() for of_seed in seeds.values() for line in of_seed]
    if not every:
        return {"n": None, "ruler": None, "floor": {}, "real": {}, "rows": [], "paired": [], "curves": []}
    _check_one_ruler(every, of_set)
    finished = {name: _finished(seeds) for name, seeds in arms.items()}
    base = finished.get(plan.baseline, {})
    curves = [curve_of(name, plan.arms[name].title or name, seeds) for name, seeds in arms.items()]
    floor, real = {}, {}
    for line in every:
        floor |= {name: m["floor"] for name, m in line["metrics"].items() if m["floor"] and name not in floor}
        real |= {name: m["real"] for name, m in line["metrics"].items() if "real" in m and name not in real}
    return {
        "n": every[0]["n"],
        "ruler": every[0]["ruler"],
        "floor": floor,
        "real": real,
        "rows": [row_of(plan, name, last, base) for name, last in finished.items() if last],
        "paired": _paired(plan, finished, curves),
        "curves": curves,
    }


def row_of(plan: Plan, name: str, last: dict[int, dict], base: dict[int, dict]) -> dict:
    """An arm's row, from the `last` line of each finished seed; `base`: those of the baseline."""
    first = next(iter(last.values()))
    parameters = sum(first["parameters"].values())
    of_base = sum(next(iter(base.values()))["parameters"].values()) if base else None
    metrics = {}
    for metric in dict.fromkeys(metric for line in last.values() for metric in line["metrics"]):
        there = [line["metrics"][metric] for line in last.values() if metric in line["metrics"]]
        values = [m["mean"] for m in there]
        metrics[metric] = {
            "mean": float(np.mean(values)),
            "lowest": min(values),
            "highest": max(values),
            "times_floor": _times_floor(there),
        }
    return {
        "arm": name,
        "title": plan.arms[name].title or name,
        "group": plan.arms[name].group,
        "seeds": list(last),
        "seeds_planned": len(plan.seeds_of(name)),
        "parameters": parameters,
        "parameters_of_baseline": parameters / of_base if of_base else None,
        "minutes": float(np.mean([line["minutes"] for line in last.values()])),
        "minutes_2d": float(np.mean([line["minutes_2d"] for line in last.values()])),
        "metrics": metrics,
    }


def pair(ours: Sequence[float], theirs: Sequence[float]) -> dict:
    """Two arms seed by seed: ratios, differences, their mean and its 95 % t interval where there are 3 seeds."""
    differences = np.subtract(ours, theirs)
    interval = None
    if len(differences) >= LEAST_FOR_INTERVAL and np.ptp(differences) > 0:
        found = ttest_rel(ours, theirs).confidence_interval(0.95)
        interval = [float(found.low), float(found.high)]
    return {
        "ratios": [a / b for a, b in zip(ours, theirs, strict=True)],
        "differences": differences.tolist(),
        "mean_difference": float(differences.mean()),
        "interval": interval,
    }


def curve_of(name: str, title: str, seeds: Lines) -> dict:
    """FID against minutes of every seed, and the mean over seeds where all have a value.

    Seeds that are not through yet count for the mean only where none is.
    """
    through = {seed: lines for seed, lines in seeds.items() if seed in _finished(seeds)} or seeds
    points = [{line["index"]: line for line in lines if FID in line["metrics"]} for lines in through.values()]
    common = sorted(set.intersection(*(set(p) for p in points))) if points else []
    mean = [
        [float(np.mean([p[index]["minutes"] for p in points])),
         float(np.mean([p[index]["metrics"][FID]["mean"] for p in points]))]
        for index in common
    ]  # fmt: skip
    single = {
        str(seed): [[line["minutes"], line["metrics"][FID]["mean"]] for line in lines if FID in line["metrics"]]
        for seed, lines in seeds.items()
    }
    return {"arm": name, "title": title, "seeds": single, "mean": mean}


def first_reached(curve: Sequence[Sequence[float]], value: float) -> tuple[float, bool] | None:
    """When a curve of (minutes, FID) first falls to `value`, linear between its points; None if never.

    With it, whether that is exact: a curve that begins below reached it at some time before its first point.
    """
    previous = None
    for minutes, fid in curve:
        if fid <= value:
            if previous is None:
                return minutes, False
            share = (previous[1] - value) / (previous[1] - fid)
            return previous[0] + share * (minutes - previous[0]), True
        previous = (minutes, fid)
    return None


def _by_arm(plan: Plan, lines: list[dict], of_set: str) -> dict[str, Lines]:
    """The evaluations by arm (those of the plan that have any, in its order) and seed."""
    found: dict[str, Lines] = {name: {} for name in plan.arms}
    for (arm, seed, _, _), line in sorted(evaluations(lines, of_set).items()):
        if arm in found:
            found[arm].setdefault(seed, []).append(line)
    return {name: seeds for name, seeds in found.items() if seeds}


def _finished(seeds: Lines) -> dict[int, dict]:
    """The last evaluation of each seed that has it."""
    return {seed: lines[-1] for seed, lines in seeds.items() if lines[-1]["index"] == lines[-1]["of"] - 1}


def _paired(plan: Plan, finished: dict[str, dict[int, dict]], curves: list[dict]) -> list[dict]:
    means, rows = {curve["arm"]: curve["mean"] for curve in curves}, []
    for curve in curves:
        name = curve["arm"]
        against = plan.against(name)
        ours, theirs = (_fids(finished.get(arm, {})) for arm in (name, against))
        seeds = [seed for seed in ours if seed in theirs]
        if name == against or not seeds:
            continue
        their_curve = means[against]
        reached = first_reached(curve["mean"], their_curve[-1][1]) if len(curve["mean"]) > 1 else None
        rows.append({
            "arm": name,
            "title": curve["title"],
            "group": plan.arms[name].group,
            "against": against,
            "seeds": seeds,
            **pair([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]),
            "reaches": reached and {
                "minutes": reached[0], "share": reached[0] / their_curve[-1][0], "exact": reached[1]
            },
            "has_curve": len(curve["mean"]) > 1,
        })  # fmt: skip
    return rows


def _fids(last: dict[int, dict]) -> dict[int, float]:
    return {seed: line["metrics"][FID]["mean"] for seed, line in last.items() if FID in line["metrics"]}


def _times_floor(metrics: list[dict]) -> float | None:
    """The mean at the floor's n over the floor; None where the floor cannot be told from 0."""
    floor, values = metrics[0]["floor"], [m["at_floor_n"] for m in metrics]
    if floor is None or floor["interval"][0] <= 0 or None in values:
        return None
    return float(np.mean(values)) / floor["value"]


def _check_one_ruler(lines: list[dict], of_set: str) -> None:
    for field in ("n", "ruler", "data"):
        different = [line for line in lines if line[field] != lines[0][field]]
        if different:
            one, two = lines[0], different[0]
            raise UserError(
                f"results.jsonl: {of_set}: {field} is {one[field]} for {one['arm']}, seed {one['seed']}, and "
                f"{two[field]} for {two['arm']}, seed {two['seed']}; such numbers must not stand in one table. Remove "
                "the lines of one of the two, and run the experiment again"
            )


def _missing(plan: Plan, lines: list[dict]) -> list[str]:
    """What the plan has and the results do not have yet, a sentence for each arm."""
    found = _by_arm(plan, lines, "held_out")
    sentences = []
    for name in plan.arms:
        seeds, planned = found.get(name, {}), plan.seeds_of(name)
        done = _finished(seeds)
        if set(planned) <= set(done):
            continue
        begun = [f"seed {s} at {x[-1]['fraction']:.0%}" for s, x in seeds.items() if s not in done]
        more = f" ({', '.join(begun)})" if begun else ""
        sentences.append(f"{name}: {len(set(done) & set(planned))} of {len(planned)} seeds{more}")
    return sentences
