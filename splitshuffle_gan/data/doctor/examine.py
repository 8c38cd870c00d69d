"""What a set of scans is like, what is wrong with it, and which `prepare` fits it, before anything is trained."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from tqdm import tqdm

from splitshuffle_gan import __version__
from splitshuffle_gan.data.doctor.findings import judge
from splitshuffle_gan.data.doctor.measure import measure
from splitshuffle_gan.data.doctor.picture import draw_views, picture
from splitshuffle_gan.data.doctor.proposal import propose
from splitshuffle_gan.data.doctor.report import markdown, summarise
from splitshuffle_gan.data.readers.scan import Rejected, Scan
from splitshuffle_gan.data.readers.scans import find_scans
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json
from splitshuffle_gan.parallel import parallel_map

FORMAT, VERSION = "splitshuffle-doctor", 1
THUMBNAILS = 24
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
    findings = judge(read, rejected)
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
        "proposal": propose(source, config.volume, read, findings, rate),
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
