"""What the README tells people to type exists and is understood."""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from splitshuffle_gan import cli
from splitshuffle_gan.benchmark.networks import count_all_parameters

REPOSITORY = Path(__file__).resolve().parent.parent
LAUNCHERS = {"accelerate", "python", "python3", "torchrun"}


def commands() -> list[list[str]]:
    """The words of every command in the README's bash blocks, without comments and leading NAME=value."""
    text = (REPOSITORY / "README.md").read_text()
    found = []
    for block in re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="&|;")
            lexer.whitespace_split = True
            words = []
            for word in [*lexer, ";"]:
                if set(word) <= set("&|;"):
                    found.append(words)
                    words = []
                elif words or not re.match(r"\w+=", word):
                    words.append(word)
    return [words for words in found if words]


def own_commands() -> list[tuple[str, list[str]]]:
    """Name in `cli.COMMANDS` and arguments of each use of `splitshuffle` or of a script."""
    found, folder = [], REPOSITORY
    for words in commands():
        if words[0] == "cd":
            folder = REPOSITORY / words[1] if (REPOSITORY / words[1]).is_dir() else REPOSITORY
        elif words[0] == "splitshuffle":
            found.append((words[1], words[2:]))
        elif words[0] in LAUNCHERS and any(word.endswith(".py") for word in words):
            at = next(i for i, word in enumerate(words) if word.endswith(".py"))
            script = folder / words[at]
            named = re.search(r'main\("([\w-]+)"\)', script.read_text())[1] if script.is_file() else f"no {words[at]}"
            found.append((named, words[at + 1 :]))
    return found


@pytest.fixture
def parse(monkeypatch, capsys):
    """Exit code, output and errors of a command line whose command is parsed and then not run."""
    started = []
    for name, command in cli.COMMANDS.items():
        monkeypatch.setitem(cli.COMMANDS, name, replace(command, run=started.append))
    monkeypatch.setattr(cli, "quickstart", started.append)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["splitshuffle", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


def test_the_test_command_is_there():
    blocks = re.findall(r"^```bash\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.M | re.S)
    assert any("pip install -r requirements.txt && pytest" in block.splitlines() for block in blocks)


def test_every_command_and_script_in_the_text_exists():
    text = (REPOSITORY / "README.md").read_text()
    assert set(re.findall(r"`splitshuffle ([a-z][\w-]*)", text)) <= set(cli.COMMANDS)
    for script in re.findall(r"\b(?:train|evaluate)/\w+\.py", text):
        assert (REPOSITORY / script).is_file(), script


def test_the_readme_shows_the_whole_way():
    names = {name for name, _ in own_commands()}
    assert names >= {"prepare", "train2d", "inflate", "train3d", "sample"}


@pytest.mark.parametrize("name,arguments", own_commands())
def test_every_command_and_every_flag_is_known(parse, name, arguments):
    assert name in cli.COMMANDS
    known = set(re.findall(r"--[a-z][\w.-]*", parse(name, "--help")[1]))
    flags = {word.split("=")[0] for word in arguments if word.startswith("--")} - {"--help"}
    assert flags <= known
    assert parse(name, *(word for word in arguments if word != "..."))[0] == 0


def test_results_are_those_of_the_json_files():
    """`evaluate/readme_results.py` was run after the last experiment and the last model."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / "evaluate" / "readme_results.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_parameters_are_those_of_the_presets():
    text = (REPOSITORY / "README.md").read_text()
    for row in (row for row in count_all_parameters() if row["conv"] == "split_shuffle"):
        plain = round(row["parameters"] / row["of_plain"])
        stated = f"| {row['preset']} | {plain:,} | {row['parameters']:,} | {row['of_plain']:.3f} |"
        assert stated in text
