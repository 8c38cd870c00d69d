"""The model card, README.md, written from the JSON files beside it and from nothing else."""

import re
import shlex
from pathlib import Path

from huggingface_hub import ModelCardData

from splitshuffle_gan.checkpoint import CONFIG
from splitshuffle_gan.metrics.card import times_floor
from splitshuffle_gan.metrics.report import markdown_table, number, one_line, show_interval, summary
from splitshuffle_gan.output import whole_file
from splitshuffle_gan.publish.record import read_json

CARD, SCORE, AUDIT, TRAINING, PICTURE = "README.md", "score.json", "audit.json", "training.json", "montage.png"
# As Hugging Face's hub calls them.
LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0",
)  # fmt: skip
STAGES = {"train2d": "2D training, on slices", "inflate": "inflation to 3D", "train3d": "3D training, on volumes"}


def write_model_card(folder: Path, name: str | None = None) -> Path:
    """Write the card of a published generator (again) and return its path; `name` by default the folder's."""
    with whole_file(folder / CARD) as temporary:
        temporary.write_text(model_card(folder, name or folder.name))
    return folder / CARD


def model_card(folder: Path, name: str) -> str:
    """The card as Markdown, from config.json, score.json, audit.json and training.json in `folder`.

    Raises UserError naming the one that is not readable.
    """
    header, score, audit, training = (read_json(folder / file) for file in (CONFIG, SCORE, AUDIT, TRAINING))
    parts = [
        _head(name, header, training),
        _use(name, header),
        _data(header, training),
        _training(training),
        _scores(score),
        _memorisation(audit),
        _limits(header, score, training),
        _files(),
    ]
    return "\n\n".join(parts) + "\n"


def _head(name: str, header: dict, training: dict) -> str:
    card, data = training["card"], training["data"]
    identifier = re.sub(r"[\s_]+", "-", card["licence"].lower())
    known = identifier if identifier in LICENCES else "other"
    meta = ModelCardData(license=known, library_name="splitshuffle_gan", tags=["3d", "gan", "medical-imaging"])
    return (
        f"---\n{meta.to_yaml()}\n---\n\n# {name}\n\n"
        f"{one_line(card['title'])}: a generator of {_grid(header)}, learned from {data['train']['count']} volumes. "
        "What it draws shows no patient.\n\n"
        f"![{name}: random samples beside real volumes]({PICTURE})\n\n"
        "Left: the first seeds, over the whole distribution (truncation 1), none left out. Right: real volumes that it "
        "was not trained on, drawn at random. Each by its central axial, coronal and sagittal plane."
    )


def _grid(header: dict) -> str:
    shape, spacing = header["config"]["shape"], header["geometry"]["spacing"]
    mm = "1 mm" if set(spacing) == {1.0} else f"{' x '.join(f'{side:.4g}' for side in spacing)} mm"
    return f"volumes of {' x '.join(map(str, shape))} voxels of {mm}"


def _use(name: str, header: dict) -> str:
    labels = ", ".join(map(str, header["geometry"].get("labels", ())))
    pairs = (
        f" Each comes with a label map of {labels}: volumes are in images/, label maps in labels/." if labels else ""
    )
    return (
        f"## Use\n\n```bash\nsplitshuffle sample {shlex.quote(name)} --seeds 0-7 --out volumes\n```\n\n"
        "```python\nfrom splitshuffle_gan import Generator\n\n"
        f'generator = Generator.from_pretrained("{name}")\n```\n\n'
        f"The volumes are NIfTI with the spacing and the place of the training scans, intensities {_units(header)}."
        f"{pairs} "
        "A seed is a volume, the same on every machine but for rounding. Without `--truncation-psi 1` the volumes are "
        "less varied and cleaner than those that were scored."
    )


def _units(header: dict) -> str:
    intensity = header["geometry"]["intensity"]
    low, high = number(float(intensity["low"])), number(float(intensity["high"]))
    if intensity["kind"] == "window":
        return f"from {low} to {high}, beyond which the training scans were cut off"
    return f"about {low} to {high}, the median range of the training scans, in arbitrary units"


def _data(header: dict, training: dict) -> str:
    card = training["card"]
    rows = [
        (part["name"], use, part["count"], f"`{part['data_hash'][:16]}`")
        for part, use in ((training["data"]["train"], "training"), (training["data"]["held_out"], "choice and scores"))
    ]
    intensity = training["data"]["train"]["intensity"]
    bounds = [intensity["low"], intensity["high"]] if intensity["mode"] == "window" else intensity["percentiles"]
    mapped = f"{bounds[0]:g} to {bounds[1]:g} ({intensity['mode']}) became -1 to 1"
    lines = [
        f"## Data\n\n{_sentence(card['data_from'])} Licence of the scans: {one_line(card['data_licence'])}. Licence of "
        f"these weights: {one_line(card['licence'])}.",
        "\n".join(markdown_table(("set", "for", "volumes", "hash"), rows)),
        f"Prepared as {_grid(header)}, {header['geometry']['plane']} slices; intensities {mapped}.",
        f"**Not in the scans:** {_sentence(card['lacks'])}",
    ]
    return "\n\n".join(lines)


def _sentence(text: str) -> str:
    text = one_line(text)
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _training(training: dict) -> str:
    last, choice = training["stages"][-1], training["choice"]
    network = last["generator"]
    kept = [stage for stage in training["stages"] if stage["stage"] in STAGES]
    rows = [(STAGES[stage["stage"]], *_stage(stage)) for stage in kept]
    snapshots = choice["snapshots"]
    chosen = next(entry for entry in snapshots if entry["snapshot"] == choice["chosen"])
    worst = max(entry["fid_3d"]["mean"] for entry in snapshots)
    among = (
        f"Chosen from {_count(len(snapshots), 'snapshot')}, by {_count(choice['draws'], 'draw')} of "
        f"{choice['volumes']} volumes each. Rule: "
        f"{choice['rule']}. {choice['chosen']} has {number(chosen['fid_3d']['mean'])} "
        f"({_range(chosen['fid_3d']['draws'])} between the draws), the highest of all is {number(worst)}."
    )
    parameters, seconds = training["parameters"], last["chosen"]["seconds"]
    after = f", {seconds / 60:.0f} minutes of 3D training" if seconds is not None else ""
    lines = [
        "## Training",
        f"Convolutions `{network['conv']}`, channels {' '.join(map(str, network['channels']))} from coarse to fine, "
        f"{'depth-aware' if network['depth_aware'] else 'depth-blind'}; {parameters['generator'] / 1e6:.2f} M "
        f"parameters in the generator, {parameters['discriminator'] / 1e6:.2f} M in the discriminator.",
        "\n".join(markdown_table(("stage", "images shown", "time", "on"), rows)),
        f"The chosen weights are those after {number(last['chosen']['kimg'])} thousand volumes{after}. {among}",
        "All settings, and the numbers of every snapshot, are in [training.json](training.json).",
    ]
    return "\n\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _range(values: list[float]) -> str:
    return f"{number(min(values))} to {number(max(values))}"


def _stage(stage: dict) -> tuple[str, str, str]:
    """Images shown, time and machine of a stage."""
    if stage["stage"] == "inflate":
        return "–", "–", f"method `{stage['method']}`"
    machine = stage["machine"]
    shown = f"{number(stage['kimg'])} thousand, {stage['config']['batch_size']} a step" if "kimg" in stage else "–"
    time = f"{stage['seconds'] / 60:.0f} minutes" if "seconds" in stage else "–"
    counts = f", threads: {machine['threads']}" if machine["device"] == "cpu" else ""
    counts += f", processes: {machine['processes']}" if machine["processes"] > 1 else ""
    return shown, time, f"{machine['device']}{counts}; {machine['mixed_precision']}"


def _scores(score: dict) -> str:
    measured = [row for row in score["metrics"] if "omitted" not in row]
    rows = []
    for row in measured:
        floor, ratio = row["floor"], times_floor(row)
        if "real" in row:
            beside = f"{number(row['real']['value'])} {show_interval(row['real']['interval'])}, pairs of real volumes"
        elif floor is None:
            beside = "–"
        else:
            beside = f"{number(floor['value'])} {show_interval(floor['interval'])} ({floor['n']})"
        value = f"{number(row['value'])} {show_interval(row['interval'])}"
        rows.append((row["title"], value, row["n"], beside, "–" if ratio is None else f"{ratio:.2f}", row["better"]))
    header = ("metric", "value [95 %]", "n", "floor [interval] (its n)", "times floor", "better")
    omitted = [f"{row['title']}: {row['omitted']}" for row in score["metrics"] if "omitted" in row]
    missing = f"\n\nNot measured: {one_line('; '.join(omitted))}." if omitted else ""
    table = "\n".join(markdown_table(header, rows))
    return (
        f"## Scores\n\n{summary(score)}\n\n{table}{missing}\n\n"
        "The floor is the same number for real volumes instead of generated ones. The whole card, with how each number "
        "was taken: [score.md](score.md), [score.json](score.json), [score.png](score.png)."
    )


def _memorisation(audit: dict) -> str:
    n = audit["n"]
    return (
        f"## Does it give back its training volumes?\n\n{one_line(audit['verdict'])} "
        f"({n['generated']} generated volumes, {n['train']} training volumes, {n['held-out']} held-out ones; a clean "
        f"set is accused of anything in at most {audit['settings']['alpha']['of_the_whole_audit']:.0%} of audits.)\n\n"
        "![the samples closest to training volumes](audit.png)\n\n"
        f"{' '.join(one_line(limit) for limit in audit['limits'])} Numbers: [audit.json](audit.json)."
    )


def _limits(header: dict, score: dict, training: dict) -> str:
    shape, spacing = header["config"]["shape"], header["geometry"]["spacing"]
    field = " x ".join(f"{side * mm:.4g}" for side, mm in zip(shape, spacing, strict=True))
    n, extractor = score["ruler"]["n"], score["ruler"]["extractor"]
    limits = [
        "Not for diagnosis, treatment or any decision about a person, and no evidence about any disease.",
        f"One kind of scan only: what stands under Data, on this grid, {field} mm in all. Nothing finer than a voxel, "
        "and nothing outside the grid, was seen in training.",
        "It draws what its training scans have and is likely to lack what is rare in them. No reader has checked the "
        "anatomy of what it draws.",
        "The snapshot was chosen by the held-out volumes that the scores are against (with other seeds), so these "
        "scores flatter it a little. Volumes that took no part in training or choice say more.",
        f"The scores are as `{extractor['name']}` sees volumes, at n = {n}; compare them only with scores of the same "
        "ruler and n. What the ruler has learned from stands on its own card; these scans may be among it.",
        "A method that was trained or tested on these volumes still has to be tested on real scans.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _files() -> str:
    rows = [
        ("config.json, model.safetensors", "the generator"),
        ("score.json, score.md, score.png", "metric card: numbers, intervals, floors, ruler"),
        ("audit.json, audit.png", "memorisation audit"),
        ("training.json", "data, stages of training, the choice of the snapshot, versions"),
        ("montage.png", "the picture above"),
    ]
    return "## Files\n\n" + "\n".join(markdown_table(("file", "what"), rows))
