"""The comparison of factors for people: a Markdown table and a picture."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from splitshuffle_gan.metrics.report import markdown_table
from splitshuffle_gan.output import whole_file

COLOURS = {"real": "#0072B2", "generated": "#D55E00"}  # told apart by the colour-blind
COLUMNS, BINS = 3, 18
LEAST_R2 = 0.25  # below it a factor's estimates say little of the factor


def table(report: dict) -> str:
    """A row for each factor, as Markdown."""
    header = ("factor", "real: median (quartiles)", "generated", "distance in real sd", "floor", "over floor", "shift",
              "spread", "KS p")  # fmt: skip
    rows = []
    for name, row in report["factors"].items():
        title = f"{name}, {row['unit']}{_doubt(row)}"
        if "omitted" in row:
            rows.append([title, row["omitted"], *[""] * (len(header) - 2)])
            continue
        low, high = row["interval"]
        rows.append([
            title,
            _spread(row["real"]),
            _spread(row["generated"]),
            f"{row['distance']:.2f} ({low:.2f} to {high:.2f})",
            f"{row['floor']['value']:.2f} (to {row['floor']['interval'][1]:.2f})",
            f"{row['over_floor']:.1f}" + (" **above**" if row["above_floor"] else ""),
            f"{row['shift']:+.2f}",
            f"{row['spread']:.2f}",
            f"{row['ks_p']:.2g}",
        ])  # fmt: skip
    return "\n".join(markdown_table(header, rows))


def _doubt(row: dict) -> str:
    """A warning where the network hardly measures the factor, so that a comparison says nothing of it."""
    return f" (**hardly measured: R² {row['r2']:.2f}**)" if row["r2"] is None or row["r2"] < LEAST_R2 else ""


def render(report: dict) -> str:
    """The whole report in Markdown."""
    real, generated = (report["sources"][name] for name in ("real", "generated"))
    other = report["sources"].get("floor from")
    seen = "halves of the real volumes" if other is None else f"the real volumes and as many of {other['name']}"
    rows = [row for row in report["factors"].values() if "omitted" not in row]
    sizes = " against ".join(map(str, rows[0]["floor"]["n"])) if rows else ""
    lines = [
        "# Factors of anatomy",
        "",
        f"{generated['n']} generated volumes ({generated['name']}) and {real['n']} real ones ({real['name']}), both "
        f"measured by the same network, {report['estimator']['path']}.",
        "",
        table(report),
        "",
        "Distance: Wasserstein's, in standard deviations of the real values, with the 95 % interval of a bootstrap, "
        "from which its bias is taken off, so that it may reach below 0. "
        f"Floor: the same between {seen} ({sizes}), and what 97.5 % of {report['settings']['splits']} random pairs of "
        "groups of that many real volumes stay below; over floor: the distance at the floor's n, over the floor; "
        "above: it lies above both. Shift: difference of the medians in real sd. Spread: standard deviation over the "
        "real one, below 1 where variety is "
        f"lost. KS p: of the test of Kolmogorov and Smirnov, for one factor; there are {len(report['factors'])}.",
        "",
        "## The measuring network's own error",
        "",
        f"Trained on {report['estimator']['train']} labelled volumes. sd is that of the true values; R² the share of "
        "their variance that it explains. Both sides are measured alike, so an error that does not depend on the side "
        "blurs the comparison, but does not bias it; on generated volumes unlike all real ones it may be larger. Where "
        f"R² is below {LEAST_R2}, little is left to compare; these factors are marked.",
        "",
        *_errors("volumes set aside in its training", report["estimator"]["error"]),
        *(_errors("these real volumes", report["error_on_real"]) if report["error_on_real"] else []),
        f"splitshuffle_gan {report['created_with']}, {report['created']}, seed {report['settings']['seed']}.",
    ]
    return "\n".join(lines) + "\n"


def errors_table(errors: dict[str, dict]) -> list[str]:
    """What `training.errors` found, as Markdown lines."""
    rows = []
    for name, row in errors.items():
        numbers = [_number(row[key]) for key in ("mae", "bias", "sd")]
        r2 = "–" if row["r2"] is None else f"{row['r2']:.3f}"
        rows.append([f"{name}, {row['unit']}", row["n"], *numbers, r2])
    return markdown_table(("factor", "n", "mean absolute error", "bias", "sd", "R²"), rows)


def plot(report: dict, path: Path) -> Path:
    """A PNG with a panel for each factor: how it is distributed among real and among generated volumes."""
    names = list(report["factors"])
    lines = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(3.6 * COLUMNS, 2.5 * lines + 0.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    for column, (name, panel) in enumerate(zip(names, panels[: len(names)], strict=True)):
        sides = {side: np.array(report["values"][side])[:, column] for side in COLOURS}
        _draw(panel, name, report["factors"][name], sides)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _draw(panel: Axes, name: str, row: dict, sides: dict[str, np.ndarray]) -> None:
    bins = np.histogram_bin_edges(np.concatenate(list(sides.values())), BINS)
    for side, values in sides.items():
        label = f"{side} (n = {len(values)})"
        weights = np.full(len(values), 100 / len(values))
        panel.hist(values, bins, weights=weights, color=COLOURS[side], alpha=0.45, label=label)
        panel.axvline(np.median(values), color=COLOURS[side], linewidth=1.4)
    title = "not compared" if "omitted" in row else f"{row['distance']:.2f} sd, {row['over_floor']:.1f} x floor"
    doubt = _doubt(row).replace("*", "")
    panel.set_title(f"{name}: {title}{doubt}", fontsize=9 - 2 * bool(doubt), loc="left", color="0.5" if doubt else "0")
    panel.set_xlabel(row["unit"], fontsize=8)
    panel.set_ylabel("% of volumes", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def _errors(where: str, errors: dict[str, dict]) -> list[str]:
    return [f"On {where}:", "", *errors_table(errors), ""]


def _spread(side: dict) -> str:
    low, high = side["quartiles"]
    return f"{_number(side['median'])} ({_number(low)} to {_number(high)})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
