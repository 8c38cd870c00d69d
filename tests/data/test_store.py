"""Rows in NumPy files, read as one array."""

import subprocess

import nibabel as nib
import numpy as np
import pytest

from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.data.store import Rows, Shards, open_rows, split_rows
from splitshuffle_gan.errors import UserError

SHAPE = (3, 4, 5)
TRUTH = np.random.default_rng(0).normal(size=(7, 1, *SHAPE)).astype(np.float32)


def fill(rows: Rows) -> Rows:
    rows.create()
    for row in (5, 0, 6, 2, 1, 4, 3):
        rows.write(row, TRUTH[row, 0])
    return rows


@pytest.fixture(params=[None, 3, 7, 1])
def rows(request, tmp_path) -> Rows:
    counts = split_rows(len(TRUTH), request.param)
    return fill(Rows(tmp_path / "rows", "volumes", "float32", SHAPE, counts, request.param is not None))


def test_rows_written_in_any_order_are_one_array(rows):
    assert rows.exist()
    array = open_rows(rows)
    assert isinstance(array, Shards if rows.sharded else np.memmap)
    assert (array.shape, array.dtype, len(array), array.ndim) == (TRUTH.shape, np.float32, 7, 5)
    assert (array.size, array.nbytes) == (TRUTH.size, TRUTH.nbytes)
    np.testing.assert_array_equal(np.array(array), TRUTH)
    np.testing.assert_array_equal(rows.read(5), TRUTH[5, 0])


def test_the_files_are_plain_numpy_files(rows):
    parts = [np.load(path) for path in rows.paths()]
    np.testing.assert_array_equal(np.concatenate(parts), TRUTH)
    names = [path.name for path in rows.paths()]
    assert names == ["volumes.npy"] if not rows.sharded else [f"volumes-{i:05d}.npy" for i in range(len(names))]


@pytest.mark.parametrize(
    "key",
    [
        *(0, 6, -1, -7, np.int64(4), slice(None), slice(2, 6), slice(None, None, -2), slice(4, 4)),
        *([4, 0, 4], np.array([1, -2]), np.arange(7) % 2 == 0, []),
        *(
            (3, 0),
            (3, 0, 2),
            (3, slice(None), 1),
            (slice(None), 0),
            (slice(1, 5), 0, slice(None), 2),
            ([5, 1], 0, 1, 2, 3),
        ),
        *((2, ...), (slice(2, 3), ..., 0), (slice(0, 0), 0)),
    ],
    ids=str,
)
def test_indexing_is_that_of_numpy(rows, key):
    if isinstance(key, list) and not key:
        key = np.array([], int)
    np.testing.assert_array_equal(open_rows(rows)[key], TRUTH[key])


@pytest.mark.parametrize("key", [7, -8, ..., None, ([0, 1], 0, [1, 2]), np.zeros((2, 2), int)], ids=str)
def test_shards_refuse_what_they_would_get_wrong(tmp_path, key):
    array = open_rows(fill(Rows(tmp_path / "rows", "volumes", "float32", SHAPE, split_rows(7, 2), True)))
    with pytest.raises(IndexError):
        array[key]


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4, 5, 6], [0, 2, 3, 6], [4], [0, 1, 2, 6]], ids=str)
def test_rows_left_out_leave_no_holes(rows, tmp_path, kept):
    result = rows.keep(kept, tmp_path / "kept")
    assert all(result.counts) and sum(result.counts) == len(kept)
    assert result.exist()
    np.testing.assert_array_equal(np.array(open_rows(result)), TRUTH[kept])
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [path.name for path in result.paths()]
    # What it was made of is whole, so that it can be made again.
    np.testing.assert_array_equal(np.array(open_rows(rows)), TRUTH)


def test_a_file_of_another_size_is_not_there(rows):
    with open(rows.paths()[-1], "ab") as file:
        file.write(b"x")
    assert not rows.exist()
    rows.paths()[-1].unlink()
    assert not rows.exist()
    with pytest.raises(UserError, match="does not exist"):
        open_rows(rows)


def test_rows_are_split_into_full_files_and_a_rest():
    assert split_rows(7, 3) == (3, 3, 1)
    assert split_rows(6, 3) == (3, 3)
    assert split_rows(7, None) == (7,)
    assert split_rows(2, 100) == (2,)


def test_there_is_no_row_beyond_the_last(rows):
    with pytest.raises(IndexError):
        rows.read(7)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB; skips where none can be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    except OSError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("mounting a tmpfs needs rights that are not there")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_before_the_work(small_disk, tmp_path):
    (tmp_path / "scans").mkdir()
    for number in range(4):
        voxels = np.random.default_rng(number).uniform(0, 1000, (16, 16, 16)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "scans" / f"{number}.nii.gz")
    with pytest.raises(UserError, match=r"disk is full at .*small.*: volumes.npy needs 0.1 MiB, 0.1 MiB are free"):
        prepare(PrepareConfig(tmp_path / "scans", small_disk / "dataset", (16, 16, 16), workers=1))
    assert not any(small_disk.iterdir())
