"""Unpacking archives that came over a network: nothing outside the folder, nothing but plain files, nothing endless."""

import gzip
import hashlib
import os
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tqdm import tqdm

from splitshuffle_gan.errors import UserError

CHUNK = 1 << 20
# What macOS adds to archives: never data.
CLUTTER = ("__MACOSX", ".DS_Store")
# The longest that a reader of tar headers has a reason to ask for at once; a longer "name" is meant to fill the memory.
MAX_HEADER = 16 << 20
MAX_NAME_BYTES = 255
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError, RuntimeError,
    ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to. `ratio` is unpacked to packed bytes; below `small` bytes it is not looked at."""

    files: int = 1_000_000
    bytes: int = 256 << 30
    ratio: float = 100.0
    small: int = 256 << 20


@dataclass(frozen=True)
class Member:
    """A plain file in an archive: its cleaned name, the size it claims, and how to open it."""

    name: PurePosixPath
    size: int
    open: Callable[[], BinaryIO]


@dataclass(frozen=True)
class Unpacked:
    """What was written (path in the folder -> {"bytes", "sha256", "member"}) and the members that were passed over."""

    files: dict[str, dict]
    skipped: tuple[str, ...]


def extract(
    archive: Path,
    folder: Path,
    place: Callable[[PurePosixPath], PurePosixPath | None] = lambda name: name,
    limits: Limits | None = None,
) -> Unpacked:
    """Unpack a .tar, .tar.gz or .zip into `folder`, new and empty; `place` names each file's place, None skips it.

    The type is told by the first bytes, never by the name. Resource forks and other clutter of macOS are skipped.
    Raises UserError naming the archive and the member for: absolute paths, "..", drive letters, backslashes, control
    characters, links of any kind, devices, sparse files, encrypted files, two names that are one where case or accents
    do not count, more files or bytes than `limits`, a damaged or cut-off archive, and anything else that is neither tar
    nor zip. What was written by then stays in `folder`: build it where it vanishes on an error.
    """
    limits = limits or Limits()
    names, files, skipped, total = _Names(archive), {}, [], 0
    budget = min(limits.bytes, max(limits.small, int(limits.ratio * archive.stat().st_size)))
    with tqdm(desc=f"unpack {archive.name}", unit="B", unit_scale=True, disable=None) as progress:
        try:
            for count, member in enumerate(_members(archive)):
                if count >= limits.files:
                    raise UserError(f"{archive}: holds more than {limits.files} files; it is not unpacked")
                target = None if _is_clutter(member.name) else place(member.name)
                if target is None:
                    skipped.append(str(member.name))
                    continue
                names.add(target, member.name)
                if total + member.size > budget:
                    raise _too_much(archive, member.name, budget)
                entry = _write(member, folder / target, budget - total, archive, progress)
                total += entry["bytes"]
                files[str(target)] = entry
        except UserError:
            raise
        except _DAMAGE as error:
            raise UserError(f"{archive}: damaged or cut off ({error}); remove it and fetch it again") from error
    return Unpacked(files, tuple(skipped))


def clean_name(name: str, archive: Path) -> PurePosixPath:
    """A member's name as a relative path without ".". Raises UserError for one that could lead out of a folder."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    wrong = (
        "an absolute path" if name.startswith("/") or name[1:2] == ":"
        else "a path that leads out of the folder" if ".." in parts
        else "a backslash or a control character" if any(ord(sign) < 32 or sign in "\\\x7f" for sign in name)
        else "an empty name" if not parts
        else "a name longer than files can have" if any(len(os.fsencode(p)) > MAX_NAME_BYTES for p in parts)
        else ""
    )  # fmt: skip
    if wrong:
        raise UserError(f"{archive}: member {name[:120]!r} has {wrong}; the archive is not trusted and not unpacked")
    return PurePosixPath(*parts)


def _write(member: Member, target: Path, budget: int, archive: Path, progress: tqdm) -> dict:
    """Write one file; its real size counts, not the one its header claims."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with member.open() as source, open(target, "xb") as out:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            if size > budget:
                raise _too_much(archive, member.name, budget)
            digest.update(chunk)
            out.write(chunk)
            progress.update(len(chunk))
    if size != member.size:
        raise UserError(
            f"{archive}: member {str(member.name)!r} has {size} bytes where its header says {member.size}; "
            "the archive is cut off: remove it and fetch it again"
        )
    return {"bytes": size, "sha256": digest.hexdigest(), "member": str(member.name)}


def _too_much(archive: Path, name: PurePosixPath, budget: int) -> UserError:
    return UserError(
        f"{archive}: would unpack to more than {budget / 1e6:.0f} MB (at member {str(name)!r}), far beyond its own "
        f"{archive.stat().st_size / 1e6:.1f} MB: it looks like a decompression bomb and is not unpacked"
    )


def _is_clutter(name: PurePosixPath) -> bool:
    return name.name.startswith("._") or any(part in CLUTTER for part in name.parts)


def _members(archive: Path) -> Iterator[Member]:
    with open(archive, "rb") as file:
        start = file.read(4)
    if start[:2] == b"PK":
        yield from _zip_members(archive)
    else:
        yield from _tar_members(archive, packed=start[:2] == b"\x1f\x8b")


def _tar_members(archive: Path, packed: bool) -> Iterator[Member]:
    with open(archive, "rb") as raw:
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        with tarfile.open(fileobj=_Guarded(stream, archive), mode="r:") as tar:
            for info in tar:
                name = clean_name(info.name, archive) if not info.isdir() or info.name.strip("./") else None
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    kind = "a link" if info.issym() or info.islnk() else "a device or another special file"
                    raise UserError(
                        f"{archive}: member {info.name!r} is {kind}; image sets need plain files only, so the archive "
                        "is not trusted and not unpacked"
                    )
                yield Member(name, info.size, lambda info=info: tar.extractfile(info))
                tar.members = []  # else a million headers stay in memory


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            name = clean_name(info.filename, archive)
            if info.is_dir():
                continue
            # The upper half holds the Unix mode: 0o12 is a link.
            if info.external_attr >> 28 not in (0, 0o10):
                raise UserError(f"{archive}: member {info.filename!r} is a link or a special file; it is not unpacked")
            if info.flag_bits & 1:
                raise UserError(f"{archive}: member {info.filename!r} is encrypted; unpack the archive yourself")
            yield Member(name, info.file_size, lambda info=info: packed.open(info))


class _Guarded:
    """A binary file of which nobody reads an absurd amount at once: tar headers claim their own length."""

    def __init__(self, file: BinaryIO, archive: Path):
        self.file, self.archive = file, archive
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MAX_HEADER:
            raise UserError(f"{self.archive}: a header claims {size} bytes; the archive is not trusted, not unpacked")
        return self.file.read(size)


class _Names:
    """The names so far, to tell when two are the same file on a system that ignores case or accents' encoding."""

    def __init__(self, archive: Path):
        self.archive = archive
        self.spelling: dict[str, str] = {}
        self.files: set[str] = set()

    def add(self, path: PurePosixPath, member: PurePosixPath) -> None:
        clean_name(str(path), self.archive)
        for whole in [*reversed(path.parents[:-1]), path]:
            key = unicodedata.normalize("NFC", str(whole)).casefold()
            taken = key in self.spelling if whole == path else key in self.files
            if taken or self.spelling.setdefault(key, str(whole)) != str(whole):
                raise UserError(
                    f"{self.archive}: member {str(member)!r} and {self.spelling[key]!r} are one name on systems that "
                    "ignore case; one would overwrite the other, so the archive is not unpacked"
                )
        self.files.add(key)
