"""What a probe can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from splitshuffle_gan.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Find out what 2D pretraining is worth in 3D: linear probes and fine-tuning of ResNet-18s carried in several ways.

    Killed at any moment, the same command goes on. The table is rebuilt as results come in.

    Attributes:
        plan: YAML file: what is seen in 2D, the ways to 3D, what is asked in 3D; evaluate/plans/probe.yaml is one.
        out: folder for everything, results.jsonl, table.md and probe.png first of all.
        data: folder that the paths in the plan start from.
        jobs: processes at a time, each on its own share of the cores.
        arms: only these arms of the plan.
        seeds: only these seeds.
        report_only: make tables and picture of the results there are, and nothing else.
    """

    plan: Annotated[Path, tyro.conf.Positional]
    out: Path
    data: Path = Path(".")
    jobs: int = 2
    arms: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    report_only: bool = False

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UserError(f"jobs: found {self.jobs}, at least 1 is wanted")
