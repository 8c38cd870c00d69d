"""The report of a probe: table.json, table.md and probe.png, from the lines of results.jsonl alone."""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from splitshuffle_gan.experiment.picture import COLOURS
from splitshuffle_gan.metrics.report import markdown_table, one_line, to_json, write_files
from splitshuffle_gan.probe.plan import MEAN, Plan
from splitshuffle_gan.probe.summary import summarise

MODES = {"probe": "Linear probe on frozen features", "finetune": "Whole network fine-tuned"}
MEASURES = {"auroc": "AUROC", "balanced_accuracy": "Balanced accuracy"}
HOW_TO_READ = (
    "Means over seeds, with 95 % intervals from resampling the test volumes and the seeds together; three seeds"
    " understate how much seeds vary. Differences are by pairs: the same resamples for both arms. An interval that"
    " holds 0 means that the difference cannot be told from chance. Each arm had the same steps in 2D and in 3D, the"
    " same learning rates and the same kind of head; batch norms' statistics are measured anew on the 3D training"
    " volumes, without their classes, in every arm. Loss in 2D: cross entropy over that of guessing."
)


def write_report(plan: Plan, lines: list[dict], out: Path) -> str:
    """Write the three files to `out` and return the Markdown. Raises UserError where test volumes were mixed."""
    summary = summarise(plan, lines)
    text = markdown(summary)
    contents: dict[Path, str | bytes] = {out / "table.md": text, out / "table.json": to_json(summary, "the table")}
    if summary["targets"]:
        contents[out / "probe.png"] = png(summary)
    write_files(contents)
    return text


def markdown(summary: dict) -> str:
    """The report for people."""
    lines = [f"# {one_line(summary['title'])}"]
    for mode, measures in summary["modes"].items():
        if any(found["rows"] for found in measures.values()):
            lines += ["", f"## {MODES[mode]}", "", *_verdicts(summary, measures["auroc"])]
        for measure, found in measures.items():
            if found["rows"]:
                lines += ["", f"{MEASURES[measure]}:", "", *_table(summary, found["rows"], measure)]
            if any(found["differences"].values()):
                title = one_line(_title(summary, summary["baseline"]))
                lines += ["", f"{MEASURES[measure]} minus that of {title}:", ""]
                lines += _table(summary, found["differences"])
    if summary["targets"]:
        lines += ["", "## What was asked", "", *_targets(summary), "", "## What was carried", "", *_arms(summary)]
    else:
        lines += ["", "There are no results yet."]
    if summary["missing"]:
        lines += ["", "Still missing:", "", *(f"- {text}" for text in summary["missing"])]
    if summary["failures"]:
        lines += ["", "Failed:", ""]
        for f in summary["failures"]:
            lines.append(f"- {f['arm']}, seed {f['seed']}, {f['stage']}: {one_line(f['message'])}")
    return "\n".join([*lines, "", f"**How to read it.** {HOW_TO_READ}"]) + "\n"


def _verdicts(summary: dict, found: dict) -> list[str]:
    """A sentence for each arm: is its mean AUROC told apart from the baseline's?"""
    sentences, base = [], one_line(_title(summary, summary["baseline"]))
    for arm, differences in found["differences"].items():
        if MEAN in differences:
            low, high = differences[MEAN]["interval"]
            word = "better than" if low > 0 else "worse than" if high < 0 else "not told apart from"
            sentences.append(f"- {one_line(_title(summary, arm))}: {word} {base} ({_signed(differences[MEAN])}).")
    return sentences


def _table(summary: dict, rows: dict, measure: str | None = None) -> list[str]:
    """Arms against targets; with `measure`, values with their chance level, else differences."""
    targets = [*summary["targets"], MEAN]
    header = ["arm", *(summary["targets"].get(target, {}).get("title", "mean") for target in targets)]
    cells = []
    if measure:
        levels = [about["chance"][measure] for about in summary["targets"].values()]
        cells.append(["chance", *(f"{level:.3f}" for level in [*levels, sum(levels) / len(levels)])])
    show = _plain if measure else _signed
    for arm, of_arm in rows.items():
        values = [show(of_arm[target]) if target in of_arm else "–" for target in targets]
        seeds = {len(found["by_seed"]) for found in of_arm.values()}
        few = "" if seeds == {len(summary["seeds"])} else f" ({min(seeds, default=0)} of {len(summary['seeds'])} seeds)"
        cells.append([_title(summary, arm) + few, *values])
    return markdown_table(header, cells)


def _targets(summary: dict) -> list[str]:
    header = ("target", "training volumes", "test volumes", "classes", "class 1 is above", "class 1 in the test part")
    rows = []
    for about in summary["targets"].values():
        cut = "–" if about["threshold"] is None else f"{about['threshold']:.4g}"
        share = f"{about['share_of_class_1']:.0%}"
        rows.append([about["title"], about["train"], about["test"], about["classes"], cut, share])
    return markdown_table(header, rows)


def _arms(summary: dict) -> list[str]:
    header = ("arm", "parameters in 3D", "loss in 2D, by source", "seconds of a step in 2D")
    rows = []
    for about in summary["arms"].values():
        losses = ", ".join(f"{name} {loss:.2f}" for name, loss in (about["loss_2d"] or {}).items()) or "–"
        seconds = "–" if about["seconds_2d"] is None else f"{about['seconds_2d']:.3g}"
        rows.append([about["title"], f"{about['parameters'] / 1e6:.3g} M", losses, seconds])
    return markdown_table(header, rows)


def _plain(found: dict) -> str:
    low, high = found["interval"]
    return f"{found['mean']:.3f} [{low:.3f}, {high:.3f}]"


def _signed(found: dict) -> str:
    low, high = found["interval"]
    return f"{found['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"


def _title(summary: dict, arm: str) -> str:
    return summary["arms"].get(arm, {}).get("title", arm)


def png(summary: dict) -> bytes:
    """AUROC with intervals: targets from top to bottom, an arm a colour, a panel for each mode."""
    modes = [mode for mode, measures in summary["modes"].items() if measures["auroc"]["rows"]]
    height = 1.5 + 0.16 * (len(summary["targets"]) + 1) * (len(summary["arms"]) + 1.5)
    figure = Figure(figsize=(4.6 * len(modes) + 3.2, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for axes, mode in zip(panels, modes, strict=True):
        _draw(axes, summary, summary["modes"][mode]["auroc"]["rows"])
        axes.set_title(MODES[mode], loc="left", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(summary["title"], fontsize=11, parse_math=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw(axes: Axes, summary: dict, rows: dict) -> None:
    targets, arms = [*summary["targets"], MEAN], list(summary["arms"])
    for place, arm in enumerate(arms):
        offset = (place - (len(arms) - 1) / 2) * 0.8 / len(arms)
        there = [(y + offset, rows[arm][target]) for y, target in enumerate(targets) if target in rows.get(arm, {})]
        middles = [found["mean"] for _, found in there]
        reach = [[max(0.0, found["mean"] - found["interval"][0]) for _, found in there],
                 [max(0.0, found["interval"][1] - found["mean"]) for _, found in there]]  # fmt: skip
        axes.errorbar(
            middles, [y for y, _ in there], xerr=reach, fmt="o", color=COLOURS[place % len(COLOURS)], markersize=4,
            linewidth=1.2, label=_title(summary, arm),
        )  # fmt: skip
    axes.axvline(0.5, color="0.5", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(targets)))
    names = [summary["targets"].get(target, {}).get("title", "mean") for target in targets]
    axes.set_yticklabels(names, fontsize=8, parse_math=False)
    axes.set_ylim(len(targets) - 0.5, -0.5)
    axes.set_xlabel("AUROC; dashed: chance")
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
