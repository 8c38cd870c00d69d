"""The metric card: what it must hold, reading it, and what its numbers say beside their floor.

A card is one JSON file; `report` writes it, with a rendering for people beside it, and `compare` sets cards side by
side.
"""

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from splitshuffle_gan.errors import UserError

FORMAT, VERSION = "splitshuffle-card", 1
SUFFIXES = (".json", ".md", ".png")  # of the files of a card
REMEDY = "make the card with `splitshuffle score`"

# What a card must hold. A field whose name ends in "?" must be there, too, but may be null.
EXTRACTOR = {
    "name": "name",
    "rank": "count",
    "dimension": "count",
    "topology": "text",
    "preprocessing": "text",
    "expected_range": "interval",
    "spacing": "text",
    "weights": "text",
    "weights_sha256": "name",
    "note": "text",
}
RULER = {
    "extractor": EXTRACTOR,
    "plane_extractor?": EXTRACTOR,
    "preprocessing": {
        "range": "interval",
        "shape": "numbers",
        "spacing": "numbers",
        "plane": "text",
        "intensity?": "fields",
    },
    "n": "count",
    "dtype": "name",
    "seed": "whole number",
    "settings": "fields",
}
SIDE = {"name": "name", "kind": "name", "n": "count", "available?": "count", "data_hash": "name"}
ENVIRONMENT = {
    "python": "text",
    "torch": "text",
    "monai?": "text",
    "torch_fidelity?": "text",
    "numpy": "text",
    "device": "text",
    "processes": "count",
}
CARD = {
    "format": "text",
    "version": "whole number",
    "created": "text",
    "created_with": "text",
    "ruler": RULER,
    "generated": SIDE,
    "real": {**SIDE, "reference_split?": "number"},
    "metrics": "list",
    "notes": "texts",
    "environment": ENVIRONMENT,
    "seconds": "number",
}
MEASURED = {
    "metric": "word",
    "title": "name",
    "better": "direction",
    "value": "number",
    "n": "count",
    "interval": "interval",
    "floor?": {"value": "number", "interval": "interval", "n": "count", "splits": "count"},
    "value_at_floor_n?": "number",
    "settings": "fields",
}
REAL_PAIRS = {"value": "number", "interval": "interval", "pairs": "count"}  # the row's "real" where better is this:
LIKE_REAL = "like real"
OMITTED = {"metric": "word", "title": "name", "omitted": "name"}


def is_number(value: object) -> bool:
    """Whether `value` is a finite number; True and False are none."""
    largest = sys.float_info.max  # a JSON integer can be larger, and then is infinite to all arithmetic
    return isinstance(value, int | float) and not isinstance(value, bool) and -largest <= value <= largest


def _is_list(value: object, test=lambda item: True) -> bool:
    return isinstance(value, list | tuple) and all(map(test, value))


def is_whole(value: object) -> bool:
    """Whether `value` is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


KINDS = {
    "text": ("text", lambda v: isinstance(v, str)),
    "name": ("text that is not empty", lambda v: isinstance(v, str) and v.strip() != ""),
    "word": ("a word of letters, digits and _", lambda v: isinstance(v, str) and v.isidentifier()),
    "number": ("a finite number", is_number),
    "whole number": ("a whole number", is_whole),
    "count": ("a whole number, 1 or more", lambda v: is_whole(v) and v >= 1),
    "interval": ("[low, high], finite", lambda v: _is_list(v, is_number) and len(v) == 2 and v[0] <= v[1]),
    "numbers": ("a list of finite numbers", lambda v: _is_list(v, is_number)),
    "texts": ("a list of texts", lambda v: _is_list(v, lambda item: isinstance(item, str))),
    "list": ("a list", _is_list),
    "fields": ("fields by name", lambda v: isinstance(v, dict)),
    "direction": ("lower, higher or like real", lambda v: v in ("lower", "higher", LIKE_REAL)),
}


def check_card(card: object, source: str) -> dict:
    """`card` if it is whole; else UserError that names `source` and the field, what was found and what is wanted."""
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise UserError(f"{source}: format is not {FORMAT!r}, so this is no metric card; {REMEDY}")
    if card.get("version") != VERSION:
        found = f"{source}: version is {card.get('version')!r}; this release reads version {VERSION}"
        raise UserError(f"{found}; score again, or use the release that wrote it")
    _check(card, CARD, source)
    for index, row in enumerate(card["metrics"]):
        name = f"metrics[{index}]"
        if not isinstance(row, dict):
            raise UserError(f"{source}: {name} is {show(row)}; fields by name are wanted; {REMEDY}")
        schema = OMITTED if "omitted" in row else MEASURED
        schema = {**schema, "real": REAL_PAIRS} if row.get("better") == LIKE_REAL else schema
        _check(row, schema, source, f"{name}.")
    twice = [name for name, count in Counter(row["metric"] for row in card["metrics"]).items() if count > 1]
    if twice:
        raise UserError(f"{source}: metrics has {twice[0]!r} more than once; {REMEDY}")
    return card


def _check(values: dict, schema: dict, source: str, prefix: str = "") -> None:
    for key, kind in schema.items():
        field = key.removesuffix("?")
        if field not in values:
            raise UserError(f"{source}: {prefix}{field} is missing; {REMEDY}")
        value = values[field]
        if value is None and key.endswith("?"):
            continue
        wanted, good = KINDS["fields" if isinstance(kind, dict) else kind]
        if not good(value):
            raise UserError(f"{source}: {prefix}{field} is {show(value)}; {wanted} is wanted; {REMEDY}")
        if isinstance(kind, dict):
            _check(value, kind, source, f"{prefix}{field}.")


def read_card(path: Path) -> dict:
    """The card at `path`, checked: format, version, every required field. Raises UserError naming file and field."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file; give a card.json; {REMEDY}")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); {REMEDY}") from error
    return check_card(card, str(path))


def check_out(path: Path, overwrite: bool = False, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Raise UserError when a card must not be written to `path`: before the measuring rather than after it.

    `path` ends in the first of `suffixes`; all of them are written, so none may exist unless `overwrite`.
    """
    if path.suffix != suffixes[0]:
        raise UserError(f"out: found {path}, choose a name that ends in {suffixes[0]}")
    for out in map(path.with_suffix, suffixes):
        if os.path.lexists(out) and not (overwrite and out.is_file()):
            raise UserError(f"out: {out} exists already; choose another file, or pass --overwrite to replace a file")
    place = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"out: {path} cannot be written, as {place} is not a folder to write in; choose another place")


def times_floor(row: dict) -> float | None:
    """A measured row's value at the floor's n over the floor; None without a floor, or where its interval reaches 0.

    A ratio to what cannot be told from zero (the unbiased KID of two real sets) says nothing; nor does one that is too
    large for a float.
    """
    floor = row["floor"]
    if floor is None or row["value_at_floor_n"] is None or floor["interval"][0] <= 0 or floor["value"] <= 0:
        return None
    ratio = row["value_at_floor_n"] / floor["value"]
    return ratio if math.isfinite(ratio) else None


def beside_floor(row: dict) -> str | None:
    """Whether a row's value at the floor's n is "above", "within" or "below" the floor's interval; None without."""
    if row["floor"] is None or row["value_at_floor_n"] is None:
        return None
    low, high = row["floor"]["interval"]
    return "below" if row["value_at_floor_n"] < low else "above" if row["value_at_floor_n"] > high else "within"


def is_suspicious(row: dict) -> bool:
    """Whether a measured distance is smaller than distances between real sets are."""
    return row["better"] == "lower" and beside_floor(row) == "below"


def leaves(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted name and value of every field that holds no fields itself; lists are values."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def show(value: object) -> str:
    """As JSON where that is possible, in one line that is not endless."""
    text = json.dumps(value, default=repr, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."
