"""What ships with the package, as a table."""

from pathlib import Path

from splitshuffle_gan.checkpoint import CONFIG, WEIGHTS, shipped_checkpoints
from splitshuffle_gan.publish.model_card import CARD
from splitshuffle_gan.publish.record import read_json


def overview() -> str:
    """A row for each network that ships: name, what it is, voxels and mm of its volumes, size, first words of its card.

    Generators first. Raises UserError for a damaged config.json.
    """
    rows = sorted(map(_row, shipped_checkpoints()), key=lambda row: (row[1] != "generator", row[0]))
    if not rows:
        return "No networks are installed with this package; install it again."
    header = ("name", "what", "voxels", "mm", "size")
    widths = [max(map(len, column)) for column in zip(header, *(row[:-1] for row in rows), strict=True)]
    lines = []
    for *cells, sentence in ((*header, ""), *rows):
        lines.append("  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip())
        lines += [f"    {sentence}"] if sentence else []
    return "\n".join(lines)


def _row(folder: Path) -> tuple[str, ...]:
    """The cells under the header, then the sentence."""
    header = read_json(folder / CONFIG)
    what = "generator" if header.get("class") == "Generator" else "extractor"
    shape = spacing = "any"
    if what == "generator":
        shape = "x".join(map(str, header["config"]["shape"]))
        spacing = "x".join(f"{mm:.3g}" for mm in header["geometry"]["spacing"])
    size = f"{(folder / WEIGHTS).stat().st_size / 2**20:.1f} MiB"
    return folder.name, what, shape, spacing, size, _first_sentence(folder / CARD)


def _first_sentence(card: Path) -> str:
    """Of the first paragraph after the card's title; empty where there is none."""
    text = f"\n{card.read_text()}" if card.is_file() else ""
    paragraph = [*text.partition("\n# ")[2].split("\n\n"), ""][1]
    sentence = " ".join(paragraph.split()).partition(". ")[0].rstrip(".")
    return f"{sentence}." if sentence else ""
