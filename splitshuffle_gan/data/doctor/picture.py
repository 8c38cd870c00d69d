"""What `doctor` found, as a picture: slices of scans, their intensity ranges, their histograms."""

import math
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from splitshuffle_gan.data.doctor.report import printable
from splitshuffle_gan.data.readers.scan import Scan
from splitshuffle_gan.output import whole_file
from splitshuffle_gan.volume import spacing_of, to_xyz

TILE, GAP = 120, 3
COLUMNS = 4
LINES = 400  # scans in a panel; more would only be ink
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.45"


def draw_views(task: tuple[Scan, tuple[float, float]]) -> np.ndarray:
    """The middle axial, coronal and sagittal slices of a scan side by side, uint8 `[TILE, 3 TILE + 2 GAP]`.

    `task`: the scan, and the intensities shown black and white. All views have one scale; superior, in the axial one
    anterior, is on top, and right (sagittal: anterior) at the right.
    """
    scan, (low, high) = task
    array, affine = to_xyz(scan.read("axial"), "axial")
    lengths = np.array(spacing_of(affine))
    scale = TILE / (np.array(array.shape) * lengths).max()  # pixels per mm
    tile = np.zeros((TILE, 3 * TILE + 2 * GAP), np.uint8)
    for number, normal in enumerate((2, 1, 0)):
        plane = np.take(array, array.shape[normal] // 2, axis=normal).T[::-1]
        across, up = (axis for axis in range(3) if axis != normal)
        unit = np.nan_to_num((plane - np.float64(low)) / max(high - low, 1e-12)).clip(0, 1)
        width, height = (max(1, min(TILE, round(array.shape[axis] * lengths[axis] * scale))) for axis in (across, up))
        grey = Image.fromarray(np.rint(unit * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
        top, left = (TILE - height) // 2, number * (TILE + GAP) + (TILE - width) // 2
        tile[top : top + height, left : left + width] = grey
    return tile


def picture(report: dict, tiles: list[dict], histograms: list[dict], path: Path) -> Path:
    """A PNG: `tiles` ({name, finding, image}) of scans, the intensity range of each scan, and the histograms."""
    rows = max(1, math.ceil(len(tiles) / COLUMNS))
    heights = [1.32] * rows + [3.4]
    figure = Figure(figsize=(14, 0.9 + sum(heights)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subfigures(2, 1, height_ratios=[sum(heights[:-1]), heights[-1]])
    panels = np.atleast_1d(upper.subplots(rows, COLUMNS)).ravel()
    for panel in panels:
        panel.set_axis_off()
    for panel, tile in zip(panels[: len(tiles)], tiles, strict=True):
        panel.imshow(tile["image"], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        name = printable(tile["name"])
        title = ("..." + name[-29:] if len(name) > 32 else name) + (f"   {tile['finding']}" if tile["finding"] else "")
        panel.set_title(
            title, fontsize=8, loc="left", pad=2, color=ORANGE if tile["finding"] else "black", parse_math=False
        )
    summary = report["summary"]
    upper.suptitle(
        f"{printable(Path(report['source']).name)}: {summary['scans']} scans read, {len(tiles)} shown (orange: with a "
        "finding). "
        "Middle axial, coronal, sagittal slice, true to scale; up is anterior or superior, right is right or anterior",
        fontsize=9,
        parse_math=False,
    )
    left, right = lower.subplots(1, 2)
    _draw_ranges(left, [scan for scan in report["scans"] if scan["percentiles"]])
    _draw_histograms(right, histograms, report["proposal"])
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _draw_ranges(panel, scans: list[dict]) -> None:
    chosen = [scans[index * len(scans) // min(len(scans), LINES)] for index in range(min(len(scans), LINES))]
    levels = np.array([[scan["percentiles"][at] for at in ("0", "0.5", "50", "99.5", "100")] for scan in chosen])
    if len(levels):
        levels = levels[np.argsort(levels[:, 3])]
        at = np.arange(1, len(levels) + 1)
        panel.vlines(at, levels[:, 0], levels[:, 4], color="0.75", linewidth=0.8, label="lowest to highest")
        width = max(1.0, min(6.0, 300 / len(levels)))
        panel.vlines(at, levels[:, 1], levels[:, 3], color=BLUE, linewidth=width, label="0.5 to 99.5 %")
        panel.plot(at, levels[:, 2], ".", color=ORANGE, markersize=3, label="median")
        tops = np.abs(levels[:, 3]) + np.abs(levels[:, 1])
        if tops.max() > 50 * np.median(tops) or tops.max() > 50 * max(tops.min(), 1e-9):
            linear = 10.0 ** math.floor(math.log10(max(float(np.median(tops)) / 30, 1e-6)))
            panel.set_yscale("symlog", linthresh=linear, linscale=0.5)
        panel.legend(fontsize=8, frameon=False, loc="upper left")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set_xlabel("scans, by their 99.5 % level", fontsize=9)
    _dress(panel, "Intensity range of each scan, in its own units")


def _draw_histograms(panel, histograms: list[dict], proposal: dict | None) -> None:
    """In HU with the proposed window if the set is CT, else each scan from its 0.5 (0) to its 99.5 percentile (1)."""
    hu = bool(proposal) and proposal["intensity"]["kind"] == "window"
    shares = np.array([histogram["share"] for histogram in histograms if histogram["hu"] == hu])
    if len(shares):
        first, last = (-1100, 2100) if hu else (0, 1)
        at = first + (np.arange(shares.shape[1]) + 0.5) * (last - first) / shares.shape[1]
        lines = panel.plot(at, shares[:: max(1, len(shares) // LINES)].T, color=GREY, linewidth=0.5, alpha=0.3)
        lines[0].set_label("a scan")
        panel.plot(at, np.median(shares, axis=0), color=BLUE, linewidth=2, label="median scan")
        panel.set_yscale("log")
        panel.set_ylim(1e-5, 1)
        if hu:
            low, high = proposal["intensity"]["bounds"]
            panel.axvspan(low, high, color=ORANGE, alpha=0.12, label=f"proposed window {low:g} to {high:g}")
        panel.legend(fontsize=8, frameon=False, loc="upper right")
    panel.set_xlabel("HU" if hu else "0: the scan's 0.5 percentile, 1: its 99.5", fontsize=9)
    _dress(panel, "Share of voxels")


def _dress(panel, title: str) -> None:
    panel.set_title(title, fontsize=10, loc="left")
    panel.tick_params(labelsize=8)
    panel.grid(axis="y", color="0.92")
    panel.spines[["top", "right"]].set_visible(False)
