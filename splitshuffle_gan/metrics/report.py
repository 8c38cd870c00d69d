"""A metric card for people: its Markdown and its picture, and writing all of it."""

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.metrics.card import (
    FORMAT,
    LIKE_REAL,
    beside_floor,
    check_card,
    check_out,
    leaves,
    times_floor,
)
from splitshuffle_gan.volume import PLANES

BAR = "\\|"  # a bar inside a cell of a Markdown table
MOST_DRAWN = 1e6  # times floor; a bar ends there

HOW_TO_READ = (
    "Compare a number only with numbers of the same ruler: same extractor, weights, preprocessing and n; `splitshuffle"
    " compare` checks it. The floor is the same number between two disjoint sets of real volumes, so a value near it"
    " cannot be told from real with this ruler, and *times floor* (at the floor's n) says how far away it is. A"
    " distance below the floor's interval is suspicious rather than good: the generator may repeat its training"
    " volumes; run `splitshuffle audit`."
)


def write_card(card: dict, path: Path, overwrite: bool = False) -> Path:
    """Write `card` to `path` (card.json), and beside it its Markdown (card.md) and its picture (card.png, see `plot`).

    All appear whole or none does; a card without any ratio to a floor has no picture. Returns `path`. Raises UserError
    when the card is not whole, `path` does not end in .json, or one of the files exists and `overwrite` is not set.
    """
    path = Path(path)
    check_out(path, overwrite)
    check_card(card, "the card")
    contents = {path.with_suffix(".md"): markdown(card), path: to_json(card, "the card")}
    picture = path.with_suffix(".png")
    if any(times_floor(row) is not None for row in _measured(card)):
        contents = {picture: _png(card), **contents}
    write_files(contents)
    if picture not in contents:
        picture.unlink(missing_ok=True)  # the picture of the card that was replaced
    return path


def to_json(value: dict, source: str) -> str:
    """`value` as JSON; UserError that names `source` where a number is not finite."""
    try:
        return json.dumps(value, indent=1, allow_nan=False) + "\n"
    except ValueError as error:
        raise UserError(f"{source} holds a number that is not finite, which JSON cannot ({error})") from error


def write_files(contents: dict[Path, str | bytes]) -> None:
    """Write all files or none: the first name only appears when every content is on disk. Makes missing folders."""
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path].write_bytes(content.encode() if isinstance(content, str) else content)
        for path in contents:
            os.replace(temporary[path], path)
    finally:
        for name in temporary.values():
            name.unlink(missing_ok=True)


def number(value: float) -> str:
    """Four significant digits and never fewer than all before the point; powers of ten only below 0.0001 or from 1e9.

    12345.6 -> 12346, 12.3456 -> 12.35, 0.5 -> 0.5000, 0.0000123 -> 1.230e-05; whole numbers (int) as they are.
    """
    if isinstance(value, int) or value == 0:
        return str(int(value))
    size = abs(value)
    if size < 1e-4 or size >= 1e9:
        return f"{value:.3e}"
    return f"{value:.0f}" if size >= 999.95 else f"{value:#.4g}"


def show_interval(interval: Sequence[float]) -> str:
    """`[low, high]`, each as `number` has it."""
    return f"[{number(interval[0])}, {number(interval[1])}]"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table; whatever is in a cell stays in it."""
    lines = [f"| {' | '.join(one_line(str(cell)).replace('|', BAR) for cell in row)} |" for row in (header, *rows)]
    return [lines[0], "|---" * len(header) + "|", *lines[1:]]


def one_line(text: str) -> str:
    """`text` as Markdown in one line and without tags: what a user named cannot change the rendering."""
    return " ".join(text.replace("<", "&lt;").split())


def brief(card: dict) -> str:
    """The head of `markdown`: a summary in words, every number with n, interval and floor, what to know beside."""
    measured = _measured(card)
    omitted = [row for row in card["metrics"] if "omitted" in row]
    names = {side: one_line(card[side]["name"]) for side in ("generated", "real")}
    lines = [f"# Metric card: {names['generated']} against {names['real']}", "", summary(card), ""]
    lines += _metrics_table(measured)
    for row in measured:
        if row["better"] == LIKE_REAL:
            lines += ["", f"{one_line(row['title'])}: pairs of real volumes have {_real_pairs(row)}."]
    if omitted:
        reasons = [f"- {one_line(row['title'])}: {one_line(row['omitted'])}" for row in omitted]
        lines += ["", "Not measured:", "", *reasons]
    lines += ["", "**How to read it.** " + HOW_TO_READ]
    if card["notes"]:
        lines += ["", "## Notes", "", *(f"- {one_line(note)}" for note in card["notes"])]
    return "\n".join(lines) + "\n"


def markdown(card: dict) -> str:
    """A card for people: `brief`, then all there is to know of the ruler, the data and the environment."""
    measured = _measured(card)
    lines = [brief(card).rstrip("\n")]
    lines += ["", "## Ruler", "", *markdown_table(("field", "value"), _fields(card["ruler"]))]
    settings = [row for row in measured if row["settings"]]
    if settings:
        fields = [field for row in settings for field in _fields(row["settings"], row["metric"])]
        lines += ["", "Settings of single metrics:", "", *markdown_table(("field", "value"), fields)]
    sides = [dict(_fields(card[side])) for side in ("generated", "real")]
    rows = [(field, *(side.get(field, "") for side in sides)) for field in {**sides[0], **sides[1]}]
    lines += ["", "## Data", "", *markdown_table(("field", "generated", "real"), rows)]
    about = {key: card[key] for key in ("created", "created_with")} | card["environment"]
    rows = [*_fields(about), ("seconds", number(card["seconds"])), ("card format", f"{FORMAT} {card['version']}")]
    lines += ["", "## Environment", "", *markdown_table(("field", "value"), rows)]
    return "\n".join(lines) + "\n"


def summary(card: dict) -> str:
    """One paragraph: what was compared, with which ruler, at which n, and what the 3D FID says."""
    generated, real, extractor = card["generated"], card["real"], card["ruler"]["extractor"]
    words = (
        f"{generated['n']} generated volumes ({one_line(generated['name'])}) were compared with {real['n']} real ones "
        f"({one_line(real['name'])}), n = {card['ruler']['n']}, by the {extractor['dimension']} features that the "
        f"network {one_line(extractor['name'])} computes of each."
    )
    row = next((row for row in card["metrics"] if row["metric"] == "fid_3d"), None)
    if row is None:
        return f"{words} The 3D FID was not asked for."
    if "omitted" in row:
        return f"{words} The 3D FID was not measured: {one_line(row['omitted'])}"
    words += f" The 3D FID is {number(row['value'])} (95 % interval {show_interval(row['interval'])})"
    place = beside_floor(row)
    if place is None:
        return f"{words}; there are too few real volumes for its floor, so it says little."
    floor = row["floor"]
    ratio = times_floor(row)
    words += f", {number(ratio)} times the floor" if ratio is not None else ", of whose floor it has no ratio"
    words += (
        f": at n = {floor['n']} it is {number(row['value_at_floor_n'])} where two disjoint sets of real volumes give "
        f"{number(floor['value'])} {show_interval(floor['interval'])}"
    )
    verdict = {
        "above": "It is above the floor's interval: this ruler tells the generated volumes from real ones.",
        "within": "It is within the floor's interval: this ruler does not tell the generated volumes from real ones.",
        "below": "It is below the floor's interval, nearer than real volumes are to each other, which is suspicious: "
        "run `splitshuffle audit`.",
    }
    if card["ruler"]["n"] < extractor["dimension"]:
        features = f"n = {card['ruler']['n']} is fewer than the {extractor['dimension']} features"
        verdict["within"] += f" {features}, though: that is too few volumes to say much."
    return " ".join([f"{words}. {verdict[place]}", *_other_signs(card)])


def _other_signs(card: dict) -> list[str]:
    """What the other numbers say that the 3D FID alone may hide, a sentence each."""
    rows = {row["metric"]: row for row in _measured(card)}
    signs = []

    def shown(name: str) -> str:
        row = rows[name]
        return f"{number(row['value_at_floor_n'])} where real volumes have {number(row['floor']['value'])}"

    if "recall" in rows and beside_floor(rows["recall"]) == "below":
        signs.append(f"Recall is {shown('recall')}: the generated volumes lack the variety of the real ones.")
    if "precision" in rows and beside_floor(rows["precision"]) == "below":
        signs.append(f"Precision is {shown('precision')}: some generated volumes look like no real one.")
    planes = [p for p in PLANES if f"fid_{p}" in rows and beside_floor(rows[f"fid_{p}"]) == "above"]
    if planes:
        signs.append(f"Slices differ from real ones, too: {', '.join(planes)}.")
    pairs = rows.get("ms_ssim")
    if pairs and pairs["interval"][0] > pairs["real"]["interval"][1]:
        signs.append("Pairs of generated volumes are more alike than pairs of real ones (MS-SSIM).")
    return signs


def _metrics_table(rows: list[dict]) -> list[str]:
    header = ("metric", "value", "95 % interval", "n", "floor [interval] (its n)", "value at the floor's n")
    cells = []
    for row in rows:
        floor, at_floor, ratio = row["floor"], row["value_at_floor_n"], times_floor(row)
        real = (
            "–"
            if floor is None
            else f"{number(floor['value'])} {show_interval(floor['interval'])} ({floor['n']}; {floor['splits']} splits)"
        )
        value = [number(row["value"]), show_interval(row["interval"]), row["n"], real]
        value += ["–" if at_floor is None else number(at_floor), "–" if ratio is None else f"{number(ratio)}x"]
        cells.append([row["title"], *value, row["better"]])
    return markdown_table((*header, "times floor", "better"), cells)


def _real_pairs(row: dict) -> str:
    real = row["real"]
    return f"{number(real['value'])} {show_interval(real['interval'])} ({real['pairs']} pairs)"


def _fields(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    return [(name, _value(leaf)) for name, leaf in leaves(values, prefix)]


def _value(leaf: object) -> str:
    """A text as it is; else JSON, but of a list's floats no more than ten digits and no ".0": [1, 0.7421875]."""
    if isinstance(leaf, list | tuple):
        return f"[{', '.join(f'{item:.10g}' if isinstance(item, float) else _value(item) for item in leaf)}]"
    return leaf if isinstance(leaf, str) else json.dumps(leaf, ensure_ascii=False)


def _measured(card: dict) -> list[dict]:
    return [row for row in card["metrics"] if "omitted" not in row]


def plot(card: dict, path: Path, overwrite: bool = False) -> Path:
    """A PNG of a card: per metric a bar of value over floor with its 95 % interval, on grey what real sets give.

    The bar is `times_floor`. The interval, measured at the card's n, is moved to the floor's n by as much as the value
    is. Metrics without a ratio are left out and named. Raises UserError when no metric has a ratio, or `path` exists
    and `overwrite` is not set.
    """
    path = Path(path)
    check_out(path, overwrite, (".png",))
    write_files({path: _png(card)})
    return path


def _png(card: dict) -> bytes:
    measured = _measured(card)
    drawn = [row for row in measured if times_floor(row) is not None]
    if not drawn:
        raise UserError("plot: no metric of the card has a floor above zero, so there is nothing to draw")
    left_out = [row["title"] for row in measured if times_floor(row) is None]
    figure = Figure(figsize=(7.5, 1.5 + 0.42 * len(drawn)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure.add_subplot(), card, drawn, left_out)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw(axes, card: dict, rows: list[dict], left_out: list[str]) -> None:
    """Bars from 1 to the ratio on a logarithmic axis; what is 0 or less ends at the axis's left end."""
    spans = [_span(row) for row in rows]
    positive = [x for ratio, span, floor in spans for x in (ratio, *span, *floor) if x > 0]
    left, right = max(min([*positive, 0.5]) / 1.3, 1e-3), max([*positive, 2.0]) * 2.2
    for y, (row, (ratio, (low, high), floor)) in enumerate(zip(rows, spans, strict=True)):
        end = max(ratio, left)
        axes.barh(y, floor[1] - max(floor[0], left), left=max(floor[0], left), height=0.8, color="0.85", zorder=1)
        axes.barh(y, end - 1, left=1, height=0.42, color="tab:blue", zorder=2)
        axes.plot([max(low, left), max(high, left)], [y, y], color="black", linewidth=1.5, zorder=3)
        text = f"{number(times_floor(row))}x  ({number(row['value'])})"
        axes.text(max(end, high, floor[1], 1) * 1.05, y, text, va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8, zorder=2)
    axes.set_xscale("log")
    axes.set_xlim(left, right * 1.5)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_yticks(range(len(rows)), [f"{row['title']} ({row['better']})" for row in rows], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    note = f"\nwithout a ratio: {', '.join(left_out)}" if left_out else ""
    label = f"times floor: 1 is what two sets of real volumes give (grey: 95 % of them){note}"
    axes.set_xlabel(label, fontsize=8, parse_math=False)
    title = f"{card['generated']['name']} against {card['real']['name']}, {card['ruler']['extractor']['name']}"
    axes.set_title(f"{title}, n = {card['ruler']['n']}", fontsize=9, parse_math=False)


def _span(row: dict) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """Ratio, its interval, and the floor's own interval, all over the floor's value and at most MOST_DRAWN."""
    moved = row["value_at_floor_n"] - row["value"]
    ends = (row["value_at_floor_n"], *(end + moved for end in row["interval"]), *row["floor"]["interval"])
    ratio, *ends = (min(end / row["floor"]["value"], MOST_DRAWN) for end in ends)
    return ratio, (ends[0], ends[1]), (ends[2], ends[3])
