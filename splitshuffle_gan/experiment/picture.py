"""FID against minutes, an arm a colour: thin lines for seeds, a thick one for their mean, a band for the floor.

One panel for the arms of the main table, one for each group of the others with what they are compared with in black.
"""

import io
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from splitshuffle_gan.experiment.plan import Plan
from splitshuffle_gan.experiment.summary import FID

# Okabe and Ito's, told apart by the colour-blind; then the same again, dashed.
BLACK = "#000000"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", BLACK)
STYLES = ("-", "--", ":", "-.")
Look = dict[str, tuple[str, str]]  # colour and line style, by arm


def png(plan: Plan, summary: dict) -> bytes:
    """The picture of a summary's held-out curves; of another set where there are no such."""
    found = summary["sets"].get("held_out") or next(iter(summary["sets"].values()))
    panels = panels_of(plan, found)
    heights = [5.2 if title == plan.title else 3.6 for title in panels]
    figure = Figure(figsize=(9.5, sum(heights)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, look) in zip(all_axes, panels.items(), strict=True):
        draw(axes, title, look, found)
    if plan.title not in panels:
        figure.suptitle(plan.title, fontsize=11, parse_math=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def panels_of(plan: Plan, found: dict) -> dict[str, Look]:
    """By title, the arms of each panel that have results, and their looks. A main table of one arm has no panel."""
    styles = [(colour, style) for style in STYLES for colour in COLOURS]
    there = {curve["arm"] for curve in found["curves"]}
    against = {row["arm"]: row["against"] for row in found["paired"]}
    groups: dict[str, list[str]] = {"": []}
    for name, arm in plan.arms.items():
        groups.setdefault(arm.group, []).append(name)
    panels = {}
    for group, arms in groups.items():
        # By the place in the plan, so that an arm keeps its colour whatever has results already.
        look = {arm: styles[place % len(styles)] for place, arm in enumerate(arms) if arm in there}
        if group:
            others = {against.get(arm) for arm in look} - {*look, None}
            look |= {arm: (BLACK, "-") for arm in plan.arms if arm in others}
        if look:
            panels[group or plan.title] = look
    alone = len(panels) > 1 and len(panels.get(plan.title, {})) == 1
    return {title: look for title, look in panels.items() if not (alone and title == plan.title)}


def draw(axes: Axes, title: str, look: Look, found: dict) -> None:
    """Draw the curves of one set of real volumes: those of the arms in `look`."""
    floor = found["floor"].get(FID)
    for curve in found["curves"]:
        if curve["arm"] not in look:
            continue
        colour, style = look[curve["arm"]]
        for points in curve["seeds"].values():
            if points:
                axes.plot(*zip(*points, strict=True), style, color=colour, linewidth=0.8, alpha=0.45)
        if curve["mean"]:
            last = curve["mean"][-1][1]
            mean = {"color": colour, "linewidth": 2.4, "marker": "o", "markersize": 4}
            axes.plot(*zip(*curve["mean"], strict=True), style, label=f"{curve['title']}: {last:.3g}", **mean)
    if floor is not None and floor["interval"][0] > 0:
        axes.axhspan(*floor["interval"], color="0.85", zorder=0)
        axes.axhline(floor["value"], color="0.5", linewidth=1, zorder=0, label=f"real volumes: {floor['value']:.3g}")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "235" else "")
    axes.tick_params(axis="y", which="minor", labelsize=8)
    axes.set_xlim(left=0)
    axes.set_xlabel("minutes of one core, 2D training included")
    axes.set_ylabel(f"3D FID, {found['ruler']['name']}, n = {found['n']}", parse_math=False)
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    axes.grid(color="0.92", which="both")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: -handles[i].get_ydata()[-1])  # as the lines' right ends
    legend = axes.legend(
        [handles[i] for i in order], [fill(labels[i], 46) for i in order],
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8, title="at the end",
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
