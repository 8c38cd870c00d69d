"""Volumes on disk: NumPy files that hold a row per volume, written in any order and read as one array."""

import errno
import io
import os
import shutil
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from splitshuffle_gan.errors import UserError

REMEDY = "prepare the dataset again"


def split_rows(count: int, size: int | None) -> tuple[int, ...]:
    """How many of `count` rows each file holds: at most `size`; None is one file."""
    size = size or count
    return tuple(min(size, count - start) for start in range(0, count, size))


@dataclass(frozen=True)
class Rows:
    """Rows `[1, *shape]` of one `dtype` in files of `counts` rows each: `name.npy`, or `name-00000.npy` and so on."""

    folder: Path
    name: str
    dtype: str
    shape: tuple[int, int, int]
    counts: tuple[int, ...]
    sharded: bool

    def paths(self) -> list[Path]:
        """The files, in order."""
        names = [f"{self.name}-{i:05d}.npy" for i in range(len(self.counts))] if self.sharded else [f"{self.name}.npy"]
        return [self.folder / name for name in names]

    def exist(self) -> bool:
        """Whether every file is there, of the size that it will keep."""
        expected = zip(self.paths(), self.counts, strict=True)
        return all(path.is_file() and path.stat().st_size == self._file_bytes(count) for path, count in expected)

    def create(self) -> None:
        """Make the files, their room on disk reserved: better refused now than after hours of work.

        Raises UserError on a full disk.
        """
        self.folder.mkdir(exist_ok=True)
        for path, count in zip(self.paths(), self.counts, strict=True):
            try:
                self._reserve(path, count)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                wanted, free = self._file_bytes(count) / 2**20, shutil.disk_usage(self.folder).free / 2**20
                room = f"{path.name} needs {wanted:.1f} MiB, {free:.1f} MiB are free"
                raise UserError(f"out: the disk is full at {self.folder}: {room}; choose another place") from error

    def _reserve(self, path: Path, count: int) -> None:
        with open(path, "wb") as file:
            file.write(self._header(count))
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, self._file_bytes(count))
            else:
                file.truncate(self._file_bytes(count))

    def write(self, row: int, array: np.ndarray) -> None:
        """Put `[D, H, W]` into its place."""
        path, start = self._place(row)
        with open(path, "r+b") as file:
            file.seek(start)
            file.write(np.ascontiguousarray(array, dtype=self.dtype).data)

    def read(self, row: int) -> np.ndarray:
        """`[D, H, W]` of one row, in memory."""
        path, start = self._place(row)
        with open(path, "rb") as file:
            file.seek(start)
            return np.frombuffer(file.read(self._row_bytes), dtype=self.dtype).reshape(self.shape)

    def keep(self, rows: Iterable[int], folder: Path) -> "Rows":
        """The same in `folder` with these rows only, in this ascending order. Files that lose no row are linked."""
        starts = [0, *accumulate(self.counts)]
        per_file: list[list[int]] = [[] for _ in self.counts]
        for row in rows:
            per_file[bisect_right(starts, row) - 1].append(row)
        kept = [(i, chosen) for i, chosen in enumerate(per_file) if chosen]
        result = replace(self, folder=folder, counts=tuple(len(chosen) for _, chosen in kept))
        folder.mkdir(exist_ok=True)
        for (i, chosen), path in zip(kept, result.paths(), strict=True):
            if len(chosen) == self.counts[i]:
                link(self.paths()[i], path)
                continue
            with open(path, "wb") as file:
                file.write(self._header(len(chosen)))
                for row in chosen:
                    file.write(self.read(row).data)
                file.flush()
                os.fsync(file.fileno())
        return result

    @property
    def _row_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def _file_bytes(self, count: int) -> int:
        return len(self._header(count)) + count * self._row_bytes

    def _header(self, count: int) -> bytes:
        header = io.BytesIO()
        fields = {"descr": np.dtype(self.dtype).str, "fortran_order": False, "shape": (count, 1, *self.shape)}
        np.lib.format.write_array_header_1_0(header, fields)
        return header.getvalue()

    def _place(self, row: int) -> tuple[Path, int]:
        """The row's file, and where in it the row begins, in bytes."""
        for path, count in zip(self.paths(), self.counts, strict=True):
            if row < count:
                return path, len(self._header(count)) + row * self._row_bytes
            row -= count
        raise IndexError(f"there is no row {row} beyond {sum(self.counts)}")


class Shards:
    """Arrays of equal rows, one after the other, read as one. Indexed like NumPy; more than one row is a copy.

    The first index may be a whole number, a slice, or a list or mask of rows; the others whole numbers and slices.
    """

    def __init__(self, parts: list[np.ndarray]):
        self._parts = parts
        self._starts = [0, *accumulate(len(part) for part in parts)]
        self.shape = (self._starts[-1], *parts[0].shape[1:])
        self.dtype = parts[0].dtype
        self.ndim = len(self.shape)
        self.size = int(np.prod(self.shape))
        self.nbytes = self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> np.ndarray:
        first, *rest = key if isinstance(key, tuple) else (key,)
        if isinstance(first, (int, np.integer)):
            return self._row(int(first), rest)
        rows = np.arange(len(self))[first]
        if first is Ellipsis or first is None or rows.ndim != 1 or any(np.ndim(r) for r in rest if r is not Ellipsis):
            raise IndexError(f"{key!r}: rows first, as a number, a slice or a list; then numbers and slices")
        if not len(rows):
            return np.empty((0, *self._parts[0].shape[1:]), self.dtype)[(slice(None), *rest)]
        return np.stack([self._row(row, rest) for row in rows.tolist()])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.concatenate(self._parts).astype(dtype or self.dtype, copy=False)

    def _row(self, row: int, rest: list) -> np.ndarray:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        part = bisect_right(self._starts, row) - 1
        return self._parts[part][(row - self._starts[part], *rest)]


def open_rows(rows: Rows) -> np.memmap | Shards:
    """The files, memory-mapped and read as one array `[N, 1, D, H, W]`; voxels are not read.

    Raises UserError naming the file that is missing, damaged or does not fit.
    """
    parts = [
        _open_part(path, (n, 1, *rows.shape), rows.dtype) for path, n in zip(rows.paths(), rows.counts, strict=True)
    ]
    return Shards(parts) if rows.sharded else parts[0]


def _open_part(path: Path, wanted: tuple[int, ...], dtype: str) -> np.memmap:
    if not path.exists():
        raise UserError(f"{path} does not exist; make the dataset with `splitshuffle prepare`")
    try:
        part = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not a whole NumPy array ({error}); {REMEDY}") from error
    if part.shape != wanted or part.dtype != dtype:
        found = f"{path}: holds {part.dtype} {part.shape}"
        raise UserError(f"{found}, but manifest.json's count and shape say {dtype} {wanted}; {REMEDY}")
    return part


def link(source: Path, target: Path) -> None:
    """A second name for a file; a copy where the file system knows no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
