"""The folder in which a dataset grows: found again, locked, journaled, moved in."""

import json
import multiprocessing
import os

import pytest

from splitshuffle_gan.data import building
from splitshuffle_gan.data.building import build_folder, discard, move_in, read_journal, record
from splitshuffle_gan.errors import UserError

KEY, OTHER = "ab" * 32, "cd" * 32


def test_the_folder_depends_on_the_place_and_the_key(tmp_path):
    with build_folder(tmp_path / "out", KEY) as first:
        pass
    with build_folder(tmp_path / "out", KEY) as again, build_folder(tmp_path / "out", OTHER) as other:
        assert first == again != other
    assert {first.parent, other.parent} == {tmp_path}
    assert first.name.startswith(".out.")


def test_only_one_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "LOCK_WAIT_S", 0.2)
    with build_folder(tmp_path / "out", KEY):
        with pytest.raises(UserError, match="another run"), build_folder(tmp_path / "out", KEY):
            pass
    with build_folder(tmp_path / "out", KEY):
        pass


def test_a_torn_line_spoils_no_other(tmp_path):
    for row in range(3):
        record(tmp_path, {"row": row})
    path = tmp_path / building.JOURNAL
    whole = path.read_bytes()
    for cut in range(len(whole) - 9, len(whole)):
        path.write_bytes(whole[:cut])
        record(tmp_path, {"row": 7})
        rows = [line["row"] for line in read_journal(tmp_path)]
        assert rows in ([0, 1, 7], [0, 1, 2, 7])
    path.write_bytes(whole + b'\n{"row": 5, "sta\x00\xff')
    assert [line["row"] for line in read_journal(tmp_path)] == [0, 1, 2]
    assert list(read_journal(tmp_path / "absent")) == []


def write_lines(folder, first):
    for row in range(first, first + 200):
        record(folder, {"row": row, "long": "x" * 5000})


def test_processes_may_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_lines, args=(tmp_path, 200 * i)) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(line["row"] for line in read_journal(tmp_path)) == list(range(600))


def test_what_was_there_is_replaced_and_all_builds_are_removed(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with build_folder(out, OTHER) as other:
        (other / "much").touch()
    (tmp_path / ".out.notes").touch()
    with build_folder(out, KEY) as folder:
        (folder / "dataset").mkdir()
        (folder / "dataset" / "new").touch()
        move_in(folder, folder / "dataset", out)
    assert [path.name for path in out.iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.notes", "out"]


def test_killed_between_two_renames_the_earlier_dataset_comes_back(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with build_folder(out, KEY) as folder:
        os.replace(out, folder / building.EARLIER)
        discard(folder)
        assert folder.exists()
    # Whatever is built next.
    with build_folder(out, OTHER):
        assert (out / "old").is_file()


def test_builds_of_another_dataset_are_left_alone(tmp_path):
    with build_folder(tmp_path / "out.2", KEY) as neighbour, build_folder(tmp_path / "out", KEY) as folder:
        (folder / "dataset").mkdir()
        move_in(folder, folder / "dataset", tmp_path / "out")
    assert neighbour.is_dir()


def test_lines_are_json(tmp_path):
    record(tmp_path, {"row": 1, "name": "Müller\n"})
    assert json.loads((tmp_path / building.JOURNAL).read_text()) == {"row": 1, "name": "Müller\n"}
