"""What `doctor` found, for people: a table on screen, and the same in Markdown."""

import math
import textwrap
from collections import Counter

import numpy as np

WIDTH = 110
NAMED = 3  # scans by name for each finding on screen
MARKS = {"bad": "!!", "warning": " !", "note": "  "}


def summarise(scans: list[dict], rejected: int) -> dict:
    """The set in counts and ranges, plain JSON values; `scans` are facts of those that could be read."""
    whole = [scan for scan in scans if scan["percentiles"]]
    span = {
        key: [float(f([scan["percentiles"][at] for scan in whole])) for f in (np.min, np.median, np.max)]
        for key, at in (("lowest", "0"), ("low", "0.5"), ("high", "99.5"), ("highest", "100"))
        if whole
    }
    return {
        "scans": len(scans),
        "rejected": rejected,
        "shape": _spread([scan["shape"] for scan in scans]),
        "spacing": _spread([[round(mm, 4) for mm in scan["spacing"]] for scan in scans]),
        "anisotropy": [float(f([scan["anisotropy"] for scan in scans])) for f in (np.min, np.median, np.max)]
        if scans
        else None,
        "orientation": dict(Counter(scan["orientation"] for scan in scans).most_common()),
        "most_oblique_degrees": max((scan["oblique_degrees"] for scan in scans), default=None),
        "dtype": dict(Counter(scan["dtype"] for scan in scans).most_common()),
        "modality": dict(Counter(scan["modality"] or "not said" for scan in scans).most_common()),
        "intensity": span or None,
        "looks_like_hu": sum(scan["looks_like_hu"] for scan in whole),
    }


def _spread(rows: list[list[float]]) -> dict | None:
    """Of three numbers per scan: the least, median and most of each, and how many different triples there are."""
    if not rows:
        return None
    found = {name: f(rows, axis=0).tolist() for name, f in (("min", np.min), ("median", np.median), ("max", np.max))}
    return found | {"different": len(set(map(tuple, rows)))}


def _by(values: list[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _extent(spread: dict | None) -> str:
    if spread is None:
        return "-"
    if spread["different"] == 1:
        return f"{_by(spread['median'])}, all"
    ends = f"{_by(spread['min'])} to {_by(spread['max'])}"
    return f"{_by(spread['median'])} (median); {ends}; {spread['different']} different"


def _levels(levels: list[float]) -> str:
    """Of the least, the median and the most."""
    least, median, most = (f"{level:.4g}" for level in levels)
    return f"{median} (median); {least} to {most}" if least != most else f"{median}, all"


def _counts(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:8])
    return shown + (f", {len(counts) - 8} more" if len(counts) > 8 else "") if counts else "-"


def _facts(report: dict) -> list[tuple[str, str]]:
    """Rows of the table: what, and how it is in this set."""
    summary = report["summary"]
    rate = f", {report['scans_per_second']:.3g} scans/s" if report["scans_per_second"] else ""
    read = f"{summary['scans']} read in {report['seconds']:.3g} s{rate}; {summary['rejected']} could not be read"
    rows = [("scans", read)]
    if summary["passed_over"]:
        rows.append(("passed over", f"{summary['passed_over']} files whose names are no scan's"))
    if summary["labels"]:
        rows.append(("labels", f"{_named(summary['labels'])}, not looked at; `prepare --labels auto` takes them along"))
    if not summary["scans"]:
        return rows
    oblique = summary["most_oblique_degrees"]
    tilt = f"; up to {oblique:.3g} degrees oblique" if oblique >= 0.1 else ""
    rows += [
        ("voxels, x y z", _extent(summary["shape"])),
        ("spacing, mm", _extent(summary["spacing"])),
        ("anisotropy", _levels(summary["anisotropy"])),
        ("axes on disk", _counts(summary["orientation"]) + tilt),
        ("type on disk", _counts(summary["dtype"])),
        ("modality", _counts(summary["modality"])),
    ]
    if summary["intensity"]:
        lowest, highest = summary["intensity"]["lowest"], summary["intensity"]["highest"]
        rows += [
            ("lowest value", _levels(lowest)),
            ("highest value", _levels(highest)),
        ]
    return [*rows, ("looks like HU", f"{summary['looks_like_hu']} of {summary['scans']}")]


def _reasons(proposal: dict) -> list[tuple[str, str]]:
    """Rows of the proposal: what, and why or how much."""
    intensity, voxels = proposal["intensity"], math.prod(proposal["shape"])
    shape, native = "x".join(map(str, proposal["shape"])), "x".join(map(str, proposal["shape_at_median_spacing"]))
    grid = f"{shape} holds {proposal['share_held']:.0%} of the scans; {proposal['levels']} levels from "
    grid += "x".join(map(str, proposal["base"]))
    spacing = "the set's median"
    if native != shape:
        spacing = f"coarser than the set's median, at which the grid would be {native}: too much to train on"
    if intensity["kind"] == "window":
        others = ", ".join(f"{name} {share:.1%}" for name, share in intensity["tissue_above"].items())
        bounds = f"the window {intensity['name']}; of the tissue would lie above: {others}"
    else:
        bounds = "{:g} and {:g} % of each scan: the units are not HU, or not all are".format(*intensity["bounds"])
    seconds = f"about {_duration(proposal['seconds'])} at this reading's speed" if proposal["seconds"] else "-"
    return [
        ("shape, D H W", grid),
        ("spacing", f"{_by(proposal['spacing'])} mm, {spacing}"),
        ("plane", f"{proposal['plane']} slices"),
        ("intensities", bounds),
        ("scans", f"{proposal['scans']} used, {proposal['left_out']} left out"),
        ("time", f"{seconds}; resampling comes on top"),
        ("disk", f"{_size(proposal['dataset_bytes'])}: float32, {voxels:,} voxels a scan"),
        (
            "training",
            f"about {_size(proposal['step_bytes_per_image'])} for each image of the micro-batch (rule of thumb)",
        ),
    ]


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def _size(count: float) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20)):
        if count >= 2**power:
            return f"{count / 2**power:.3g} {unit}"
    return f"{count / 2**10:.3g} KiB"


def _named(names: list[str], limit: int = NAMED) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(printable(name) for name in names[:limit]) + more


def printable(text: str) -> str:
    """On one line and encodable, whatever it holds: file names may hold line breaks and bytes that are no text."""
    clean = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in clean)


def table(report: dict) -> str:
    """The report as text for a terminal; the last line is the command."""
    lines = [printable(report["source"]), ""]
    lines += _columns(_facts(report))
    lines += ["", "Findings" if report["findings"] else "Findings: none"]
    for finding in report["findings"]:
        head = f"{MARKS[finding['level']]} {finding['kind']:20s}"
        text = f"{len(finding['scans']):5d}  {finding['text']}: {_named(finding['scans'])}"
        lines += _wrapped(head, text, " " * 30)
    if report["rejected"]:
        lines += [
            "",
            "Cannot be read" + (f" (the first 10 of {len(report['rejected'])})" if report["rejected"][10:] else ""),
        ]
        for entry in report["rejected"][:10]:
            lines += _wrapped("   ", printable(f"{entry['name']}: {entry['reason']}"), " " * 6)
    proposal = report["proposal"]
    if proposal is None:
        return "\n".join([*lines, "", "Proposal: none, no scan can be used"])
    return "\n".join([*lines, "", "Proposal", *_columns(_reasons(proposal)), "", proposal["command"]])


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    return [line for name, text in rows for line in _wrapped(f"   {name:16s}", text, " " * 19)]


def _wrapped(head: str, text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False)


def markdown(report: dict) -> str:
    """The report as Markdown, every finding with all of its scans."""

    def cell(text: str) -> str:
        return printable(text).replace("|", "\\|")

    def rows(pairs: list[tuple[str, str]]) -> list[str]:
        return ["| | |", "|---|---|", *(f"| {name} | {cell(text)} |" for name, text in pairs)]

    lines = ["# Scans before training", "", f"`{printable(report['source'])}`", "", *rows(_facts(report)), ""]
    lines += ["## Findings", ""]
    for finding in report["findings"]:
        names = cell(_named(finding["scans"], len(finding["scans"])))
        lines.append(
            f"- **{finding['level']}, {finding['kind']}** ({len(finding['scans'])}): {cell(finding['text'])}: {names}"
        )
    lines += ["", *(f"- {cell(entry['name'])}: {cell(entry['reason'])}" for entry in report["rejected"])]
    lines += [] if report["findings"] else ["None."]
    lines += ["", "## Proposal", ""]
    if report["proposal"]:
        lines += ["```", report["proposal"]["command"], "```", "", *rows(_reasons(report["proposal"]))]
    else:
        lines.append("None: no scan can be used.")
    lines += ["", "## Rules", "", *(f"- {name}: {rule}." for name, rule in report["rules"].items())]
    return "\n".join([*lines, "", f"splitshuffle_gan {report['created_with']}", ""])
