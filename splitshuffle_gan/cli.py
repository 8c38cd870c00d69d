"""The command line: parse, call, and turn what a user can cause into one clear line.

Exit codes: 0 done, 1 failure, 2 bad usage.
"""

import signal
import sys
from dataclasses import fields, replace
from inspect import cleandoc
from pathlib import Path
from typing import Any

import tyro

from splitshuffle_gan import __version__
from splitshuffle_gan.commands import COMMANDS, quickstart
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.options import QuickstartOptions
from splitshuffle_gan.presets import load_preset, preset_names


def main(command: str | None = None) -> None:
    """Entry of `splitshuffle` and of the scripts in `train/` and `evaluate/`, which name their `command`."""
    # A scheduler's SIGTERM ends like Ctrl-C: temporary folders are removed, workers stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = [*([command] if command else []), *sys.argv[1:]]
    program = f"{Path(sys.argv[0]).name}" if command else None
    try:
        _dispatch(arguments, program)
    except UserError as error:
        _fail(f"error: {error}")
    except FloatingPointError as error:
        _fail(f"training stopped: {error}")
    except OSError as error:
        _fail(f"error: {error}")
    except KeyboardInterrupt:
        _fail("interrupted")


def _fail(message: str) -> None:
    print(message, file=sys.stderr)
    sys.exit(1)


def _dispatch(arguments: list[str], program: str | None) -> None:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help"):
        print(_overview())
        return
    if name == "--version":
        print(__version__)
        return
    if name not in COMMANDS:
        print(f"splitshuffle: no command {name!r}\n\n{_overview()}", file=sys.stderr)
        sys.exit(2)
    program = program or f"splitshuffle {name}"
    if name == "train3d" and not {"--data", "--preset", "-h", "--help"} & {part.split("=")[0] for part in rest}:
        quickstart(_parse(name, QuickstartOptions, rest, program))
    else:
        COMMANDS[name].run(_parse(name, COMMANDS[name].options_class(), rest, program))


def _parse(name: str, options_class: type, arguments: list[str], program: str) -> Any:
    """The options, with a preset's values as defaults."""
    # The benchmark's preset is an option of its own: it names what to measure and holds no defaults.
    preset, arguments = (None, arguments) if name == "benchmark" else _take_preset(arguments)
    default: Any = tyro.MISSING_NONPROP
    if preset is not None and name in ("prepare", "train2d", "train3d"):
        default = _from_preset(name, options_class, load_preset(preset).get(name, {}), arguments)
    elif preset is not None:
        raise UserError(f"preset: {name} takes none")
    description = _introduction(options_class)
    if name in ("train2d", "train3d"):
        description += (
            f"\n\n--preset NAME takes the defaults of {', '.join(preset_names())}."
            " train3d without --data runs the whole job on built-in phantoms."
        )
    options = tyro.cli(
        options_class,
        args=arguments,
        default=default,
        prog=program,
        description=description,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    from_scratch = str(getattr(options, "init", "")) == "none"
    return replace(options, init=None) if from_scratch else options


def _introduction(options_class: type) -> str:
    """What the class's docstring says before its attributes, a line for each paragraph."""
    text = cleandoc(options_class.__doc__).partition("Attributes:")[0]
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))


def _take_preset(arguments: list[str]) -> tuple[str | None, list[str]]:
    kept, preset, parts = [], None, iter(arguments)
    for part in parts:
        if part == "--preset":
            preset = next(parts, "")
        elif part.startswith("--preset="):
            preset = part.partition("=")[2]
        else:
            kept.append(part)
    return preset, kept


def _from_preset(name: str, options_class: type, section: dict, arguments: list[str]) -> Any:
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in section.items()}
    if name == "prepare":
        # A window on the command line replaces a preset's percentiles, and the other way round.
        given = {part.split("=")[0] for part in arguments}
        if given & {"--window", "--percentiles"}:
            values.pop("window", None)
            values.pop("percentiles", None)
        required = {"source": tyro.MISSING, "out": tyro.MISSING}
    else:
        defaults = {f.name: f.default_factory() for f in fields(options_class) if f.name in ("network", "augment")}
        for key, default in defaults.items():
            nested = {k: tuple(v) if isinstance(v, list) else v for k, v in values.get(key, {}).items()}
            values[key] = replace(default, **nested)
        required = {"data": tyro.MISSING, "out": tyro.MISSING}
    return options_class(**required, **values)


def _overview() -> str:
    lines = [f"splitshuffle {__version__}: synthetic 3D medical volumes from few scans.", "", "Commands:"]
    lines += [f"  {name:18s} {command.summary}" for name, command in COMMANDS.items()]
    lines += ["", "`splitshuffle COMMAND --help` says more. On several devices: accelerate launch train/train3d.py ..."]
    return "\n".join(lines)
