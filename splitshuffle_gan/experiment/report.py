"""The report of an experiment: table.json, table.md and curves.png, from the lines of results.jsonl alone."""

from pathlib import Path

from splitshuffle_gan.experiment.picture import png
from splitshuffle_gan.experiment.plan import Plan
from splitshuffle_gan.experiment.summary import FID, summarise
from splitshuffle_gan.metrics.report import markdown_table, number, one_line, show_interval, to_json, write_files

SHOWN = ("kid_3d", "precision", "recall", "density", "coverage", "ms_ssim")
TITLES = {"kid_3d": "KID", "ms_ssim": "MS-SSIM"}
OF_SETS = {
    "held_out": "By held-out volumes (choices may have been made by these)",
    "final": "By the final volumes (seen by neither training nor choices)",
}
HOW_TO_READ = (
    "Every run had the minutes of one core that its row shows, its 2D training included: steps are counted, each at the"
    " time that it took when all trainings were timed in turns (rates.json), not by the clock. FID: mean over seeds"
    " [lowest, highest], each the mean over {draws} sets of {n} generated volumes, against {n} real ones. The floor is"
    " the same number between real volumes that were trained on and those; a value near it cannot be told from real"
    " with this ruler ({ruler}). Parameters: all networks in training."
)


def write_report(plan: Plan, lines: list[dict], out: Path) -> str:
    """Write the three files to `out` and return the Markdown. Raises UserError where rulers were mixed."""
    summary = summarise(plan, lines)
    text = markdown(plan, summary)
    contents: dict[Path, str | bytes] = {
        out / "table.md": text, out / "table.json": to_json(summary, "the table")
    }  # fmt: skip
    if any(found["curves"] for found in summary["sets"].values()):
        contents[out / "curves.png"] = png(plan, summary)
    write_files(contents)
    return text


def markdown(plan: Plan, summary: dict) -> str:
    """The report for people."""
    lines = [f"# {one_line(plan.title)}"]
    for name, found in summary["sets"].items():
        if not found["rows"]:
            continue
        lines += ["", f"## {OF_SETS.get(name, name)}, n = {found['n']}"]
        for group in dict.fromkeys(row["group"] for row in found["rows"]):
            lines += _group(plan, found, group)
    if all(not found["rows"] for found in summary["sets"].values()):
        lines += ["", "No run has been evaluated to its end yet."]
    if summary["missing"]:
        lines += ["", "Still missing:", "", *(f"- {text}" for text in summary["missing"])]
    if summary["failures"]:
        lines += ["", "Failed:", ""]
        for f in summary["failures"]:
            lines.append(f"- {f['arm']}, seed {f['seed']}, {f['stage']}: {one_line(f['message'])}")
    shown = [found for found in summary["sets"].values() if found["rows"]]
    if shown:
        sizes = " or ".join(dict.fromkeys(str(found["n"]) for found in shown))
        words = HOW_TO_READ.format(draws=plan.draws, n=sizes, ruler=one_line(shown[0]["ruler"]["name"]))
        lines += ["", f"**How to read it.** {words}"]
    return "\n".join(lines) + "\n"


def _group(plan: Plan, found: dict, group: str) -> list[str]:
    """The tables of one group of arms, with the arms they are compared with."""
    pairs = [row for row in found["paired"] if row["group"] == group]
    compared = {row["against"] for row in pairs}
    rows = [row for row in found["rows"] if row["group"] == group or row["arm"] in compared]
    lines = ["", f"### {one_line(group)}"] if group else []
    lines += ["", *_main_table(found, rows)]
    for against in dict.fromkeys(row["against"] for row in pairs):
        lines += ["", f"Against {_title(plan, against)}, seed by seed:", ""]
        lines += _paired_table([row for row in pairs if row["against"] == against])
    return lines


def _main_table(found: dict, shown: list[dict]) -> list[str]:
    header = ["arm", "seeds", "parameters", "of baseline", "minutes (2D)", "3D FID", "times floor"]
    header += [TITLES.get(name, name.capitalize()) for name in SHOWN]
    floor = found["floor"]
    cells = ["real volumes (floor)", "", "", "", "", _floor(floor.get(FID), True), "1"]
    for name in SHOWN:
        real = found["real"].get(name)
        cells.append(number(real["value"]) if real else _floor(floor.get(name)))
    rows = [cells]
    for row in shown:
        share, metrics = row["parameters_of_baseline"], row["metrics"]
        seeds = len(row["seeds"])
        in_2d = f" ({row['minutes_2d']:.3g})" if row["minutes_2d"] else ""
        fid = metrics.get(FID)
        rows.append([
            row["title"],
            str(seeds) if seeds >= row["seeds_planned"] else f"{seeds} of {row['seeds_planned']}",
            f"{row['parameters'] / 1e6:.3g} M",
            "–" if share is None else f"{share:.1%}",
            f"{row['minutes']:.3g}{in_2d}",
            "–" if fid is None else f"{number(fid['mean'])} {show_interval((fid['lowest'], fid['highest']))}",
            "–" if fid is None or fid["times_floor"] is None else number(fid["times_floor"]),
            *(number(metrics[name]["mean"]) if name in metrics else "–" for name in SHOWN),
        ])  # fmt: skip
    return markdown_table(header, rows)


def _paired_table(paired: list[dict]) -> list[str]:
    header = ("arm", "FID ratio, by seed", "FID difference", "95 % t interval", "reaches its last FID after")
    rows = []
    for row in paired:
        ratios = ", ".join(f"{ratio:.3f} ({seed})" for seed, ratio in zip(row["seeds"], row["ratios"], strict=True))
        interval = show_interval(row["interval"]) if row["interval"] else "–"
        rows.append([row["title"], ratios, number(row["mean_difference"]), interval, _reached(row)])
    return markdown_table(header, rows)


def _reached(row: dict) -> str:
    reached = row["reaches"]
    if not row["has_curve"]:
        return "–"
    if reached is None:
        return "not reached"
    most = "" if reached["exact"] else "at most "
    return f"{most}{reached['minutes']:.3g} minutes, {reached['share']:.0%} of its time"


def _floor(floor: dict | None, interval: bool = False) -> str:
    if floor is None:
        return "–"
    return number(floor["value"]) + (f" {show_interval(floor['interval'])}" if interval else "")


def _title(plan: Plan, name: str) -> str:
    return one_line(plan.arms[name].title or name)
