"""Metric cards side by side: only those that were measured alike; for all others `compare` names what differs."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.metrics.card import (
    LIKE_REAL,
    check_out,
    is_number,
    is_suspicious,
    is_whole,
    leaves,
    read_card,
    show,
    times_floor,
)
from splitshuffle_gan.metrics.report import markdown_table, number, one_line, show_interval, to_json, write_files

# May differ between cards that are compared. The seed picks subsets and resamples: another draw of the same
# measurement, and if it picked other real volumes, their hash refuses the pair. A weights file may have another name;
# its hash tells. Notes are for the reader.
NOT_THE_RULER = ("seed", "extractor.note", "extractor.weights", "plane_extractor.note", "plane_extractor.weights")
REAL_SIDE = ("data_hash", "n", "reference_split")
WARNED_OF = ("created_with", "ruler.seed") + tuple(
    f"environment.{name}" for name in ("torch", "monai", "torch_fidelity", "device")
)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Put metric cards side by side; cards with another ruler, preprocessing, n or real reference are refused.

    Attributes:
        cards: two or more card.json files, as `splitshuffle score` writes them.
        names: one column title per card; default: the names of what was generated.
        out: file to write, .md; the same as JSON goes beside it. The table is printed in any case.
        overwrite: replace the files.
    """

    cards: tyro.conf.Positional[tuple[Path, ...]]
    names: tuple[str, ...] | None = None
    out: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if len(self.cards) < 2:
            raise UserError(f"cards: found {len(self.cards)}, give at least two card.json files")
        if self.out is None:
            return
        beside = self.out.with_suffix(".json")
        for path in self.cards:
            if path.resolve() == beside.resolve():
                raise UserError(f"out: {self.out} would put {beside} in the place of a card; choose another name")
        check_out(self.out, self.overwrite, (".md", ".json"))


@dataclass(frozen=True)
class Comparison:
    """Cards that were measured alike.

    names, paths: of the cards, in the order given.
    ruler: in words.
    rows: per metric {"metric", "title", "better", "best": index of a card or None, "cards": one cell per card}; a cell
        is {"value", "interval", "n", "floor", "times_floor"}, {"omitted": reason}, or None: not in that card.
    remarks: sentences a reader must know.
    """

    names: tuple[str, ...]
    paths: tuple[str, ...]
    ruler: str
    rows: tuple[dict, ...]
    remarks: tuple[str, ...]

    def table(self) -> str:
        """Markdown: a row per metric, a column per card, each value with interval and times floor; best in bold."""
        body = []
        for row in self.rows:
            cells = [_cell(cell, index == row["best"]) for index, cell in enumerate(row["cards"])]
            body.append((row["title"], row["better"] or "–", *cells))
        lines = [self.ruler, "", *markdown_table(("metric", "better", *self.names), body), ""]
        lines += [
            "Value [95 % interval], times floor (the same number between real volumes). Bold: the best, where its"
            " interval overlaps no other card's."
        ]
        reasons = [
            f"- {one_line(row['title'])} of {one_line(name)}: {one_line(cell['omitted'])}"
            for row in self.rows
            for name, cell in zip(self.names, row["cards"], strict=True)
            if cell and "omitted" in cell
        ]
        lines += ["", "Omitted:", "", *reasons] if reasons else []
        lines += ["", *(f"- Note: {one_line(remark)}" for remark in self.remarks)] if self.remarks else []
        return "\n".join(lines) + "\n"


def compare(paths: Sequence[Path], names: Sequence[str] | None = None) -> Comparison:
    """Put the cards at `paths` side by side, under `names` or else the names of what was generated.

    The first card is what the others are held against. Raises UserError, with the dotted name of every field and both
    values, where the ruler, n, the settings of a metric or the real reference differ. A different seed, package version
    or device is no obstacle and becomes a remark.
    """
    paths = [Path(path) for path in paths]
    if len(paths) < 2:
        raise UserError(f"cards: found {len(paths)}, give at least two card.json files")
    cards = [read_card(path) for path in paths]
    if names is not None and len(names) != len(cards):
        raise UserError(f"names: found {len(names)} for {len(cards)} cards, give one for each")
    for path, card in zip(paths[1:], cards[1:], strict=True):
        _refuse_another_ruler(cards[0], paths[0], card, path)
    titles = _unique(names or [card["generated"]["name"] for card in cards])
    metrics = dict.fromkeys(row["metric"] for card in cards for row in card["metrics"])
    ruler, extractor, real = cards[0]["ruler"], cards[0]["ruler"]["extractor"], cards[0]["real"]
    weights, data = one_line(extractor["weights_sha256"][:12]), one_line(real["data_hash"][:12])
    return Comparison(
        names=tuple(titles),
        paths=tuple(map(str, paths)),
        ruler=f"Ruler: {one_line(extractor['name'])} (weights sha256 {weights}...), n = {ruler['n']}, against "
        f"{real['n']} volumes of {one_line(real['name'])} (data {data}...).",
        rows=tuple(_row(metric, cards) for metric in metrics),
        remarks=tuple(_remarks(titles, cards)),
    )


def run_compare(config: CompareConfig) -> Comparison:
    """`compare` from a config; with `out`, write the table there and the same as JSON beside it."""
    comparison = compare(config.cards, config.names)
    if config.out is not None:
        as_json = to_json({"format": "splitshuffle-comparison", "version": 1, **asdict(comparison)}, "the comparison")
        write_files({config.out.with_suffix(".json"): as_json, config.out: comparison.table()})
    return comparison


def _ruler_of(card: dict) -> dict[str, object]:
    """Every field that must agree between two cards, by its dotted name."""
    ruler = {f"ruler.{name}": value for name, value in leaves(card["ruler"]) if name not in NOT_THE_RULER}
    ruler |= {f"real.{name}": card["real"][name] for name in REAL_SIDE} | {"generated.n": card["generated"]["n"]}
    for row in card["metrics"]:
        prefix = f"metrics.{row['metric']}"
        if "omitted" in row:
            continue
        ruler |= {f"{prefix}.better": row["better"], f"{prefix}.n": row["n"]}
        ruler |= dict(leaves(row["settings"], f"{prefix}.settings"))
        ruler |= {f"{prefix}.floor.{key}": row["floor"][key] for key in ("n", "splits") if row["floor"]}
        ruler |= {f"{prefix}.real.pairs": row["real"]["pairs"]} if row["better"] == LIKE_REAL else {}
    return ruler


def _refuse_another_ruler(first: dict, first_path: Path, other: dict, other_path: Path) -> None:
    one, two = _ruler_of(first), _ruler_of(other)
    measured = [{row["metric"] for row in card["metrics"] if "omitted" not in row} for card in (first, other)]
    planes = first["ruler"]["plane_extractor"] and other["ruler"]["plane_extractor"]
    differing = []
    for field in {**one, **two}:
        parts = field.split(".")
        if parts[0] == "metrics" and not all(parts[1] in names for names in measured):
            continue  # a metric that only one card has is shown as such
        if parts[1] == "plane_extractor" and not planes:
            continue  # one of the two has no metrics of slices, so none to set side by side
        if field not in one or field not in two or not _same(one[field], two[field]):
            values = [show(fields[field]) if field in fields else "nothing" for fields in (one, two)]
            differing.append(f"{field} is {values[0]} in {first_path} and {values[1]} in {other_path}")
    if one["ruler.n"] != two["ruler.n"]:
        least = min(one["ruler.n"], two["ruler.n"])
        raise UserError(
            f"ruler.n is {one['ruler.n']} in {first_path} and {two['ruler.n']} in {other_path}: distances fall as n "
            f"rises, so these must not stand side by side. Score both with --n {least}"
        )
    if differing:
        more = [f"and {len(differing) - 8} fields more"] if len(differing) > 8 else []
        raise UserError(
            f"{other_path} was not measured as {first_path} was, so their numbers must not stand side by side: "
            f"{'; '.join(differing[:8] + more)}. Score both alike, with `splitshuffle score`"
        )


def _same(one: object, two: object) -> bool:
    """Equal, where numbers may differ by the rounding of a file format (a spacing that went through float32)."""
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_same, one, two))
    if is_number(one) and is_number(two):
        return one == two if is_whole(one) and is_whole(two) else math.isclose(one, two, rel_tol=1e-6)
    return type(one) is type(two) and one == two


def _row(metric: str, cards: list[dict]) -> dict:
    found = [next((row for row in card["metrics"] if row["metric"] == metric), None) for card in cards]
    measured = [row for row in found if row and "omitted" not in row]
    any_row = (measured or [row for row in found if row])[0]
    cells = []
    for row in found:
        if row is None or "omitted" in row:
            cells.append(row and {"omitted": row["omitted"]})
        else:
            kept = {key: row[key] for key in ("value", "interval", "n", "floor")}
            cells.append({**kept, "times_floor": times_floor(row)} | ({"real": row["real"]} if "real" in row else {}))
    return {
        "metric": metric,
        "title": any_row["title"],
        "better": any_row.get("better"),
        "best": _best(found),
        "cards": cells,
    }


def _best(rows: list[dict | None]) -> int | None:
    """The index of the row whose interval lies on the better side of all others; None where any overlaps or touches."""
    costs = {index: _cost(row) for index, row in enumerate(rows) if row and "omitted" not in row}
    for index, (_, high) in costs.items():
        others = [low for other, (low, _) in costs.items() if other != index]
        if others and high < min(others):
            return index
    return None


def _cost(row: dict) -> tuple[float, float]:
    """A row's interval turned so that lower is better: as it is, negated, or the distance to the real pairs' value."""
    low, high = row["interval"]
    if row["better"] == "lower":
        return low, high
    if row["better"] == "higher":
        return -high, -low
    real = row["real"]["value"]
    ends = sorted((abs(low - real), abs(high - real)))
    return (0.0, ends[1]) if low <= real <= high else (ends[0], ends[1])


def _remarks(names: list[str], cards: list[dict]) -> Iterator[str]:
    for index, card in enumerate(cards):
        for earlier in range(index):
            if cards[earlier] == card:
                yield f"{names[earlier]} and {names[index]} are the same card."
            elif cards[earlier]["generated"]["data_hash"] == card["generated"]["data_hash"]:
                yield f"{names[earlier]} and {names[index]} measure the same generated volumes."
    fields = [dict(leaves(card)) for card in cards]
    for name in WARNED_OF:
        values = [card.get(name) for card in fields]
        if any(value != values[0] for value in values):
            listed = ", ".join(f"{show(value)} ({who})" for value, who in zip(values, names, strict=True))
            yield f"{name} differs: {listed}. The numbers may differ a little for this alone."
    truncations = [card["generated"].get("truncation_psi") for card in cards]
    if len({psi for psi in truncations if psi is not None}) > 1:
        listed = ", ".join(f"{psi} ({who})" for psi, who in zip(truncations, names, strict=True))
        yield f"truncation_psi differs: {listed}. Lower raises precision and costs variety: compare at the same one."
    for name, card in zip(names, cards, strict=True):
        low = [row["title"] for row in card["metrics"] if "omitted" not in row and is_suspicious(row)]
        if low:
            yield f"{name}: {', '.join(low)} below the floor's interval, which is suspicious: run `splitshuffle audit`."


def _unique(names: Sequence[str]) -> list[str]:
    counts = Counter(names)
    return [f"{n} #{names[: i + 1].count(n)}" if counts[n] > 1 else n for i, n in enumerate(names)]


def _cell(cell: dict | None, best: bool) -> str:
    if cell is None or "omitted" in cell:
        return "omitted" if cell else "not in the card"
    ratio = cell["times_floor"]
    value = f"**{number(cell['value'])}**" if best else number(cell["value"])
    real = f", real {number(cell['real']['value'])}" if "real" in cell else ""
    floor = f", {number(ratio)}x floor" if ratio is not None else ""
    return f"{value} {show_interval(cell['interval'])}{floor}{real}"
