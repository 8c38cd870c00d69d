"""What is measured on one scan: its geometry, its intensities, and what tells it from others."""

import hashlib
import math

import numpy as np

from splitshuffle_gan.data.readers.scan import Scan
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.volume import spacing_of, to_xyz

QUANTILES = (0.0, 0.5, 50.0, 99.5, 99.9, 100.0)
# Name: low, high in HU. The first four are proposed, the narrowest that cuts little; the others are for the eye.
WINDOWS = {
    "soft tissue": (-160, 240),
    "heart, plain": (-250, 650),
    "heart, contrast": (-350, 1000),
    "everything": (-1000, 2000),
    "lung": (-1350, 150),
    "brain": (0, 80),
}
TISSUE = -250
AIR, SOFT = (-1100, -900), (-200, 300)
HU_BINS, BINS = (-1100, 2100), 64
FEW_VALUES = 16
FOREGROUND, BODY, FLECKS = 0.1, -500, 0.001
SIDE = 8  # of the grid on which scans are compared: 512 voxels


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
    """Whether sorted intensities look like Hounsfield units, by the rule in `examine.RULES`."""
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
        "_sample": standardised(array[np.ix_(*picks)].ravel()),
        "_coarse": standardised(coarse.ravel()),
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


def standardised(values: np.ndarray) -> np.ndarray:
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
