"""Outputs are whole or absent: what is on disk after success, failure and refusal."""

import json
import math
import os

import pytest

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# refuse_existing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_free_path_is_fine(tmp_path, overwrite):
    refuse_existing(tmp_path / "new", overwrite, mark="done.json")


@pytest.mark.parametrize("kind", ["file", "empty", "marked", "dangling"])
def test_without_overwrite_everything_that_exists_is_refused(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "dangling":
        out.symlink_to(tmp_path / "nowhere")
    else:
        out.mkdir()
        if kind == "marked":
            (out / "done.json").touch()
    with pytest.raises(UserError, match="out: .*out exists.*--overwrite"):
        refuse_existing(out, False, mark="done.json")


@pytest.mark.parametrize("mark", ["file", "folder"])
def test_overwrite_accepts_an_empty_or_a_marked_folder(tmp_path, mark):
    refuse_existing(tmp_path, True, mark="done")
    (tmp_path / "photo.jpg").touch()
    if mark == "file":
        (tmp_path / "done").touch()
    else:
        (tmp_path / "done").mkdir()
    refuse_existing(tmp_path, True, mark="done")


def test_overwrite_spares_what_is_not_ours(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match=r"has no done\.json in it"):
        refuse_existing(tmp_path, True, mark="done.json")
    with pytest.raises(UserError, match="not overwritten"):
        refuse_existing(tmp_path / "photo.jpg", True, mark="done.json")


# whole_folder ---------------------------------------------------------------------------------------------------------


def test_a_folder_appears_at_the_end_of_the_block(tmp_path):
    out = tmp_path / "deep" / "out"
    with whole_folder(out) as building:
        (building / "a").write_text("1")
        assert not out.exists()
        assert building.parent == out.parent  # the same file system: the last step is one rename
    assert names(out) == ["a"] and names(out.parent) == ["out"]


def test_a_folder_replaces_the_previous_one_completely(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with whole_folder(out) as building:
        (building / "new").write_text("new")
        assert names(out) == ["old"]
    assert names(out) == ["new"] and names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("existed", [False, True])
def test_a_failed_block_leaves_what_was_there(tmp_path, existed, error):
    out = tmp_path / "out"
    if existed:
        out.mkdir()
        (out / "old").write_text("old")
    with pytest.raises(error), whole_folder(out) as building:
        (building / "half").write_text("h")
        raise error
    assert names(tmp_path) == (["out"] if existed else [])
    assert not existed or names(out) == ["old"]


def test_the_previous_folder_comes_back_when_the_swap_fails(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(FileNotFoundError), whole_folder(out) as building:
        building.rmdir()  # nothing is there to move in
    assert names(tmp_path) == ["out"] and names(out) == ["old"]


def test_a_previous_folder_that_cannot_come_back_is_kept(tmp_path, monkeypatch):
    out, replace = tmp_path / "out", os.replace
    out.mkdir()
    (out / "old").write_text("old")

    def fails_on_the_way_in(source, target):
        if target == out:
            raise OSError("the disk is gone")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_on_the_way_in)
    with pytest.raises(OSError, match="gone"), whole_folder(out):
        pass
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".previous") and names(left) == ["old"]


# write_json -----------------------------------------------------------------------------------------------------------


def test_json_is_what_was_given(tmp_path):
    value = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text()) == value
    assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize("value", [math.nan, math.inf, object()])
def test_json_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path, value):
    path = tmp_path / "x.json"
    path.write_text("before")
    with pytest.raises((ValueError, TypeError)):
        write_json(path, {"loss": value})
    assert path.read_text() == "before" and names(tmp_path) == ["x.json"]
