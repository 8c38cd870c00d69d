"""A validation of extractors for people: a Markdown table and a picture."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from splitshuffle_gan.metrics.corruptions import CORRUPTIONS, Damage
from splitshuffle_gan.output import whole_file

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by the colour-blind


def markdown(result: dict) -> str:
    """The validation as Markdown: a table of distances over the floor for each extractor, and what it cannot see."""
    real, splits = result["real"], result["settings"]["splits"]
    grid = f"{' x '.join(map(str, real['shape']))} voxels of {' x '.join(f'{mm:g}' for mm in real['spacing'])} mm"
    lines = [
        "# Is the ruler straight?",
        "",
        f"{real['n']} real volumes ({real['name']}, {grid}), split at random {splits} times into two halves of "
        f"{result['n']}. One half is damaged and compared with the other. Steps 1 to 5 are Fréchet distances over the "
        "floor, the same distance without damage: about 1 is unseen. Another organ: "
        f"{result['other']['name']}.",
    ]
    for name, table in result["extractors"].items():
        floor = table["floor"]
        low, high = floor["interval"]
        lines += ["", f"## {name}", "", f"Floor {floor['value']:.4g}, 95 % of the splits {low:.4g} to {high:.4g}. "
                  f"Precision {floor['precision']:.2f}, recall {floor['recall']:.2f} without damage.", ""]  # fmt: skip
        lines += ["| damage | from, to | 1 | 2 | 3 | 4 | 5 | Spearman | first seen at | precision | recall |"]
        lines += ["|---" * 11 + "|"]
        lines += [_markdown_row(entry) for entry in table["corruptions"].values()]
        lines += ["", "Precision and recall are those at step 5.", "", "What it cannot see:", ""]
        lines += [f"- {sentence}" for sentence in table["blind_spots"]] or ["- Nothing among these damages."]
    environment = ", ".join(f"{name} {version}" for name, version in result["environment"].items())
    lines += ["", f"splitshuffle_gan {result['created_with']}, {result['created']}, seed {result['settings']['seed']}, "
              f"{environment}. Data {real['data_hash']}.", ""]  # fmt: skip
    return "\n".join(lines)


def _markdown_row(entry: dict) -> str:
    rows = entry["rows"]
    ratios = ["–" if row["over_floor"] is None else f"{row['over_floor']:.3g}" for row in rows]
    first = next((row["label"] for row in rows if row["above_floor"]), "never")
    ends = f"{rows[0]['label']}, {rows[-1]['label']}"
    worst = [f"{rows[-1][name]:.2f}" for name in ("precision", "recall")]
    cells = [entry["title"][0].upper() + entry["title"][1:], ends, *ratios, f"{entry['spearman']:.2f}", first, *worst]
    return f"| {' | '.join(cells)} |"


def plot(result: dict, path: Path) -> Path:
    """The validation as a PNG: a panel for each damage, distance over the floor against strength, a line per extractor.

    Step 0 is no damage. Dotted, in the extractor's colour: how high the distances of undamaged halves reach.
    """
    figure = Figure(figsize=(11, 9.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, 3, sharey=True)
    tables = {name: table for name, table in result["extractors"].items() if table["floor"]["value"] > 0}
    for damage, panel in zip(CORRUPTIONS, panels.flat, strict=True):
        _draw(panel, damage, tables)
    for panel in panels[:, 0]:
        panel.set_ylabel("distance over floor")
    real = result["real"]
    figure.suptitle(
        f"Fréchet distance of damaged to other real volumes, over the floor ({Path(real['name']).name}, "
        f"{result['n']} against {result['n']})\ndotted: what 97.5 % of undamaged splits stay below",
        fontsize=11,
        parse_math=False,
    )
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _draw(panel, damage: Damage, tables: dict[str, dict]) -> None:
    for index, (name, table) in enumerate(tables.items()):
        rows = table["corruptions"][damage.name]["rows"]
        ratios = [1.0, *(row["over_floor"] for row in rows)]
        style = {"color": COLOURS[index % len(COLOURS)], "marker": "osD^vP"[index % 6], "markersize": 4}
        panel.plot(range(len(ratios)), ratios, label=name, **style)
        reach = table["floor"]["interval"][1] / table["floor"]["value"]
        panel.axhline(reach, color=style["color"], linestyle=":", linewidth=1.2)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(axis="y", color="0.92")
    panel.set_title(damage.heading, fontsize=10, loc="left")
    shown = [f"{damage.shown(strength):g}" for strength in damage.strengths]
    panel.set_xticks(range(len(shown) + 1), ["none", *shown], fontsize=8)
    panel.set_xlabel(damage.axis, fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)
