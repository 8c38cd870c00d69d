"""Known sets, fetched from a server in a thread, and from trees as their owners give them out; no network."""

import hashlib
import io
import json
import os
import re
import shlex
import tarfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from splitshuffle_gan.commands import COMMANDS
from splitshuffle_gan.data.known import download as downloads
from splitshuffle_gan.data.known import fetch as fetching
from splitshuffle_gan.data.known import known_sets
from splitshuffle_gan.data.known.fetch import FetchConfig, fetch
from splitshuffle_gan.data.known.known_sets import KNOWN_SETS, archive_of
from splitshuffle_gan.errors import UserError

ARCHIVE = "Task04_Hippocampus.tar"


class Server:
    """Serves `content`, and misbehaves as told; `requests` are the Range headers it got."""

    def __init__(self):
        self.content, self.etag, self.kind = b"", '"one"', "application/x-tar"
        self.ranges, self.break_after, self.breaks, self.status = True, 0, 0, 0
        self.requests: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/{ARCHIVE}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.requests.append(wanted)
        if self.status:
            handler.send_error(self.status)
            return
        start, total = 0, len(self.content)
        if wanted and self.ranges and handler.headers.get("If-Range", self.etag) == self.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= total:
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{total}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            handler.send_response(200)
        body = self.content[start:]
        handler.send_header("Content-Type", self.kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("ETag", self.etag)
        handler.end_headers()
        if self.breaks:
            self.breaks -= 1
            body = body[: self.break_after]
        handler.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads, "PAUSE", 0.001)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def scan_bytes(seed: int, label: bool = False, shape: tuple[int, ...] = (18, 22, 18)) -> bytes:
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 3, shape).astype(np.uint8) if label else rng.uniform(0, 900, shape).astype(np.float32)
    return nib.Nifti1Image(array, np.eye(4)).to_bytes()


def msd_archive() -> bytes:
    """A Decathlon task as it is packed, clutter included."""
    import gzip

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        files = {"dataset.json": b"{}", "imagesTr/._hippocampus_001.nii.gz": b"mac"}
        for number in range(3):
            files[f"imagesTr/hippocampus_{number:03d}.nii.gz"] = gzip.compress(scan_bytes(number))
            files[f"labelsTr/hippocampus_{number:03d}.nii.gz"] = gzip.compress(scan_bytes(number, label=True))
        files["imagesTs/hippocampus_009.nii.gz"] = gzip.compress(scan_bytes(9))
        for name, content in files.items():
            info = tarfile.TarInfo(f"./Task04_Hippocampus/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return raw.getvalue()


@pytest.fixture
def msd(server, monkeypatch):
    """`server` has the hippocampus task, and `msd-hippocampus` points to it, checksum and all."""
    server.content = msd_archive()
    here = replace(KNOWN_SETS["msd-hippocampus"], task="", url=server.url, md5=hashlib.md5(server.content).hexdigest())
    monkeypatch.setitem(KNOWN_SETS, "msd-hippocampus", here)
    return server


def config(to: Path, name: str = "msd-hippocampus", **changes) -> FetchConfig:
    return FetchConfig(name=name, to=to, **changes)


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_task_is_fetched_laid_out_and_prepared(msd, tmp_path, run):
    to = tmp_path / "sets" / "my hippocampus"
    done = run("fetch", "msd-hippocampus", "--to", to)
    assert done.code == 0 and "CC BY-SA" in done.out, done.err
    names = [f"hippocampus_{number:03d}.nii.gz" for number in range(3)]
    assert everything(to) == sorted(
        ["dataset.json", "fetched.json", "images-test/hippocampus_009.nii.gz"]
        + [f"{folder}/{name}" for folder in ("images", "labels") for name in names]
    )
    assert os.listdir(to.parent) == [to.name]
    truth = nib.Nifti1Image.from_bytes(scan_bytes(1))
    assert np.array_equal(nib.load(to / "images" / names[1]).get_fdata(), truth.get_fdata())
    record = json.loads((to / "fetched.json").read_text())
    assert record["archive"]["sha256"] == hashlib.sha256(msd.content).hexdigest()
    assert record["archive"]["md5"] == record["archive"]["md5_wanted"]
    assert record["skipped"] == ["Task04_Hippocampus/imagesTr/._hippocampus_001.nii.gz"]
    command = shlex.split(re.search(r"splitshuffle (prepare .*)", done.out)[1])
    prepared = run(*command, "--workers", 1)
    assert prepared.code == 0 and "3 volumes" in prepared.out, prepared.err
    paired = run(*command, "--workers", 1, "--labels", "auto", "--overwrite")
    assert paired.code == 0 and "3 volumes (0 skipped)" in paired.out, paired.err


def test_the_second_call_verifies_and_downloads_nothing(msd, tmp_path, run):
    to = fetch(config(tmp_path / "set"))
    asked = len(msd.requests)
    again = run("fetch", "msd-hippocampus", "--to", to)
    assert again.code == 0 and "already there" in again.out and len(msd.requests) == asked
    image = to / "images/hippocampus_000.nii.gz"
    content = bytearray(image.read_bytes())
    content[40] ^= 1
    image.write_bytes(content)
    (to / "labels/hippocampus_002.nii.gz").unlink()
    (to / "dataset.json").write_text("{} ")
    with pytest.raises(UserError, match="other content") as caught:
        fetch(config(to))
    for part in ("hippocampus_000", "labels/hippocampus_002.nii.gz is missing", "3 bytes instead of 2", "--overwrite"):
        assert part in str(caught.value)
    fetch(config(to, overwrite=True))
    fetch(config(to))
    with pytest.raises(UserError, match="holds msd-hippocampus, not msd-heart"):
        fetch(config(to, "msd-heart"))


def test_a_break_is_resumed_in_the_same_call(msd, tmp_path):
    msd.breaks, msd.break_after = 7, 1000  # more breaks than attempts: each brought something
    fetch(config(tmp_path / "set"))
    assert msd.requests == [None] + [f"bytes={1000 * i}-" for i in range(1, 8)]


def test_a_dead_server_keeps_the_part_for_the_next_call(msd, tmp_path):
    msd.breaks, msd.break_after = 1, 5000
    answer = msd.answer
    msd.answer = lambda handler: answer(handler) if not msd.requests else handler.close_connection
    with pytest.raises(UserError, match="run the same command again.*kept in set.Task04_Hippocampus.tar.part"):
        fetch(config(tmp_path / "set"))
    part = tmp_path / f"set.{ARCHIVE}.part"
    assert part.read_bytes() == msd.content[:5000] and not (tmp_path / "set").exists()
    msd.answer = answer
    fetch(config(tmp_path / "set"))
    assert msd.requests == [None, "bytes=5000-"]
    assert os.listdir(tmp_path) == ["set"]


def test_a_server_that_never_gets_through_is_given_up(msd, tmp_path):
    msd.ranges, msd.breaks = False, 10**6
    answer = msd.answer

    def unsteady(handler):
        msd.break_after = 1000 + 500 * (len(msd.requests) % 2)  # longer and shorter in turns
        answer(handler)

    msd.answer = unsteady
    with pytest.raises(UserError, match="the connection ended after"):
        fetch(config(tmp_path / "set"))
    assert len(msd.requests) <= 3 * downloads.ATTEMPTS


def begun(msd: Server, tmp_path: Path, have: int, **note) -> Path:
    """What a killed process leaves: `have` bytes of the archive and the note beside them."""
    part = tmp_path / f"set.{ARCHIVE}.part"
    part.write_bytes(msd.content[:have])
    told = {"url": msd.url, "validator": msd.etag, "size": len(msd.content)} | note
    part.with_name(f"{part.name}.json").write_text(json.dumps(told))
    return part


@pytest.mark.parametrize(
    "note", [{"url": "http://elsewhere/x.tar"}, {"validator": '"other"'}, {"size": 5, "validator": ""}]
)
def test_a_part_of_another_file_is_not_continued(msd, tmp_path, note):
    part = begun(msd, tmp_path, 4000, **note)
    part.write_bytes(b"x" * 4000)
    fetch(config(tmp_path / "set"))


def test_a_part_without_its_note_is_not_continued(msd, tmp_path):
    (tmp_path / f"set.{ARCHIVE}.part").write_bytes(b"x" * 4000)
    fetch(config(tmp_path / "set"))
    assert msd.requests == [None]


def test_a_complete_part_only_gets_its_name(msd, tmp_path):
    begun(msd, tmp_path, len(msd.content))
    fetch(config(tmp_path / "set"))
    assert msd.requests == [f"bytes={len(msd.content)}-"]


def test_a_part_longer_than_the_file_is_begun_again(msd, tmp_path):
    begun(msd, tmp_path, len(msd.content)).write_bytes(msd.content + b"more")
    fetch(config(tmp_path / "set"))


def test_a_server_without_ranges_starts_again(msd, tmp_path):
    msd.ranges = False
    begun(msd, tmp_path, 4000)
    fetch(config(tmp_path / "set"))
    assert msd.requests == ["bytes=4000-"]


def test_a_wrong_checksum_is_kept_aside_and_the_next_call_starts_afresh(msd, tmp_path):
    good, msd.content = msd.content, msd.content[:-1] + b"x"
    with pytest.raises(UserError, match="MD5.*wanted.*tar.bad"):
        fetch(config(tmp_path / "set"))
    assert os.listdir(tmp_path) == [f"set.{ARCHIVE}.bad"]
    msd.content = good
    fetch(config(tmp_path / "set"))


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, downloads.ATTEMPTS)])
def test_answers_that_are_no_file(msd, tmp_path, status, requests):
    msd.status = status
    with pytest.raises(UserError, match=str(status)):
        fetch(config(tmp_path / "set"))
    assert len(msd.requests) == requests and not (tmp_path / "set").exists()


def test_no_network(msd, tmp_path):
    msd.http.server_close()
    with pytest.raises(UserError, match="cannot be read.*[Rr]efused.*check the network"):
        fetch(config(tmp_path / "set"))


def test_a_server_that_falls_silent_does_not_hang(msd, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.05)
    silence = threading.Event()
    msd.answer = lambda handler: silence.wait(10)
    with pytest.raises(UserError, match="timed out"):
        fetch(config(tmp_path / "set"))
    silence.set()


def test_a_login_page_is_no_archive(msd, tmp_path):
    msd.kind = "text/html; charset=utf-8"
    with pytest.raises(UserError, match="web page"):
        fetch(config(tmp_path / "set"))


def test_a_disk_that_is_too_small_is_said_before(msd, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: type("", (), {"free": 10}))
    with pytest.raises(UserError, match="are needed and"):
        fetch(config(tmp_path / "set"))


def test_a_file_that_cannot_grow_is_kept_and_continued(msd, tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # as a full disk, but for this process alone
    try:
        with pytest.raises(UserError, match="tar.part: cannot be written .*run the same command again"):
            fetch(config(tmp_path / "set"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    fetch(config(tmp_path / "set"))
    assert msd.requests == [None, "bytes=5000-"]


def test_no_room_to_unpack_keeps_the_archive(msd, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "extract", full)
        with pytest.raises(UserError, match="no room left"):
            fetch(config(tmp_path / "set"))
    assert os.listdir(tmp_path) == [f"set.{ARCHIVE}"]
    asked = len(msd.requests)
    fetch(config(tmp_path / "set"))
    assert len(msd.requests) == asked and os.listdir(tmp_path) == ["set"]


def test_two_at_once_do_not_mix_their_bytes(msd, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with open(begun(msd, tmp_path, 10), "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            fetch(config(tmp_path / "set"))


def test_an_archive_at_hand_needs_no_network_and_stays(msd, tmp_path):
    archive = tmp_path / "mine.tar"
    archive.write_bytes(msd.content)
    fetch(config(tmp_path / "set", source=archive))
    assert archive.exists() and not msd.requests and len(everything(tmp_path / "set/images")) == 3
    archive.write_bytes(msd.content[:-9])
    with pytest.raises(UserError, match="mine.tar: MD5"):
        fetch(config(tmp_path / "other", source=archive))
    assert archive.exists()


def test_an_evil_archive_leaves_nothing(msd, tmp_path, monkeypatch):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("Task04_Hippocampus/imagesTr/../../../../evil.nii.gz"))
    msd.content = raw.getvalue()
    monkeypatch.setitem(KNOWN_SETS, "msd-hippocampus", replace(KNOWN_SETS["msd-hippocampus"], md5=""))
    with pytest.raises(UserError, match="leads out of the folder"):
        fetch(config(tmp_path / "a/b/set"))
    assert not list(tmp_path.rglob("*evil*")) and not (tmp_path / "a/b/set").exists()


def test_without_a_checksum_the_record_says_so(msd, tmp_path, monkeypatch):
    here = replace(KNOWN_SETS["ixi-t1"], url=msd.url, md5="")
    monkeypatch.setitem(KNOWN_SETS, "ixi-t1", here)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        info = tarfile.TarInfo("IXI002-Guys-0828-T1.nii.gz")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"scan"))
    msd.content = raw.getvalue()
    to = fetch(config(tmp_path / "ixi", "ixi-t1", keep_archive=True))
    record = json.loads((to / "fetched.json").read_text())
    assert (
        everything(to / "images") == ["IXI002-Guys-0828-T1.nii.gz"] and "no checksum" in record["archive"]["unverified"]
    )
    assert (tmp_path / f"ixi.{ARCHIVE}").exists()


def test_another_archive_is_told_from_the_right_one(msd, tmp_path):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("readme.txt"))
    msd.content = raw.getvalue()
    known = replace(KNOWN_SETS["msd-hippocampus"], md5="")
    (tmp_path / "x.tar").write_bytes(msd.content)
    with pytest.raises(UserError, match="holds no image"):
        fetching._from_archive(config(tmp_path / "set", source=tmp_path / "x.tar"), known)


def test_what_stands_in_the_way_is_not_touched(msd, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="^to: "):
            fetch(config(tmp_path / "home", overwrite=overwrite))
    assert (tmp_path / "home/thesis.txt").read_text() == "mine" and not msd.requests


def test_wrong_words(tmp_path, run):
    assert "no known set; choose one of msd-" in run("fetch", "mds-heart", "--to", tmp_path / "x").err
    assert "to: missing" in run("fetch", "msd-heart").err
    answer = run("fetch", "adni", "--to", tmp_path / "x")
    assert answer.code == 1 and "Data Use Agreement" in answer.err and "--from" in answer.err
    assert "does not exist" in run("fetch", "adni", "--to", tmp_path / "x", "--from", tmp_path / "none").err


def test_the_list_names_every_set_with_its_licence(run):
    shown = run("fetch", "--list").out
    assert run("fetch").out == shown
    for known in KNOWN_SETS.values():
        assert f"{known.name}: " in shown and known.licence in shown and known.citation in shown
    assert len([name for name in KNOWN_SETS if name.startswith("msd-")]) == 10


def test_addresses_and_checksums_are_monais():
    from monai.apps.datasets import DecathlonDataset

    found = {archive_of(known) for known in KNOWN_SETS.values() if known.task}
    assert found == {(url, DecathlonDataset.md5[task]) for task, url in DecathlonDataset.resource.items()}
    for known in KNOWN_SETS.values():
        url, md5 = archive_of(known)
        assert known.by_hand == (not url) == bool(known.instructions)
        assert known.by_hand or re.fullmatch("[0-9a-f]{32}", md5)


@pytest.mark.parametrize("name", KNOWN_SETS)
def test_the_proposed_prepare_command_is_understood(name, run, monkeypatch, tmp_path):
    from splitshuffle_gan.config import Schedule

    parsed = []
    monkeypatch.setitem(COMMANDS, "prepare", replace(COMMANDS["prepare"], run=parsed.append))
    words = shlex.split(KNOWN_SETS[name].prepare.format(to=shlex.quote(str(tmp_path / "my set"))))
    answer = run("prepare", *words)
    assert answer.code == 0, answer.err
    Schedule.for_shape(parsed[0].shape)
    assert parsed[0].source == tmp_path / "my set/images"


def adni_tree(root: Path) -> Path:
    """Two subjects as the archive packs them, in NIfTI; the second in DICOM."""
    first = "ADNI/002_S_0295/MPRAGE"
    for date, image in (("2007-11-02_08_16_44.0", "I400"), ("2006-04-18_08_20_30.0", "I99"),
                        ("2006-04-18_08_20_30.0", "I123")):  # fmt: skip
        folder = root / first / date / image
        folder.mkdir(parents=True)
        (folder / f"ADNI_002_S_0295_MR_MPRAGE_{image}.nii").write_bytes(scan_bytes(int(image[1:])))
    other = root / "part 2/ADNI/011_S_0002/MP-RAGE/2005-08-26_08_45_00.0/I7025"
    other.mkdir(parents=True)
    for number in range(3):
        (other / f"ADNI_011_S_0002_{number}.dcm").write_bytes(b"slice")
    empty = root / "ADNI/002_S_0413/MPRAGE/2006-05-02_12_31_52.0/I13893"
    empty.mkdir(parents=True)
    (root / "ADNI/002_S_0413/notes").mkdir()
    return root


def test_adni_first_visit(tmp_path):
    tree = adni_tree(tmp_path / "given")
    to = fetch(config(tmp_path / "set", "adni", source=tree, description=("MPRAGE", "mp-rage")))
    assert sorted(os.listdir(to / "images")) == ["002_S_0295.nii", "011_S_0002"]
    assert (to / "images/002_S_0295.nii").is_symlink()
    # The earliest date, and of its two images the lower number.
    assert (to / "images/002_S_0295.nii").read_bytes() == scan_bytes(99)
    assert len(os.listdir(to / "images/011_S_0002")) == 3
    skipped = {entry["name"]: entry["reason"] for entry in json.loads((to / "fetched.json").read_text())["skipped"]}
    assert any("I123" in name for name in skipped) and "no scan described" in skipped["002_S_0413"]
    fetch(config(to, "adni"))
    os.remove(tree / "part 2/ADNI/011_S_0002/MP-RAGE/2005-08-26_08_45_00.0/I7025/ADNI_011_S_0002_1.dcm")
    with pytest.raises(UserError, match="images/011_S_0002 has 10 bytes instead of 15"):
        fetch(config(to, "adni"))


def test_adni_all_visits_copied(tmp_path):
    tree = adni_tree(tmp_path / "given")
    to = fetch(config(tmp_path / "set", "adni", source=tree, description=("*RAGE",), visits="all", link="copy"))
    assert sorted(os.listdir(to / "images")) == ["002_S_0295_v01.nii", "002_S_0295_v02.nii", "011_S_0002_v01"]
    assert not any(path.is_symlink() for path in to.rglob("*"))
    assert (to / "images/002_S_0295_v02.nii").read_bytes() == scan_bytes(400)


def test_adni_does_not_guess(tmp_path):
    tree = adni_tree(tmp_path / "given")
    with pytest.raises(UserError, match=r"MP-RAGE \(1 subjects\), MPRAGE \(2 subjects\).*--description"):
        fetch(config(tmp_path / "set", "adni", source=tree))
    with pytest.raises(UserError, match="FLAIR matches no scan"):
        fetch(config(tmp_path / "set", "adni", source=tree, description=("FLAIR",)))
    (tmp_path / "zips").mkdir()
    (tmp_path / "zips/ADNI.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="unpack the .zip"):
        fetch(config(tmp_path / "set", "adni", source=tmp_path / "zips"))
    assert not (tmp_path / "set").exists()


def test_a_set_never_replaces_the_tree_it_is_made_of(tmp_path):
    tree = adni_tree(tmp_path / "given")
    (tree / "fetched.json").write_text("{}")
    with pytest.raises(UserError, match="source"):
        fetch(config(tree, "adni", source=tree / "ADNI", description=("MPRAGE",), overwrite=True))
    assert (tree / "ADNI").is_dir()


def test_coca_nongated(tmp_path):
    root = tmp_path / "cocacoronarycalciumandchestcts-2/deidentified_nongated"
    for number in (1, 2, 10):
        (root / f"{number}/{number}").mkdir(parents=True)
        (root / f"{number}/{number}/IM-0001-0001.dcm").write_bytes(b"slice")
        (root / f"{number}/{number}/.azDownload-x-IM-0001-0002.dcm").write_bytes(b"cruft")
    (root / "11").mkdir()
    (root / "scores.xlsx").write_bytes(b"table")
    for source in (tmp_path / "cocacoronarycalciumandchestcts-2", root):
        to = fetch(config(tmp_path / f"set {source.name}", "coca-nongated", source=source))
        assert sorted(os.listdir(to / "images")) == ["1", "10", "2"] and (to / "scores.xlsx").read_bytes() == b"table"
        record = json.loads((to / "fetched.json").read_text())
        assert record["skipped"] == [{"name": "11", "reason": "no .dcm file in it"}]
        assert record["files"]["images/1"]["bytes"] == 5


def test_known_sets_need_no_network_or_torch_to_be_listed():
    import subprocess
    import sys

    code = "import sys; from splitshuffle_gan.data.known.fetch import overview; overview();"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert known_sets.KNOWN_SETS
