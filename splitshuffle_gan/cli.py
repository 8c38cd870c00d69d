"""The command line: parse, call, and turn what a user can cause into one clear line. No maths.

Exit codes: 0 done, 1 failure, 2 bad usage.
"""

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from splitshuffle_gan import __version__
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.presets import load_preset, preset_names

MAX_SEEDS = 1_000_000
Source = tyro.conf.Positional[Path]


@dataclass(frozen=True, kw_only=True)
class PhantomOptions:
    """Write phantom scans (NIfTI volumes and label maps) whose every factor is known and recorded.

    Attributes:
        out: folder to make: images/, labels/, factors.json.
        kind: brain (T1-like MR) or heart (CT in HU).
        count: number of volumes.
        shape: voxels, D H W.
        spacing: mm, Z Y X.
        seed: volume i depends on the seed and i alone.
        overwrite: replace the phantoms in `out`.
    """

    out: Path
    kind: Literal["brain", "heart"] = "brain"
    count: int = 64
    shape: tuple[int, int, int] = (64, 64, 64)
    spacing: tuple[float, float, float] = (3.5, 3.5, 3.5)
    seed: int = 0
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Scans to a dataset: reorient to RAS+, resample, crop or pad about the centre, map intensities to [-1, 1].

    Attributes:
        source: a NIfTI file, or a folder searched to any depth.
        out: dataset folder to make: volumes.npy, manifest.json.
        shape: voxels of every prepared volume, D H W; each 4 to 15 times a power of two.
        spacing: mm, in the order of shape; default: the set's median.
        percentiles: intensities of each scan that become -1 and 1 (MR); default 0.5 99.5.
        window: intensities that become -1 and 1, the same for all scans (CT, in HU).
        plane: the plane of the slices; its normal is the first axis, D.
        skip_bad: leave out unreadable scans and list them in the manifest, instead of stopping.
        overwrite: replace the dataset in `out`.
        workers: processes; 0 is one per core.
        preset: take shape, spacing, intensities and plane from a preset; what is given beside it counts more.
    """

    source: Source
    out: Path
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None = None
    percentiles: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    plane: Literal["axial", "coronal", "sagittal"] = "axial"
    skip_bad: bool = False
    overwrite: bool = False
    workers: int = 0
    preset: str | None = None


@dataclass(frozen=True, kw_only=True)
class InflateOptions:
    """Inflate a 2D GAN into a 3D one and report every weight and the measured function-preservation error.

    Attributes:
        run2d: a 2D run (its latest snapshot) or a pair of 2D networks.
        out: folder to make: generator/, discriminator/, inflation.json.
        method: how a k x k kernel fills k slices: center (exact), mean (I3D), binomial, triaxial (ACS), random (not).
        shape: voxels of the 3D network, D H W, where D differs from the 2D network's.
        depth_upsample: growth over depth in the 3D generator: nearest starts exactly, in steps over depth; linear
            starts smooth between slices, not exactly.
        seed: of `random`.
        overwrite: replace the checkpoint in `out`.
    """

    run2d: Source
    out: Path
    method: Literal["center", "mean", "binomial", "triaxial", "random"] = "center"
    shape: tuple[int, int, int] | None = None
    depth_upsample: Literal["nearest", "linear"] = "nearest"
    seed: int = 0
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Draw synthetic volumes: NIfTI files with true geometry and intensities, a montage, samples.json.

    Attributes:
        checkpoint: a generator's folder, a pair of networks, a training run (its latest snapshot) or a hub id.
        out: folder to make.
        seeds: one volume per seed, as 0-15 or 3,7,20-24.
        truncation_psi: below 1 less variety and fewer bad samples; 1 the whole distribution.
        style_mix: two seeds A B instead of `seeds`: the coarse styles of A with the fine ones of B.
        mix_layers: how many layers count as coarse; default half of them.
        interpolate: two seeds A B instead of `seeds`, to walk between.
        steps: volumes of that walk, both ends included.
        noise_mode: const repeats a volume exactly; none is smoother; random draws new fine detail.
        overwrite: replace the samples in `out`.
    """

    checkpoint: tyro.conf.Positional[str]
    out: Path
    seeds: str = "0-15"
    truncation_psi: float = 0.7
    style_mix: tuple[int, int] | None = None
    mix_layers: int | None = None
    interpolate: tuple[int, int] | None = None
    steps: int = 8
    noise_mode: Literal["const", "none", "random"] = "const"
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class QuickstartOptions:
    """The whole job on built-in brain phantoms: what `train3d` does when it is given no data.

    Attributes:
        out: folder to make; everything goes there.
        seed: of everything random.
        overwrite: replace an earlier quickstart in `out`.
    """

    out: Path = field(default_factory=lambda: Path("runs/quickstart"))
    seed: int = 0
    overwrite: bool = False


def phantom(options: PhantomOptions) -> None:
    """Run `splitshuffle phantom`."""
    from splitshuffle_gan.data.phantom import write_phantoms

    out = write_phantoms(**vars(options))
    print(f"{options.count} {options.kind} phantoms in {out}/images, their labels and factors.json beside them")


def prepare(options: PrepareOptions) -> None:
    """Run `splitshuffle prepare`."""
    from splitshuffle_gan.config import Schedule
    from splitshuffle_gan.data.dataset import open_dataset
    from splitshuffle_gan.data.prepare import PrepareConfig, prepare

    Schedule.for_shape(options.shape)  # a shape that no network reaches should not cost an hour of resampling
    values = {key: value for key, value in vars(options).items() if key != "preset"}
    dataset = open_dataset(prepare(PrepareConfig(**values)))
    skipped = dataset.manifest["skipped"]
    for entry in skipped:
        print(f"skipped {entry['source']}: {entry['reason']}")
    spacing = " x ".join(f"{mm:g}" for mm in dataset.spacing)
    print(
        f"{len(dataset)} volumes ({len(skipped)} skipped) of {'x'.join(map(str, dataset.shape))} voxels, "
        f"{spacing} mm, {dataset.plane}: {options.out}"
    )


def inflate(options: InflateOptions) -> None:
    """Run `splitshuffle inflate`."""
    from splitshuffle_gan.transfer.apply import inflate_checkpoint

    report = inflate_checkpoint(**vars(options))
    for name, network in report["networks"].items():
        counts = ", ".join(f"{count} {origin}" for origin, count in sorted(network["counts"].items()))
        print(f"{name:14s} {counts}")
    if report["discriminator_error"] is not None:
        errors = report["generator_error_per_depth"]
        note = ", not exact by design: growth over depth is linear" if options.depth_upsample == "linear" else ""
        print(f"generator      relative error, slices against 2D images: {max(errors):.1e}{note}")
        print(f"discriminator  relative error, logits of depth-constant volumes: {report['discriminator_error']:.1e}")
    print(f"every key is listed in {options.out}/inflation.json")


def sample(options: SampleOptions) -> None:
    """Run `splitshuffle sample`."""
    from accelerate import PartialState

    from splitshuffle_gan.sampler import SampleConfig, write_samples

    out = write_samples(SampleConfig(**{**vars(options), "seeds": parse_seeds(options.seeds)}))
    if PartialState().is_main_process:
        print(f"volumes in {out}; look at {out}/montage.png")
    PartialState().destroy_process_group()


def quickstart(options: QuickstartOptions) -> None:
    """Run the whole job."""
    from accelerate import PartialState

    from splitshuffle_gan.training.quickstart import quickstart

    lines = quickstart(options.out, options.seed, options.overwrite)
    if PartialState().is_main_process:
        print(lines)
    PartialState().destroy_process_group()


def train(options: Any, rank: int) -> None:
    """Run `train2d` or `train3d`."""
    from accelerate import PartialState

    from splitshuffle_gan.training.loop import train

    snapshot = train(options, rank)
    if PartialState().is_main_process:
        print(f"done: {snapshot}; look at {snapshot}/montage.png")
    PartialState().destroy_process_group()


def benchmark(options: Any) -> None:
    """Run `splitshuffle benchmark`."""
    from splitshuffle_gan.benchmark import benchmark, table

    print(table(benchmark(options)))
    print(f"\nthe same in {options.out}")


def parse_seeds(text: str) -> tuple[int, ...]:
    """`"3,7,20-24"` -> (3, 7, 20, 21, 22, 23, 24). Raises UserError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or dash and not last.isdecimal() or dash and int(last) < int(first):
            raise UserError(f"seeds: found {text!r}, wanted numbers and ranges such as 0-15 or 3,7,20-24")
        if len(first + last) > 36 or dash and int(last) - int(first) >= MAX_SEEDS:
            raise UserError(f"seeds: found {text!r}, at most {MAX_SEEDS} seeds, each below 10^18, are wanted")
        seeds += range(int(first), int(last if dash else first) + 1)
    if len(set(seeds)) != len(seeds):
        raise UserError(f"seeds: found {text!r}, in which a seed comes twice")
    return tuple(seeds)


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
    options_class, run, _ = COMMANDS[name]
    if name == "train3d" and not {"--data", "--preset", "-h", "--help"} & {part.split("=")[0] for part in rest}:
        options_class, run = QuickstartOptions, quickstart
    elif options_class is None:
        options_class = _heavy_options(name)
    run(_parse(name, options_class, rest, program or f"splitshuffle {name}"))


def _heavy_options(name: str) -> type:
    """Options that live beside what they configure, whose import takes seconds."""
    if name == "benchmark":
        from splitshuffle_gan.benchmark import BenchmarkOptions

        return BenchmarkOptions
    from splitshuffle_gan.training.options import TrainConfig

    return TrainConfig


def _parse(name: str, options_class: type, arguments: list[str], program: str) -> Any:
    """The options, with a preset's values as defaults."""
    preset, arguments = _take_preset(arguments)
    default: Any = tyro.MISSING_NONPROP
    if preset is not None and name in ("prepare", "train2d", "train3d"):
        default = _from_preset(name, options_class, load_preset(preset).get(name, {}), arguments)
    elif preset is not None:
        raise UserError(f"preset: {name} takes none")
    description = options_class.__doc__.split("\n")[0]
    if name in ("train2d", "train3d"):
        description += (
            f" --preset NAME takes the defaults of {', '.join(preset_names())}."
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
    lines += [f"  {name:10s} {summary}" for name, (_, _, summary) in COMMANDS.items()]
    lines += ["", "`splitshuffle COMMAND --help` says more. On several devices: accelerate launch train/train3d.py ..."]
    return "\n".join(lines)


Command = tuple[type | None, Callable[[Any], None], Annotated[str, "one line"]]
COMMANDS: dict[str, Command] = {
    "phantom": (PhantomOptions, phantom, "write phantom scans to try everything on"),
    "prepare": (PrepareOptions, prepare, "scans to a dataset"),
    "train2d": (None, lambda options: train(options, 2), "train a 2D GAN on the slices of a dataset"),
    "inflate": (InflateOptions, inflate, "make a 3D GAN of a 2D one"),
    "train3d": (None, lambda options: train(options, 3), "train a 3D GAN; without data: the whole job on phantoms"),
    "sample": (SampleOptions, sample, "draw synthetic volumes as NIfTI"),
    "benchmark": (None, benchmark, "measure parameters, speed and memory on this machine"),
}
