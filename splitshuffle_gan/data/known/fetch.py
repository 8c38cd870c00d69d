"""A known set, from its archive on the network or from the tree its owners gave out, to images/ and labels/.

The folder appears whole, with `fetched.json`: where everything came from, what it may be used for, and every file's
hash, against which a second call verifies it.
"""

import errno
import json
import os
import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal
from urllib.parse import urlsplit

import tyro
from tqdm import tqdm

from splitshuffle_gan import __version__
from splitshuffle_gan.data.known.archive import extract
from splitshuffle_gan.data.known.download import download, verify
from splitshuffle_gan.data.known.known_sets import KNOWN_SETS, KnownSet, archive_of, describe, known_set
from splitshuffle_gan.data.known.trees import Tree, dicom_files, read_adni, read_coca_gated, read_coca_nongated
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json

FORMAT = "splitshuffle-fetched"
VERSION = 1
RECORD = "fetched.json"
SUFFIXES = (".nii.gz", ".nii")
MSD_FOLDERS = {"imagesTr": "images", "labelsTr": "labels", "imagesTs": "images-test"}


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """A known set of scans to a folder of images/ and, where there are any, labels/.

    Attributes:
        name: which set; --list shows them.
        to: folder to make.
        source: what you have already: the archive (MSD, IXI), or the unpacked tree (ADNI, COCA), which is only read.
        description: of ADNI's scans, as patterns (MPRAGE, *MPRAGE*); the first that a subject has is taken.
        visits: of ADNI's subjects.
        link: symlink leaves the scans of a tree where they are; copy makes DIR independent of it.
        keep_archive: keep the downloaded archive beside DIR.
        overwrite: replace an earlier fetch in DIR.
        list: show every known set with its licence, and stop.
    """

    name: tyro.conf.Positional[str] = ""
    to: Path | None = None
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    description: tuple[str, ...] = ()
    visits: Literal["first", "all"] = "first"
    link: Literal["symlink", "copy"] = "symlink"
    keep_archive: bool = False
    overwrite: bool = False
    list: bool = False


def fetch(config: FetchConfig) -> Path:
    """Make `config.to`, or verify it when it holds this set already; its path.

    A break leaves the archive's beginning beside the folder, and the same call goes on there. An archive is renamed
    while it is unpacked, not linked afterwards: one copy, on any file system, under names that `prepare` pairs.
    Raises UserError for an unknown set, a folder that holds something else, files that changed since, a set that must
    be got by hand (with the steps), and whatever `download`, `extract` and the readers of trees raise.
    """
    known = known_set(config.name)
    if config.to is None:
        raise UserError("to: missing; name the folder to make, as in --to data/hippocampus")
    if not config.overwrite and (config.to / RECORD).is_file():
        return check_fetched(config.to, known)
    try:
        refuse_existing(config.to, config.overwrite, RECORD, keep=(config.source,) if config.source else ())
    except UserError as error:
        raise UserError(f"to: {str(error).removeprefix('out: ')}") from None
    if config.source is not None and not config.source.exists():
        raise UserError(f"from: {config.source} does not exist")
    try:
        return _from_tree(config, known) if known.by_hand else _from_archive(config, known)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"to: no room left for {config.to} ({error}); make room and run the same command again"
        ) from error


def check_fetched(to: Path, known: KnownSet) -> Path:
    """Verify a fetched set against its record; its path. Raises UserError naming the files that changed or are gone."""
    try:
        record = json.loads((to / RECORD).read_text())
        name, files = record["set"], dict(record["files"])
        sizes = {path: (entry["bytes"], entry.get("sha256")) for path, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{to / RECORD}: not a record of `fetch` ({error!r}); fetch again with --overwrite") from error
    if name != known.name:
        raise UserError(f"to: {to} holds {name}, not {known.name}; choose another folder")
    wrong = []
    for path, (size, digest) in tqdm(sizes.items(), desc=f"verify {known.name}", unit="file", disable=None):
        if not (to / path).exists():
            wrong.append(f"{path} is missing")
        elif _measure(to / path) != size:
            wrong.append(f"{path} has {_measure(to / path)} bytes instead of {size}")
        elif digest and _sha256(to / path) != digest:
            wrong.append(f"{path} has other content")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"to: {to} has changed: {'; '.join(wrong[:3])}{more}; --overwrite fetches it again")
    return to


def overview() -> str:
    """Every known set with what a user should know before using it."""
    return "\n\n".join(describe(known) for known in KNOWN_SETS.values())


def _from_archive(config: FetchConfig, known: KnownSet) -> Path:
    url, md5 = archive_of(known)
    if config.source and not config.source.is_file():
        wanted = PurePosixPath(urlsplit(url).path).name
        raise UserError(f"from: {config.source} is no file; {config.name} wants its archive, {wanted}")
    archive = config.source or config.to.with_name(f"{config.to.name}.{PurePosixPath(urlsplit(url).path).name}")
    digests = verify(archive, md5) if config.source else download(url, archive, md5)
    with whole_folder(config.to) as folder:
        unpacked = extract(archive, folder, PLACES[known.layout])
        if not any(path.startswith("images/") for path in unpacked.files):
            raise UserError(f"{archive}: holds no image where {known.name} keeps them; is it the right archive?")
        checked = (
            {"md5_wanted": md5} if md5 else {"unverified": "the publisher names no checksum; these are of what came"}
        )
        origin = {"url": url, "archive": {"name": archive.name, **digests, **checked}}
        write_json(folder / RECORD, _record(known, origin, unpacked.files, list(unpacked.skipped)))
    if not config.source and not config.keep_archive:
        archive.unlink()
    return config.to


def _from_tree(config: FetchConfig, known: KnownSet) -> Path:
    if config.source is None:
        raise UserError(f"from: missing; {known.name} has to be got by hand.\n{known.instructions}")
    if not config.source.is_dir():
        raise UserError(f"from: {config.source} is no folder; unpack what you were given and name its folder")
    lists: dict[str, Path] = {}
    if known.layout == "adni":
        tree = read_adni(config.source, config.description, config.visits)
    elif known.layout == "coca-gated":
        tree, lists = read_coca_gated(config.source)
    else:
        tree = read_coca_nongated(config.source)
    with whole_folder(config.to) as folder:
        files = _place(tree, folder, config.link)
        skipped = list(tree.skipped)
        if lists:
            _write_labels(tree, lists, folder, files, skipped)
        write_json(folder / RECORD, _record(known, {"from": str(config.source.resolve())}, files, skipped))
    return config.to


def _place(tree: Tree, folder: Path, link: str) -> dict[str, dict]:
    """Link or copy the scans to images/ and copy the extras; the record's entries."""
    files: dict[str, dict] = {}
    (folder / "images").mkdir()
    for scan in tqdm(tree.scans, desc=link, unit="scan", disable=None):
        suffix = next((s for s in SUFFIXES if scan.path.is_file() and scan.path.name.lower().endswith(s)), "")
        target = folder / "images" / f"{scan.name}{suffix}"
        if link == "symlink":
            try:
                target.symlink_to(scan.path.resolve(), target_is_directory=scan.path.is_dir())
            except OSError as error:
                raise UserError(
                    f"link: this disk or system has no symbolic links ({error}); use --link copy"
                ) from error
        elif scan.path.is_dir():
            shutil.copytree(scan.path, target, ignore=shutil.ignore_patterns(".*"))
        else:
            shutil.copyfile(scan.path, target)
        files[f"images/{target.name}"] = {"bytes": _measure(target), "member": str(scan.path), **scan.facts}
    for path in tree.extras:
        shutil.copyfile(path, folder / path.name)
        files[path.name] = {"bytes": _measure(path), "sha256": _sha256(path), "member": str(path)}
    return files


def _write_labels(
    tree: Tree, lists: dict[str, Path], folder: Path, files: dict[str, dict], skipped: list[dict]
) -> None:
    """Calcium as labels/ID/SERIES.nii.gz for every patient with an XML file. Without one nothing is known, nor written.

    A patient whose outlines do not fit is reported and gets no label, and no image either: unlike one without a list,
    that scan has calcium, of which nothing would tell.
    """
    import numpy as np

    from splitshuffle_gan.data.known.coca import draw_labels, read_outlines
    from splitshuffle_gan.data.readers.nifti import write_nifti
    from splitshuffle_gan.volume import from_xyz

    (folder / "labels").mkdir()
    patients = [scan for scan in tree.scans if scan.name in lists]
    for scan in tqdm(patients, desc="calcium", unit="scan", disable=None):
        try:
            series = _only_series(folder / "images" / scan.name)
            header = series.header()
            labels = draw_labels(read_outlines(lists[scan.name]), header, str(lists[scan.name]))
        except UserError as error:
            skipped.append({"name": scan.name, "reason": str(error)})
            image = folder / "images" / scan.name
            image.unlink() if image.is_symlink() else shutil.rmtree(image)
            del files[f"images/{scan.name}"]
            continue
        path = folder / "labels" / f"{series.name}.nii.gz"  # the name by which `prepare` pairs them
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(from_xyz(labels.array, header.affine, "axial"), path, np.uint8)
        entry = {"bytes": _measure(path), "sha256": _sha256(path), "member": str(lists[scan.name])}
        files[path.relative_to(folder).as_posix()] = entry | {"voxels": labels.voxels, "remarks": list(labels.remarks)}
    if not any((folder / "labels").iterdir()):
        raise UserError(f"from: no patient's outlines could be drawn; the first: {skipped[-1]['reason']}")


def _only_series(folder: Path):
    """The one series in images/ID, by the name that it has for `prepare`."""
    from splitshuffle_gan.data.readers.dicom import find_series

    scans, rejected = find_series(dicom_files(folder), folder.parent, workers=1)
    if len(scans) != 1:
        reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in rejected[:3])
        raise UserError(
            f"{folder}: {len(scans)} series where one is wanted {f'({reasons})' if reasons else ''}".rstrip()
        )
    return scans[0]


def _record(known: KnownSet, origin: dict, files: dict[str, dict], skipped: list) -> dict:
    about = {key: getattr(known, key) for key in ("title", "licence", "terms", "citation", "homepage")}
    return {
        "format": FORMAT,
        "version": VERSION,
        "set": known.name,
        **about,
        **origin,
        "fetched": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "created_with": {"splitshuffle_gan": __version__},
        "files": dict(sorted(files.items())),
        "skipped": skipped,
    }


def _place_msd(name: PurePosixPath) -> PurePosixPath | None:
    """TaskNN_Organ/imagesTr/x.nii.gz -> images/x.nii.gz; likewise labels, and the test images, which have no labels."""
    if name.name == "dataset.json":
        return PurePosixPath(name.name)
    folder = MSD_FOLDERS.get(name.parent.name)
    return PurePosixPath(folder, name.name) if folder and name.name.lower().endswith(SUFFIXES) else None


def _place_flat(name: PurePosixPath) -> PurePosixPath | None:
    return PurePosixPath("images", name.name) if name.name.lower().endswith(SUFFIXES) else None


PLACES = {"msd": _place_msd, "flat": _place_flat}


def _measure(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(
        os.stat(Path(here, name)).st_size for here, _, names in os.walk(path) for name in names if name[0] != "."
    )


def _sha256(path: Path) -> str:
    import hashlib

    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
