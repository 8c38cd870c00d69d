"""Find the scans in a file or a folder, whatever their formats; every file that cannot be one is told with its reason.

A name decides how a file is read: NIfTI and MGH (`nifti`), NRRD and NumPy (`arrays`). Names that are plainly no scan's
(.json, .txt, .png, ...) are counted, image formats that are not read are rejected, and any other file may be DICOM.
Names that start with a dot are passed over. Where `labels` lies beside `images` (or `labelsTr` beside `imagesTr`),
the labels are passed over: they are not scans to learn from. Give the labels folder itself to find them.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from splitshuffle_gan.data.readers.arrays import NRRD_SUFFIXES, NUMPY_SUFFIXES, array_scan
from splitshuffle_gan.data.readers.nifti import nifti_scans, with_voxels
from splitshuffle_gan.data.readers.nifti_header import MGH_SUFFIXES, PAIR_SUFFIXES, SUFFIXES, VOXEL_SUFFIXES
from splitshuffle_gan.data.readers.scan import Rejected, Scan
from splitshuffle_gan.errors import UserError

# What may stand at a name's end, longest first: `.nii.gz` is not `.gz`.
NIFTI_LIKE = SUFFIXES + PAIR_SUFFIXES + MGH_SUFFIXES
ARRAY_LIKE = NRRD_SUFFIXES + NUMPY_SUFFIXES
NOT_READ = (".mha", ".mhd", ".mnc", ".gipl", ".vtk", ".vti", ".npz", ".tif", ".tiff", ".h5", ".hdf5")
PACKED = (".zip", ".tar", ".tgz", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst")
NO_SCAN = (
    ".json .jsonl .txt .csv .tsv .md .rst .log .xml .html .htm .plist .yml .yaml .toml .ini .cfg .py .sh .ipynb "
    ".pdf .doc .docx .xls .xlsx .ppt .pptx .png .jpg .jpeg .gif .bmp .svg .webp .mp4 .avi .bval .bvec .raw .zraw "
    ".mat .pkl .pt .pth .safetensors .trk .tck .annot .label .stats .db .sqlite .md5 .sha256 .lock"
).split()
FIRST_REASONS = 3
SLOW = 2  # seconds before a progress bar


@dataclass(frozen=True)
class Found:
    """What a source holds, sorted by name. Names are unique, relative to the source, with `/`.

    Attributes:
        scans: to be read; a damaged file may be among them, whose `header` and `read` say what is wrong.
        rejected: files that are no scan, each with its reason.
        passed_over: how many files have a name that is plainly no scan's.
        labels: folders of labels that were passed over.
    """

    scans: tuple[Scan, ...]
    rejected: tuple[Rejected, ...]
    passed_over: int = 0
    labels: tuple[str, ...] = ()


def find_scans(source: Path, volume: int | str | None = None, correct_tilt: bool = False) -> Found:
    """The scans of a file, or of a folder at any depth; links are followed, each folder is walked once.

    volume: which volume to take of a NIfTI or MGH file that holds several, a number from 0, or "all" for each as a scan
    named `file.nii.gz#K`; None rejects such files. correct_tilt: see `dicom.find_series`.
    Raises UserError when the source does not exist or holds no scan, with the counts of what it holds.
    """
    source, volume = Path(source), _volume(volume)
    if not source.exists():
        raise UserError(f"source: {source} does not exist; give a scan or a folder of scans")
    files, rejected, labels = _walk(source) if source.is_dir() else ([with_voxels(source)[0]], [], [])
    root = source if source.is_dir() else source.parent
    scans, refused, perhaps_dicom, passed_over = [], {}, [], Counter()
    for path in tqdm(files, desc="find", unit="file", delay=SLOW, leave=False):
        suffix = _suffix(path)
        try:
            found = _scans_in(path, suffix, _name(path, root), volume)
        except UserError as error:
            refused[path] = str(error).removeprefix(f"{path}: ")
            continue
        if suffix in NO_SCAN:
            passed_over[suffix] += 1
        elif found is None:
            perhaps_dicom.append(path)
        else:
            scans += found
    # A NRRD header may name any file as its voxels.
    part_of_a_scan = {path for scan in scans for path in scan.paths}
    refused = {path: why for path, why in refused.items() if path not in part_of_a_scan}
    rejected += [Rejected(_name(path, root), _printable(why)) for path, why in refused.items()]
    perhaps_dicom = [path for path in perhaps_dicom if path not in part_of_a_scan]
    if perhaps_dicom:
        more, bad = _series(perhaps_dicom, root, correct_tilt)
        scans += more
        rejected += bad
    if not scans:
        raise UserError(_nothing(source, len(files), rejected, passed_over, labels))
    _check_unique(scans, source)
    by_name = [tuple(sorted(entries, key=lambda entry: entry.name)) for entries in (scans, rejected)]
    return Found(*by_name, sum(passed_over.values()), tuple(labels))


def all_scans(source: Path) -> tuple[Scan, ...]:
    """The scans of a source, as `find_scans`, where leaving one out would go unnoticed.

    Raises UserError naming the first file that cannot be one, with its reason.
    """
    found = find_scans(source)
    if found.rejected:
        bad, more = found.rejected[0], len(found.rejected) - 1
        others = f" ({more} more cannot be read; `splitshuffle doctor` lists them)" if more else ""
        raise UserError(f"{Path(source) / bad.name}: {bad.reason}{others}")
    return found.scans


def _volume(volume: int | str | None) -> int | str | None:
    if volume is None or volume == "all":
        return volume
    try:
        number = int(volume)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise UserError(f"volume: {volume!r}; a whole number from 0, or all, is wanted")
    return number


def _walk(source: Path) -> tuple[list[Path], list[Rejected], list[str]]:
    """All files, sorted; folders that cannot be listed; and the labels folders, which were not entered."""
    files, rejected, labels, seen = [], [], [], set()

    def note(error: OSError) -> None:
        path = Path(error.filename)
        rejected.append(Rejected(_name(path, source), f"cannot be listed ({error.strerror}); change its permissions"))

    for folder, folders, names in os.walk(source, onerror=note, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder that was walked, perhaps to one that holds it
            folders[:] = []
            continue
        seen.add(real)
        beside = [name for name in folders if name.startswith("labels") and "images" + name[6:] in folders]
        labels += [_name(Path(folder, name), source) for name in beside]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in beside)
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(files), rejected, sorted(labels)


def _suffix(path: Path) -> str:
    """The longest known suffix that the name ends with, in lower case; "" without one."""
    name = path.name.lower()
    known = (*NIFTI_LIKE, *VOXEL_SUFFIXES, *ARRAY_LIKE, *NOT_READ, *PACKED, *NO_SCAN)
    return max((suffix for suffix in known if name.endswith(suffix)), key=len, default="")


def _scans_in(path: Path, suffix: str, name: str, volume: int | str | None) -> list[Scan] | None:
    """What a file holds by its name; None where the name does not say. Raises UserError when it is no scan."""
    if not os.path.isfile(path):
        raise UserError(f"{path}: {_no_file(path)}")
    if suffix in NIFTI_LIKE:
        return nifti_scans(path, name, volume)
    if suffix in ARRAY_LIKE:
        return [array_scan(path, name)]
    if suffix in VOXEL_SUFFIXES and len(with_voxels(path)) == 2:
        return []  # its header's turn comes
    if suffix in VOXEL_SUFFIXES and not _is_dicom(path):
        raise UserError(f"{path}: its header is missing; put the .hdr file of the same name beside it")
    if suffix in NOT_READ:
        raise UserError(f"{path}: {suffix} is not a format that is read; convert it to NIfTI")
    if suffix in PACKED:
        raise UserError(f"{path}: a packed file; unpack it first")
    return None


def _no_file(path: Path) -> str:
    try:
        path.stat()
    except OSError as error:
        if path.is_symlink():
            return "a link that leads nowhere; restore what it points to, or remove it"
        return f"cannot be opened ({error.strerror}); change its permissions, or remove it"
    return "not a regular file (a pipe, socket or device); remove it"


def _is_dicom(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _series(files: list[Path], root: Path, correct_tilt: bool) -> tuple[list[Scan], list[Rejected]]:
    # Only here: pydicom takes a while to import, which a folder of NIfTI files need not wait for.
    from splitshuffle_gan.data.readers.dicom import find_series

    return find_series(files, root, correct_tilt)


def _name(path: Path, root: Path) -> str:
    return _printable(path.relative_to(root).as_posix())


def _printable(text: str) -> str:
    r"""Bytes of a file's name that are no UTF-8 become `\xff`, so that the text can be printed and stored."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _check_unique(scans: list[Scan], source: Path) -> None:
    name, count = Counter(scan.name for scan in scans).most_common(1)[0]
    if count > 1:
        raise UserError(f"source: {source} holds {count} scans that would be named {name!r}; rename one of their files")


def _nothing(source: Path, count: int, rejected: list[Rejected], passed_over: Counter, labels: list[str]) -> str:
    if not source.is_dir() and rejected:
        return f"source: {source}: {rejected[0].reason}"
    parts = [f"{number} {suffix}" for suffix, number in sorted(passed_over.items())]
    seen = [f"{count} files seen"]
    seen += [f"{sum(passed_over.values())} plainly no scans ({', '.join(parts)})"] if parts else []
    seen += [f"{len(rejected)} rejected"] if rejected else []
    seen += [f"labels passed over in {', '.join(labels)}"] if labels else []
    reasons = "".join(f"\n  {bad.name}: {bad.reason}" for bad in rejected[:FIRST_REASONS])
    more = f"\n  and {len(rejected) - FIRST_REASONS} more" if len(rejected) > FIRST_REASONS else ""
    told = f"source: {source} holds no scan: {'; '.join(seen)}"
    return _printable(f"{told}. Give NIfTI, MGH, NRRD, NumPy or DICOM files, or a folder of them{reasons}{more}")
