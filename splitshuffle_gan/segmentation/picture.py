"""PNGs for the eye: predictions beside the truth, and the FROC curve."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from splitshuffle_gan.output import whole_file
from splitshuffle_gan.segmentation.froc import RATES, Hits, curve

WIDTH, TITLE = 2.2, 0.3  # inches of one panel, and above it


def save_predictions(
    images: list[np.ndarray],
    truths: list[np.ndarray],
    found: list[np.ndarray],
    path: Path,
    spacing: tuple[float, float, float],
    titles: list[str],
) -> Path:
    """Write a row per case: its slice with most of the structures, plain, with the true and with the found outlines.

    All arrays are `[D, H, W]`, images in [-1, 1], the others classes; `spacing` is mm (D, H, W).
    """
    height = WIDTH * images[0].shape[1] * spacing[1] / (images[0].shape[2] * spacing[2])
    figure = Figure(figsize=(3 * WIDTH, len(images) * (height + TITLE)))
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - TITLE / (len(images) * (height + TITLE)), 0.02, TITLE / height)
    axes = figure.subplots(len(images), 3, squeeze=False)
    for row, (image, truth, guess, title) in enumerate(zip(images, truths, found, titles, strict=True)):
        depth = int(np.argmax((truth > 0).sum((1, 2)) * 1000 + (guess > 0).sum((1, 2))))
        for axis, classes, name in zip(axes[row], (None, truth, guess), (title, "truth", "found"), strict=True):
            axis.imshow(image[depth], cmap="gray", vmin=-1, vmax=1, origin="lower", aspect=spacing[1] / spacing[2])
            for number in np.unique(classes[depth][classes[depth] > 0]) if classes is not None else ():
                axis.contour(classes[depth] == number, levels=[0.5], colors=[f"C{(number - 1) % 10}"], linewidths=1)
            nothing = classes is not None and not classes.any()
            axis.set_title(f"{name}: nothing" if nothing else name, fontsize=8)
            axis.set_axis_off()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=100)
    return path


def save_froc(result: dict, path: Path) -> Path:
    """Write the FROC curve of what `predict.evaluate` returned for a detector, with the intervals at `RATES`."""
    cases = [Hits(np.array(case["found"]), np.array(case["false"])) for case in result["cases"]]
    rates, sensitivities, _ = curve(cases)
    values = np.array([entry["value"] for entry in result["sensitivity"].values()])
    low, high = np.array([entry["interval"] for entry in result["sensitivity"].values()]).T
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.append(rates, 2 * RATES[-1]), np.append(sensitivities, sensitivities[-1]), linewidth=1.5)
    # The estimate may lie at an end of its interval.
    bars = np.maximum([values - low, high - values], 0)
    axes.errorbar(RATES, values, bars, fmt="o", color="C0", markersize=3, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    axes.set(xlim=(RATES[0] / 1.3, RATES[-1] * 1.3), ylim=(0, 1.02), ylabel="sensitivity")
    axes.set_xlabel("false positives per volume")
    axes.set_title(f"{result['lesions']} lesions in {result['volumes']} volumes: FROC {result['froc']:.3f}", fontsize=9)
    axes.grid(alpha=0.3)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=100)
    return path
