"""The report of a trial: table.json, table.md and dice.png, from the lines of results.jsonl alone."""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from splitshuffle_gan.metrics.report import markdown_table, to_json, write_files
from splitshuffle_gan.trials.question import Question
from splitshuffle_gan.trials.summary import summarise

HOW_TO_READ = (
    "Dice on {cases} test volumes. Mean [95 % interval]; the intervals resample the test cases, the same ones for all, "
    "each case being the mean over the seeds: they say what other subjects would change. The spread over seeds says "
    "what chance in training changes. A difference whose interval holds 0 cannot be told from none."
)
TABLE, DATA, PICTURE = "table.md", "table.json", "dice.png"


def write_report(question: Question, record: dict, lines: list[dict], resamples: int, out: Path) -> str:
    """Write the three files to `out` and return the Markdown."""
    summary = summarise(question, record, lines, resamples)
    text = markdown(question, record, summary)
    contents: dict[Path, str | bytes] = {out / TABLE: text, out / DATA: to_json(summary, "the table")}
    if summary["arms"]:
        contents[out / PICTURE] = png(question, summary)
    write_files(contents)
    return text


def markdown(question: Question, record: dict, summary: dict) -> str:
    """The report for people."""
    labels = [f"label {label}" for label in summary["labels"]]
    lines = [f"# {question.title}", ""]
    header = (question.column, question.given, "seeds", "mean Dice", "median", "lowest to highest seed", *labels)
    rows = []
    for arm, found in summary["arms"].items():
        mean = found["mean"]
        spread = f"{mean['lowest']:.3f} to {mean['highest']:.3f}"
        structures = [_with_interval(one) for one in found["structures"].values()]
        seeds = ", ".join(map(str, found["seeds"]))
        rows.append([arm, found["given"], seeds, _with_interval(mean), f"{mean['median']:.3f}", spread, *structures])
    lines += markdown_table(header, rows)
    if summary["differences"]:
        rows = [
            [f"{arm} - {found['against']}", _with_interval(found["mean"], "+"),
             *(_with_interval(one, "+") for one in found["structures"].values())]
            for arm, found in summary["differences"].items()
        ]  # fmt: skip
        lines += ["", *markdown_table(("difference, case by case", "mean Dice", *labels), rows)]
    if summary["missing"]:
        missing = ", ".join(f"{arm} (seed {seed})" for arm, seed in summary["missing"])
        lines += ["", f"Still missing: {missing}; the same command goes on."]
    words = f"{HOW_TO_READ} {question.how_to_read}".format(cases=summary["test_cases"], **record["settings"])
    return "\n".join([*lines, "", f"**How to read it.** {words}"]) + "\n"


def png(question: Question, summary: dict) -> bytes:
    """Dice of each arm on the left, a point a seed; differences on the right, both with their intervals."""
    figure = Figure(figsize=(9.5, 4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw(left, question, summary["arms"])
    left.set_ylabel(f"Dice on {summary['test_cases']} test volumes")
    left.legend(frameon=False, fontsize=8, title=question.column)
    _draw(right, question, summary["differences"])
    right.axhline(0, color="0.5", linewidth=1, zorder=0)
    right.set_ylabel(f"difference to {question.base}")
    for axes in (left, right):
        axes.set_xticks(range(1 + len(summary["labels"])), ["mean", *(f"label {x}" for x in summary["labels"])])
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw(axes: Axes, question: Question, arms: dict[str, dict]) -> None:
    places = list(question.arms)
    for arm, found in arms.items():
        shift = 0.22 * (places.index(arm) - (len(places) - 1) / 2)
        for place, one in enumerate([found["mean"], *found["structures"].values()]):
            at, colour = place + shift, question.arms[arm]
            axes.plot([at] * len(one["by_seed"]), one["by_seed"], "o", color=colour, markersize=3, alpha=0.5)
            label = arm if place == 0 else None
            axes.plot(at, one["mean"], "_", color=colour, markersize=14, markeredgewidth=2.5, label=label)
            if one["interval"]:
                axes.vlines(at, *one["interval"], color=colour, linewidth=1.5)


def _with_interval(found: dict, sign: str = "") -> str:
    if found["interval"] is None:
        return f"{found['mean']:{sign}.3f}"
    low, high = found["interval"]
    return f"{found['mean']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
