"""All headers of a source before any voxel: which scans can be used, and the plane and spacing of the set."""

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from splitshuffle_gan.data.labels import LabelMaps, check_grid
from splitshuffle_gan.data.readers.scan import Scan
from splitshuffle_gan.data.readers.scans import Found, find_scans
from splitshuffle_gan.data.recipe import AUTO, NATIVE, PrepareConfig
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.parallel import parallel_map
from splitshuffle_gan.volume import PLANES, plane_axes

# Fewer headers than this are read sooner than processes start.
WORTH_PROCESSES = 200
# By how much, relatively, an axis must be coarser than z to be the one through the slices.
COARSER = 1e-3
REASONS_SHOWN = 3


@dataclass(frozen=True)
class Survey:
    """What can be used: scans in the order of their names, for each its label map or None, and the set's grid.

    bad: {"source", "reason"} of what cannot be used, by name. plane: never "auto". spacing: mm (D, H, W).
    """

    scans: tuple[Scan, ...]
    labels: tuple[Scan | None, ...]
    bad: tuple[dict, ...]
    plane: str
    spacing: tuple[float, float, float]


def survey(config: PrepareConfig) -> Survey:
    """Find the scans and their label maps and read all headers.

    Raises UserError for a source without a usable scan, for scans of too different spacings when each is to keep its
    own, and, unless `config.skip_bad`, for anything that cannot be used.
    """
    found = find_scans(config.source, config.volume, config.correct_tilt)
    bad = [{"source": rejected.name, "reason": rejected.reason} for rejected in found.rejected]
    tasks, unlabelled = _with_labels(found, config)
    bad += unlabelled
    usable, spacings = [], []
    heads = parallel_map(_head, tasks, config.workers if len(tasks) > WORTH_PROCESSES else 1) if tasks else ()
    for task, head in zip(tasks, tqdm(heads, total=len(tasks), desc="headers", unit="scan", delay=2), strict=True):
        if isinstance(head, str):
            bad.append({"source": task[0].name, "reason": head})
        else:
            usable.append(task)
            spacings.append(head)
    bad.sort(key=lambda entry: entry["source"])
    if bad and not config.skip_bad:
        raise UserError(f"{say_reasons(bad)}; no dataset was written (--skip-bad leaves such scans out)")
    if not usable:
        raise UserError(f"source: all {len(bad)} scans of {config.source} are bad; {bad[0]['reason']}")
    plane, spacing = _grid(config, np.array(spacings), [scan.name for scan, _ in usable])
    return Survey(tuple(s for s, _ in usable), tuple(label for _, label in usable), tuple(bad), plane, spacing)


def say_reasons(bad: list[dict]) -> str:
    """The first reasons, each with its scan, and how many there are when there are more than one."""
    told = [e["reason"] if e["source"] in e["reason"] else f"{e['source']}: {e['reason']}" for e in bad[:REASONS_SHOWN]]
    return told[0] if len(bad) == 1 else f"{len(bad)} scans cannot be used: {'; '.join(told)}"


def _with_labels(found: Found, config: PrepareConfig) -> tuple[list[tuple[Scan, Scan | None]], list[dict]]:
    if config.labels is None:
        return [(scan, None) for scan in found.scans], []
    maps, pairs, bad = LabelMaps(config.source, config.labels, found.labels), [], []
    for scan in found.scans:
        try:
            pairs.append((scan, maps.of(scan)))
        except UserError as error:
            bad.append({"source": scan.name, "reason": str(error)})
    return pairs, bad


def _head(task: tuple[Scan, Scan | None]) -> tuple[float, float, float] | str:
    """The spacing (x, y, z) in mm, or what is wrong."""
    scan, label = task
    try:
        header = scan.header()
        if label is not None:
            check_grid(scan.name, header, label.header())
    except UserError as error:
        return str(error)
    return header.spacing("axial")[::-1]


def _grid(config: PrepareConfig, spacings: np.ndarray, names: list[str]) -> tuple[str, tuple[float, float, float]]:
    """The plane and the spacing (D, H, W) of the set from the spacings `[N, 3]` (x, y, z) of its scans."""
    median = np.median(spacings, axis=0)
    plane = config.plane
    if plane == AUTO:
        normal = 2 if median[2] * (1 + COARSER) >= median.max() else int(np.argmax(median))
        plane = next(name for name, axes in PLANES.items() if axes[0] == normal)
    if config.spacing not in (None, NATIVE):
        return plane, tuple(float(mm) for mm in config.spacing)
    axes = list(plane_axes(plane))
    spacing = tuple(round(float(mm), 5) for mm in median[axes])
    if config.spacing == NATIVE:
        off = np.abs(spacings[:, axes] / median[axes] - 1).max(axis=1)
        if off.max() > config.spacing_tolerance:
            worst = int(np.argmax(off))
            mine, others = (" x ".join(f"{mm:g}" for mm in row) for row in (spacings[worst, axes], spacing))
            raise UserError(
                f"spacing: native, but {np.count_nonzero(off > config.spacing_tolerance)} of {len(names)} scans are "
                f"more than {config.spacing_tolerance:.0%} off the median {others} mm, first of all {names[worst]} "
                f"with {mine} mm; leave --spacing out to bring all to the median, or raise --spacing-tolerance"
            )
    return plane, spacing
