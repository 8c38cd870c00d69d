"""What the experiment can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from splitshuffle_gan.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """Compare ways of training at equal compute, each on several seeds, by volumes that none was trained on.

    Killed at any moment, the same command goes on. The table is rebuilt after every evaluation.

    Attributes:
        plan: YAML file: arms, seeds, minutes of one core for each run.
        data: prepared dataset; part of it is set aside to judge by.
        out: folder for everything, results.jsonl, table.md and curves.png first of all.
        jobs: runs at a time, each on its own share of the cores.
        arms: only these arms of the plan.
        seeds: only these seeds.
        final: prepared dataset, or folder of scans, in no part of `data`: at the end the last snapshot of each run is
            judged by these, too.
        report_only: make tables and picture of the results there are, and nothing else.
    """

    plan: Annotated[Path, tyro.conf.Positional]
    data: Path
    out: Path
    jobs: int = 2
    arms: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    final: Path | None = None
    report_only: bool = False

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UserError(f"jobs: found {self.jobs}, at least 1 is wanted")
