"""The whole experiment: data, timing, runs, evaluations, final evaluations; the report after each."""

import json
import sys
import time
from functools import partial
from pathlib import Path

from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment.data import check_same_final, final_set, split_for
from splitshuffle_gan.experiment.folder import only_one
from splitshuffle_gan.experiment.options import ExperimentOptions
from splitshuffle_gan.experiment.plan import Plan, read_plan
from splitshuffle_gan.experiment.process import start
from splitshuffle_gan.experiment.rates import described, read_rates, speed_key
from splitshuffle_gan.experiment.report import write_report
from splitshuffle_gan.experiment.results import RESULTS, append, failures, mend, read
from splitshuffle_gan.experiment.runs import (
    Run,
    carry_out,
    cores_for,
    evaluation_of,
    evaluation_stage,
    make_run,
    reason_of,
    stages_of,
)
from splitshuffle_gan.experiment.work import is_done
from splitshuffle_gan.output import write_json

RECORD, RATES = "experiment.json", "rates.json"
TIMING = "splitshuffle_gan.experiment.timing:time_steps"


def experiment(options: ExperimentOptions) -> int:
    """Carry out the plan, or what is left of it, and write the report; returns how many of the chosen runs failed.

    Raises UserError for a plan, dataset or folder that does not fit.
    """
    plan, out = read_plan(options.plan), options.out
    if options.report_only:
        if not (out / RESULTS).is_file():
            raise UserError(f"out: {out} has no {RESULTS}; run the experiment without --report-only first")
        print(write_report(plan, read(out / RESULTS), out))
        return 0
    chosen = _choose(plan, options)
    # Timings may be there already: those of another experiment on the same machine.
    with only_one(out, RECORD, beside=(RATES,)):
        _open(plan, options)
        mend(out / RESULTS)
        split = split_for(plan, options.data, out, None)
        final = options.final and final_set(options.final, options.data, out)
        if final:
            check_same_final(final, read(out / RESULTS), out)
        rates = _rates(plan, chosen, split / "train", out, options.jobs)
        runs = {key: make_run(plan, *key, options.data, out, rates) for key in chosen}
        _show(plan, list(runs.values()))
        _carry_out(plan, runs, split / "held_out", "held_out", options)
        if final:
            trained = {key: run for key, run in runs.items() if is_done(run.folder)}
            _carry_out(plan, trained, final, "final", options)
        lines = read(out / RESULTS)
        print(f"\n{write_report(plan, lines, out)}")
        return sum(key in failures(lines) for key in chosen)


def _choose(plan: Plan, options: ExperimentOptions) -> list[tuple[str, int]]:
    """(arm, seed) of the runs that are asked for: all arms with the first seed, then with the next."""
    arms = plan.arms if options.arms is None else options.arms
    if unknown := [arm for arm in arms if arm not in plan.arms]:
        raise UserError(f"arms: found {', '.join(unknown)}, the plan has {', '.join(plan.arms)}")
    pairs = [(arm, seed) for arm in arms for seed in plan.seeds_of(arm)]
    seeds = sorted({seed for _, seed in pairs}) if options.seeds is None else options.seeds
    if unknown := [seed for seed in seeds if seed not in {s for _, s in pairs}]:
        raise UserError(f"seeds: found {', '.join(map(str, unknown))}, which none of the arms has in the plan")
    return [(arm, seed) for seed in seeds for arm in arms if (arm, seed) in set(pairs)]


def _open(plan: Plan, options: ExperimentOptions) -> None:
    """Keep what all results of the folder share; UserError where it was begun with something else."""
    shared = {"data_hash": open_dataset(options.data).data_hash}
    shared |= {name: getattr(plan, name) for name in ("held_out", "patient", "draws", "evaluations", "extractor")}
    path = options.out / RECORD
    if not path.is_file():
        write_json(path, shared)
    for name, value in json.loads(path.read_text()).items():
        if shared.get(name) != value:
            raise UserError(
                f"{name}: {options.out} was begun with {value!r}, found {shared.get(name)!r}; results of the two must "
                "not be mixed: take another --out"
            )


def _rates(plan: Plan, chosen: list[tuple[str, int]], data: Path, out: Path, jobs: int) -> dict[str, float]:
    """Seconds per step of all trainings of the chosen runs; those that are not known are timed, in a process."""
    trainings = {}
    for arm in dict.fromkeys(arm for arm, _ in chosen):
        for rank in (2, 3) if plan.arms[arm].share_2d else (3,):
            training = described(plan, arm, rank)
            trainings.setdefault(speed_key(training), training)
    path = out / RATES
    missing = {key: training for key, training in trainings.items() if key not in read_rates(path)}
    if missing:
        print(f"{time.strftime('%H:%M:%S')}  timing a step of {len(missing)} trainings, in turns", flush=True)
        one = {min(min(share) for share in cores_for(jobs))}
        process = start(TIMING, (missing, data, path), out, "rates", one)
        try:
            process.join()
        finally:
            if process.is_alive():
                process.terminate()
        if process.exitcode:
            raise UserError(f"timing: {reason_of(out, 'rates', process.exitcode)}")
    return read_rates(path)


def _carry_out(
    plan: Plan, runs: dict[tuple[str, int], Run], real: Path, of_set: str, options: ExperimentOptions
) -> None:
    """All stages of `runs` up to their evaluation by one set; failures become lines of the results."""
    out = options.out
    evaluate = partial(evaluation_of, plan, of_set=of_set, real=real, out=out)
    make = stages_of if of_set == "held_out" else (lambda run, job: [evaluation_stage(run, of_set, job)])
    seen = -1

    def failed(key: tuple[str, int], stage: str, message: str) -> None:
        arm, seed = key
        line = {"kind": "failure", "arm": arm, "seed": seed, "set": of_set, "stage": stage, "message": message}
        append(out / RESULTS, line | {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})

    def look() -> None:
        nonlocal seen
        size = (out / RESULTS).stat().st_size if (out / RESULTS).is_file() else 0
        if size != seen:
            seen = size
            write_report(plan, read(out / RESULTS), out)

    carry_out({key: make(run, evaluate) for key, run in runs.items()}, options.jobs, failed, look)


def _show(plan: Plan, runs: list[Run]) -> None:
    """A line per arm: how its minutes become steps."""
    print(f"{plan.title}: {len(runs)} runs")
    for run in {run.arm: run for run in runs}.values():
        s = run.steps
        in_2d = f"{s.in_2d} steps of {s.seconds_2d:.3g} s in 2D, " if s.in_2d else ""
        in_3d = f"{s.in_3d} of {s.seconds_3d:.3g} s in 3D"
        print(f"  {run.arm:28s} {in_2d}{in_3d}: {s.minutes(s.in_3d):.3g} of {plan.minutes_of(run.arm):g} minutes")
    sys.stdout.flush()
