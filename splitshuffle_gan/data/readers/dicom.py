"""DICOM series to Volumes: files to scans by what their headers say, and a scan's voxels in its place.

Values are stored pixels times RescaleSlope plus RescaleIntercept, slice by slice. MONOCHROME1 and PixelPaddingValue
change how a viewer shows values, not what they mean (a CT stays in HU), so they lead to a remark only.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
from nibabel.orientations import aff2axcodes, apply_orientation, inv_ornt_aff, io_orientation
from tqdm import tqdm

from splitshuffle_gan.data.readers.dicom_file import DicomFile, decoder_missing, examine_files, read_pixels
from splitshuffle_gan.data.readers.dicom_frame import Frame
from splitshuffle_gan.data.readers.dicom_series import Stack, build_stack, check_parallel, describe, split_parts
from splitshuffle_gan.data.readers.scan import Header, Rejected, Scan
from splitshuffle_gan.data.resample import resample
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.parallel import parallel_map
from splitshuffle_gan.volume import Volume, from_xyz

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
CHUNK = 256  # headers that a process reads at a time; fewer files than two chunks are not worth a process


@dataclass(frozen=True)
class DicomScan(Scan):
    """A series, or a part of one, whose frames form a volume; `find_series` makes them."""

    stack: Stack
    modality: str
    remarks: tuple[str, ...]
    personal: tuple[str, ...]

    def header(self) -> Header:
        """What the files' headers said when the series was found; nothing is read again."""
        affine, shape = LPS_TO_RAS @ self.stack.affine, (self.stack.columns, self.stack.rows, len(self.stack.frames))
        orientation, canonical = _canonical(affine, shape)
        return Header(
            shape=tuple(shape[int(axis)] for axis in np.argsort(orientation[:, 0])),
            affine=canonical,
            dtype=str(np.result_type(*{frame.layout.dtype for frame in self.stack.frames})),
            modality=self.modality,
            orientation="".join(aff2axcodes(affine)),
            remarks=self.remarks,
            personal=self.personal,
        )

    def read(self, plane: str = "axial") -> Volume:
        """The voxels, see `Scan.read`; a corrected tilt fills what no slice covers with the scan's least value.

        Raises UserError naming the file when one is missing, damaged, cannot be decoded or has changed.
        """
        stack, places, array = self.stack, {}, None
        for place, frame in enumerate(stack.frames):
            places.setdefault(frame.path, []).append((place, frame))
        for path, wanted in places.items():
            found, pixels = read_pixels(path)
            for place, frame in wanted:
                if frame.index >= len(found) or found[frame.index] != frame:
                    raise UserError(f"{path}: has changed since the series was found; search the source again")
                if array is None:  # not before a file has shown that its size is no damage
                    array = np.empty((len(stack.frames), *pixels.shape[1:]), np.float32)
                array[place] = pixels[frame.index] * np.float64(frame.slope) + frame.intercept
        if stack.shifts:
            array = _sheared(array, stack)
        affine = LPS_TO_RAS @ stack.affine
        array = array.transpose(2, 1, 0)
        orientation, canonical = _canonical(affine, array.shape)
        return from_xyz(apply_orientation(array, orientation), canonical, plane)


def find_series(
    files: list[Path], root: Path, correct_tilt: bool = False, workers: int = 0
) -> tuple[list[DicomScan], list[Rejected]]:
    """All volumes in a list of files, sorted by name, and what is none, with the reason; only headers are read.

    Files are grouped by SeriesInstanceUID. A series whose frames disagree in size, direction, pixel spacing,
    photometric interpretation or frame of reference is split into parts, each a scan of its own if it is a volume.
    Slices are ordered by position along their normal, and must be evenly spaced there. A name is the files' common
    folder, relative to `root`, and the series' number; nothing of a header that could be personal.
    correct_tilt: shear a series of a tilted gantry upright, by shifting each slice; otherwise it is rejected.
    workers: processes for many files, 0 for one per core.
    """
    base = Path(root) if Path(root).is_dir() else Path(root).parent
    files = sorted(Path(path) for path in files)
    rejected: list[Rejected] = []
    series: dict[tuple[str, ...], list[DicomFile]] = {}
    for file in _examined(files, workers):
        if file.reason:
            rejected.append(Rejected(_relative(file.path, base), file.reason))
        if file.series:
            series.setdefault(file.series, []).append(file)
    scans: list[DicomScan] = []
    for name, members in _named(series, base):
        if any(file.frames for file in members):
            good, bad = _scans_of(name, members, correct_tilt, base)
            scans += good
            rejected += bad
    return sorted(scans, key=lambda scan: scan.name), sorted(rejected, key=lambda bad: bad.name)


def _examined(files: list[Path], workers: int) -> list[DicomFile]:
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    results = parallel_map(examine_files, chunks, workers if len(chunks) > 2 else 1) if chunks else []
    progress = tqdm(results, total=len(chunks), desc="DICOM headers", unit=f"x{CHUNK} files", delay=2, leave=False)
    return [file for found in progress for file in found]


def _scans_of(
    name: str, members: list[DicomFile], correct_tilt: bool, base: Path
) -> tuple[list[DicomScan], list[Rejected]]:
    """The volumes of one series and its parts that are none."""
    frames = [frame for file in members for frame in file.frames]
    try:
        for syntax in {file.syntax for file in members if file.frames}:
            if missing := decoder_missing(syntax):
                raise UserError(missing)
        parts, outside = check_parallel(split_parts(frames))
    except UserError as error:
        return [], [Rejected(name, f"a series of {len(frames)} slices: {error}")]
    odd = "not parallel to the other slices of its series, as a localizer; leave it out"
    strays = dict.fromkeys(frame.path for part in outside for frame in part)
    scans, rejected = [], [Rejected(_relative(path, base), odd) for path in strays]
    unusable = sum(bool(file.reason) for file in members) + len(rejected)
    remarks = [f"files of the series that are left out: {unusable}; see what was rejected"] if unusable else []
    if len(parts) > 1:
        remarks.append(f"one part of a mixed series: {', '.join(map(describe, parts))}")
    for number, part in enumerate(parts, start=1):
        own = name if len(parts) == 1 else f"{name}-part-{number}"
        try:
            stack = build_stack(part, _same_pixels(), correct_tilt)
        except UserError as error:
            context = "the series" if len(parts) == 1 else f"a part of a mixed series ({describe(part)})"
            context += f" without {unusable} files that are rejected themselves" if unusable else ""
            rejected.append(Rejected(own, f"{context}: {error}"))
            continue
        scans.append(_scan(own, stack, members, remarks))
    return scans, rejected


def _scan(name: str, stack: Stack, members: list[DicomFile], remarks: list[str]) -> DicomScan:
    paths = tuple(dict.fromkeys(frame.path for frame in stack.frames))
    own = [file for file in members if file.path in set(paths)]
    said = dict.fromkeys(remark for file in own for remark in file.remarks)
    named = dict.fromkeys(tag for file in own for tag in file.personal)
    return DicomScan(name, paths, stack, own[0].modality, (*stack.remarks, *said, *remarks), tuple(named))


def _named(series: dict[tuple[str, ...], list[DicomFile]], base: Path) -> list[tuple[str, list[DicomFile]]]:
    """Series with their names; a hash of the UID tells apart what would have the same name."""
    plain = []
    for uids, members in series.items():
        folder = _relative(Path(os.path.commonpath([file.path.parent for file in members])), base)
        number = next((file.number for file in members if file.number is not None), None)
        name = "series" if number is None else f"series-{number:03d}"
        plain.append((name if folder == "." else f"{folder}/{name}", uids, members))
    plain.sort(key=lambda entry: entry[:2])
    named = []
    for name, group in groupby(plain, key=lambda entry: entry[0]):
        group = list(group)
        for _, uids, members in group:
            digest = hashlib.sha256("/".join(uids).encode()).hexdigest()[:8]
            named.append((name if len(group) == 1 else f"{name}-{digest}", members))
    return named


def _same_pixels() -> Callable[[Frame, Frame], bool]:
    """Whether two frames hold the same; it raises UserError naming the file that cannot be read."""
    read = lru_cache(maxsize=2)(read_pixels)  # two multi-frame files are compared frame by frame
    return lambda a, b: bool(np.array_equal(read(a.path)[1][a.index], read(b.path)[1][b.index]))


def _sheared(array: np.ndarray, stack: Stack) -> np.ndarray:
    """Each slice `[H, W]` moved by its shift onto the upright grid, linearly interpolated."""
    least, shape = float(array.min()), (1, stack.rows, stack.columns)
    moved = [
        resample(image[None], np.ones(3), np.array([0, -row, -column]), shape, least)[0]
        for image, (row, column) in zip(array, stack.shifts, strict=True)
    ]
    return np.stack(moved)


def _canonical(affine: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The flips and swaps that bring the axes closest to RAS+, and the affine after them."""
    orientation = io_orientation(affine)
    return orientation, affine @ inv_ornt_aff(orientation, shape)


def _relative(path: Path, base: Path) -> str:
    return Path(os.path.relpath(path, base)).as_posix()
