"""The measurements as a picture, a panel for each part."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from splitshuffle_gan.benchmark.cases import COMPARED
from splitshuffle_gan.output import whole_file

COLOURS = {"split_shuffle": "#0072B2", "plain": "#D55E00", "separable": "#009E73"}  # told apart by the colour-blind
WIDTH = 0.27  # of a bar; three and a gap make 1


def draw(result: dict, path: Path) -> Path:
    """Write the picture of the parts that were measured, as PNG."""
    panels: list[tuple[str, Callable[[Axes, dict], None]]] = [
        ("rates", _rates),
        ("operator", _operator),
        ("layer", _layer),
        ("network", _network),
        ("network", _outside),
        ("sizes", _sizes),
        ("sampling", _sampling),
        ("memory", _memory),
    ]
    panels = [(name, panel) for name, panel in panels if name in result] or [("parameters", _parameters)]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(7.5 * columns, 3.6 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (_, panel) in zip(all_axes[: len(panels)], panels, strict=True):
        panel(axes, result)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    machine = result["machine"]
    figure.suptitle(
        f"{machine['device']}, {machine['processor']}, {machine['threads']} threads; median and quartiles",
        fontsize=11,
        parse_math=False,
    )
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


Bars = dict[str, dict[str, dict[str, float]]]  # group -> kind -> summary


def _bars(axes: Axes, title: str, unit: str, bars: Bars, reference: float | None = None) -> None:
    """Bars with quartiles, a group for each key, a colour for each kind; dotted, what the ratios refer to."""
    for index, kind in enumerate(COMPARED):
        found = [(group, kinds[kind]) for group, kinds in enumerate(bars.values()) if kind in kinds]
        if not found:
            continue
        middle = [s["median"] for _, s in found]
        reach = [[s["median"] - s["q1"] for _, s in found], [s["q3"] - s["median"] for _, s in found]]
        places = [group + (index - 1) * WIDTH for group, _ in found]
        style = {"color": COLOURS[kind], "label": kind, "error_kw": {"linewidth": 1}, "capsize": 2}
        axes.bar(places, middle, WIDTH, yerr=reach, **style)
    axes.set_xticks(range(len(bars)), list(bars), fontsize=8)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_ylabel(unit, fontsize=9)
    if reference is not None:
        axes.axhline(reference, color="0.3", linestyle=":", linewidth=1.2)
    axes.set_ylim(top=1.15 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper left")


def _group(rows: list[dict], label: Callable[[dict], str], value: Callable[[dict], dict[str, float]]) -> Bars:
    bars: Bars = {}
    for row in rows:
        bars.setdefault(label(row), {})[row["kind"]] = value(row)
    return bars


def _case(row: dict) -> str:
    return f"{row['dtype']}\ncompiled" if row["compile"] else row["dtype"]


def _sizes_of(row: dict) -> str:
    _, channels, *grid = row["shape"]
    return f"{channels} ch\n{'x'.join(map(str, grid))}"


def _exact(value: float) -> dict[str, float]:
    return {"median": value, "q1": value, "q3": value}


def _parameters(axes: Axes, result: dict) -> None:
    bars: Bars = {}
    for row in result["parameters"]:
        bars.setdefault(row["preset"], {})[row["conv"]] = _exact(row["of_plain"])
    _bars(axes, "Parameters", "of plain", bars, 1)


def _rates(axes: Axes, result: dict) -> None:
    for dtype, marker in (("float32", "o"), ("bf16", "s")):
        rows = [row for row in result["rates"]["convolution"] if row["dtype"] == dtype]
        for direction, line in (("forward", "-"), ("training", "--")):
            if rows:
                places, values = [r["channels"] for r in rows], [r[direction]["median"] for r in rows]
                axes.plot(places, values, line, marker=marker, label=f"conv3d {dtype}, {direction}")
    for dtype, rate in result["rates"]["matrix"].items():
        axes.axhline(rate["median"], color="0.3", linestyle=":", linewidth=1.2)
        axes.annotate(f"matrix product, {dtype}", (16, rate["median"]), fontsize=8, va="bottom")
    axes.set_xscale("log", base=2)
    axes.set_xticks([16, 32, 64, 128], ["16", "32", "64", "128"])
    axes.set_ylim(bottom=0)
    axes.set_title("Rates of the machine", fontsize=10, loc="left")
    axes.set_xlabel("channels", fontsize=9)
    axes.set_ylabel("GFLOP/s", fontsize=9)
    axes.legend(fontsize=8, frameon=False)


def _operator(axes: Axes, result: dict) -> None:
    dtype = result["operator"][-1]["dtype"]
    wanted = {"direction": "training", "layout": "channels_last", "dtype": dtype}
    rows = [row for row in result["operator"] if wanted.items() <= row.items()]
    bars = _group(rows, _sizes_of, lambda row: row["module_of_plain"])
    _bars(axes, f"Convolution modules, forward and backward, {dtype}", "time of plain", bars, 1)


def _layer(axes: Axes, result: dict) -> None:
    finest = [row for row in result["layer"] if row["shape"] == result["layer"][-1]["shape"]]
    title = f"Styled layer, {_sizes_of(finest[0])}".replace("\n", ", ")
    _bars(axes, title, "time of its bare convolutions", _group(finest, _case, lambda row: row["of_bare"]), 1)


def _network(axes: Axes, result: dict) -> None:
    network = result["network"]
    bars = _group(network["rows"], _case, lambda row: row["step"]["of_plain"])
    title = f"Training step, {network['preset']}, batch {network['batch_size']}"
    _bars(axes, title, "time of plain", bars, 1)


def _outside(axes: Axes, result: dict) -> None:
    rows = [row for row in result["network"]["rows"] if "outside" in row]
    _bars(axes, "Outside convolutions", "share of a step", _group(rows, _case, lambda row: row["outside"]))


def _sizes(axes: Axes, result: dict) -> None:
    rates = {row["side"]: row["trained_per_s"] for row in result["sizes"] if row["kind"] == "split_shuffle"}
    labels = {side: f"{side} a side\n{rate:.3g}/s" for side, rate in rates.items()}
    bars = _group(result["sizes"], lambda row: labels[row["side"]], lambda row: row["step_of_plain"])
    title = f"Training step, batch 1, {result['sizes'][0]['dtype']}; volumes/s of split_shuffle"
    _bars(axes, title, "time of plain", bars, 1)


def _sampling(axes: Axes, result: dict) -> None:
    sampling = result["sampling"]
    heights = {"generator": sampling["generator"]["ms"]["median"]}
    if "ms" in sampling["diffusion"]:
        heights["diffusion, 50 steps"] = sampling["diffusion"]["ms"]["median"]
    bars = axes.bar(list(heights), list(heights.values()), 0.5, color=[COLOURS["split_shuffle"], "0.6"])
    axes.bar_label(bars, [f"{height:,.0f} ms" for height in heights.values()], fontsize=8)
    axes.set_yscale("log")
    shape = "x".join(map(str, sampling["shape"]))
    axes.set_title(f"Sampling, one volume of {shape}, {sampling['dtype']}", fontsize=10, loc="left")
    axes.set_ylabel("ms", fontsize=9)


def _memory(axes: Axes, result: dict) -> None:
    bars = _group(result["memory"]["peaks"], lambda row: row["dtype"], lambda row: _exact(row["peak_mib"] / 1024))
    _bars(axes, f"Peak memory of training, {result['options']['preset']}", "GiB", bars)
