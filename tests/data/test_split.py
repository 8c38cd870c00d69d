"""Which volumes are set aside, and that what is written is a dataset like any other."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.data.phantom import write_phantoms
from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.data.split import SplitConfig, split, split_rows_by_name
from splitshuffle_gan.errors import UserError

NAMES = st.lists(st.text("abc01", min_size=1, max_size=6), min_size=3, max_size=30, unique=True)


@pytest.fixture(scope="module", params=[None, 3], ids=["one file", "shards"])
def dataset(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("split")
    write_phantoms("brain", 8, (16, 16, 16), (12.0, 12.0, 12.0), seed=0, out=folder / "scans")
    config = PrepareConfig(
        source=folder / "scans" / "images", out=folder / "set", shape=(16, 16, 16), labels="auto",
        shard_size=request.param, workers=1,
    )  # fmt: skip
    return prepare(config)


@given(NAMES, st.integers(1, 2))
def test_parts_are_disjoint_and_whole(names, held_out):
    aside, rest = split_rows_by_name(names, held_out)
    assert len(aside) == held_out
    assert sorted(aside + rest) == list(range(len(names)))


@given(NAMES)
def test_the_order_of_the_scans_does_not_matter(names):
    aside, _ = split_rows_by_name(names, 2)
    other, _ = split_rows_by_name(names[::-1], 2)
    assert {names[row] for row in aside} == {names[::-1][row] for row in other}


@given(NAMES, st.text("xyz", min_size=1, max_size=4))
def test_one_more_scan_moves_at_most_one(names, new):
    before = {names[row] for row in split_rows_by_name(names, 2)[0]}
    grown = [*names, new]
    after = {grown[row] for row in split_rows_by_name(grown, 2)[0]}
    assert len(before - after) <= 1 and after - before <= {new}


def test_rule_is_the_sha256_of_the_name():
    names = [f"scan_{i}.nii.gz" for i in range(10)]
    first = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:3]
    assert {names[row] for row in split_rows_by_name(names, 3)[0]} == set(first)


def test_fewer_to_train_on_are_a_part_of_more():
    names = [f"scan_{i}" for i in range(20)]
    kept = [set(split_rows_by_name(names, 5, train)[1]) for train in (3, 8, 15)]
    assert [len(rows) for rows in kept] == [3, 8, 15]
    assert kept[0] < kept[1] < kept[2]


@given(st.integers(1, 6))
def test_scans_of_a_patient_stay_together(held_out):
    names = [f"sub-{i:02d}/visit{j}.nii" for i in range(6) for j in range(3)]
    aside, rest = split_rows_by_name(names, held_out, patient=r"sub-\d+")
    patients = [{names[row].split("/")[0] for row in rows} for rows in (aside, rest)]
    assert not patients[0] & patients[1]
    assert held_out <= len(aside) < held_out + 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": 10}, "held_out: 10 of 10 volumes set aside leave 0"),
        ({"held_out": 0}, "held_out: found 0"),
        ({"held_out": 3, "train": 8}, "leave 7, wanted 8"),
        ({"held_out": 3, "patient": "p[0-9]"}, "finds nothing in the scan's name scan_0"),
        ({"held_out": 3, "patient": "("}, "not a regular expression"),
    ],
)
def test_what_cannot_be_split(options, message):
    with pytest.raises(UserError) as error:
        split_rows_by_name([f"scan_{i}" for i in range(10)], **options)
    assert message in str(error.value)


def test_parts_open_with_their_volumes_and_labels(dataset, tmp_path):
    whole = open_dataset(dataset)
    folders = split(SplitConfig(data=dataset, out=tmp_path / "parts", held_out=3))
    record = json.loads((tmp_path / "parts" / "split.json").read_text())
    names = [entry["source"] for entry in whole.manifest["volumes"]]
    for folder, name in zip(folders, ("train", "held_out"), strict=True):
        part = open_dataset(folder)
        rows = [names.index(source) for source in record[name]]
        assert len(part) == len(rows) == {"train": 5, "held_out": 3}[name]
        np.testing.assert_array_equal(np.asarray(part.volumes), np.asarray(whole.volumes)[rows])
        np.testing.assert_array_equal(np.asarray(part.labels), np.asarray(whole.labels)[rows])
        assert part.manifest["part_of"] == whole.data_hash != part.data_hash
        assert part.spacing == whole.spacing and part.manifest["intensity"] == whole.manifest["intensity"]


def test_an_earlier_split_is_kept_unless_told(dataset, tmp_path):
    config = SplitConfig(data=dataset, out=tmp_path / "parts", held_out=3)
    split(config)
    with pytest.raises(UserError, match="exists already"):
        split(config)
    split(SplitConfig(data=dataset, out=tmp_path / "parts", held_out=2, overwrite=True))
    assert len(open_dataset(tmp_path / "parts" / "held_out")) == 2
