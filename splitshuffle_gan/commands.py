"""What the command line can do: for every command its options, and the call that they lead to. No maths.

Nothing here imports torch before a command is called, so that `--help` is there at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from shlex import quote
from typing import Any

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.options import (
    InflateOptions,
    ModelsOptions,
    PhantomOptions,
    PrepareOptions,
    QuickstartOptions,
    SampleOptions,
    parse_seeds,
)


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
    from splitshuffle_gan.data.known.fetch import RECORD, fetch, overview
    from splitshuffle_gan.data.known.known_sets import describe, known_set

    if options.list or not options.name:
        print(overview())
        return
    there = not options.overwrite and options.to is not None and (options.to / RECORD).is_file()
    out = fetch(options)
    print(f"{out}: {'already there and whole' if there else 'done'}; {RECORD} in it says what came from where")
    print(describe(known_set(options.name), quote(str(out))))


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

    from splitshuffle_gan.sampler import SampleConfig, command_for_pairs, write_samples

    out = write_samples(SampleConfig(**{**vars(options), "seeds": parse_seeds(options.seeds)}))
    if PartialState().is_main_process:
        print(f"volumes in {out}; look at {out}/montage.png")
        if command := command_for_pairs(out):
            print(f"as a dataset of pairs, voxel for voxel: {command}")
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


def train_factors(options: Any) -> None:
    """Run `splitshuffle train-factors`."""
    import json

    from splitshuffle_gan.factors.report import errors_table
    from splitshuffle_gan.factors.training import RECORD, train_factors

    out = train_factors(options)
    print("\n".join(errors_table(json.loads((out / RECORD).read_text())["error"])))
    print(f"estimator in {out}; use it with `splitshuffle factors --estimator {quote(str(out))}`")


def factors(options: Any) -> None:
    """Run `splitshuffle factors`."""
    from splitshuffle_gan.factors.report import table
    from splitshuffle_gan.factors.run import run_factors

    print(table(run_factors(options)))
    print(f"what the columns mean: {options.out}/factors.md; look at {options.out}/factors.png")


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
    name, option = f"med{options.rank}d-mini", "" if options.rank == 3 else "plane-"
    print(f"extractor in {out}; use it with --{option}extractor {name} --{option}weights {quote(str(out))}")


def carry(options: Any) -> None:
    """Run `splitshuffle carry`."""
    from splitshuffle_gan.extractors.cross_d import carry_to_volumes

    out = carry_to_volumes(options)
    print(f"extractor in {out}; use it with --extractor cross_d-resnet18 --weights {quote(str(out))}")


def train_segmenter(options: Any) -> None:
    """Run `segment2d` or `segment3d`."""
    import json

    from accelerate import PartialState

    from splitshuffle_gan.segmentation.training import train_segmenter

    out = train_segmenter(options)
    if PartialState().is_main_process:
        if options.val is not None:
            found = json.loads((out / "metrics.json").read_text())
            score = f"mean Dice {found['mean_dice']:.3f}" if options.detect is None else f"FROC {found['froc']:.3f}"
            print(f"{score} on {options.val}; all numbers: {out}/metrics.json")
        print(f"done: {out}/network; look at {out}/predictions.png")
    PartialState().destroy_process_group()


def segment(options: Any) -> None:
    """Run `splitshuffle segment`."""
    import json

    from splitshuffle_gan.segmentation.infer import segment

    out = segment(options)
    print(f"masks in {out}, each on its scan's own grid; segment.json says what is in them")
    files = json.loads((out / "segment.json").read_text())["files"]
    if empty := [name for name, entry in files.items() if not any(entry["voxels"].values())]:
        print(f"{len(empty)} of the {len(files)} masks are empty, such as {empty[0]}: nothing was found there")


def utility(options: Any) -> None:
    """Run `splitshuffle utility`."""
    from splitshuffle_gan.trials.utility import utility

    print(f"\n{utility(options)}")
    print(f"the same: {options.out}/table.md; all cases: {options.out}/results.jsonl; look at {options.out}/dice.png")


def ahnet(options: Any) -> None:
    """Run `splitshuffle ahnet`."""
    from splitshuffle_gan.trials.ahnet import ahnet

    print(f"\n{ahnet(options)}")
    print(f"the same: {options.out}/table.md; all cases: {options.out}/results.jsonl; look at {options.out}/dice.png")


def detect(options: Any) -> None:
    """Run `splitshuffle detect`."""
    from splitshuffle_gan.segmentation.detect import detect

    out = detect(options)
    print(f"finds in {out}/finds.csv, in RAS mm; heat maps beside it, each on its scan's own grid")


def models(_: ModelsOptions) -> None:
    """Run `splitshuffle models`."""
    from splitshuffle_gan.publish.shelf import overview

    print(overview())


def publish(options: Any) -> None:
    """Run `splitshuffle publish`."""
    from splitshuffle_gan.publish.run import publish

    out = publish(options)
    print(f"{out}: read README.md, look at montage.png; then `splitshuffle sample {quote(str(out))} --out volumes`")


def experiment(options: Any) -> None:
    """Run `splitshuffle experiment`."""
    from splitshuffle_gan.experiment.run import experiment

    failed = experiment(options)
    print(f"the same: {options.out}/table.md; all lines: {options.out}/results.jsonl; look at {options.out}/curves.png")
    if failed:
        raise UserError(f"{failed} runs failed; the table says which, and the logs in {options.out}/runs why")


def probe(options: Any) -> None:
    """Run `splitshuffle probe`."""
    from splitshuffle_gan.probe.run import probe

    failed = probe(options)
    print(f"the same: {options.out}/table.md; all lines: {options.out}/results.jsonl; look at {options.out}/probe.png")
    print(f"for `splitshuffle carry`, Cross-D networks: {options.out}/pretrained/published-*/network, rotation-*")
    if failed:
        raise UserError(f"{failed} runs failed; the table says which, and the logs in {options.out}/runs why")


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
    "models": Command("list the trained networks that come with the package", ModelsOptions, models),
    "score": Command("3D FID and more, with intervals and floors, on a card", "metrics.score:ScoreConfig", score),
    "compare": Command("put cards side by side", "metrics.compare:CompareConfig", compare),
    "audit": Command("does a generator give back its training volumes?", "metrics.audit:AuditConfig", audit),
    "factors": Command(
        "are heart size, calcium ... distributed as in real volumes?", "factors.run:FactorsConfig", factors
    ),
    "train-factors": Command(
        "train the network that factors are measured with", "factors.training:TrainFactorsConfig", train_factors
    ),
    "publish": Command("a finished run to a checkpoint that ships, with cards", "publish.run:PublishConfig", publish),
    "validate-extractor": Command("is the ruler straight?", "metrics.validation:ValidationConfig", validate),
    "extractor": Command("train the network that scores see with", "extractors.med3d:ExtractorConfig", extractor),
    "carry": Command(
        "make an extractor for volumes of a Cross-D network of slices", "extractors.cross_d:CarryConfig", carry
    ),
    "segment2d": Command(
        "train AH-Net's 2D network on labelled slices", "segmentation.options:Segment2DConfig", train_segmenter
    ),
    "segment3d": Command(
        "train AH-Net on labelled volumes, from a 2D network or from scratch",
        "segmentation.options:Segment3DConfig",
        train_segmenter,
    ),
    "segment": Command("masks of scans as NIfTI", "segmentation.options:SegmentConfig", segment),
    "detect": Command("lesions in scans: places, confidences, heat maps", "segmentation.options:DetectConfig", detect),
    "utility": Command(
        "are synthetic pairs good to train on? a segmenter on real, synthetic, both",
        "trials.utility_options:UtilityConfig",
        utility,
    ),
    "ahnet": Command(
        "what is AH-Net's transfer worth? 2D, 3D from scratch, 3D from 2D at equal compute",
        "trials.ahnet_options:AHNetConfig",
        ahnet,
    ),
    "experiment": Command(
        "compare ways of training at equal compute", "experiment.options:ExperimentOptions", experiment
    ),
    "probe": Command(
        "what is 2D pretraining worth in 3D? scratch, I3D, ACS and Cross-D compared",
        "probe.options:ProbeOptions",
        probe,
    ),
    "benchmark": Command("parameters, speed and memory on this machine", "benchmark:BenchmarkOptions", benchmark),
}
