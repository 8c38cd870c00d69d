"""`splitshuffle utility`: the trainings, one after the other; a line of results.jsonl and a new report after each."""

import dataclasses
import json
import shutil
import time

from accelerate import Accelerator

from splitshuffle_gan import __version__
from splitshuffle_gan.data.dataset import PreparedDataset, open_dataset
from splitshuffle_gan.data.union import check_alike, write_union
from splitshuffle_gan.devices import make_accelerator
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment.folder import only_one
from splitshuffle_gan.experiment.results import RESULTS, append, mend, read
from splitshuffle_gan.output import refuse_existing, write_json
from splitshuffle_gan.segmentation.infer import open_segmenter
from splitshuffle_gan.segmentation.predict import evaluate
from splitshuffle_gan.segmentation.segmenter import NETWORK, open_labelled
from splitshuffle_gan.segmentation.training import one_step, train_segmenter
from splitshuffle_gan.trials.cases import cases_of, refuse_shared
from splitshuffle_gan.trials.question import Question
from splitshuffle_gan.trials.report import write_report
from splitshuffle_gan.trials.utility_options import UtilityConfig

QUESTION = Question(
    title="Downstream utility: a segmenter trained on real, on synthetic and on both",
    arms={"real": "#0072B2", "synthetic": "#D55E00", "both": "#009E73"},
    base="real",
    column="trained on",
    given="given",
    how_to_read=(
        "The test volumes are real ones, in none of the training sets, and nothing was chosen by them: the last "
        'network of each training counts. All trainings have {steps} steps, so "both" sees each volume less often. The '
        "intervals do not say what other training volumes or another generator would change."
    ),
)
RECORD = "utility.json"
SETS = ("real_train", "synthetic", "real_test")
# What may differ between a call and the one that goes on with it; of the sets their contents count.
FREE = {*SETS, "out", "seeds", "resamples", "keep_networks", "overwrite"}


def utility(config: UtilityConfig) -> str:
    """Carry out the trainings that are not done yet; returns the report as Markdown, which is in `config.out` as well.

    Raises:
        UserError: datasets that are not alike or share volumes, a folder begun with something else, sizes that do not
            fit, more than one process.
        FloatingPointError: a loss became NaN or infinite.
    """
    accelerator = make_accelerator(config.mixed_precision)
    if accelerator.num_processes > 1:
        raise UserError(f"utility: found {accelerator.num_processes} processes; it runs in one, without a launcher")
    sets = open_sets(config)
    one_step(config.training(sets["real_train"].folder, config.out, 0), accelerator)  # sizes that do not fit are said
    with only_one(config.out, RECORD):
        record, results = _open(config, sets), config.out / RESULTS
        mend(results)
        done = {(line["arm"], line["seed"]) for line in read(results)}
        trained_on = {"real": sets["real_train"], "synthetic": sets["synthetic"], "both": _both(config, sets)}
        todo = [(arm, seed) for seed in range(config.seeds) for arm in QUESTION.arms if (arm, seed) not in done]
        for number, (arm, seed) in enumerate(todo, start=1):
            print(f"{number} of {len(todo)}: {arm}, seed {seed}", flush=True)
            append(results, _one(config, arm, seed, trained_on[arm], sets["real_test"], accelerator))
            write_report(QUESTION, record, read(results), config.resamples, config.out)
        return write_report(QUESTION, record, read(results), config.resamples, config.out)


def open_sets(config: UtilityConfig) -> dict[str, PreparedDataset]:
    """The three datasets by the names of their options.

    Raises UserError unless they are alike, and when test volumes are among those to train on.
    """
    sets = {name: open_labelled(getattr(config, name)) for name in SETS}
    for name in SETS[1:]:
        check_alike(sets[name], sets["real_train"], name)
    refuse_shared("real_test", sets["real_test"], [sets[name] for name in SETS[:2]])
    return sets


def _open(config: UtilityConfig, sets: dict[str, PreparedDataset]) -> dict:
    """Begin the folder, or find it begun with the same; returns its record."""
    given = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    record = {
        "created_with": __version__,
        "settings": {name: value for name, value in given.items() if name not in FREE},
        "sets": {
            name: {"count": len(part), "data_hash": part.data_hash, "labels_hash": part.labels_hash}
            for name, part in sets.items()
        },
        "labels": list(sets["real_train"].structures),
        "cases": len(sets["real_test"]),
    }
    path = config.out / RECORD
    if path.is_file() and not config.overwrite:
        begun = json.loads(path.read_text())
        for part in ("settings", "sets"):
            for name, value in record[part].items():
                if begun[part].get(name) != value:
                    raise UserError(
                        f"{name}: {config.out} was begun with {begun[part].get(name)!r}, found {value!r}; go on with "
                        "the same, or take another --out"
                    )
        return begun
    if path.is_file():
        refuse_existing(config.out, config.overwrite, RECORD, keep=tuple(getattr(config, name) for name in SETS))
        path.unlink()
        (config.out / RESULTS).unlink(missing_ok=True)
        for name in ("data", "runs"):
            shutil.rmtree(config.out / name, ignore_errors=True)
    write_json(path, record)
    return record


def _both(config: UtilityConfig, sets: dict[str, PreparedDataset]) -> PreparedDataset:
    """The dataset of the real and the synthetic volumes to train on, made unless it is there."""
    folder = config.out / "data" / "both"
    if not folder.exists():
        write_union([sets["real_train"], sets["synthetic"]], folder)
    return open_dataset(folder)


def _one(
    config: UtilityConfig, arm: str, seed: int, data: PreparedDataset, test: PreparedDataset, accelerator: Accelerator
) -> dict:
    """One training and its test: a line of the results."""
    folder, started = config.out / "runs" / f"{arm}-seed{seed}", time.perf_counter()
    train_segmenter(config.training(data.folder, folder, seed))
    seconds = time.perf_counter() - started
    segmenter = open_segmenter(folder).to(accelerator.device)
    found = evaluate(segmenter, test, accelerator, thorough=False)
    if not config.keep_networks:
        shutil.rmtree(folder / NETWORK)
    return {
        "arm": arm,
        "seed": seed,
        "given": f"{len(data)} volumes",
        "seconds": seconds,
        "cases": cases_of(found, test),
    }
