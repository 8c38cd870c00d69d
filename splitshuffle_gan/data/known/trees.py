"""Unpacked trees of sets that their owners give out by hand: which scans are in them. Nothing is read but names."""

import os
import re
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from splitshuffle_gan.errors import UserError

SUBJECT = re.compile(r"\d{3}_S_\d{4,5}")
DATE = re.compile(r"\d{4}-\d{2}-\d{2}.*")
# Folders above the one looked for that unpacking and copying have been seen to add.
MAX_ABOVE = 3
NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True)
class TreeScan:
    """One scan: the name it gets, its file or its folder of DICOM slices, and facts for the record."""

    name: str
    path: Path
    facts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Tree:
    """The scans chosen, and what was passed over: {"name", "reason"} each. `extras` are files to copy as they are."""

    scans: list[TreeScan]
    skipped: list[dict]
    extras: tuple[Path, ...] = ()


def read_adni(source: Path, descriptions: tuple[str, ...], visits: str) -> Tree:
    """The scans of SUBJECT/DESCRIPTION/DATE/IMAGE/, at any depth below `source`, one per subject and visit.

    `descriptions` are patterns such as MPRAGE or *MPRAGE*, in any case; the first that a subject has counts. Without
    any, the tree must hold a single one. `visits` is "first" (named SUBJECT) or "all" (SUBJECT_v01, ..., by date; the
    dates themselves stay out of the names). Of several images on one date the one with the lowest number is taken.
    Raises UserError when there is no such tree, or several descriptions and none was chosen.
    """
    subjects = _find_subjects(source)
    present: dict[str, int] = {}
    for subject in subjects.values():
        for description in {folder.name for folders in subject for folder in _folders(folders)}:
            present[description] = present.get(description, 0) + 1
    listing = ", ".join(f"{name} ({count} subjects)" for name, count in sorted(present.items()))
    if not descriptions and len(present) > 1:
        raise UserError(f"description: {source} holds {listing}; choose with --description, the preferred one first")
    scans, skipped = [], []
    for name, folders in sorted(subjects.items()):
        found = _by_date(name, folders, descriptions or tuple(present), skipped)
        dates = sorted(found)[:1] if visits == "first" else sorted(found)
        for number, date in enumerate(dates, 1):
            chosen, others = found[date][0], found[date][1:]
            skipped += [
                {"name": _inside(other, source), "reason": "another image of the same visit"} for other in others
            ]
            path = _content(chosen)
            facts = {"description": chosen.parents[1].name, "image": chosen.name}
            scans.append(TreeScan(name if visits == "first" else f"{name}_v{number:02d}", path, facts))
    if not scans:
        raise UserError(f"description: {' '.join(descriptions)} matches no scan; {source} holds {listing or 'none'}")
    return Tree(scans, skipped)


def read_coca_gated(source: Path) -> tuple[Tree, dict[str, Path]]:
    """The patients of COCA's gated part, and the XML file of each that has one. Raises UserError without them."""
    root = _find_above(source, lambda folder: (folder / "patient").is_dir() and (folder / "calcium_xml").is_dir())
    if root is None:
        raise UserError(
            f"from: {source} holds no folder with patient/ and calcium_xml/ in it; give Gated_release_final"
        )
    tree = _patients(root / "patient")
    lists = {path.stem: path for path in sorted((root / "calcium_xml").glob("*.xml")) if path.name[0] != "."}
    names = {scan.name for scan in tree.scans}
    orphans = [
        {"name": f"calcium_xml/{p.name}", "reason": "no such patient"} for n, p in lists.items() if n not in names
    ]
    return Tree(tree.scans, tree.skipped + orphans), lists


def read_coca_nongated(source: Path) -> Tree:
    """The patients of COCA's non-gated part; the tables of scores beside them are extras."""
    root = _find_above(source, lambda folder: folder.name == "deidentified_nongated")
    root = root or _find_above(source, lambda folder: any(child.name.isdecimal() for child in _folders(folder)))
    if root is None or (root / "patient").is_dir():
        raise UserError(f"from: {source} holds no folder of numbered patients; give deidentified_nongated")
    tree = _patients(root)
    return Tree(tree.scans, tree.skipped, tuple(sorted(p for p in root.glob("scores.*") if p.is_file())))


def dicom_files(folder: Path) -> list[Path]:
    """The slices below a folder, sorted. What a broken copy leaves behind (names that start with a dot) is left out."""
    found = []
    for here, _, names in os.walk(folder):
        found += [Path(here, name) for name in names if name[0] != "." and name.lower().endswith((".dcm", ".ima"))]
    return sorted(found)


def _patients(root: Path) -> Tree:
    scans, skipped = [], []
    for folder in sorted(_folders(root), key=lambda path: (len(path.name), path.name)):
        if parents := {file.parent for file in dicom_files(folder)}:
            # The series' own folder, where there is one alone: its long name says nothing to a user.
            scans.append(TreeScan(folder.name, parents.pop() if len(parents) == 1 else folder))
        else:
            skipped.append({"name": folder.name, "reason": "no .dcm file in it"})
    if not scans:
        raise UserError(f"from: {root} holds no patient with .dcm files")
    return Tree(scans, skipped)


def _find_subjects(source: Path) -> dict[str, list[Path]]:
    """Subject's name -> its folders: the parts of an archive may each hold some of its images."""
    subjects: dict[str, list[Path]] = {}
    for here, folders, _ in os.walk(source):
        matching = [name for name in folders if SUBJECT.fullmatch(name)]
        for name in matching:
            subjects.setdefault(name, []).append(Path(here, name))
        folders[:] = sorted(set(folders) - set(matching))
    if not subjects:
        hint = "; unpack the .zip files first" if any(source.rglob("*.zip")) else ""
        raise UserError(f"from: {source} holds no folder named like a subject of ADNI (002_S_0295){hint}")
    return subjects


def _by_date(name: str, folders: list[Path], patterns: tuple[str, ...], skipped: list[dict]) -> dict[str, list[Path]]:
    """Date -> the folders of images of that date, by number, of the first pattern that the subject has at all."""
    for pattern in patterns:
        found: dict[str, list[Path]] = {}
        for described in (d for folder in folders for d in _folders(folder)):
            if not fnmatch(described.name.lower(), pattern.lower()):
                continue
            for date in _folders(described):
                for image in _folders(date):
                    reason = "not a date" if not DATE.fullmatch(date.name) else _unusable(image)
                    if reason:
                        skipped.append({"name": f"{name}/{described.name}/{date.name}/{image.name}", "reason": reason})
                    else:
                        found.setdefault(date.name, []).append(image)
        if found:
            return {date: sorted(images, key=_image_number) for date, images in found.items()}
    skipped.append({"name": name, "reason": f"no scan described as {' or '.join(patterns)}"})
    return {}


def _unusable(image: Path) -> str:
    niftis = _niftis(image)
    if len(niftis) > 1:
        return f"{len(niftis)} NIfTI files where one is wanted"
    return "" if niftis or dicom_files(image) else "neither .nii nor .dcm in it"


def _content(image: Path) -> Path:
    niftis = _niftis(image)
    return niftis[0] if niftis else image


def _niftis(image: Path) -> list[Path]:
    return sorted(p for p in image.iterdir() if p.name.lower().endswith(NIFTI) and p.name[0] != ".")


def _image_number(image: Path) -> tuple[int, str]:
    digits = re.sub(r"\D", "", image.name)
    return int(digits or 0), str(image)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _find_above(source: Path, fits) -> Path | None:
    """The first folder that fits, `source` or up to `MAX_ABOVE` levels below it."""
    level = [source]
    for _ in range(MAX_ABOVE + 1):
        for folder in level:
            if fits(folder):
                return folder
        level = [child for folder in level for child in _folders(folder) if not child.is_symlink()]
    return None


def _inside(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()
