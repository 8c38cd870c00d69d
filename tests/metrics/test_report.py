"""Cards for people: files that appear together, numbers as they are shown, the Markdown, the picture."""

import copy
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.metrics import report
from splitshuffle_gan.metrics.card import beside_floor, read_card
from splitshuffle_gan.metrics.report import markdown, number, plot, write_card


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def picture_of(path):
    """`[pixels, 3]` of a PNG."""
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 600
        return np.asarray(picture.convert("RGB")).reshape(-1, 3)


def test_a_card_comes_back_as_it_was_written_with_its_rendering_beside_it(cards, tmp_path):
    path = write_card(cards.make(), tmp_path / "new" / "card.json")
    assert path == tmp_path / "new" / "card.json"
    assert read_card(path) == cards.make()
    assert files(path.parent) == ["card.json", "card.md", "card.png"]
    plot(cards.make(), tmp_path / "plot.png")
    assert (picture_of(path.with_suffix(".png")) == picture_of(tmp_path / "plot.png")).all()
    assert (path.parent / "card.md").read_text() == markdown(cards.make())


finite = st.floats(-1e150, 1e150)


@given(value=finite, ends=st.tuples(finite, finite), floor=st.floats(-1e150, 1e150), n=st.integers(1, 10**9))
def test_numbers_survive_exactly_and_render(cards, tmp_path_factory, value, ends, floor, n):
    card = cards.make()
    card["metrics"] = [cards.measured(value=value, interval=sorted(ends), n=n)]
    card["metrics"][0]["floor"] = {"value": floor, "interval": [min(floor, 0), floor], "n": n, "splits": n}
    path = write_card(card, tmp_path_factory.mktemp("card") / "card.json")
    assert read_card(path) == card
    assert number(value) in path.with_suffix(".md").read_text()


def test_numpy_floats_and_tuples_are_fine(cards, tmp_path):
    card = cards.changed("metrics.0.value", np.float64(2.5))
    card["ruler"]["extractor"]["expected_range"] = (-1.0, 1.0)
    assert read_card(write_card(card, tmp_path / "card.json"))["ruler"]["extractor"]["expected_range"] == [-1.0, 1.0]


def test_nothing_is_replaced_unless_asked_to(cards, tmp_path):
    path = write_card(cards.make(), tmp_path / "card.json")
    other = cards.changed("seconds", 1.0)
    with pytest.raises(UserError, match=r"card\.json exists already.*--overwrite"):
        write_card(other, path)
    assert read_card(path) == cards.make()
    write_card(other, path, overwrite=True)
    assert read_card(path) == other
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.md exists already"):
        write_card(other, tmp_path / "notes.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match=r"folder\.json exists already"):
        write_card(other, tmp_path / "folder.json", overwrite=True)


@pytest.mark.parametrize("name", ["card", "card.md", "card.json.txt"])
def test_a_card_is_named_json(cards, tmp_path, name):
    with pytest.raises(UserError, match=r"ends in \.json"):
        write_card(cards.make(), tmp_path / name)
    assert files(tmp_path) == []


@pytest.mark.parametrize("fails", ["write", "replace"])
@pytest.mark.parametrize("existed", [False, True])
def test_a_failed_write_leaves_what_was_there(cards, tmp_path, monkeypatch, fails, existed):
    path = tmp_path / "card.json"
    before = [write_card(cards.make(), path).name, "card.md", "card.png"] if existed else []

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(Path if fails == "write" else os, "write_bytes" if fails == "write" else "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_card(cards.changed("seconds", 1.0), path, overwrite=True)
    monkeypatch.undo()
    assert files(tmp_path) == before
    assert not existed or read_card(path) == cards.make()


@pytest.mark.parametrize("path", ["metrics.0.value", "seconds", "metrics.0.settings.k", "ruler.settings.x"])
def test_a_number_that_is_not_finite_is_refused_and_nothing_written(cards, tmp_path, path):
    with pytest.raises(UserError, match="finite"):
        write_card(cards.changed(path, float("nan")), tmp_path / "card.json")
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (3, "3"),
        (12.3456, "12.35"),
        (0.5, "0.5000"),
        (-0.00123456, "-0.001235"),
        (999.96, "1000"),
        (12345.6, "12346"),
        (0.0000123, "1.230e-05"),
        (2.5e12, "2.500e+12"),
    ],
)
def test_number_format(value, text):
    assert number(value) == text


@given(st.floats(-1e300, 1e300))
def test_a_shown_number_is_the_number_to_four_digits(value):
    text = number(value)
    assert float(text) == pytest.approx(value, rel=5.001e-4)
    assert ("e" in text) == (value != 0 and not 1e-4 <= abs(value) < 1e9)


def numbers_in(value):
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers_in(inner)
    elif isinstance(value, int | float):
        yield value


def test_the_rendering_holds_every_number_and_every_text(cards):
    card = cards.make()
    text = markdown(card)
    for row in card["metrics"]:
        shown = re.findall(r"-?\d+\.?\d*", text)
        for value in numbers_in({key: inner for key, inner in row.items() if key != "settings"}):
            assert number(value) in shown, (row["metric"], value)
    for part in ("ruler", "generated", "real", "environment"):
        for value in numbers_in(card[part]):
            assert json.dumps(value) in text or f"{value:.10g}" in text, (part, value)
    for word in ("ab" * 32, "cd" * 32, "ef" * 32, "med2d-mini", "residual encoder", "2.13.0", "41.25", "resamples"):
        assert word in text
    assert card["notes"][0] in text and "metrics" in text


def test_omitted_metrics_are_shown_with_their_reason(cards):
    assert "- 3D KID: n = 3 is fewer than the 4 that a subset needs" in markdown(cards.make())
    nothing = cards.changed("metrics", [cards.make()["metrics"][3]])
    assert "3D KID: n = 3" in markdown(nothing) and "not asked for" in markdown(nothing)


def test_the_real_pairs_stand_beside_the_generated_ones(cards):
    text = markdown(cards.make())
    assert "pairs of real volumes have 0.6123 [0.5987, 0.6234] (777 pairs)" in text


@pytest.mark.parametrize(
    ("at_floor_n", "place", "words"),
    [(8.0, "above", "tells the generated"), (4.1, "within", "does not tell"), (1.0, "below", "splitshuffle audit")],
)
def test_the_summary_says_where_the_fid_lies(cards, at_floor_n, place, words):
    card = cards.changed("metrics.0.value_at_floor_n", at_floor_n)
    assert beside_floor(card["metrics"][0]) == place
    paragraph = markdown(card).split("\n\n")[1]
    assert words in paragraph and f"{number(at_floor_n / 4)} times the floor" in paragraph
    assert "100 generated volumes (samples of run3d)" in paragraph and "med3d-mini" in paragraph


def test_lists_are_short():
    values = {"a": [1.0, 0.7421875, -1.0], "b": (1, 2.5), "c": [[0.1 + 0.2], "x"], "d": 1.0, "e": []}
    assert [text for _, text in report._fields(values)] == ["[1, 0.7421875, -1]", "[1, 2.5]", "[[0.3], x]", "1.0", "[]"]


def test_a_fid_without_a_floor_says_little(cards):
    assert "too few real volumes" in markdown(cards.changed("metrics.0.floor", None))


def test_a_name_cannot_break_the_tables(cards):
    card = cards.changed("generated.name", "a | b\n<script>x")
    text = markdown(card)
    assert "<script>" not in text and "a \\| b &lt;script>x" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {3, 4, 9}  # fields; data; metrics


def test_rendering_does_not_change_the_card(cards, tmp_path):
    card = cards.make()
    before = copy.deepcopy(card)
    markdown(card)
    write_card(card, tmp_path / "card.json")
    assert card == before


def test_the_picture(cards, tmp_path):
    card = cards.changed("generated.name", "costs $x_{1 | 5$")  # no formula
    card["metrics"] += [cards.measured("recall", "higher", 0.0, (0.0, 0.0), 0.7)]
    card["metrics"] += [cards.measured("outside", value=5.0, interval=(6.0, 7.0))]  # a bootstrap may be biased
    path = plot(card, tmp_path / "deep" / "card.png")
    assert (picture_of(path) == (31, 119, 180)).all(1).sum() > 1000  # bars
    assert files(path.parent) == ["card.png"]
    with pytest.raises(UserError, match="exists already"):
        plot(card, path)
    plot(card, path, overwrite=True)


def test_bars_are_as_long_as_the_ratio(cards, tmp_path):
    figure = Figure()
    axes = figure.add_subplot()
    rows = [cards.measured(value=8.0, floor=2.0), cards.measured("recall", "higher", 0.2, (0.1, 0.3), 0.5)]
    report._draw(axes, cards.make(), rows, [])
    bars = [bar for bar in axes.patches if bar.get_height() < 0.5]
    assert [bar.get_x() + bar.get_width() for bar in bars] == pytest.approx([5.0, 0.5])
    assert [bar.get_x() for bar in bars] == [1, 1]
    low, high = axes.get_xlim()
    assert low < 0.3 and high > 6


def test_nothing_to_draw(cards, tmp_path):
    with pytest.raises(UserError, match="nothing to draw"):
        plot(cards.changed("metrics", [cards.make()["metrics"][3]]), tmp_path / "card.png")
    assert files(tmp_path) == []


def test_a_card_without_a_ratio_has_no_picture_nor_keeps_an_old_one(cards, tmp_path):
    path = write_card(cards.make(), tmp_path / "card.json")
    write_card(cards.changed("metrics", [cards.make()["metrics"][3]]), path, overwrite=True)
    assert files(tmp_path) == ["card.json", "card.md"]


@settings(max_examples=12, deadline=None)
@given(value=finite, ends=st.tuples(finite, finite), floor=st.floats(5e-324, 1e300))
@example(value=1.0, ends=(1.0, 1e150), floor=1e-200)
def test_any_numbers_can_be_drawn(cards, tmp_path_factory, value, ends, floor):
    card = cards.changed("metrics", [cards.measured(value=value, interval=sorted(ends))])
    card["metrics"][0]["floor"] = {"value": floor, "interval": [floor, floor], "n": 50, "splits": 20}
    assert read_card(write_card(card, tmp_path_factory.mktemp("card") / "card.json")) == card


def test_the_summary_says_what_the_fid_alone_hides(cards):
    card = cards.make()
    card["metrics"][0] |= {"value": 4.0, "value_at_floor_n": 4.0}  # within the floor
    assert "does not tell the generated volumes" in report.summary(card) and "variety" not in report.summary(card)
    card["metrics"].append(cards.measured("recall", "higher", 0.04, (0.0, 0.1), 0.81))
    card["metrics"].append(cards.measured("fid_coronal", "lower", 9.0, (8.0, 10.0), 4.0))
    words = report.summary(card)
    assert "Recall is 0.05000 where real volumes have 0.8100: the generated volumes lack the variety" in words
    assert "Slices differ from real ones, too: coronal." in words
    card["ruler"]["n"] = card["ruler"]["extractor"]["dimension"] - 1
    assert "too few volumes to say much" in report.summary(card)
