"""The memorisation audit for people: a verdict in words, a Markdown report, a picture of the closest pairs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.metrics.memorisation import ALPHA
from splitshuffle_gan.montage import save_montage
from splitshuffle_gan.volume import plane_axes

DIRECTIONS = ("left-right", "front-back", "top-bottom")  # of x, y, z
LIMITS = (
    "The audit finds volumes that repeat one training volume as a whole: the same, mirrored, noisier, a little "
    "smoother, or of another brightness or contrast. A copy that is moved by some voxels, turned, bent, or put "
    "together from parts of several training volumes can pass.",
    "Finding nothing is no proof of privacy. Only the samples at hand were looked at, and there are other attacks than "
    "looking for neighbours.",
    "It holds as far as the held-out volumes are like the training volumes: other subjects of the same scanners and "
    "sites, set aside by chance. Where they differ, a generator can lean towards its training set and remember nobody.",
    "All scans of one subject belong into one set. The p-value of the tendency counts scans as if each were another "
    "subject; with several scans of each it is too small.",
)


def verdict(report: dict) -> dict:
    """{"level": "copies", "tendency" or "none", "verdict": sentences for a reader who is not a statistician}."""
    flagged = [sample for sample in report["samples"] if sample["flagged"]]
    leaning = {
        name: found["tendency"]
        for name, found in report["spaces"].items()
        if found["tendency"]["p"] <= ALPHA["tendency"] and found["tendency"]["ratio"] < 1
    }
    total, text = len(report["samples"]), []
    if flagged:
        named = [f"sample {sample['index']} of training volume {sample['train_index']}" for sample in flagged[:5]]
        more = f" and {len(flagged) - 5} more" if len(flagged) > 5 else ""
        text.append(f"{len(flagged)} of {total} generated volumes look like copies: {', '.join(named)}{more}.")
        text.append("Look at the pairs before any of these volumes is shared.")
    elif leaning:
        text.append(f"No single one of the {total} samples could be told to be a copy.")
    else:
        text.append(f"None of the {total} samples is nearer to a training volume than a new subject could be.")
    for name, found in leaning.items():
        linear = report["spaces"][name]["linear_model"]
        text.append(
            f"As a whole, the generated volumes lie nearer to the training volumes than to unseen ones: in {name} "
            f"space the nearest is {found['ratio']:.2f} times as far (p = {found['p']:.3g}). That is a sign that "
            "the generator leans on its training subjects; chance alone gives it in one of a hundred clean audits. "
            f"Fitting alone leans, too: a Gaussian of the training volumes' first {linear['components']} principal "
            f"components, which cannot hold any volume, comes to {linear['ratio']:.2f}."
        )
    if not leaning:
        text.append("As a whole they are no nearer to the training volumes than to unseen ones, beyond chance.")
    leaks = {tuple(pair) for found in report["spaces"].values() for pair in found["held_out_duplicates"]}
    if leaks:
        text.append(f"{len(leaks)} held-out volumes are near-duplicates of training volumes: the split leaks.")
    return {"level": "copies" if flagged else "tendency" if leaning else "none", "verdict": " ".join(text)}


def save_pairs(
    report: dict,
    generated: Sequence[np.ndarray],
    train: Sequence[np.ndarray],
    path: Path,
    k: int = 8,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Path:
    """A PNG with a row for each of the `k` most suspicious samples: it, its training volume, the difference.

    The training volume is shown in the orientation that fits. Raises UserError when k is below 1.
    """
    if k < 1:
        raise UserError(f"k: {k} pairs; 1 or more are wanted")
    tiles, titles = [], []
    for sample in report["samples"][:k]:
        found = sample[sample["space"]]
        made = np.asarray(generated[sample["index"]])
        real = np.flip(train[found["train_index"]], found["flip"])
        gain, offset = np.polyfit(real.ravel().astype(np.float64), made.ravel(), 1)
        tiles += [made, real, made - (gain * real + offset)]
        nearest_pair = report["spaces"][sample["space"]]["copies"]["nearest_real_pair"]
        titles += [
            f"generated {sample['index']}" + (": COPY" if sample["flagged"] else ""),
            f"training {found['train_index']}{_mirrored(found['flip'], report['settings']['plane'])}",
            f"difference; {sample['space']} distance {found['distance']:.2f}, real pairs from {nearest_pair:.2f}",
        ]
    caption = (
        "The generated volumes nearest to a training volume for their surroundings, the most suspicious first. "
        "Difference: after the gain and offset that fit best; even grey is none."
    )
    plane = report["settings"]["plane"]
    return save_montage(tiles, path, spacing, titles=titles, columns=3, caption=caption, plane=plane)


def _mirrored(flip: list[int], plane: str) -> str:
    return ", mirrored " + " and ".join(DIRECTIONS[plane_axes(plane)[axis]] for axis in flip) if flip else ""


def render(report: dict) -> str:
    """The report in Markdown."""
    lines = ["# Memorisation audit", "", report["verdict"], ""]
    counts = report["n"]
    lines += [
        f"{counts['generated']} generated volumes against {counts['train']} training and {counts['held-out']} held-out "
        "ones. Distances: 1 is the median between a held-out and a training volume. The chance that a clean set is "
        f"accused of anything is at most {report['settings']['alpha']['of_the_whole_audit']:.0%}.",
        "",
        "| | " + " | ".join(report["spaces"]) + " |",
        "|---|" + "---|" * len(report["spaces"]),
    ]
    rows = {
        "copies found": lambda found: str(found["copies"]["flagged"]),
        "score up to which a sample counts as a copy": lambda found: f"{found['copies']['threshold']:.3f}",
        "distance of the nearest pair of real volumes": lambda found: f"{found['copies']['nearest_real_pair']:.3f}",
        "samples nearer to a training volume than that": lambda found: f"{found['copies']['share_nearer']:.1%}",
        "nearest training / nearest held-out volume": lambda found: f"{found['tendency']['ratio']:.3f}",
        "... of which chance gives": lambda found: "{:.3f} to {:.3f}".format(*found["tendency"]["by_chance"]),
        "... of a Gaussian of the training set's first components": lambda found: (
            f"{found['linear_model']['ratio']:.3f} ({found['linear_model']['components']} components)"
        ),
        "... p": lambda found: f"{found['tendency']['p']:.3g}",
        "near-duplicates among training volumes": lambda found: str(len(found["train_duplicates"])),
        "held-out volumes repeated in training": lambda found: str(len(found["held_out_duplicates"])),
    }
    for title, text in rows.items():
        lines.append(f"| {title} | " + " | ".join(text(found) for found in report["spaces"].values()) + " |")
    lines += ["", "## The most suspicious samples", "", "| generated | training | found by | score | distance | p | |"]
    lines.append("|---|---|---|---|---|---|---|")
    shown = max(10, sum(sample["flagged"] for sample in report["samples"]))
    for sample in report["samples"][:shown]:
        found = sample[sample["space"]]
        cells = [sample["index"], found["train_index"], sample["space"], f"{found['score']:.3f}"]
        cells += [f"{found['distance']:.3f}", f"{found['p']:.2g}"]
        cells += [("copy" if sample["flagged"] else "") + _mirrored(found["flip"], report["settings"]["plane"])]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "Score: distance to the nearest training volume over the median distance to the ten nearest held-out"]
    lines += ["ones. p: of the score, adjusted for the number of samples. A copy must also be nearer to its training"]
    lines += ["volume than the nearest pair of real volumes is.", "", "## What this cannot tell", ""]
    return "\n".join(lines + [f"- {limit}" for limit in report["limits"]]) + "\n"
