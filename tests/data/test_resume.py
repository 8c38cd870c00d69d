"""A killed `prepare` goes on, and ends as if it had never been killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from splitshuffle_gan.data import building
from splitshuffle_gan.data import prepare as module
from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.errors import UserError

COUNT = 24
# Slowly, and noting which rows are prepared.
SLOW_RUN = """
import sys, time
from pathlib import Path
from splitshuffle_gan.data import prepare as module
source, out, notes = map(Path, sys.argv[1:])
original = module._prepare_one
def noted(task):
    time.sleep(0.05)
    outcome = original(task)
    with open(notes, "a") as file:
        file.write(f"{task[2]}\\n")
    return outcome
module._prepare_one = noted
module.prepare(module.PrepareConfig(source, out, (8, 8, 8), workers=2, skip_bad=True, labels=source, shard_size=5))
"""


@pytest.fixture
def scans(tmp_path) -> Path:
    """Whole numbers, so that they are their own label maps; two of them bad."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(COUNT):
        array = np.random.default_rng(number).integers(0, 9, (9, 10, 11)).astype(np.float32)
        nib.save(
            nib.Nifti1Image(array if number not in (3, 17) else array * 0, np.eye(4)), folder / f"{number:02d}.nii"
        )
    return folder


def config(scans: Path, **changes) -> PrepareConfig:
    settings = {"workers": 1, "skip_bad": True, "labels": scans, "shard_size": 5} | changes
    return PrepareConfig(scans, scans.parent / "out", (8, 8, 8), **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def build_folder_of(tmp_path: Path) -> Path:
    (folder,) = tmp_path.glob(".out.*.building")
    return folder


def stop_after(monkeypatch, rows: int, error: BaseException) -> list[int]:
    """Let `prepare` fail once so many rows are done; the rows it takes up."""
    original, taken = module._prepare_one, []

    def until(task):
        if len(taken) == rows:
            raise error
        taken.append(task[2])
        return original(task)

    monkeypatch.setattr(module, "_prepare_one", until)
    return taken


def test_killed_at_random_points_it_ends_as_if_it_never_was(scans, tmp_path):
    prepare(config(scans, workers=2))
    os.replace(tmp_path / "out", tmp_path / "straight")
    rng, notes = random.Random(0), tmp_path / "notes"
    command = [sys.executable, "-c", SLOW_RUN, scans, tmp_path / "out", notes]
    folder = Path(module.__file__).parents[2]
    for _ in range(3):
        before = notes.read_text().count("\n") if notes.exists() else 0
        with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as process:
            wanted, end = before + rng.randint(1, 5), time.monotonic() + 60
            while (notes.read_text().count("\n") if notes.exists() else 0) < wanted and time.monotonic() < end:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    last = subprocess.run(command, cwd=folder, stderr=subprocess.PIPE, text=True, timeout=120)
    assert last.returncode == 0, last.stderr
    assert "prepare: goes on with " in last.stderr
    assert contents(tmp_path / "out").keys() == contents(tmp_path / "straight").keys()
    told = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("out", "straight")]
    assert told[0]["count"] == COUNT - 2 and len(told[0]["skipped"]) == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    assert not list(tmp_path.glob(".out.*"))
    # No finished volume was prepared again; the bad ones are looked at in every run.
    rows = [int(row) for row in notes.read_text().split()]
    good = [row for row in rows if row not in (3, 17)]
    assert sorted(set(rows)) == list(range(COUNT)) and len(good) == len(set(good))


@pytest.mark.parametrize("done", [1, 7, COUNT - 1])
def test_an_interrupted_run_goes_on_and_says_so(scans, tmp_path, monkeypatch, capsys, done):
    with monkeypatch.context() as patch:
        stop_after(patch, done, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prepare(config(scans))
    folder = build_folder_of(tmp_path)
    assert "the same command goes on" in capsys.readouterr().err
    # How many processes there are and what becomes of bad scans change no volume.
    taken = stop_after(monkeypatch, 10**6, KeyboardInterrupt())
    out = prepare(config(scans, workers=1))
    kept = done - sum(bad < done for bad in (3, 17))
    assert f"goes on with {kept} of {COUNT} volumes done, in {folder}" in capsys.readouterr().err
    assert sorted(set(taken) - {3, 17}) == [row for row in range(done, COUNT) if row not in (3, 17)]
    resumed = contents(out)
    prepare(config(scans, overwrite=True))
    manifest, straight = (json.loads(found["manifest.json"]) for found in (resumed, contents(out)))
    straight["created_with"]["config"]["overwrite"] = False
    assert manifest == straight
    assert all(resumed[name] == found for name, found in contents(out).items() if name != "manifest.json")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def interrupted(scans, monkeypatch, done=10, **changes) -> Path:
    with monkeypatch.context() as patch:
        stop_after(patch, done, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prepare(config(scans, **changes))
    return build_folder_of(scans.parent)


def test_a_torn_line_is_prepared_again(scans, tmp_path, monkeypatch):
    folder = interrupted(scans, monkeypatch)
    journal = folder / building.JOURNAL
    journal.write_bytes(journal.read_bytes()[:-40])
    taken = stop_after(monkeypatch, 10**6, KeyboardInterrupt())
    dataset = open_dataset(prepare(config(scans)))
    assert taken == [3, *range(9, COUNT)]
    assert len(dataset) == COUNT - 2


def test_a_row_that_is_not_what_the_journal_says_is_prepared_again(scans, tmp_path, monkeypatch):
    """As a machine that lost its power may leave it."""
    folder = interrupted(scans, monkeypatch)
    shard = folder / "rows" / "volumes-00001.npy"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1  # of row 9
    shard.write_bytes(content)
    taken = stop_after(monkeypatch, 10**6, KeyboardInterrupt())
    prepare(config(scans))
    assert taken == [3, *range(9, COUNT)]


def test_a_scan_that_changed_meanwhile_is_prepared_again(scans, tmp_path, monkeypatch):
    interrupted(scans, monkeypatch)
    array = np.random.default_rng(99).integers(0, 9, (9, 10, 11)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), scans / "05.nii")
    taken = stop_after(monkeypatch, 10**6, KeyboardInterrupt())
    dataset = open_dataset(prepare(config(scans, window=None)))
    assert taken == [3, 5, *range(10, COUNT)]
    np.testing.assert_array_equal(dataset.labels[4, 0], array.transpose(2, 1, 0)[1:9, 1:9, 0:8])


@pytest.mark.parametrize("lost", ["rows/volumes-00002.npy", "rows/labels-00000.npy", "rows"])
def test_without_its_arrays_a_build_starts_afresh(scans, tmp_path, monkeypatch, lost):
    folder = interrupted(scans, monkeypatch)
    if lost == "rows":
        os.replace(folder / lost, folder / "away")
    else:
        (folder / lost).write_bytes(b"")
    taken = stop_after(monkeypatch, 10**6, KeyboardInterrupt())
    assert len(open_dataset(prepare(config(scans)))) == COUNT - 2
    assert taken == list(range(COUNT))


@pytest.mark.parametrize("change", ["config", "source list"])
def test_another_config_or_source_list_starts_afresh(scans, tmp_path, monkeypatch, capsys, change):
    folder = interrupted(scans, monkeypatch)
    taken = stop_after(monkeypatch, 10**6, KeyboardInterrupt())
    changes = {}
    if change == "config":
        changes = {"window": (0, 8)}
    else:
        (scans / "00.nii").unlink()
    capsys.readouterr()
    dataset = open_dataset(prepare(config(scans, **changes)))
    assert taken == list(range(COUNT - (change == "source list")))
    err = capsys.readouterr().err
    assert folder.name in err and "of other settings or scans" in err and "goes on" not in err
    assert len(dataset) == COUNT - 2 - (change == "source list")
    assert not list(tmp_path.glob(".out.*"))


def test_interrupted_again_while_it_checks_it_still_goes_on(scans, tmp_path, monkeypatch):
    interrupted(scans, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_is_finished", lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            prepare(config(scans))
    taken = stop_after(monkeypatch, 10**6, KeyboardInterrupt())
    prepare(config(scans))
    assert taken == [3, *range(10, COUNT)]


def test_what_took_long_outlives_an_error(scans, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "WORTH_KEEPING", 5)
    with pytest.raises(UserError, match="17.nii.*--skip-bad"):
        (scans / "03.nii").unlink()
        prepare(config(scans, skip_bad=False))
    assert "16 finished volumes are kept" in capsys.readouterr().err
    taken = stop_after(monkeypatch, 10**6, KeyboardInterrupt())
    assert len(open_dataset(prepare(config(scans, skip_bad=True)))) == COUNT - 2
    assert taken == list(range(16, COUNT - 1))


def test_an_earlier_dataset_stays_until_the_new_one_is_whole(scans, tmp_path, monkeypatch):
    out = prepare(config(scans))
    before = contents(out)
    interrupted(scans, monkeypatch, overwrite=True, window=(0, 8))
    assert contents(out) == before
    with pytest.raises(UserError, match="exists already"):
        prepare(config(scans, window=(0, 8)))
    manifest = open_dataset(prepare(config(scans, window=(0, 8), overwrite=True))).manifest
    assert manifest["intensity"]["mode"] == "window"
    assert not list(tmp_path.glob(".out.*"))


def test_a_run_that_failed_at_the_very_end_needs_no_scan_again(scans, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "move_in", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            prepare(config(scans))
    taken = stop_after(monkeypatch, 10**6, KeyboardInterrupt())
    assert len(open_dataset(prepare(config(scans)))) == COUNT - 2
    assert taken == [3, 17]
