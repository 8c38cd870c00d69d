"""Large files over HTTP with the standard library: resumed after a break, verified, never half there.

MONAI's and torchvision's downloaders start again from nothing when a connection breaks; at 27 GB that matters.
"""

import hashlib
import http.client
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from splitshuffle_gan import __version__
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import write_json

CHUNK = 1 << 18
TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 5  # in a row that bring nothing
PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
_BREAKS = (URLError, http.client.HTTPException, ConnectionError, TimeoutError)
_GONE = (400, 401, 403, 404, 405, 410, 451)


def download(url: str, target: Path, md5: str = "") -> dict:
    """Fetch `url` to `target`, which appears whole; its {"bytes", "md5", "sha256"}.

    While it grows it is called `target`.part; a later call goes on where it ended, if the server still has the same
    file and answers range requests, else from the start. A `target` that exists is only verified. Without `md5` nothing
    but the length is checked. Raises UserError when the server cannot be reached or has no such file, the disk is full,
    another process fetches the same file, or the MD5 differs; the bad file is then kept as `target`.bad.
    """
    if not target.exists():
        _receive(url, target)
    return verify(target, md5, keep_as_bad=True)


def verify(path: Path, md5: str, keep_as_bad: bool = False) -> dict:
    """{"bytes", "md5", "sha256"} of a file. Raises UserError when `md5` is given and differs."""
    found = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    size = path.stat().st_size
    with open(path, "rb") as file, _bar(f"verify {path.name}", size) as progress:
        while chunk := file.read(CHUNK * 16):
            for digest in found.values():
                digest.update(chunk)
            progress.update(len(chunk))
    digests = {name: digest.hexdigest() for name, digest in found.items()}
    if md5 and digests["md5"] != md5:
        what = f"{path}: MD5 is {digests['md5']}, wanted {md5}"
        if not keep_as_bad:
            raise UserError(f"{what}; the file is damaged or another one: fetch it again")
        bad = path.with_name(f"{path.name}.bad")
        os.replace(path, bad)
        raise UserError(f"{what}; kept as {bad.name} for you to look at. Run the same command to download it afresh")
    return {"bytes": size, **digests}


def _receive(url: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with open(part, "ab", buffering=0) as file, _alone(file, part), _bar(target.name) as progress:
        failures, furthest = 0, _size(file)
        while True:
            try:
                _request(url, file, part, progress)
                break
            except _BREAKS as error:
                if isinstance(error, HTTPError) and error.code in _GONE:
                    raise UserError(
                        f"{url}: the server answers {error.code} ({error.reason}); the file may have moved, see the "
                        "set's homepage in `splitshuffle fetch --list`"
                    ) from error
                # Against the furthest ever: a server without ranges begins again each time and could break for ever.
                failures = 0 if _size(file) > furthest else failures + 1
                furthest = max(furthest, _size(file))
                if failures >= ATTEMPTS:
                    raise UserError(
                        f"{url}: cannot be read ({_reason(error)}); check the network and run the same command again: "
                        f"{_size(file) / 1e6:.1f} MB are kept in {part.name}"
                    ) from error
                time.sleep(PAUSE * 2 ** max(failures - 1, 0))
        os.fsync(file.fileno())
    os.replace(part, target)
    _note_of(part).unlink(missing_ok=True)


def _request(url: str, file: BinaryIO, part: Path, progress: tqdm) -> None:
    """One request for what is missing. Raises one of `_BREAKS` when less than that came."""
    note = _read_note(part)
    if note.get("url") != url:
        file.truncate(0)
    have = _size(file)
    request = Request(url, headers={"User-Agent": f"splitshuffle/{__version__}", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if note.get("validator"):
            request.add_header("If-Range", note["validator"])
    try:
        response = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416 or not have:
            raise
        if _total(error.headers.get("Content-Range")) == have:
            return  # the last run was cut between the last byte and the new name
        file.truncate(0)
        raise ConnectionError("the file on the server has become shorter") from error
    with response:
        start, total = 0, _number(response.headers.get("Content-Length"))
        if response.status == 206:
            start, total = have, _total(response.headers.get("Content-Range"))
            if not str(response.headers.get("Content-Range")).startswith(f"bytes {have}-") or total != note.get("size"):
                file.truncate(0)
                raise ConnectionError("the server sent another range or another file than the one begun")
        file.truncate(start)  # to nothing, where the server has no ranges or a new file
        _check_answer(url, response, part, start, total)
        headers = response.headers
        etag = headers.get("ETag", "")
        validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
        write_json(_note_of(part), {"url": url, "validator": validator, "size": total})
        progress.total, progress.n = total, start
        while chunk := response.read(CHUNK):
            _write(file, chunk, part)
            progress.update(len(chunk))
    if total is not None and _size(file) != total:
        raise ConnectionError(f"the connection ended after {_size(file)} of {total} bytes")


def _check_answer(url: str, response: http.client.HTTPResponse, part: Path, start: int, total: int | None) -> None:
    if response.headers.get_content_type() == "text/html":
        raise UserError(f"{url}: a web page came instead of an archive; a proxy or login page may be in the way")
    # The archive and what is unpacked from it lie side by side for a while.
    needed, free = 2 * (total or 0) - start, shutil.disk_usage(part.parent).free
    if needed > free:
        raise UserError(
            f"{part.parent}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; choose another disk"
        )


def _write(file: BinaryIO, chunk: bytes, part: Path) -> None:
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise UserError(
            f"{part}: cannot be written ({error.strerror}); make room and run the same command again, it goes on there"
        ) from error


@contextmanager
def _alone(file: BinaryIO, part: Path) -> Iterator[None]:
    """Hold the file's lock; two writers would mix their bytes. Where there are no locks, the checksum must do."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{part}: another process is fetching this file; wait for it or end it") from error
    yield


def _bar(name: str, total: int | None = None) -> tqdm:
    return tqdm(desc=name, total=total, unit="B", unit_scale=True, disable=None)


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path) -> dict:
    try:
        note = json.loads(_note_of(part).read_text())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None


def _total(content_range: str | None) -> int | None:
    """The whole length in `bytes 10-19/100` or `bytes */100`."""
    return _number((content_range or "").rpartition("/")[2])


def _reason(error: Exception) -> str:
    said = error if isinstance(error, HTTPError) else getattr(error, "reason", "") or error
    return str(said) or type(error).__name__
