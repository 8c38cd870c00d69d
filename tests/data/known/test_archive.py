"""Archives that mean harm, or are merely broken, are refused by name; good ones come out byte for byte."""

import io
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from splitshuffle_gan.data.known.archive import Limits, extract
from splitshuffle_gan.errors import UserError


def tar(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zipped(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


@pytest.fixture
def out(tmp_path) -> Path:
    folder = tmp_path / "deep" / "er" / "out"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_comes_out_as_it_went_in(tmp_path, out, mode):
    folder = special("./set", tarfile.DIRTYPE)
    path = tar(tmp_path / "x", folder, ("./set/a.nii", b"abc" * 999), ("./set/ü b.nii", b""), mode=mode)
    unpacked = extract(path, out)
    assert (out / "set/a.nii").read_bytes() == b"abc" * 999
    assert (out / "set/ü b.nii").read_bytes() == b""
    assert unpacked.files["set/a.nii"]["bytes"] == 2997 and not unpacked.skipped


def test_zip_comes_out_as_it_went_in(tmp_path, out):
    extract(zipped(tmp_path / "x.bin", ("a/b.txt", b"hello"), ("a/", b"")), out)
    assert (out / "a/b.txt").read_bytes() == b"hello"


def test_place_names_and_skips(tmp_path, out):
    path = tar(tmp_path / "x.tar", ("t/imagesTr/a", b"1"), ("t/readme", b"2"))
    unpacked = extract(path, out, lambda name: PurePosixPath("images", name.name) if "imagesTr" in name.parts else None)
    assert [p.name for p in out.rglob("*") if p.is_file()] == ["a"] and (out / "images/a").read_bytes() == b"1"
    assert unpacked.files["images/a"]["member"] == "t/imagesTr/a" and unpacked.skipped == ("t/readme",)


def test_clutter_of_macos_is_skipped(tmp_path, out):
    path = tar(tmp_path / "x.tar", ("t/._a.nii", b"1"), ("__MACOSX/a", b"2"), ("t/.DS_Store", b"3"), ("t/a.nii", b"4"))
    assert list(extract(path, out).files) == ["t/a.nii"]


EVIL_NAMES = ["../evil", "a/../../evil", "/tmp/evil", "C:/evil", "a\\..\\evil", "a\nb", "x" * 300]


@pytest.mark.parametrize("name", EVIL_NAMES)
@pytest.mark.parametrize("make", [tar, zipped])
def test_names_that_lead_out_are_refused(tmp_path, out, name, make):
    with pytest.raises(UserError, match="archive.bin: member"):
        extract(make(tmp_path / "archive.bin", ("good", b"1"), (name, b"evil")), out)
    assert not [p for p in tmp_path.rglob("*") if "evil" in p.name]


@pytest.mark.parametrize(
    "member",
    [
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("link", tarfile.SYMTYPE, "../../x"),
        special("link", tarfile.SYMTYPE, "good"),
        special("link", tarfile.LNKTYPE, "/etc/passwd"),
        special("pipe", tarfile.FIFOTYPE),
        special("disk", tarfile.BLKTYPE),
        special("null", tarfile.CHRTYPE),
    ],
)
def test_links_and_devices_are_refused(tmp_path, out, member):
    with pytest.raises(UserError, match="is a (link|device)"):
        extract(tar(tmp_path / "x.tar", ("good", b"1"), member), out)
    assert not (out / member.name).exists() and not (out / member.name).is_symlink()


def test_a_link_followed_by_a_file_through_it_writes_nothing_outside(tmp_path, out):
    outside = tmp_path / "outside"
    outside.mkdir()
    path = tar(tmp_path / "x.tar", special("door", tarfile.SYMTYPE, str(outside)), ("door/evil", b"1"))
    with pytest.raises(UserError):
        extract(path, out)
    assert not list(outside.iterdir())


def test_zip_links_are_refused(tmp_path, out):
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with pytest.raises(UserError, match="link"):
        extract(zipped(tmp_path / "x.zip", (info, b"/etc/passwd")), out)


@pytest.mark.parametrize(
    "names",
    [("a/x", "a/X"), ("a/x", "a/x"), ("A/x", "a/y"), ("a", "a/b"), ("a/b", "a"), ("caf\u00e9", "cafe\u0301")],
)
def test_names_that_clash_are_refused(tmp_path, out, names):
    with pytest.raises(UserError, match="one name"):
        extract(tar(tmp_path / "x.tar", *[(name, b"1") for name in names]), out)


def test_bombs_are_refused_by_ratio_size_and_count(tmp_path, out):
    bomb = tar(tmp_path / "bomb.tar.gz", ("zeros", bytes(4 << 20)), mode="w:gz")
    assert bomb.stat().st_size < 8 << 10
    with pytest.raises(UserError, match="bomb"):
        extract(bomb, out, limits=Limits(small=1 << 20))
    with pytest.raises(UserError, match="bomb"):
        extract(zipped(tmp_path / "b.zip", ("zeros", bytes(4 << 20))), out, limits=Limits(small=1 << 20))
    with pytest.raises(UserError, match="more than"):
        extract(bomb, out, limits=Limits(bytes=1000))
    many = tar(tmp_path / "many.tar", *[(f"{i}", b"") for i in range(11)])
    with pytest.raises(UserError, match="more than 10 files"):
        extract(many, out, limits=Limits(files=10))
    assert sum(p.stat().st_size for p in out.rglob("*")) < 1 << 20


def test_a_zip_that_lies_about_its_size_is_refused(tmp_path, out):
    path = zipped(tmp_path / "x.zip", ("zeros", bytes(100_000)))
    raw = path.read_bytes()
    path.write_bytes(raw.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(UserError):
        extract(path, out)


def test_a_header_of_absurd_length_is_not_read_into_memory(tmp_path, out):
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2 << 30
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(UserError, match="claims"):
        extract(tmp_path / "x.tar", out)


@pytest.mark.parametrize("keep", [0.5, 0.98])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_cut_archive_is_refused(tmp_path, out, keep, mode):
    import random

    noise = random.Random(0).randbytes(200_000)
    path = tar(tmp_path / "x.tar", ("noise", noise), mode=mode)
    raw = path.read_bytes()
    cut = int(keep * (len(raw) if mode == "w:gz" else 200_512))  # an uncompressed one ends with padding
    path.write_bytes(raw[:cut])
    with pytest.raises(UserError, match="cut off"):
        extract(path, out)


@pytest.mark.parametrize("content", [b"", b"<html>Please log in</html>" * 99, b"PK not a zip", b"\x1f\x8b not gzip"])
def test_what_is_no_archive_is_refused(tmp_path, out, content):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(UserError, match="x.tar"):
        extract(tmp_path / "x.tar", out)
