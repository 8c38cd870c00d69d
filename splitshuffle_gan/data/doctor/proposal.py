"""The `prepare` command that fits a set of measured scans, why, and what it costs."""

import math
import os
import shlex
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from splitshuffle_gan.config import MAX_BASE, MIN_BASE, Schedule
from splitshuffle_gan.data.doctor.findings import thick_plane
from splitshuffle_gan.data.doctor.measure import WINDOWS
from splitshuffle_gan.volume import plane_axes

PERCENTILES = ((0.5, 99.5), (0.0, 99.9), (0.0, 100.0))  # the first that leaves every scan a range is proposed
PROPOSED_WINDOWS, CUT = 4, 0.01
HELD, LARGER = 0.95, 1.15
MAX_VOXELS = 2**23
STEP_BYTES = (2**28, 2**11)  # fixed, and per voxel and image; measured on the default networks, bfloat16, with R1


def propose(
    source: Path,
    volume: int | Literal["all"] | None,
    scans: list[dict],
    findings: list[dict],
    rate: float | None,
) -> dict | None:
    """A `prepare` command that fits the set, why, and what it costs; None when no scan can be used.

    `source` and `volume` as in `DoctorConfig`; `scans` as `measure` and `findings` as `judge` return them; `rate`:
    scans read per second.
    """
    usable = [scan for scan in scans if scan.get("foreground_mm")]
    intensity = _propose_intensity(usable)
    usable = [scan for scan in usable if _keeps_contrast(scan, intensity)]
    if not usable:
        return None
    votes = Counter(plane for scan in usable if (plane := thick_plane(scan["spacing"])))
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
    arguments = [_as_argument(source), "--out", _as_argument(_free_folder(source))]
    arguments += ["--shape", *map(str, shape), "--spacing", *(f"{mm:g}" for mm in spacing), "--plane", plane]
    arguments += [f"--{intensity['kind']}", *(f"{bound:g}" for bound in intensity["bounds"])]
    arguments += ["--volume", str(volume)] if volume is not None else []
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
