"""What is said of a set of measured scans: what is wrong or odd, and with which of them."""

import re
from collections import defaultdict

import numpy as np

from splitshuffle_gan.data.doctor.measure import AIR, FEW_VALUES, standardised
from splitshuffle_gan.data.readers.scan import Rejected
from splitshuffle_gan.volume import PLANES, plane_axes

SATURATED = 0.005
SAME_PICTURE, FAR, ENOUGH = 0.999, 6.0, 5
GROUP = 0.1  # of the set; more than that, if above 2, are no outliers


def judge(scans: list[dict], rejected: list[Rejected]) -> list[dict]:
    """What is wrong or odd, the worst first: {kind, level ("bad", "warning" or "note"), text, scans}.

    `scans`: facts of those that could be read, as `measure` returns them.
    """
    found: list[dict] = []

    def say(level: str, kind: str, text: str, names: list[str]) -> None:
        if names:
            found.append({"kind": kind, "level": level, "text": text, "scans": names})

    def where(wanted) -> list[str]:
        return [scan["name"] for scan in scans if wanted(scan)]

    whole = [scan for scan in scans if scan["percentiles"]]
    say("bad", "unreadable", "cannot be read; the reasons are listed", [entry.name for entry in rejected])
    say("bad", "not finite", "has voxels that are NaN or infinite", where(lambda scan: scan["not_finite"]))
    say("bad", "constant", "every voxel has the same value", where(_constant))
    for kind, level, text, names in _repeated([scan for scan in whole if "_voxels" in scan]):
        say(level, kind, text, names)
    for text, names in _saturated(whole).items():
        say("warning", "saturated", text, names)
    few = [scan["name"] for scan in whole if scan["few_values"] and not _constant(scan)]
    say("warning", "few values", f"holds at most {FEW_VALUES} different values: a label map?", few)
    hu = [scan["name"] for scan in whole if scan["looks_like_hu"]]
    lost = [scan["name"] for scan in whole if scan["modality"] == "CT" and not scan["looks_like_hu"]]
    say("warning", "not HU", "says CT but has no value below 0: the rescale to HU may be lost", lost)
    if hu and len(hu) < len(whole):
        rest = [scan["name"] for scan in whole if not scan["looks_like_hu"]]
        fewer, what = (hu, "looks like HU") if 2 * len(hu) <= len(whole) else (rest, "does not look like HU")
        apart = "prepare them apart, the proposal below takes all together"
        say("bad", "mixed units", f"{what}, the others {'do not' if fewer is hu else 'do'}: {apart}", fewer)
    for level, kind, text, names in _outliers(scans):
        say(level, kind, text, names)
    for remark, names in _grouped(scans, "remarks", lambda text: re.sub(r"\d+", "#", text)).items():
        disagree = "qform" in remark and "sform" in remark
        say("warning" if disagree else "note", "headers disagree" if disagree else "remark", remark, names)
    fields = _grouped(scans, "personal", str)
    text = f"header fields may hold personal data, {', '.join(fields)}"
    say("warning", "personal data", text, where(lambda scan: scan["personal"]))
    planes = {plane: [s["name"] for s in scans if thick_plane(s["spacing"]) == plane] for plane in PLANES}
    used = {plane: names for plane, names in planes.items() if names}
    if len(used) > 1:
        most = max(used, key=lambda plane: len(used[plane]))
        for plane in sorted(set(used) - {most}):
            say("warning", "plane", f"has {plane} slices, most have {most} ones", used[plane])
    return sorted(found, key=lambda finding: ("bad", "warning", "note").index(finding["level"]))


def _constant(scan: dict) -> bool:
    return bool(scan["percentiles"]) and scan["percentiles"]["0"] == scan["percentiles"]["100"]


def _grouped(scans: list[dict], field: str, alike) -> dict[str, list[str]]:
    """The first text of each kind, and the names of the scans that have one of it."""
    first: dict[str, str] = {}
    names: dict[str, list[str]] = defaultdict(list)
    for scan in scans:
        for text in dict.fromkeys(scan[field]):
            names[first.setdefault(alike(text), text)].append(scan["name"])
    return dict(names)


def _repeated(scans: list[dict]) -> list[tuple[str, str, str, list[str]]]:
    """Groups of scans that show the same."""
    same, turned = defaultdict(list), defaultdict(list)
    for scan in scans:
        if scan["_voxels"] not in same:
            turned[scan["_any_order"]].append(scan)  # one of each group of equal ones
        same[scan["_voxels"]].append(scan)
    groups = [
        ("warning", "same voxels as each other" + ("" if _alike(group) else ", but spacing differs"), group)
        for group in same.values()
    ]
    text = "same voxels as each other in another order: one of the headers has the wrong orientation"
    groups += [("warning", text, group) for group in turned.values()]
    known = {frozenset((a["name"], b["name"])) for _, _, group in groups for a in group for b in group}
    by_shape = defaultdict(list)
    for scan in (group[0] for group in same.values()):
        by_shape[tuple(scan["shape"])].append(scan)
    text = "same picture as each other with other intensities"
    for group in by_shape.values():
        pairs = [pair for pair in _alike_pictures(group) if frozenset(scan["name"] for scan in pair) not in known]
        groups += [("warning", text, list(pair)) for pair in pairs]
    return [("duplicate", level, text, [s["name"] for s in group]) for level, text, group in groups if len(group) > 1]


def _alike(group: list[dict]) -> bool:
    return np.allclose([scan["spacing"] for scan in group], group[0]["spacing"], rtol=1e-3)


def _alike_pictures(scans: list[dict]) -> list[tuple[dict, dict]]:
    """Pairs whose voxels on the grid correlate almost fully; rows in blocks, so that memory stays small."""
    samples = np.stack([scan["_sample"] for scan in scans])
    pairs = []
    for first in range(0, len(scans), 1024):
        rows, columns = np.nonzero(samples[first : first + 1024] @ samples[first:].T > SAME_PICTURE)
        pairs += [(scans[first + a], scans[first + b]) for a, b in zip(rows, columns, strict=True) if a < b]
    return pairs


def _saturated(scans: list[dict]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    top, bottom = "has {0:g} % or more of its voxels at the highest value: cut off above", "in HU, but cut off below"
    for scan in scans:
        if _constant(scan) or scan["few_values"]:
            continue
        if scan["share_highest"] >= SATURATED:
            names.setdefault(top.format(100 * SATURATED), []).append(scan["name"])
        if scan["looks_like_hu"] and scan["percentiles"]["0"] > AIR[1] and scan["share_lowest"] >= SATURATED:
            names.setdefault(bottom, []).append(scan["name"])
    return names


def _outliers(scans: list[dict]) -> list[tuple[str, str, str, list[str]]]:
    """Scans far from the others, a row for each way."""
    usable = [s for s in scans if "_coarse" in s and s["percentiles"]["0.5"] < s["percentiles"]["99.5"]]
    said = []

    def compare(kind: str, unit: str, group: list[dict], values: list, floor: float, shown=lambda value: value) -> None:
        if len(group) < ENOUGH:
            return
        values = np.asarray(values, dtype=np.float64)
        centre = np.median(values)
        # The floor keeps a set of equal scans from calling any difference far.
        far = np.abs(values - centre) > FAR * max(1.4826 * np.median(np.abs(values - centre)), floor)
        if far.any():
            reach = sorted({f"{shown(value):.4g}" for value in values[far]}, key=float)
            reach = reach[0] if len(reach) == 1 else f"{reach[0]} to {reach[-1]}"
            names = [scan["name"] for scan, is_far in zip(group, far, strict=True) if is_far]
            text = f"{unit} {reach}, the set's median is {shown(centre):.4g}"
            if far.sum() > max(2, GROUP * len(far)):
                said.append(("note", f"mixed {kind}", f"a group of its own: {text}", names))
            else:
                said.append(("warning", f"outlier: {kind}", text, names))

    for axis, letter in enumerate("xyz"):
        shapes, lengths = ([scan[key][axis] for scan in scans] for key in ("shape", "spacing"))
        compare("shape", f"voxels along {letter}:", scans, np.log(shapes), 0.05, np.exp)
        compare("spacing", f"mm along {letter}:", scans, np.log(lengths), 0.02, np.exp)
    low, middle, high = (np.array([scan["percentiles"][at] for scan in usable]) for at in ("0.5", "50", "99.5"))
    hu = [scan for scan in usable if scan["looks_like_hu"]]
    compare("intensity", "intensity range", usable, np.log(high - low), 0.1, np.exp)
    compare("intensity", "mean in HU", hu, [scan["mean"] for scan in hu], 20)
    others = [index for index, scan in enumerate(usable) if not scan["looks_like_hu"]]
    place = ((middle - low) / (high - low))[others]
    compare("intensity", "median as a share of the range", [usable[index] for index in others], place, 0.03)
    if len(usable) >= ENOUGH:
        coarse = np.stack([scan["_coarse"] for scan in usable])
        likeness = coarse @ standardised(np.median(coarse, axis=0))
        compare("content", "correlation with the median scan", usable, likeness, 0.05)
    return said


def thick_plane(spacing: list[float]) -> str | None:
    """The plane of the slices where one axis is clearly the coarsest: 1.2 times the next."""
    ordered = sorted(spacing)
    if ordered[2] < 1.2 * ordered[1]:
        return None
    return next(plane for plane in PLANES if plane_axes(plane)[0] == spacing.index(ordered[2]))
