"""The command line as a user meets it: options, presets, exit codes."""

import runpy
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitshuffle_gan import __version__, cli
from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.options import QuickstartOptions, parse_seeds
from splitshuffle_gan.presets import preset_names
from splitshuffle_gan.training.augment import AugmentConfig
from splitshuffle_gan.training.options import NetworkOptions, TrainConfig

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = {
    "train/train2d.py": "train2d",
    "train/inflate.py": "inflate",
    "train/train3d.py": "train3d",
    "evaluate/sample.py": "sample",
    "evaluate/benchmark.py": "benchmark",
    "evaluate/score.py": "score",
    "evaluate/validate_extractor.py": "validate-extractor",
    "evaluate/utility.py": "utility",
    "train/extractor.py": "extractor",
    "train/segment2d.py": "segment2d",
    "train/segment3d.py": "segment3d",
    "evaluate/probe.py": "probe",
}
CONSOLE = Path(sysconfig.get_path("scripts")) / "splitshuffle"


@pytest.fixture
def parse(run, monkeypatch) -> Callable[..., object]:
    """`parse("train2d --data d --out o")`: the options with which the command would start."""

    def call(line: str) -> object:
        seen = []
        for name, command in cli.COMMANDS.items():
            monkeypatch.setitem(cli.COMMANDS, name, replace(command, run=seen.append))
        monkeypatch.setattr(cli, "quickstart", seen.append)
        outcome = run(*line.split())
        assert (outcome.code, len(seen)) == (0, 1), outcome.err
        return seen[0]

    return call


# Seeds


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 5)), min_size=1, max_size=8))
def test_seeds_are_read_in_their_order(ranges):
    expected = [seed for first, more in ranges for seed in range(first, first + more + 1)]
    text = ",".join(f"{first}-{first + more}" if more else f"{first}" for first, more in ranges)
    if len(set(expected)) == len(expected):
        assert parse_seeds(text) == tuple(expected)
    else:
        with pytest.raises(UserError, match="twice"):
            parse_seeds(text)


@settings(deadline=None)
@given(st.text(st.sampled_from("0123456789-, ²½٣x.+") | st.characters(), max_size=6))
def test_any_text_is_seeds_or_a_clear_error(text):
    try:
        seeds = parse_seeds(text)
    except UserError as error:
        assert repr(text) in str(error)
    else:
        assert seeds and all(isinstance(seed, int) and seed >= 0 for seed in seeds)


@pytest.mark.parametrize("text", ["", ",", "3,", "-3", "3-", "5-4", "1.5", "a", "1--2", "0x3", "²", "1-2-3"])
def test_what_is_no_list_of_seeds(text):
    with pytest.raises(UserError, match="wanted numbers and ranges such as 0-15"):
        parse_seeds(text)


def test_spaces_around_seeds_are_allowed():
    assert parse_seeds(" 3, 7 ,20-22") == (3, 7, 20, 21, 22)


# Options


def test_a_preset_gives_defaults_that_options_replace(parse):
    config = parse("train2d --preset hippocampus --data d --out o")
    assert config == TrainConfig(
        data=Path("d"),
        out=Path("o"),
        kimg=400,
        batch_size=32,
        ema_kimg=5,
        snapshot_kimg=20,
        augment_kimg=100,
        r1_gamma=2.0,
        network=NetworkOptions(channels=(128, 128, 64, 32)),
    )
    line = "train2d --kimg 7 --preset=hippocampus --network.channels 8 8 8 8 --augment.flip-lr --data d --out o"
    changed = parse(line)
    assert (changed.kimg, changed.batch_size, changed.network.channels) == (7, 32, (8, 8, 8, 8))
    assert changed.augment == AugmentConfig(flip_lr=True)


def test_a_preset_speaks_to_each_command_of_its_own(parse):
    two, three = (parse(f"train{rank}d --preset heart-ct --data d --out o") for rank in (2, 3))
    assert (two.batch_size, two.micro_batch, two.checkpoint_above, two.network.group_size) == (
        16, None, None, 2,
    )  # fmt: skip
    assert (three.batch_size, three.micro_batch, three.checkpoint_above, three.network.group_size) == (
        4, 2, 64, 2,
    )  # fmt: skip


def test_a_preset_prepares(parse):
    options = parse("prepare scans --out o --preset brain")
    assert (options.source, options.shape, options.plane) == (Path("scans"), (80, 96, 112), "sagittal")
    assert (options.percentiles, options.window, options.spacing) == ((0.5, 99.5), None, (2, 2, 2))
    options = parse("prepare scans --out o --preset brain --shape 40 48 56 --plane axial")
    assert (options.shape, options.plane, options.spacing) == ((40, 48, 56), "axial", (2, 2, 2))


def test_a_window_replaces_a_presets_percentiles_and_the_other_way_round(parse):
    options = parse("prepare scans --out o --preset brain --window 0 900")
    assert (options.percentiles, options.window) == (None, (0, 900))
    options = parse("prepare scans --out o --preset heart-ct --percentiles 1 99")
    assert (options.percentiles, options.window) == ((1, 99), None)
    options = parse("prepare scans --out o --preset heart-ct --window -350 1000")
    assert options.window == (-350, 1000)


@pytest.mark.parametrize("line", ["train2d --preset hearts --data d --out o", "prepare s --out o --preset=hearts"])
def test_an_unknown_preset(run, line):
    outcome = run(*line.split())
    assert outcome.code == 1
    assert outcome.err == f"error: preset: found 'hearts', must be one of {', '.join(preset_names())}\n"


def test_a_preset_where_there_is_none(run):
    outcome = run("phantom", "--out", "o", "--preset", "brain")
    assert (outcome.code, outcome.err) == (1, "error: preset: phantom takes none\n")


def test_init(parse):
    assert parse("train3d --data d --out o").init is None
    assert parse("train3d --data d --out o --init none").init is None
    assert parse("train3d --data d --out o --init None").init is None
    assert parse("train3d --data d --out o --init ckpt").init == Path("ckpt")
    assert parse("train3d --preset heart-ct --data d --out o --init none").init is None


def test_train3d_without_data_is_the_quickstart(parse):
    assert parse("train3d") == QuickstartOptions(out=Path("runs/quickstart"), seed=0, overwrite=False)
    assert parse("train3d --out o --seed 3").out == Path("o")
    assert isinstance(parse("train3d --data=d --out o"), TrainConfig)


def test_booleans_and_three_numbers(parse):
    options = parse("phantom --out o --shape 8 9 10 --spacing 1.5 2 3 --overwrite")
    assert (options.shape, options.spacing, options.overwrite) == ((8, 9, 10), (1.5, 2.0, 3.0), True)
    assert parse("train2d --data d --out o --network.depth-aware False").network.depth_aware is False


# Exit codes


def test_help_is_exit_code_0(run):
    for arguments in ([], ["--help"], ["-h"]):
        outcome = run(*arguments)
        assert (outcome.code, outcome.err) == (0, "")
        assert all(f"  {name} " in outcome.out for name in cli.COMMANDS)


def test_version(run):
    assert run("--version").out == f"{__version__}\n"


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_of_every_command(run, command):
    outcome = run(command, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"usage: splitshuffle {command}")
    assert {"fetch": "--to", "models": "List the trained networks"}.get(command, "--out") in outcome.out


def test_help_of_light_commands_needs_no_torch():
    light = [name for name, command in cli.COMMANDS.items() if isinstance(command.options, type)]
    assert {"phantom", "prepare", "inflate", "sample"} <= set(light)
    lines = [
        "import sys",
        "from splitshuffle_gan import cli",
        f"for words in [], *([name, '--help'] for name in {light}):",
        "    sys.argv = ['splitshuffle', *words]",
        "    try: cli.main()",
        "    except SystemExit: pass",
        "print('torch' in sys.modules)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("False\n"), done.stderr


@pytest.mark.parametrize("script,command", SCRIPTS.items())
def test_scripts_are_the_commands(monkeypatch, capsys, script, command):
    monkeypatch.setattr(sys, "argv", [str(REPOSITORY / script), "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(REPOSITORY / script), run_name="__main__")
    mine = capsys.readouterr().out
    assert stop.value.code == 0
    assert mine.startswith(f"usage: {Path(script).name} ")
    monkeypatch.setattr(sys, "argv", ["splitshuffle", command, "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert mine.split("options")[1] == capsys.readouterr().out.split("options")[1]


@pytest.mark.parametrize(
    "line,told",
    [
        ("no-such-command --out o", "no command 'no-such-command'"),
        ("prepare --out o", "a NIfTI file, or a folder"),
        ("prepare scans", "--out"),
        ("train2d --out o", "--data"),
        ("inflate --out o", "a 2D run"),
        ("sample --out o", "a generator that ships"),
        ("sample ckpt --out o --seed 3", "--seed"),
        ("inflate run --out o --method centre", "centre"),
        ("prepare scans --out o --shape 8 8", "--shape"),
        ("train2d --data d --out o --kimg -1", "kimg: found -1.0, must be positive"),
        ("train2d --data d --out o --augment.rotate 999", "augment.rotate is 999.0"),
    ],
)
def test_bad_usage_is_exit_code_2(run, tmp_path, monkeypatch, line, told):
    monkeypatch.chdir(tmp_path)
    outcome = run(*line.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert told in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line,told",
    [
        ("prepare scans --out o --shape 17 16 8", "Use 16x16x8"),
        ("prepare empty --out o --shape 8 16 8", "empty holds no scan"),
        ("prepare missing --out o --shape 8 16 8", "missing does not exist"),
        ("prepare scans --out taken --shape 8 16 8", "taken exists already"),
        ("prepare scans --out taken --shape 8 16 8 --overwrite", "has no manifest.json"),
        ("prepare scans --out o --shape 8 16 8 --workers 1", "bad.nii.gz: not a readable NIfTI or MGH file"),
        ("prepare scans --out o --shape 8 16 8 --window 0 1 --percentiles 0 1", "give one of the two"),
        ("phantom --out taken", "taken exists already"),
        ("phantom --out o --shape 4 4 4", "at least 8 voxels"),
        ("inflate no/such/run --out o", "no/such/run: no such folder"),
        ("inflate empty --out o", "empty: no generator here"),
        ("inflate empty --out taken", "taken exists already"),
        ("sample no/such/run --out o", "no/such/run: no such folder"),
        ("sample empty --out o", "empty: no generator here"),
        ("sample empty --out taken", "taken exists already"),
        ("sample empty --out o --seeds 3-1", "seeds: found '3-1'"),
        ("train2d --data empty --out o", "make the dataset with `splitshuffle prepare`"),
    ],
)
def test_what_a_user_can_cause_is_exit_code_1_and_leaves_nothing(run, tmp_path, monkeypatch, cpu, line, told):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "scans", "taken"):
        (tmp_path / folder).mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    (tmp_path / "scans" / "bad.nii.gz").write_bytes(b"this is no scan")
    before = sorted(tmp_path.rglob("*"))
    outcome = run(*line.split())
    assert outcome.code == 1
    assert told in outcome.err and "Traceback" not in outcome.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bad_scan_among_good_ones(run, tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "dataset"
    scans.mkdir()
    for number in range(3):
        array = np.random.default_rng(number).uniform(0, 100, (8, 16, 8)).astype(np.float32)
        nib.save(nib.Nifti1Image(array, np.eye(4)), scans / f"{number}.nii.gz")
    (scans / "1.nii.gz").write_bytes((scans / "1.nii.gz").read_bytes()[:-200])
    command = ("prepare", scans, "--out", out, "--shape", 8, 16, 8)

    stopped = run(*command)
    assert stopped.code == 1
    assert "1.nii.gz" in stopped.err and "--skip-bad" in stopped.err
    assert list(tmp_path.iterdir()) == [scans]

    went_on = run(*command, "--skip-bad")
    assert went_on.code == 0
    assert "skipped 1.nii.gz: " in went_on.out and "2 volumes (1 skipped) of 8x16x8 voxels" in went_on.out
    manifest = open_dataset(out).manifest
    assert [entry["source"] for entry in manifest["skipped"]] == ["1.nii.gz"]
    assert [entry["source"] for entry in manifest["volumes"]] == ["0.nii.gz", "2.nii.gz"]


@pytest.mark.parametrize(
    "error,told",
    [
        (UserError("shape: bad"), "error: shape: bad\n"),
        (FloatingPointError("loss_g became nan"), "training stopped: loss_g became nan\n"),
        (OSError(28, "No space left on device"), "error: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), "interrupted\n"),
    ],
)
def test_known_failures_are_one_line(run, monkeypatch, error, told):
    def fail(_):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "phantom", replace(cli.COMMANDS["phantom"], run=fail))
    assert vars(run("phantom", "--out", "o")) == {"code": 1, "out": "", "err": told}


def test_a_programming_error_keeps_its_traceback(run, monkeypatch):
    def fail(_):
        raise ValueError("a bug of ours")

    monkeypatch.setitem(cli.COMMANDS, "phantom", replace(cli.COMMANDS["phantom"], run=fail))
    with pytest.raises(ValueError, match="a bug of ours"):
        run("phantom", "--out", "o")


def test_a_process_that_fails_says_so_in_one_line(tmp_path):
    done = subprocess.run(
        [CONSOLE, "prepare", tmp_path, "--out", tmp_path / "o", "--shape", "17", "17", "31"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: shape: found 17x17x31") and done.stderr.count("\n") == 1
