"""What the command line can do: for every command its options, and the call that they lead to. No maths.

Options of light commands stand here, so that `--help` needs no torch; the others live beside what they configure and
are imported when they are asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from splitshuffle_gan.errors import UserError

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
    """Scans to a dataset: reorient to RAS+, resample, crop or pad, map intensities to [-1, 1].

    Killed, the same command goes on where it was.

    Attributes:
        source: a NIfTI file, or a folder searched to any depth; MGH, NRRD, NumPy and DICOM as well.
        out: dataset folder to make: volumes.npy, manifest.json, with labels also labels.npy.
        shape: voxels of every prepared volume, D H W; each 4 to 15 times a power of two.
        spacing: mm, in the order of shape; native: each scan keeps its own; default: the set's median.
        percentiles: intensities of each scan that become -1 and 1 (MR); default 0.5 99.5.
        window: intensities that become -1 and 1, the same for all scans (CT, in HU).
        plane: the plane of the slices; its normal is the first axis, D; auto: the set's coarsest axis is the normal.
        skip_bad: leave out what cannot be used and list it in the manifest, instead of stopping.
        overwrite: replace the dataset in `out`.
        workers: processes; 0 is one per core.
        preset: take shape, spacing, intensities and plane from a preset; what is given beside it counts more.
        crop: centre on the scan's middle, on what is brighter than air, or on the box of its labels.
        resample: between voxels linear, cubic (bspline) or not at all (nearest).
        labels: folder of label maps with the scans' names; auto: labels*/ beside images*/.
        label_resample: nearest, or linear: the label that weighs most once each is interpolated by itself.
        spacing_tolerance: with native spacing, how far a scan's may be from the median, as a share of it.
        volume: which volume of 4D files, from 0; all: each is a scan.
        correct_tilt: straighten CT series taken with a tilted gantry, instead of refusing them.
        shard_size: volumes per array file; default: one file.
    """

    source: Source
    out: Path
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | Literal["native"] | None = None
    percentiles: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    plane: Annotated[Literal["axial", "coronal", "sagittal", "auto"], tyro.conf.arg(aliases=["--orientation"])] = (
        "axial"
    )
    skip_bad: bool = False
    overwrite: bool = False
    workers: int = 0
    preset: str | None = None
    crop: Literal["center", "foreground", "label"] = "center"
    resample: Literal["linear", "bspline", "nearest"] = "linear"
    labels: Path | None = None
    label_resample: Literal["nearest", "linear"] = "nearest"
    spacing_tolerance: float = 0.05
    volume: int | Literal["all"] | None = None
    correct_tilt: bool = False
    shard_size: int | None = None


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
    """Draw synthetic volumes: NIfTI (and DICOM) with true geometry and intensities, a montage, samples.json.

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
        like: a NIfTI scan to put every volume onto: middle on middle, along its axes, in its voxels; percentiles become
            its own, a window stays.
        dicom: write each volume as a CT or MR series too, into seed0000.dicom/ beside seed0000.nii.gz.
        modality: of that series; default CT where the set's intensities are a window that can be HU, else MR.
        compile: compile what lies between convolutions: in C++ on a CPU (needs a compiler, for seconds, once), by
            torch.compile on a GPU. The same volumes, but for rounding.
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
    like: Path | None = None
    dicom: bool = False
    modality: Literal["CT", "MR"] | None = None
    compile: bool = False
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
    if dataset.labels is not None:
        print(f"labels {', '.join(map(str, dataset.manifest['labels']['values']))} ride along")


def split(options: Any) -> None:
    """Run `splitshuffle split`."""
    from splitshuffle_gan.data.dataset import open_dataset
    from splitshuffle_gan.data.split import split

    train, held_out = split(options)
    print(
        f"{len(open_dataset(train))} volumes to train on: {train}; {len(open_dataset(held_out))} set aside: {held_out}"
    )


def doctor(options: Any) -> None:
    """Run `splitshuffle doctor`."""
    from splitshuffle_gan.data.doctor.examine import examine
    from splitshuffle_gan.data.doctor.report import table

    text = table(examine(options))
    if options.out is not None:
        print(f"the same, and more, in {options.out}; look at {options.out}/doctor.png\n")
    print(text)


def fetch(options: Any) -> None:
    """Run `splitshuffle fetch`."""
    import shlex

    from splitshuffle_gan.data.known.fetch import RECORD, fetch, overview
    from splitshuffle_gan.data.known.known_sets import describe, known_set

    if options.list or not options.name:
        print(overview())
        return
    there = not options.overwrite and options.to is not None and (options.to / RECORD).is_file()
    out = fetch(options)
    print(f"{out}: {'already there and whole' if there else 'done'}; {RECORD} in it says what came from where")
    print(describe(known_set(options.name), shlex.quote(str(out))))


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
    print(f"\nthe same in {options.out}; look at {options.picture}")


def score(options: Any) -> None:
    """Run `splitshuffle score`."""
    from accelerate import PartialState

    from splitshuffle_gan.metrics.report import brief
    from splitshuffle_gan.metrics.score import score

    card = score(options)
    if PartialState().is_main_process:
        print(brief(card))
        print(f"the whole card: {options.out.with_suffix('.md')}, as JSON {options.out}, as a picture beside them")
    PartialState().destroy_process_group()


def compare(options: Any) -> None:
    """Run `splitshuffle compare`."""
    from splitshuffle_gan.metrics.compare import run_compare

    print(run_compare(options).table())


def audit(options: Any) -> None:
    """Run `splitshuffle audit`."""
    from accelerate import PartialState

    from splitshuffle_gan.metrics.audit import run_audit

    report = run_audit(options)
    if PartialState().is_main_process:
        print(
            f"{report['verdict']}\n\nthe closest pairs: {options.out}/pairs.png; all numbers: {options.out}/audit.json"
        )
    PartialState().destroy_process_group()


def validate(options: Any) -> None:
    """Run `splitshuffle validate-extractor`."""
    from splitshuffle_gan.metrics.validation import validate

    out = validate(options)
    print((out / "validation.md").read_text())
    print(f"look at {out}/validation.png")


def extractor(options: Any) -> None:
    """Run `splitshuffle extractor`."""
    import json

    from splitshuffle_gan.extractors.med3d import train_extractor

    out = train_extractor(options)
    for name, found in json.loads((out / "training.json").read_text())["sets"].items():
        print(f"{name:14s} Dice {found['held_out_dice']:.3f} on {found['held_out']} held-out volumes")
    option = "" if options.rank == 3 else "plane-"
    print(f"extractor in {out}; use it with --{option}extractor med{options.rank}d-mini --{option}weights {out}")


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


@dataclass(frozen=True)
class Command:
    """`options`: the class of its options, or "module:class" for one that is imported when it is needed."""

    summary: str
    options: type | str
    run: Callable[[Any], None]

    def options_class(self) -> type:
        """The class of the options."""
        if isinstance(self.options, type):
            return self.options
        module, _, name = self.options.partition(":")
        return getattr(import_module(f"splitshuffle_gan.{module}"), name)


TRAINING = "training.options:TrainConfig"
COMMANDS: dict[str, Command] = {
    "phantom": Command("write phantom scans to try everything on", PhantomOptions, phantom),
    "doctor": Command(
        "what scans are like, what is wrong, how to prepare them", "data.doctor.examine:DoctorConfig", doctor
    ),
    "fetch": Command("get a known set of scans: MSD, IXI, ADNI, COCA", "data.known.fetch:FetchConfig", fetch),
    "prepare": Command("scans to a dataset", PrepareOptions, prepare),
    "split": Command("set part of a dataset aside, by the scans' names", "data.split:SplitConfig", split),
    "train2d": Command("train a 2D GAN on the slices of a dataset", TRAINING, lambda options: train(options, 2)),
    "inflate": Command("make a 3D GAN of a 2D one", InflateOptions, inflate),
    "train3d": Command(
        "train a 3D GAN; without data: the whole job on phantoms", TRAINING, lambda options: train(options, 3)
    ),
    "sample": Command("draw synthetic volumes as NIfTI", SampleOptions, sample),
    "score": Command("3D FID and more, with intervals and floors, on a card", "metrics.score:ScoreConfig", score),
    "compare": Command("put cards side by side", "metrics.compare:CompareConfig", compare),
    "audit": Command("does a generator give back its training volumes?", "metrics.audit:AuditConfig", audit),
    "validate-extractor": Command("is the ruler straight?", "metrics.validation:ValidationConfig", validate),
    "extractor": Command("train the network that scores see with", "extractors.med3d:ExtractorConfig", extractor),
    "benchmark": Command("parameters, speed and memory on this machine", "benchmark:BenchmarkOptions", benchmark),
}
