"""Write the results section of README.md from the JSON files of experiments and shipped models.

`python evaluate/readme_results.py` rewrites what stands between the markers; `--check` only says whether it is true.
"""

import argparse
import json
import sys
from pathlib import Path

from splitshuffle_gan.metrics.card import times_floor
from splitshuffle_gan.metrics.report import markdown_table, number, show_interval
from splitshuffle_gan.output import whole_file

REPOSITORY = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: written by evaluate/readme_results.py -->", "<!-- end of results -->"
MAIN = "hippocampus"  # comes first
PROBE = "probe"
# What a trial in `evaluate/results` is called here, and the command that it was made by.
TRIALS = {
    "ahnet-hippocampus": (
        "AH-Net on hippocampus MR",
        "splitshuffle ahnet --train parts/train --test parts/held_out --network2d.scale 2 2 --minutes 4 --out ahnet",
    ),
    "utility-phantoms": (
        "Synthetic pairs: chambers of heart phantoms, 32x32x32 at 3.75 mm",
        """splitshuffle phantom --kind heart --count 232 --shape 40 66 90 --spacing 3.75 3.75 3.75 --out hearts
splitshuffle prepare hearts/images --labels auto --structures 14 15 16 --crop label --shape 32 32 32 \\
    --spacing native --window -250 650 --out chambers
splitshuffle split --data chambers --held-out 72 --out parts
splitshuffle train2d --preset hippocampus --data parts/train --channels image,label --network.depth-knots 8 \\
    --r1-gamma 0.2 --batch-size 16 --augment-target 0 --minutes 18 --out run2d
splitshuffle inflate run2d --out inflated
splitshuffle train3d --preset hippocampus --data parts/train --channels image,label --init inflated \\
    --r1-gamma 1 --batch-size 4 --augment-target 0 --minutes 55 --compile --out run3d
splitshuffle sample run3d --seeds 0-159 --truncation-psi 1 --out drawn
splitshuffle prepare drawn/images --labels auto --shape 32 32 32 --spacing native --window -250 650 --out drawn_pairs
splitshuffle utility --real-train parts/train --synthetic drawn_pairs --real-test parts/held_out --steps 150 \\
    --network3d.layers 1 1 1 1 --network3d.scale 1 2 2 --out worth""",
    ),
    "utility-hippocampus": (
        "Synthetic pairs: hippocampus MR",
        """splitshuffle train2d --preset hippocampus --data parts/train --channels image,label --r1-gamma 0.2 \\
    --batch-size 16 --augment-target 0 --minutes 11 --out run2d
splitshuffle inflate run2d --out inflated
splitshuffle train3d --preset hippocampus --data parts/train --channels image,label --init inflated \\
    --r1-gamma 1 --batch-size 4 --augment-target 0 --minutes 28 --compile --out run3d
splitshuffle sample run3d --seeds 0-159 --truncation-psi 1 --out drawn
splitshuffle prepare drawn/images --labels auto --shape 32 48 32 --spacing native --window 27.90036 928.66721 \\
    --out drawn_pairs
splitshuffle utility --real-train parts/train --synthetic drawn_pairs --real-test parts/held_out --steps 150 \\
    --network3d.layers 1 1 1 1 --network3d.scale 1 2 2 --out worth""",
    ),
}
SHARES = ("precision", "recall")
AUDITED = {
    "none": "not accused",
    "tendency": "no copies; leans towards its training volumes",
    "copies": "copies training volumes",
}


def section(repository: Path) -> str:
    """The text between the markers: experiments and trials in `evaluate/results`, then the models in `checkpoints`."""
    results = repository / "evaluate" / "results"
    tables = {path.parent.name: path for path in results.glob("*/table.json")}
    others = {PROBE, *TRIALS}
    experiments = sorted(set(tables) - others, key=lambda name: (not name.startswith(MAIN), name))
    parts = [experiment(tables[name], repository) for name in experiments]
    parts += [trial(tables[name], repository) for name in TRIALS if name in tables]
    parts += [probe(tables[PROBE], repository)] if PROBE in tables else []
    scores = sorted((repository / "checkpoints").glob("*/score.json"))
    return "\n\n".join([*parts, models(scores)] if scores else parts)


def experiment(path: Path, repository: Path) -> str:
    """One experiment: its main table, its curves and the command that makes them again."""
    table = json.loads(path.read_text())
    found = table["sets"]["held_out"]
    here = path.parent.relative_to(repository)
    pairs = {row["arm"]: row for row in found["paired"] if not row["group"]}
    floor, real = found["floor"], found["real"].get("ms_ssim")
    least = floor["fid_3d"]
    rows = [[
        "real volumes (floor)", "", "", f"{number(least['value'])} {show_interval(least['interval'])}", "1", "",
        *(number(floor[name]["value"]) for name in SHARES), number(real["value"]) if real else "–",
    ]]  # fmt: skip
    for row in (row for row in found["rows"] if not row["group"]):
        metrics, share = row["metrics"], row["parameters_of_baseline"]
        fid, ratios = metrics["fid_3d"], pairs.get(row["arm"], {}).get("ratios", [])
        rows.append([
            row["title"],
            f"{row['parameters'] / 1e6:.2f} M" + ("" if share is None else f" ({share:.0%})"),
            f"{len(row['seeds'])} of {row['seeds_planned']}",
            f"{number(fid['mean'])} {show_interval((fid['lowest'], fid['highest']))}",
            number(fid["times_floor"]),
            ", ".join(f"{ratio:.2f}" for ratio in ratios) or "–",
            *(number(metrics[name]["mean"]) for name in SHARES),
            number(metrics["ms_ssim"]["mean"]) if "ms_ssim" in metrics else "–",
        ])  # fmt: skip
    header = ("arm", "parameters", "seeds", "3D FID [range]", "times floor", "of baseline's, by seed", "precision",
              "recall", "MS-SSIM")  # fmt: skip
    minutes = max(row["minutes"] for row in found["rows"])
    if len(rows) == 2:  # the arm that the others of the plan change
        base, floor = rows[1], rows[0]
        shown = f"Unless it says otherwise: {base[0]}, 3D FID {base[3]}, {base[4]} times the floor of {floor[3]}."
    else:
        shown = "\n".join(markdown_table(header, rows))
    return "\n\n".join([
        f"### {table['title']}: {minutes:.0f} minutes of one core for each run, 2D included",
        shown,
        *ablations(found, {row["arm"]: row["title"] for row in found["rows"]}),
        f"n = {found['n']} on both sides, held-out scans, ruler `{found['ruler']['name']}`. All numbers, intervals and "
        f"ablations: [{here}/table.md]({here}/table.md). Made by",
        f"```bash\nsplitshuffle experiment evaluate/plans/{path.parent.name}.yaml --data dataset --out experiment"
        f"{' --final final' if table['sets'].get('final', {}).get('rows') else ''}\n```",
        f"![3D FID against minutes]({here}/curves.png)",
        *final(table["sets"].get("final"), [row["arm"] for row in found["rows"] if not row["group"]]),
        *factors(path.parent / "factors", {row["arm"]: row["title"] for row in found["rows"]}),
    ])  # fmt: skip


def final(found: dict | None, order: list[str]) -> list[str]:
    """The FIDs by volumes that nobody saw before, where there are some."""
    rows = {row["arm"]: row for row in found["rows"]} if found else {}
    if not rows:
        return []
    values = ", ".join(number(rows[arm]["metrics"]["fid_3d"]["mean"]) for arm in order if arm in rows)
    said = f"By {found['n']} volumes that neither training nor choices saw (`--final`), the FIDs are, in this order,"
    return [f"{said} {values}."]


def factors(folder: Path, titles: dict[str, str]) -> list[str]:
    """How far the factors of anatomy of each arm's volumes lie from those of real ones, where they were compared."""
    found = {
        arm: json.loads((folder / f"{arm}.json").read_text()) for arm in titles if (folder / f"{arm}.json").is_file()
    }
    if not found:
        return []
    first = next(iter(found.values()))
    rows = [
        [
            name,
            f"{first['error_on_real'][name]['r2']:.2f}",
            f"{row['floor']['value']:.2f} (to {row['floor']['interval'][1]:.2f})",
            *(f"{report['factors'][name]['distance']:.2f}" for report in found.values()),
        ]
        for name, row in first["factors"].items()
    ]
    means = [sum(row["distance"] for row in report["factors"].values()) / len(rows) for report in found.values()]
    rows.append(["mean", "", "", *(f"{mean:.2f}" for mean in means)])
    header = ("factor", "R²", "real against real", *(titles[arm] for arm in found))
    sources = first["sources"]
    return [
        f"Anatomy of {sources['generated']['n']} generated volumes against {sources['real']['n']} held-out ones, "
        "Wasserstein's distance in standard deviations of the real values; R² is the share of the true factor's "
        "variance that the measuring network explains on the held-out volumes:",
        "\n".join(markdown_table(header, rows)),
        "```bash\nsplitshuffle train-factors --data others --out heart_factors\n"
        "splitshuffle factors --generated experiment/runs/split_inflated_aware-seed0/run --real parts/held_out "
        f"--floor-from parts/train --n {sources['generated']['n']} --estimator heart_factors --out factors\n```",
    ]


def ablations(found: dict, titles: dict[str, str]) -> list[str]:
    """The arms that are in a group, each beside the arm it is compared with: one table, or none."""
    pairs = {row["arm"]: row for row in found["paired"]}
    rows = []
    changed = [row for row in found["rows"] if row["group"] and row["arm"] in pairs]
    groups = list(dict.fromkeys(row["group"] for row in changed))
    for row in sorted(changed, key=lambda row: groups.index(row["group"])):
        pair, metrics = pairs[row["arm"]], row["metrics"]
        rows.append([
            row["group"],
            row["title"],
            f"{number(metrics['fid_3d']['mean'])}, {number(metrics['fid_3d']['times_floor'])} times the floor",
            ", ".join(f"{ratio:.2f}" for ratio in pair["ratios"]) or "–",
            titles.get(pair["against"], pair["against"]),
            *(number(metrics[name]["mean"]) for name in SHARES),
        ])  # fmt: skip
    header = ("group", "changed", "3D FID", "ratio, by seed", "to the FID of", "precision", "recall")
    return ["One thing changed at a time:", "\n".join(markdown_table(header, rows))] if rows else []


def trial(path: Path, repository: Path) -> str:
    """One trial: Dice of each way of training, its difference to the one they are compared with, and the command."""
    table = json.loads(path.read_text())
    here = path.parent.relative_to(repository)
    title, command = TRIALS[path.parent.name]
    rows = [
        [
            arm,
            found["given"],
            len(found["seeds"]),
            _measured(found["mean"]),
            ", ".join(f"{value:.3f}" for value in found["mean"]["by_seed"]),
            *(_measured(one) for one in found["structures"].values()),
            _measured(table["differences"][arm]["mean"], "+") if arm in table["differences"] else "–",
        ]
        for arm, found in table["arms"].items()
    ]
    base = next(iter(table["differences"].values()))["against"]
    labels = [f"label {label}" for label in table["labels"]]
    header = ("trained", "on", "seeds", "mean Dice", "by seed", *labels, f"less that of {base}")
    return "\n\n".join([
        f"### {title}",
        "\n".join(markdown_table(header, rows)),
        f"Dice on {table['test_cases']} test volumes, 95 % intervals over them: [{here}/table.md]({here}/table.md). "
        "Made by",
        f"```bash\n{command}\n```",
    ])  # fmt: skip


def probe(path: Path, repository: Path) -> str:
    """The probe of 2D pretraining: for each arm the mean AUROC over what was asked, and its difference."""
    table = json.loads(path.read_text())
    here = path.parent.relative_to(repository)
    titles = {arm: about["title"] for arm, about in table["arms"].items()}
    modes = {mode: measures["auroc"] for mode, measures in table["modes"].items()}
    rows = []
    for arm, title in titles.items():
        row = [title]
        for found in modes.values():
            difference = found["differences"].get(arm)
            row += [_measured(found["rows"][arm]["mean"]), _measured(difference["mean"], "+") if difference else "–"]
        rows.append(row)
    names = {"probe": "linear probe", "finetune": "fine-tuned"}
    header = ["carried to 3D"]
    for mode in modes:
        header += [f"{names[mode]}, AUROC", f"less that of {titles[table['baseline']]}"]
    return "\n\n".join([
        f"### {table['title']}",
        "\n".join(markdown_table(header, rows)),
        f"Means over {len(table['targets'])} questions and {len(table['seeds'])} seeds, 95 % intervals over volumes "
        f"and seeds; each question by itself: [{here}/table.md]({here}/table.md). Made by",
        "```bash\nsplitshuffle probe evaluate/plans/probe.yaml --data FOLDER --jobs 2 --out probe\n```",
    ])  # fmt: skip


def _measured(found: dict, sign: str = "") -> str:
    """A mean with its interval, where there is one, to three digits."""
    if found["interval"] is None:
        return f"{found['mean']:{sign}.3f}"
    low, high = found["interval"]
    return f"{found['mean']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def models(scores: list[Path]) -> str:
    """The shipped generators: their scores in times the floor, and the audit's verdict."""
    rows = []
    for path in scores:
        card, audit = json.loads(path.read_text()), json.loads(path.with_name("audit.json").read_text())
        found = {row["metric"]: row for row in card["metrics"] if "omitted" not in row}
        name = path.parent.name
        rows.append([
            f"[{name}](checkpoints/{name}/README.md)",
            f"{number(found['fid_3d']['value'])} ({times_floor(found['fid_3d']):.2f} times the floor)",
            *(f"{number(found[share]['value'])} of {number(found[share]['floor']['value'])}" for share in SHARES),
            card["ruler"]["n"],
            AUDITED[audit["level"]],
        ])  # fmt: skip
    header = ("model", "3D FID", "precision, of the floor's", "recall, of the floor's", "n", "memorisation audit")
    return "\n\n".join([
        "### Models that ship",
        "\n".join(markdown_table(header, rows)),
        "Against held-out volumes, by which snapshots were chosen, too. With the parts that `split` wrote:",
        "```bash\nsplitshuffle score --generated hippocampus-mr --real parts/held_out --floor-from parts/train "
        "--out card.json\n```",
    ])  # fmt: skip


def rewritten(readme: str, text: str) -> str:
    """The README with `text` between the markers. Raises ValueError where there are none."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md: wanted {BEGIN} and {END} once each")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Rewrite, or with `--check` exit with 1 where the README says something else."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where the README differs")
    options = parser.parse_args()
    readme = REPOSITORY / "README.md"
    old = readme.read_text()
    new = rewritten(old, section(REPOSITORY))
    if options.check:
        sys.exit("README.md: not what the JSON files say; run evaluate/readme_results.py" if new != old else 0)
    with whole_file(readme) as temporary:
        temporary.write_text(new)


if __name__ == "__main__":
    main()
