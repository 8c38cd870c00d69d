"""Find lesions in whole scans: places in RAS mm with confidences, and heat maps as NIfTI on each scan's own grid."""

import csv
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from tqdm import tqdm

from splitshuffle_gan.data.readers.scan import Scan
from splitshuffle_gan.devices import make_accelerator
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json
from splitshuffle_gan.segmentation.infer import ask, open_segmenter, record, scans_of, write_over
from splitshuffle_gan.segmentation.lesions import LEAST, find_peaks
from splitshuffle_gan.segmentation.options import DetectConfig
from splitshuffle_gan.segmentation.predict import OVERLAP
from splitshuffle_gan.segmentation.segmenter import Segmenter
from splitshuffle_gan.volume import Volume

RECORD = "detect.json"
TABLE = "finds.csv"
DESCRIPTION = "lesion heat map, splitshuffle_gan"
COLUMNS = ("confidence", "x", "y", "z")


def detect(config: DetectConfig) -> Path:
    """Write the folder `config.out`, whole or not at all, and return it.

    Raises UserError for a checkpoint that cannot be used, and for the first scan that cannot.
    """
    refuse_existing(config.out, config.overwrite, RECORD, keep=(config.checkpoint, *config.scans))
    accelerator = make_accelerator(config.mixed_precision)
    segmenter = open_segmenter(config.checkpoint, detects=True).to(accelerator.device)
    scans = scans_of(config)
    with whole_folder(config.out) as folder:
        files = {}
        for name, scan in tqdm(scans.items(), desc="detect", unit="scan"):
            heat, finds = detect_scan(segmenter, scan, accelerator, config.overlap, config.least)
            write_over(heat, scan, segmenter.geometry, folder / name, np.float32, DESCRIPTION)
            files[name] = {"source": scan.name, "paths": [str(path) for path in scan.paths[:1]], "finds": finds}
        settings = record(config, segmenter, accelerator) | {"least": config.least}
        write_json(folder / RECORD, settings | {"files": files})
        _write_table({name: entry["finds"] for name, entry in files.items()}, folder / TABLE)
    return config.out


def detect_scan(
    segmenter: Segmenter, scan: Scan, accelerator: Accelerator, overlap: float = OVERLAP, least: float = LEAST
) -> tuple[Volume, list[dict[str, float]]]:
    """The heat map on the scan's grid in the network's plane, and its peaks: "confidence" and "x", "y", "z" in RAS mm.

    The surest comes first; none is below `least`. Peaks are those of the network's own grid, as in its validation.
    """
    answer = ask(segmenter, scan, accelerator, overlap)
    voxels, heights = find_peaks(answer.shares[0].numpy(), segmenter.geometry["spacing"], segmenter.config.sigma, least)
    rows = np.column_stack([heights, answer.places(voxels)]).tolist()
    finds = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    return Volume(answer.on_scan(0)[None], answer.affine), finds


def _write_table(finds: dict[str, list[dict[str, float]]], path: Path) -> None:
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, ("scan", *COLUMNS))
        table.writeheader()
        for name, rows in finds.items():
            table.writerows({"scan": name} | {key: round(value, 4) for key, value in row.items()} for row in rows)
