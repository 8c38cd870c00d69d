"""Datasets put together."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from splitshuffle_gan.data.dataset import VolumeDataset, open_dataset
from splitshuffle_gan.data.split import write_part
from splitshuffle_gan.data.union import check_alike, write_union
from splitshuffle_gan.errors import UserError


@pytest.fixture
def parts(tiny_pairs, tmp_path) -> list:
    """Two volumes, and three others."""
    whole = open_dataset(tiny_pairs)
    for name, rows in (("a", [0, 4]), ("b", [1, 2, 5])):
        write_part(whole, rows, tmp_path / name)
    return [open_dataset(tmp_path / name) for name in ("a", "b")]


def changed(dataset, folder: Path, **fields):
    """A copy whose manifest says something else."""
    shutil.copytree(dataset.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | fields))
    return open_dataset(folder)


def test_all_volumes_and_labels_one_after_the_other(parts, tiny_pairs, tmp_path):
    whole, union = open_dataset(tiny_pairs), open_dataset(write_union(parts, tmp_path / "union"))
    rows = [0, 4, 1, 2, 5]
    assert len(union) == len(VolumeDataset(union)) == 5
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(union.volumes[place], whole.volumes[row])
        np.testing.assert_array_equal(union.labels[place], whole.labels[row])
    sources = [entry["source"] for entry in union.manifest["volumes"]]
    assert sources == [whole.manifest["volumes"][row]["source"] for row in rows]
    assert (union.shape, union.spacing, union.plane) == (whole.shape, whole.spacing, whole.plane)
    assert union.structures == (2, 5) and union.manifest["intensity"] == whole.manifest["intensity"]
    assert union.manifest["union_of"] == [part.data_hash for part in parts]
    assert len({union.data_hash, *union.manifest["union_of"]}) == 3


def test_no_voxel_is_copied(parts, tmp_path):
    union = write_union(parts, tmp_path / "union")
    for number, part in enumerate(parts):
        for name in ("volumes", "labels"):
            assert os.path.samefile(union / f"{name}-{number:05d}.npy", part.folder / f"{name}.npy")


def test_a_union_of_unions(parts, tmp_path):
    union = open_dataset(write_union(parts, tmp_path / "union"))
    twice = open_dataset(write_union([union, parts[0]], tmp_path / "twice"))
    np.testing.assert_array_equal(twice.volumes, np.concatenate([union.volumes, parts[0].volumes]))
    assert twice.manifest["shards"] == [2, 3, 2]


def test_percentiles_are_the_medians_of_all(parts, tmp_path):
    for part, low in zip(parts, (0.0, 10.0), strict=True):
        for entry in part.manifest["volumes"]:
            entry["intensity"] = {"kind": "percentiles", "low": low, "high": 100 + low}
        part.manifest["intensity"] = {
            "mode": "percentiles", "percentiles": [1, 99], "source_low": low, "source_high": 100 + low,
        }  # fmt: skip
    intensity = open_dataset(write_union(parts, tmp_path / "union")).manifest["intensity"]
    assert (intensity["source_low"], intensity["source_high"], intensity["percentiles"]) == (10.0, 110.0, [1, 99])


def test_without_labels_on_one_side_there_are_none(parts, tiny_dataset, tmp_path):
    union = open_dataset(write_union([parts[0], open_dataset(tiny_dataset)], tmp_path / "union"))
    assert union.labels is None and union.structures == () and len(union) == 8


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("spacing", {"spacing": [2.0, 1.01, 1.5]}),
        ("plane", {"plane": "coronal"}),
        ("labels", {"labels": {"values": [0, 2], "resample": "nearest", "data_hash": ""}}),
        ("intensity", {"intensity": {"mode": "window", "low": 0.0, "high": 999.0}}),
        ("intensity", {"intensity": {"mode": "percentiles", "percentiles": [1, 99], "source_low": 0,
                                     "source_high": 9}}),
    ],
)  # fmt: skip
def test_what_differs_is_named(parts, tmp_path, field, fields):
    other = changed(parts[0], tmp_path / "other", **fields)
    with pytest.raises(UserError, match=rf"^synthetic: {field}: .*other has .* prepare both alike$"):
        check_alike(other, parts[1], "synthetic")


def test_another_shape_is_named(parts, tmp_path):
    parts[0].manifest["shape"] = [8, 16, 16]
    with pytest.raises(UserError, match=r"^it: shape: .* has 8 16 16, .* 8 16 8"):
        check_alike(parts[0], parts[1], "it")


def test_rounded_headers_and_a_window_beside_percentiles_are_alike(parts, tmp_path):
    check_alike(changed(parts[0], tmp_path / "c", spacing=[2.0002, 1.0, 1.5]), parts[1], "it")
    percentiles = {"mode": "percentiles", "percentiles": [1, 99], "source_low": 0, "source_high": 9}
    check_alike(parts[0], changed(parts[1], tmp_path / "d", intensity=percentiles), "it")
