"""The record of a prepared dataset: written by `prepare`, read by `open_dataset`."""

import hashlib

import numpy as np

from splitshuffle_gan import __version__
from splitshuffle_gan.data.recipe import PrepareConfig
from splitshuffle_gan.data.survey import Survey
from splitshuffle_gan.errors import UserError

FORMAT = "splitshuffle-dataset"
VERSION = 1


def make_manifest(
    config: PrepareConfig, found: Survey, volumes: list[dict], skipped: list[dict], shards: list[int] | None
) -> dict:
    """Plain JSON, and the same for the same scans and settings.

    `volumes` are the entries of the rows, in order; `skipped` lists {"source", "reason"}; `shards` the rows of each
    array file, None for one file of all.
    """
    if config.window is not None:
        intensity = {"mode": "window", "low": float(config.window[0]), "high": float(config.window[1])}
    else:
        low, high = np.median([[v["intensity"]["low"], v["intensity"]["high"]] for v in volumes], axis=0).tolist()
        intensity = {"mode": "percentiles", "percentiles": config.percentiles, "source_low": low, "source_high": high}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "shape": [int(side) for side in config.shape],
        "spacing": [float(length) for length in found.spacing],
        "plane": found.plane,
        "intensity": intensity,
        "count": len(volumes),
        # Of the prepared volumes' own hashes, in order.
        "data_hash": _hash_of(volumes),
        "created_with": {"splitshuffle_gan": __version__, "config": config.to_dict()},
    }
    if shards is not None:
        manifest["shards"] = shards
    if config.labels is not None:
        manifest["labels"] = _labels(volumes, config.label_resample)
        for number, group in enumerate(config.structures or (), start=1):
            if number not in manifest["labels"]["values"]:
                raise UserError(f"structures: no prepared volume has any of the labels {group}; leave that entry out")
    return manifest | {"volumes": volumes, "skipped": skipped}


def part_of_manifest(manifest: dict, rows: list[int], shards: list[int] | None) -> dict:
    """The manifest of a dataset that keeps `rows`, in this order, of the one of `manifest`; `shards` as above.

    What holds for all volumes alike stays; "part_of" names the whole by its hash.
    """
    volumes = [manifest["volumes"][row] for row in rows]
    part = manifest | {"count": len(volumes), "data_hash": _hash_of(volumes), "part_of": manifest["data_hash"]}
    if shards is not None:
        part["shards"] = shards
    if "labels" in manifest:
        part["labels"] = _labels(volumes, manifest["labels"]["resample"])
    return part | {"volumes": volumes, "skipped": []}


def union_of_manifests(manifests: list[dict], shards: list[int]) -> dict:
    """The manifest of a dataset of all volumes of those of `manifests`, one after the other, in files of `shards` rows.

    What must be alike is that of the first; "union_of" names the parts by their hashes.
    """
    volumes = [entry for manifest in manifests for entry in manifest["volumes"]]
    intensity = manifests[0]["intensity"]
    if intensity["mode"] == "percentiles":
        low, high = np.median([[v["intensity"]["low"], v["intensity"]["high"]] for v in volumes], axis=0).tolist()
        intensity = intensity | {"source_low": low, "source_high": high}
    hashes = [manifest["data_hash"] for manifest in manifests]
    union = {key: value for key, value in manifests[0].items() if key not in ("part_of", "labels")} | {
        "intensity": intensity,
        "count": len(volumes),
        "data_hash": _hash_of(volumes),
        "created_with": {"splitshuffle_gan": __version__, "union_of": hashes},
        "union_of": hashes,
        "shards": shards,
    }
    if all("labels" in manifest for manifest in manifests):
        kinds = sorted({manifest["labels"]["resample"] for manifest in manifests})
        union["labels"] = _labels(volumes, " and ".join(kinds))
    return union | {"volumes": volumes, "skipped": []}


def _labels(volumes: list[dict], resample: str) -> dict:
    entries = [entry["labels"] for entry in volumes]
    values = sorted({value for entry in entries for value in entry["values"]})
    return {"values": values, "resample": resample, "data_hash": _hash_of(entries)}


def _hash_of(entries: list[dict]) -> str:
    return hashlib.sha256("".join(entry["prepared_sha256"] for entry in entries).encode()).hexdigest()
