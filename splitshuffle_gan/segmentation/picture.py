"""A PNG of predictions beside the truth, for the eye."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from splitshuffle_gan.output import whole_file

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
            axis.set_title(name, fontsize=8)
            axis.set_axis_off()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=100)
    return path
