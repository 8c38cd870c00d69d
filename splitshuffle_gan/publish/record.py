"""How a generator came to be, as JSON that may leave the machine: stages of training, without places on a disk."""

import json
import re
from pathlib import Path

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.publish.choice import kimg_of

PLACES = {"data", "out", "init", "folder", "source"}  # fields of run.json and inflation.json that hold a path
# An absolute path inside a text; what follows a colon or another slash is a link, or a share such as 3/4.
ABSOLUTE = re.compile(r"(?<![\w:/.~])~?(?:/[^\s/\"'`,;:()<>|]+){2,}/?|\b[A-Za-z]:\\[^\s\"'`,;()<>|]+")


def portable(value: object, names: dict[str, str] | None = None) -> object:
    """JSON `value` without places: `names` instead of the paths that are its keys, and the last part of all others."""
    names = names or {}
    if isinstance(value, dict):
        return {
            key: Path(inner).name if key in PLACES and isinstance(inner, str) and inner not in names
            else portable(inner, names)
            for key, inner in value.items()
        }  # fmt: skip
    if isinstance(value, list | tuple):
        return [portable(inner, names) for inner in value]
    if not isinstance(value, str):
        return value
    for path in sorted(names, key=len, reverse=True):
        value = value.replace(path, names[path])
    return ABSOLUTE.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/"))[-1], value)


def read_json(path: Path) -> dict:
    """The fields in a JSON file. Raises UserError naming it."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); a finished run has it") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: fields by name are wanted")
    return found


def stages(run: Path, snapshot: Path) -> list[dict]:
    """What led to `snapshot` of `run`, first things first: 2D training, inflation, 3D training, as far as it is there.

    Each is {"stage": "train2d", "train3d" or "inflate", ...} with what its own record says. A stage that `init` or
    `source` names is looked for there, and beside the stage that names it.
    """
    found = [_training(run, kimg_of(snapshot))]
    place, seen = run, {run.resolve()}
    origin = read_json(run / "run.json")["config"].get("init")
    while origin is not None:
        place = _find(origin, place)
        if place is None or place.resolve() in seen:
            break
        seen.add(place.resolve())
        if (place / "inflation.json").is_file():
            record = read_json(place / "inflation.json")
            origin = record.get("source")
            kept = {key: value for key, value in record.items() if key != "networks"}
            counts = {name: network["counts"] for name, network in record.get("networks", {}).items()}
            found.insert(0, {"stage": "inflate", **portable(kept), "counts": counts})
        else:
            origin = read_json(place / "run.json")["config"].get("init")
            found.insert(0, _training(place))
    return found


def _find(path: str, near: Path) -> Path | None:
    """The folder of the run or of the inflated pair that `path` is, or lies in; None when it is gone."""
    for start in (Path(path), near.parent / Path(path).name):
        for folder in (start, *start.parents[:3]) if start.exists() else ():
            if (folder / "inflation.json").is_file() or (folder / "run.json").is_file():
                return folder
    return None


def _training(run: Path, kimg: float | None = None) -> dict:
    """The record of a training: run.json, the images shown (in thousands) and the seconds, in all and to a snapshot."""
    record = portable(read_json(run / "run.json"))
    lines = _log(run / "log.jsonl")
    stage = {"stage": f"train{record['rank']}d", **record}
    if lines:
        stage |= {"kimg": lines[-1]["kimg"], "seconds": lines[-1]["seconds"]}
    if kimg is not None:
        at = [line["seconds"] for line in lines if line["kimg"] <= kimg + 5e-4]
        stage["chosen"] = {"kimg": kimg, "seconds": at[-1] if at else None}
    return stage


def _log(path: Path) -> list[dict]:
    """The lines of a run's log that are whole."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and {"kimg", "seconds"} <= set(entry):
            found.append(entry)
    return found
