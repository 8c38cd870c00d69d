"""results.jsonl: a line for each evaluation and each failure, appended as it comes; all tables are made from it."""

import json
import os
import sys
from pathlib import Path

from splitshuffle_gan.errors import UserError

RESULTS = "results.jsonl"


def append(path: Path, line: dict) -> None:
    """Add a line in one write, which other processes' lines cannot come between."""
    data = (json.dumps(line, allow_nan=False) + "\n").encode()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> list[dict]:
    """All whole lines. A last line that a kill tore is passed over. Raises UserError for any other bad line."""
    lines = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error}); remove that line") from error
    return lines


def mend(path: Path) -> None:
    """Cut off a last line that a kill tore, and say so: what is appended would otherwise run on from it."""
    data = path.read_bytes() if path.is_file() else b""
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
        print(f"{path}: the last line was cut short; it is dropped, and what it said is evaluated again",
              file=sys.stderr)  # fmt: skip


def evaluations(lines: list[dict], of_set: str | None = None) -> dict[tuple[str, int, str, int], dict]:
    """The evaluations among `lines` by (arm, seed, set, index); of one that came twice, the last."""
    found = {(x["arm"], x["seed"], x["set"], x["index"]): x for x in lines if x["kind"] == "evaluation"}
    return {key: line for key, line in found.items() if of_set in (None, key[2])}


def failures(lines: list[dict]) -> dict[tuple[str, int], dict]:
    """The runs by (arm, seed) whose last line is a failure."""
    last = {(line["arm"], line["seed"]): line for line in lines}
    return {key: line for key, line in last.items() if line["kind"] == "failure"}
