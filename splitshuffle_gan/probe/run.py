"""The whole probe: everything is opened and checked first, then networks are trained in 2D, carried and judged."""

import json
import time
from dataclasses import asdict
from pathlib import Path

from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment.folder import only_one
from splitshuffle_gan.experiment.results import RESULTS, append, failures, mend, read
from splitshuffle_gan.experiment.runs import Stage, carry_out
from splitshuffle_gan.output import write_json
from splitshuffle_gan.probe.options import ProbeOptions
from splitshuffle_gan.probe.plan import Plan, read_plan
from splitshuffle_gan.probe.report import write_report
from splitshuffle_gan.probe.slices import open_source
from splitshuffle_gan.probe.tasks import open_task
from splitshuffle_gan.probe.work import PRETRAINED, Judging, Pretraining, hash_of, key_of, results_in

RECORD = "probe.json"
PRETRAIN, JUDGE = (f"splitshuffle_gan.probe.work:run_{what}" for what in ("pretraining", "judging"))


def probe(options: ProbeOptions) -> int:
    """Carry out the plan, or what is left of it, and write the report; returns how many arms failed, seeds apart.

    Raises UserError for a plan, data or a folder that does not fit.
    """
    plan, out = read_plan(options.plan), options.out
    if options.report_only:
        if not (out / RESULTS).is_file():
            raise UserError(f"out: {out} has no {RESULTS}; run the probe without --report-only first")
        print(write_report(plan, read(out / RESULTS), out))
        return 0
    chosen = _choose(plan, options)
    with only_one(out, RECORD):
        mend(out / RESULTS)
        jobs = _jobs(plan, options, chosen)
        _check_made(jobs, out)
        write_json(out / RECORD, json.loads(json.dumps(asdict(plan), default=str)))
        _carry_out(plan, jobs, options)
        lines = read(out / RESULTS)
        print(f"\n{write_report(plan, lines, out)}")
        return sum(key in failures(lines) for key in chosen)


def _choose(plan: Plan, options: ProbeOptions) -> list[tuple[str, int]]:
    """(arm, seed) of what is asked for: all arms with the first seed, then with the next."""
    for name in ("arms", "seeds"):
        known, asked = list(getattr(plan, name)), getattr(options, name)
        if unknown := [value for value in asked or () if value not in known]:
            raise UserError(f"{name}: found {unknown[0]!r}, the plan has {', '.join(map(str, known))}")
    arms, seeds = options.arms or tuple(plan.arms), options.seeds or plan.seeds
    return [(arm, seed) for seed in seeds for arm in arms]


def _jobs(
    plan: Plan, options: ProbeOptions, chosen: list[tuple[str, int]]
) -> dict[tuple[str, int], tuple[Pretraining | None, Judging]]:
    """What is to be done for each arm and seed, after every source and target has been opened."""
    root, out = options.data, options.out
    pretrained = any(plan.arms[arm].pretrained for arm, _ in chosen)
    sources = {name: _named(f"sources.{name}", open_source, source, root)
               for name, source in plan.sources.items() if pretrained}  # fmt: skip
    tasks = {name: _named(f"targets.{name}", open_task, target, root) for name, target in plan.targets.items()}
    _check_apart(plan, root)
    seen = hash_of({name: source.fingerprint for name, source in sources.items()}, asdict(plan.network),
                   asdict(plan.pretrain), plan.precision)  # fmt: skip
    jobs = {}
    for name, seed in chosen:
        arm, first = plan.arms[name], None
        if arm.pretrained:
            folder = out / "pretrained" / f"{arm.pretrained}-{seen}-seed{seed}"
            first = Pretraining(plan, root, arm.pretrained, seed, folder)
        way = {key: value for key, value in asdict(arm).items() if key != "title"}
        common = [way, asdict(plan.network), plan.precision, seen if arm.pretrained else None]
        made = {
            (target, mode): hash_of(*common, task.mark, asdict(plan.finetune) if mode == "finetune" else None)
            for target, task in tasks.items() for mode in plan.modes
        }  # fmt: skip
        jobs[name, seed] = first, Judging(plan, root, name, seed, first and first.folder, made, out / RESULTS)
    return jobs


def _named(where: str, open_it, *given):
    try:
        return open_it(*given)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _check_apart(plan: Plan, root: Path) -> None:
    """No volume that networks are judged by has been seen in 2D, not even without its class."""
    seen = {name: open_dataset(root / source.dataset) for name, source in plan.sources.items() if source.dataset}
    for target, asked in plan.targets.items():
        if asked.test is None:
            continue
        judged = open_dataset(root / asked.test)
        for name, source in seen.items():
            if shared := judged.shared_with(source):
                raise UserError(
                    f"sources.{name}: {len(shared)} of its volumes are in the test part of {target}; train in 2D on "
                    "other subjects, as with the train/ of `splitshuffle split`"
                )


def _check_made(jobs: dict[tuple[str, int], tuple[Pretraining | None, Judging]], out: Path) -> None:
    """Results that are there already must have come about as the others will."""
    for line in results_in(read(out / RESULTS)):
        arm, seed, target, mode = key_of(line)
        if (arm, seed) in jobs and jobs[arm, seed][1].made.get((target, mode), line["made"]) != line["made"]:
            raise UserError(
                f"out: {out} has a result of {arm}, seed {seed}, on {target}, from other data or another plan; take "
                "another --out"
            )


def _carry_out(
    plan: Plan, jobs: dict[tuple[str, int], tuple[Pretraining | None, Judging]], options: ProbeOptions
) -> None:
    """All stages; failures become lines of the results."""
    results, size = options.out / RESULTS, -1

    def failed(key: tuple[str, int], stage: str, message: str) -> None:
        line = {"kind": "failure", "arm": key[0], "seed": key[1], "stage": stage, "message": message}
        append(results, line | {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})

    def look() -> None:
        nonlocal size
        now = results.stat().st_size if results.is_file() else 0
        if now != size:
            size = now
            write_report(plan, read(results), options.out)

    carry_out({key: _stages(*job) for key, job in jobs.items()}, options.jobs, failed, look)


def _stages(first: Pretraining | None, job: Judging) -> list[Stage]:
    name = f"{job.arm}, seed {job.seed}"
    judge = Stage(
        key=f"{job.arm}:{job.seed}",
        what=f"{name}: {len(job.plan.targets)} targets, by {' and '.join(job.plan.modes)}",
        folder=job.results.parent / "runs" / f"{job.arm}-seed{job.seed}",
        name="judge",
        function=JUDGE,
        arguments=lambda: (job,),
        done=lambda: _is_judged(job),
    )
    if first is None:
        return [judge]
    pretrain = Stage(
        key=str(first.folder),
        what=f"2D training, {first.conv} convolutions, seed {first.seed}, {job.plan.pretrain.steps} steps",
        folder=job.results.parent / "runs" / f"pretrain-{first.conv}-seed{first.seed}",
        name="pretrain",
        function=PRETRAIN,
        arguments=lambda: (first,),
        done=lambda: (first.folder / PRETRAINED).is_file(),
    )
    return [pretrain, judge]


def _is_judged(job: Judging) -> bool:
    done = {key_of(line) for line in results_in(read(job.results))}
    return all((job.arm, job.seed, target, mode) in done for target, mode in job.made)
