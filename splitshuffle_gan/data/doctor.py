"""What a set of scans is like, what is wrong with it, and which `prepare` fits it, before anything is trained."""

import hashlib
import math
import os
import re
import shlex
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from tqdm import tqdm

from splitshuffle_gan import __version__
from splitshuffle_gan.config import MAX_BASE, MIN_BASE, Schedule
from splitshuffle_gan.data.doctor_report import draw_views, markdown, picture, summarise
from splitshuffle_gan.data.scan import Rejected, Scan
from splitshuffle_gan.data.scans import find_scans
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json
from splitshuffle_gan.parallel import parallel_map
from splitshuffle_gan.volume import PLANES, plane_axes, spacing_of, to_xyz

FORMAT, VERSION = "splitshuffle-doctor", 1
THUMBNAILS = 24
QUANTILES = (0.0, 0.5, 50.0, 99.5, 99.9, 100.0)
PERCENTILES = ((0.5, 99.5), (0.0, 99.9), (0.0, 100.0))  # the first that leaves every scan a range is proposed
# Name: low, high in HU. The first four are proposed, the narrowest that cuts little; the others are for the eye.
WINDOWS = {
    "soft tissue": (-160, 240),
    "heart, plain": (-250, 650),
    "heart, contrast": (-350, 1000),
    "everything": (-1000, 2000),
    "lung": (-1350, 150),
    "brain": (0, 80),
}
PROPOSED_WINDOWS, TISSUE, CUT = 4, -250, 0.01
AIR, SOFT = (-1100, -900), (-200, 300)
HU_BINS, BINS = (-1100, 2100), 64
SATURATED = 0.005
FEW_VALUES = 16
FOREGROUND, BODY, FLECKS = 0.1, -500, 0.001
SIDE = 8  # of the grid on which scans are compared: 512 voxels
SAME_PICTURE, FAR, ENOUGH = 0.999, 6.0, 5
GROUP = 0.1  # of the set; more than that, if above 2, are no outliers
HELD, LARGER = 0.95, 1.15
MAX_VOXELS = 2**23
STEP_BYTES = (2**28, 2**11)  # fixed, and per voxel and image; measured on the default networks, bfloat16, with R1
RULES = {
    "HU": "modality CT and a minimum below 0; or no modality known, a minimum of -4096 to -900, at least 0.5 % of the "
    "voxels air (-1100 to -900) and 1 % soft tissue (-200 to 300)",
    "saturated": "at least 0.5 % of the voxels have the highest value; or, in HU and above -900, the lowest",
    "few values": "at most 16 different values among 100,000 voxels: a label map, not a scan",
    "duplicate": "equal voxels after turning both to RAS+; turned: equal voxels in another order; other intensities: "
    "equal shapes, and 512 voxels from a grid correlate above 0.999",
    "outlier": "more than 6 robust standard deviations (1.4826 MAD) from the median of at least 5 scans: logarithm of "
    "shape, spacing and intensity range, the median's place in that range (in HU: the mean), and the correlation of "
    "the scan, coarsened to 8x8x8, with the set's median; 3 scans or more, if above 10 % of the set, are a group of "
    "their own",
    "foreground": "HU above -500, else above 10 % of the way from the 0.5 to the 99.5 percentile; per axis without the "
    "outermost 0.1 % of it at either end",
    "shape": "the smallest 4 to 15 times a power of two, about the scan's middle, in which at least 95 % of the scans "
    "hold their foreground; up to 15 % larger if that doubles more often; spacing grows where it exceeds 2^23 voxels",
    "window": "the narrowest of soft tissue, heart (plain, contrast) and everything above which lies at most 1 % of "
    "the tissue (HU above -250) of the median scan",
    "memory": "a training step takes 0.25 GiB and 2 KiB per voxel and image of the micro-batch",
}


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Look at scans before anything is made of them: what they are, what is wrong, which `prepare` fits.

    Attributes:
        source: a scan, or a folder searched to any depth.
        out: folder to make: doctor.json, doctor.md, doctor.png; default: nothing but the table on screen.
        volume: which volume of 4D files to look at, from 0; or all of them.
        workers: processes; 0 is one per core.
        overwrite: replace the report in `out`.
    """

    source: tyro.conf.Positional[Path]
    out: Path | None = None
    volume: int | Literal["all"] | None = None
    workers: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UserError(f"workers: {self.workers}; a whole number is wanted, 0 for one process per core")


def examine(config: DoctorConfig) -> dict:
    """Read all scans and return the report, plain JSON values; it is also written if `config.out` is given.

    format, version, created_with, source; seconds, scans_per_second of this reading; summary: the set in counts and
    ranges, axes (x, y, z) of RAS+; findings: {kind, level ("bad", "warning" or "note"), text, scans}; proposal: the
    `prepare` command and what it costs, or None when no scan can be used; scans: facts of each; rejected: name and
    reason; rules: how all of it was judged. No value of a header field that holds personal data is in it.
    Raises UserError for a source without any file to read and an `out` that may not be replaced.
    """
    source = Path(config.source)
    if config.out is not None:
        refuse_existing(config.out, config.overwrite, mark="doctor.json", keep=(source,))
    found = find_scans(source, volume=config.volume)
    start = time.perf_counter()
    outcomes = parallel_map(measure, found.scans, config.workers) if found.scans else ()
    scans = list(tqdm(outcomes, total=len(found.scans), desc="doctor", unit="scan"))
    seconds = time.perf_counter() - start
    rejected = [*found.rejected, *(Rejected(scan["name"], scan["reason"]) for scan in scans if "reason" in scan)]
    read = [scan for scan in scans if "reason" not in scan]
    findings = _findings(read, rejected)
    rate = len(scans) / seconds if scans else None
    report = {
        "format": FORMAT,
        "version": VERSION,
        "created_with": __version__,
        "source": str(source),
        "seconds": round(seconds, 3),
        "scans_per_second": rate,
        "summary": summarise(read, len(rejected)) | {"passed_over": found.passed_over, "labels": list(found.labels)},
        "findings": findings,
        "proposal": _propose(config, read, findings, rate),
        "scans": [{key: value for key, value in scan.items() if not key.startswith("_")} for scan in read],
        "rejected": [{"name": entry.name, "reason": entry.reason} for entry in rejected],
        "rules": RULES,
    }
    if config.out is not None:
        with whole_folder(config.out) as folder:
            write_json(folder / "doctor.json", report)
            (folder / "doctor.md").write_text(markdown(report), encoding="utf-8", errors="backslashreplace")
            tiles = _tiles(config, found.scans, report)
            picture(report, tiles, [scan["_histogram"] for scan in read if scan["_histogram"]], folder / "doctor.png")
    return report


def measure(scan: Scan) -> dict:
    """The facts of one scan, or its name and the reason why it cannot be read. Keys with an underscore stay in memory.

    They are: _voxels and _any_order, hashes; _sample and _coarse, `[512]`; _histogram, counts.
    """
    try:
        header, volume = scan.header(), scan.read("axial")
    except (UserError, OSError, MemoryError) as error:
        return {"name": scan.name, "reason": str(error) or type(error).__name__}
    array, affine = volume.array[0], to_xyz(volume, "axial")[1]
    lengths = spacing_of(affine)
    finite = np.isfinite(array)
    facts = {
        "name": scan.name,
        "shape": list(array.shape[::-1]),
        "spacing": list(lengths),
        "anisotropy": max(lengths) / min(lengths),
        "orientation": header.orientation,
        "oblique_degrees": _obliquity(affine),
        "dtype": header.dtype,
        "modality": header.modality,
        "remarks": list(header.remarks),
        "personal": list(header.personal),
        "not_finite": int(array.size - np.count_nonzero(finite)),
        "percentiles": None,
        "_histogram": None,
    }
    if not facts["not_finite"]:
        facts |= _intensities(np.sort(array, axis=None), header.modality)
    if facts["percentiles"] and facts["percentiles"]["0"] < facts["percentiles"]["100"]:
        facts |= _content(array, lengths, facts)
    return facts


def _obliquity(affine: np.ndarray) -> float:
    """The largest angle between an axis and the direction that it is named after, in degrees."""
    cosines = np.diag(affine)[:3] / spacing_of(affine)
    return round(math.degrees(math.acos(min(1.0, max(-1.0, float(cosines.min()))))), 2)


def _intensities(ordered: np.ndarray, modality: str) -> dict:
    """`ordered`: all values, sorted, so that every share below is two look-ups."""
    places = np.array(QUANTILES) / 100 * (ordered.size - 1)
    below, above = (ordered[rounded(places).astype(int)].astype(np.float64) for rounded in (np.floor, np.ceil))
    levels = below + (places - np.floor(places)) * (above - below)
    levels = dict(zip((f"{at:g}" for at in QUANTILES), levels.tolist(), strict=True))
    hu = looks_like_hu(ordered, modality)
    tissue = ordered[np.searchsorted(ordered, ordered.dtype.type(TISSUE), "right") :]
    bins = HU_BINS if hu else (levels["0.5"], levels["99.5"])
    return {
        "percentiles": levels,
        "mean": float(ordered.mean(dtype=np.float64)),
        "share_lowest": _share(ordered, levels["0"], levels["0"]),
        "share_highest": _share(ordered, levels["100"], levels["100"]),
        "few_values": len(np.unique(ordered[:: max(1, ordered.size // 100_000)])) <= FEW_VALUES,
        "looks_like_hu": hu,
        "tissue_above_window": {name: 1 - _share(tissue, -np.inf, top) for name, (_, top) in WINDOWS.items()}
        if hu and tissue.size
        else None,
        "_histogram": _histogram(ordered, bins, hu),
    }


def _share(ordered: np.ndarray, low: float, high: float) -> float:
    """Of sorted values, those from `low` to `high`, both included."""
    low, high = ordered.dtype.type(low), ordered.dtype.type(high)  # of another type, all would be converted first
    return float(np.searchsorted(ordered, high, "right") - np.searchsorted(ordered, low, "left")) / ordered.size


def _histogram(ordered: np.ndarray, bins: tuple[float, float], hu: bool) -> dict | None:
    if bins[0] >= bins[1]:
        return None
    counts = np.diff(np.searchsorted(ordered, np.linspace(*bins, BINS + 1, dtype=ordered.dtype)))
    return {"hu": hu, "share": (counts / ordered.size).tolist()} if counts.any() else None


def looks_like_hu(ordered: np.ndarray, modality: str = "") -> bool:
    """Whether sorted intensities look like Hounsfield units, by the rule in `RULES`."""
    least = float(ordered[0])
    if modality:
        return modality == "CT" and least < 0
    return -4096 <= least <= AIR[1] and _share(ordered, *AIR) >= 0.005 and _share(ordered, *SOFT) >= 0.01


def _content(array: np.ndarray, lengths: tuple[float, float, float], facts: dict) -> dict:
    """What tells this scan from others, where its foreground is, and its histogram. `array` is (z, y, x)."""
    levels = facts["percentiles"]
    low, high = levels["0.5"], levels["99.5"]
    array = array + np.float32(0)  # -0 becomes 0: equal values, equal bytes
    hashed = hashlib.sha256(repr(array.shape).encode())
    hashed.update(array)
    # Sums do not know the order, so turned voxels give the same number.
    total = sum(int(_scrambled(part).sum(dtype=np.uint64)) for part in array) % 2**64
    picks = [np.minimum(((np.arange(SIDE) + 0.5) * side / SIDE).astype(int), side - 1) for side in array.shape]
    coarse = np.clip(array, low, high)
    for side in array.shape:
        coarse = np.tensordot(coarse, _boxes(side), (0, 1))  # moves the axis to the end: after three, all are in place
    return {
        "foreground_mm": _foreground(
            array, lengths, BODY if facts["looks_like_hu"] else low + FOREGROUND * (high - low)
        ),
        "_voxels": hashed.hexdigest(),
        "_any_order": (tuple(sorted(array.shape)), total),
        "_sample": _standardised(array[np.ix_(*picks)].ravel()),
        "_coarse": _standardised(coarse.ravel()),
    }


def _scrambled(part: np.ndarray) -> np.ndarray:
    """A well mixed 64-bit number for each float32 (the finaliser of splitmix64)."""
    mixed = np.ascontiguousarray(part).view(np.uint32).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _boxes(side: int) -> np.ndarray:
    """`[SIDE, side]`: rows that average an axis over SIDE equal boxes, shares of voxels included."""
    edges = np.arange(SIDE + 1)[:, None] * side / SIDE
    covered = np.diff(np.clip(edges - np.arange(side), 0, 1), axis=0)
    return (covered / covered.sum(axis=1, keepdims=True)).astype(np.float32)


def _standardised(values: np.ndarray) -> np.ndarray:
    """Mean 0 and length 1, so that a dot product is a correlation; all zero if constant."""
    centred = values.astype(np.float64) - values.mean(dtype=np.float64)
    length = np.linalg.norm(centred)
    return (centred / length if length else centred).astype(np.float32)


def _foreground(array: np.ndarray, lengths: tuple[float, float, float], threshold: float) -> list[list[float]] | None:
    """Where it begins and ends along x, y and z, in mm from the scan's middle; None if there is none."""
    inside = array > threshold
    spans = []
    for axis, mm in zip((2, 1, 0), lengths, strict=True):
        profile = np.cumsum(inside.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.int64))
        if not profile[-1]:
            return None
        first, last = np.searchsorted(profile, profile[-1] * np.array([FLECKS, 1 - FLECKS]), side="left")
        spans.append([(float(first) - len(profile) / 2) * mm, (float(last) + 1 - len(profile) / 2) * mm])
    return spans


def _findings(scans: list[dict], rejected: list[Rejected]) -> list[dict]:
    """What is wrong or odd, the worst first."""
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
        say("warning", "mixed units", f"{what}, the others {'do not' if fewer is hu else 'do'}", fewer)
    for level, kind, text, names in _outliers(scans):
        say(level, kind, text, names)
    for remark, names in _grouped(scans, "remarks", lambda text: re.sub(r"\d+", "#", text)).items():
        disagree = "qform" in remark and "sform" in remark
        say("warning" if disagree else "note", "headers disagree" if disagree else "remark", remark, names)
    fields = _grouped(scans, "personal", str)
    text = f"header fields may hold personal data, {', '.join(fields)}"
    say("warning", "personal data", text, where(lambda scan: scan["personal"]))
    planes = {plane: [s["name"] for s in scans if _thick_plane(s["spacing"]) == plane] for plane in PLANES}
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
        likeness = coarse @ _standardised(np.median(coarse, axis=0))
        compare("content", "correlation with the median scan", usable, likeness, 0.05)
    return said


def _thick_plane(spacing: list[float]) -> str | None:
    """The plane of the slices where one axis is clearly the coarsest: 1.2 times the next."""
    ordered = sorted(spacing)
    if ordered[2] < 1.2 * ordered[1]:
        return None
    return next(plane for plane in PLANES if plane_axes(plane)[0] == spacing.index(ordered[2]))


def _propose(config: DoctorConfig, scans: list[dict], findings: list[dict], rate: float | None) -> dict | None:
    """A `prepare` command that fits the set, why, and what it costs; None when no scan can be used."""
    usable = [scan for scan in scans if scan.get("foreground_mm")]
    intensity = _propose_intensity(usable)
    usable = [scan for scan in usable if _keeps_contrast(scan, intensity)]
    if not usable:
        return None
    votes = Counter(plane for scan in usable if (plane := _thick_plane(scan["spacing"])))
    plane = votes.most_common(1)[0][0] if votes else "axial"
    axes = plane_axes(plane)
    spacing = np.median([scan["spacing"] for scan in usable], axis=0)[list(axes)]
    reach = np.array([np.abs(scan["foreground_mm"]).max(axis=1) for scan in usable])[:, axes]
    shape = native = _grid(2 * reach, spacing)
    while math.prod(shape) > MAX_VOXELS:
        spacing = spacing * 1.02
        shape = _grid(2 * reach, spacing)
    spacing = [float(f"{mm:.5g}") for mm in spacing]
    half = np.array(shape) * spacing / 2
    spans = np.array([scan["foreground_mm"] for scan in usable])[:, axes]
    outside = ((spans[..., 0] >= half) | (spans[..., 1] <= -half)).any(axis=1)
    good = len(usable) - int(outside.sum())
    bad = len(scans) - good + sum(len(f["scans"]) for f in findings if f["kind"] == "unreadable")
    arguments = [_as_argument(config.source), "--out", _as_argument(_free_folder(Path(config.source)))]
    arguments += ["--shape", *map(str, shape), "--spacing", *(f"{mm:g}" for mm in spacing), "--plane", plane]
    arguments += [f"--{intensity['kind']}", *(f"{bound:g}" for bound in intensity["bounds"])]
    arguments += ["--volume", str(config.volume)] if config.volume is not None else []
    arguments += ["--skip-bad"] if bad else []
    voxels = math.prod(shape)
    return {
        "command": " ".join(map(_quoted, ["splitshuffle", "prepare", *arguments])),
        "arguments": arguments,
        "shape": list(shape),
        "spacing": spacing,
        "plane": plane,
        "intensity": intensity,
        "levels": Schedule.for_shape(shape).levels,
        "base": list(Schedule.for_shape(shape).grids[0]),
        "scans": good,
        "left_out": bad,
        "share_held": float(np.mean((2 * reach <= np.array(shape) * spacing * (1 + 1e-6)).all(axis=1))),
        "shape_at_median_spacing": list(native),
        "dataset_bytes": 4 * voxels * good,
        "step_bytes_per_image": STEP_BYTES[0] + STEP_BYTES[1] * voxels,
        "seconds": len(scans) / rate if rate else None,
    }


def _propose_intensity(scans: list[dict]) -> dict:
    """A window where all but a few scans look like HU, else percentiles."""
    hu = [scan for scan in scans if scan["looks_like_hu"] and scan["tissue_above_window"]]
    if hu and len(hu) >= HELD * len(scans):
        above = {name: float(np.median([scan["tissue_above_window"][name] for scan in hu])) for name in WINDOWS}
        narrow = list(WINDOWS)[:PROPOSED_WINDOWS]
        name = next((name for name in narrow if above[name] <= CUT), narrow[-1])
        return {"kind": "window", "bounds": list(WINDOWS[name]), "name": name, "tissue_above": above}

    def collapsed(bounds: tuple[float, float]) -> int:
        return sum(scan["percentiles"][f"{bounds[0]:g}"] >= scan["percentiles"][f"{bounds[1]:g}"] for scan in scans)

    return {"kind": "percentiles", "bounds": list(min(PERCENTILES, key=collapsed))}


def _keeps_contrast(scan: dict, intensity: dict) -> bool:
    """Whether `prepare` could use the scan with these bounds."""
    low, high = intensity["bounds"]
    levels = scan["percentiles"]
    if intensity["kind"] == "window":
        return levels["100"] > low and levels["0"] < high
    return levels[f"{low:g}"] < levels[f"{high:g}"]


def _grid(extents: np.ndarray, spacing: np.ndarray) -> tuple[int, int, int]:
    """The shape that holds HELD of the extents `[scans, 3]` in mm, as a whole and not axis by axis."""
    need = np.ceil(extents / spacing - 1e-3)
    for share in np.linspace(HELD, 1, 11):
        shape = tuple(_side(float(side)) for side in np.quantile(need, share, axis=0, method="inverted_cdf"))
        if (need <= shape).all(axis=1).mean() >= HELD:
            break
    return shape


def _side(need: float) -> int:
    """The size of an axis, from `need` to a little more, that doubles most often; of these the smallest."""
    sizes = {base << doublings for base in range(MIN_BASE, MAX_BASE + 1) for doublings in range(20)}
    least = min(size for size in sizes if size >= need)
    fitting = [size for size in sizes if least <= size <= max(least, LARGER * need)]
    return min(fitting, key=lambda size: (-Schedule.for_shape((size,) * 3).levels, size))


def _as_argument(path: Path) -> str:
    """A path as the command line takes it: one that starts with a dash would be an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _quoted(argument: str) -> str:
    """For a shell, on one line: line breaks and bytes that are no text take the $'...' of bash and zsh."""
    if argument.isprintable():
        return shlex.quote(argument)
    plain = set(range(32, 127)) - set(b"\\'")
    letters = (chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in os.fsencode(argument))
    return f"$'{''.join(letters)}'"


def _free_folder(source: Path) -> Path:
    """A folder name for the dataset, in the current folder, that is not taken."""
    stem = source.resolve().name.split(".")[0] or "scans"
    names = (f"{stem}-dataset{number}" for number in ("", *(f"-{n}" for n in range(2, 10_000))))
    return next(path for path in map(Path, names) if not path.exists())


def _tiles(config: DoctorConfig, scans: list[Scan], report: dict) -> list[dict]:
    """Pictures of at most THUMBNAILS scans, half of them with findings if there are, the others evenly chosen."""
    by_name = {scan.name: scan for scan in scans}
    usable = [entry for entry in report["scans"] if entry["percentiles"]]
    # What holds for half of the set singles nobody out.
    odd = {}
    for finding in report["findings"]:
        if finding["level"] != "note" and 2 * len(finding["scans"]) < len(usable) + 1:
            for name in finding["scans"]:
                odd.setdefault(name, finding["kind"])
    shown = [entry for entry in usable if entry["name"] in odd][: THUMBNAILS // 2]
    rest = [entry for entry in usable if entry not in shown]
    room = min(THUMBNAILS - len(shown), len(rest))
    shown += [rest[index * len(rest) // room] for index in range(room)]
    intensity = (report["proposal"] or {}).get("intensity", {})
    tasks = []
    for entry in shown:
        bounds = [entry["percentiles"][at] for at in ("0.5", "99.5")]
        tasks.append((by_name[entry["name"]], intensity["bounds"] if intensity.get("kind") == "window" else bounds))
    pictures = parallel_map(draw_views, tasks, config.workers) if tasks else ()
    return [
        {"name": entry["name"], "finding": odd.get(entry["name"]), "image": image}
        for entry, image in zip(shown, pictures, strict=True)
    ]
