"""Several prepared datasets as one, without copying a voxel."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from splitshuffle_gan.data.dataset import PreparedDataset
from splitshuffle_gan.data.manifest import union_of_manifests
from splitshuffle_gan.data.store import Rows, link
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import whole_folder, write_json

SAME_SPACING = 1e-3  # relative; headers are rounded


FIELDS = ("shape", "spacing", "plane", "labels", "intensity")


def check_alike(dataset: PreparedDataset, wanted: PreparedDataset, name: str, fields: Sequence[str] = FIELDS) -> None:
    """Raise UserError, with the field and `name` in it, unless the voxels of both mean the same.

    That is shape, spacing, plane, labels and intensities, or those of them in `fields`. A window beside percentiles
    passes: that is how samples of a generator come back exactly that was trained on percentiles.
    """
    for field in fields:
        found, other = (_field(part, field) for part in (dataset, wanted))
        same = found == other
        if field == "spacing":
            same = np.allclose(found, other, rtol=SAME_SPACING, atol=0)
        if field == "intensity":
            same = same or (found[0], other[0]) == ("window", "percentiles")
        if not same:
            said = [" ".join(f"{x:g}" if isinstance(x, float) else f"{x}" for x in value) for value in (found, other)]
            raise UserError(
                f"{name}: {field}: {dataset.folder} has {said[0] or 'none'}, {wanted.folder} {said[1] or 'none'}; "
                "prepare both alike"
            )


def write_union(parts: Sequence[PreparedDataset], folder: Path) -> Path:
    """Write a prepared dataset of all volumes of `parts`, alike as by `check_alike`, and return its folder.

    Its array files are those of the parts under other names; copies where the file system knows no links.
    """
    names = {"volumes": "float32"} | ({"labels": "uint8"} if all(part.labels is not None for part in parts) else {})
    with whole_folder(folder) as building:
        for name, dtype in names.items():
            files = [_rows(part, name, dtype) for part in parts]
            counts = tuple(chain.from_iterable(rows.counts for rows in files))
            union = Rows(building, name, dtype, parts[0].shape, counts, sharded=True)
            sources = chain.from_iterable(rows.paths() for rows in files)
            for source, target in zip(sources, union.paths(), strict=True):
                link(source, target)
        write_json(building / "manifest.json", union_of_manifests([part.manifest for part in parts], list(counts)))
    return folder


def _rows(dataset: PreparedDataset, name: str, dtype: str) -> Rows:
    sharded = "shards" in dataset.manifest
    counts = tuple(dataset.manifest["shards"]) if sharded else (len(dataset),)
    return Rows(dataset.folder, name, dtype, dataset.shape, counts, sharded)


def _field(dataset: PreparedDataset, field: str) -> tuple:
    if field == "labels":
        return dataset.structures
    if field == "plane":
        return (dataset.plane,)
    if field == "intensity":
        intensity = dataset.manifest["intensity"]
        window = intensity["mode"] == "window"
        bounds = (intensity["low"], intensity["high"]) if window else intensity["percentiles"]
        return (intensity["mode"], *map(float, bounds))
    return getattr(dataset, field)
