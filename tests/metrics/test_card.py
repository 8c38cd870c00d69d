"""The card's schema: what is refused and how it is named; and a value beside its floor."""

import json
import re

import pytest

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.metrics.card import beside_floor, check_card, check_out, read_card, times_floor

EXTRACTOR = "name rank dimension topology preprocessing expected_range spacing weights weights_sha256 note"
FIELDS = {
    "": "format version created created_with ruler generated real metrics notes environment seconds",
    "ruler.": "extractor plane_extractor preprocessing n dtype seed settings",
    "ruler.extractor.": EXTRACTOR,
    "ruler.plane_extractor.": EXTRACTOR,
    "ruler.preprocessing.": "range shape spacing plane intensity",
    "generated.": "name kind n available data_hash",
    "real.": "name kind n available data_hash reference_split",
    "environment.": "python torch monai torch_fidelity numpy device processes",
    **{f"metrics.{i}.": "metric title better value n interval floor value_at_floor_n settings" for i in range(3)},
    **{f"metrics.{i}.floor.": "value interval n splits" for i in range(3)},
    "metrics.2.": "metric title better value n interval floor value_at_floor_n settings real",
    "metrics.2.real.": "value interval pairs",
    "metrics.3.": "metric title",  # and omitted, without which the row is one that was measured, and misses more
}
REQUIRED = [prefix + name for prefix, names in FIELDS.items() for name in names.split()]
NULLABLE = re.compile(
    r"ruler\.plane_extractor|ruler\.preprocessing\.intensity|(generated|real)\.available|real\.reference_split"
    r"|metrics\.\d\.(floor|value_at_floor_n)|environment\.(monai|torch_fidelity)"
)


def test_every_field_is_tried_here(cards):
    """But for what a dictionary without a fixed schema holds, which is a card's own business."""
    paths = [path for path in cards.paths_of(cards.make()) if not path.split(".")[-1].isdecimal()]
    free = [path for path in paths if ".settings." in path or ".intensity." in path]
    assert sorted(REQUIRED + free + ["generated.truncation_psi", "metrics.3.omitted"]) == sorted(paths)


@pytest.mark.parametrize("path", REQUIRED)
def test_a_missing_field_is_named(cards, tmp_path, path):
    card = cards.make()
    container, key = cards.at(card, path)
    del container[key]
    file = tmp_path / "card.json"
    file.write_text(json.dumps(card))
    name = re.sub(r"metrics\.(\d)", r"metrics[\1]", path)
    with pytest.raises(UserError, match=rf"card\.json: {re.escape(name)} (is missing|is not 'splitsh|is None)"):
        read_card(file)


@pytest.mark.parametrize("path", REQUIRED)
def test_a_field_of_another_kind_is_named(cards, tmp_path, path):
    """Texts and numbers as fields, fields as texts and numbers."""
    value = cards.get(path)
    wrong = [True, "text" if isinstance(value, dict) else {}]
    wrong.append("text" if isinstance(value, list) and path != "notes" else ["x", 3, 2])
    wrong += [] if NULLABLE.fullmatch(path) else [None]
    file = tmp_path / "card.json"
    name = re.sub(r"metrics\.(\d)", r"metrics[\1]", path)
    for value in wrong:
        file.write_text(json.dumps(cards.changed(path, value)))
        with pytest.raises(UserError, match=rf"card\.json: {re.escape(name)} is"):
            read_card(file)


@pytest.mark.parametrize("path", [path for path in REQUIRED if NULLABLE.fullmatch(path)])
def test_what_may_be_null(cards, tmp_path, path):
    card = cards.changed(path, None)
    assert read_card(cards.save(tmp_path, "a", card)) == card


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("metrics.0.interval", [2, 1], r"metrics\[0\]\.interval is \[2, 1\]; \[low, high\]"),
        ("metrics.0.interval", [1], r"metrics\[0\]\.interval"),
        ("metrics.0.better", "larger", r'metrics\[0\]\.better is "larger"; lower, higher or like real'),
        ("metrics.0.metric", "fid.3d", r"metrics\[0\]\.metric"),
        ("metrics.0.n", 0, r"metrics\[0\]\.n is 0; a whole number, 1 or more"),
        ("real.data_hash", " ", r"real\.data_hash"),
        ("metrics.1.metric", "fid_3d", "'fid_3d' more than once"),
        ("metrics.1", 7, r"metrics\[1\] is 7"),
        ("version", 2, "version is 2; this release reads version 1"),
        ("format", "splitshuffle-dataset", "no metric card"),
        ("notes", ["a", 1], "notes is"),
    ],
)
def test_values_that_make_no_sense(cards, tmp_path, path, value, wanted):
    file = tmp_path / "card.json"
    file.write_text(json.dumps(cards.changed(path, value)))
    with pytest.raises(UserError, match=rf"card\.json: .*{wanted}"):
        read_card(file)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", "[" * 100_000, b"\xff\xfe\x00"])
def test_files_that_are_no_cards(tmp_path, content):
    file = tmp_path / "card.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"card\.json"):
        read_card(file)


def test_no_file(tmp_path):
    for path in (tmp_path / "card.json", tmp_path):
        with pytest.raises(UserError, match="not a file"):
            read_card(path)


def test_times_floor_uses_the_value_at_the_floors_n_and_needs_a_floor_above_zero(cards):
    row = cards.measured(value=10.0, floor=4.0)
    assert times_floor(row) == pytest.approx(12.5 / 4)
    row["floor"]["interval"][0] = 0.0
    assert times_floor(row) is None
    row["floor"] = None
    assert times_floor(row) is None and beside_floor(row) is None
    tiny = cards.measured(value=1e300, floor=1e-300)
    assert times_floor(tiny) is None


def test_a_card_is_checked_as_it_is(cards):
    card = cards.make()
    assert check_card(card, "here") is card
    with pytest.raises(UserError, match="^here: ruler is 3"):
        check_card(cards.changed("ruler", 3), "here")


def test_a_number_too_large_for_arithmetic_is_refused(cards):
    with pytest.raises(UserError, match=r"metrics\[0\]\.value is 10+.*a finite number is wanted"):
        check_card(cards.changed("metrics.0.value", 10**400), "here")


@pytest.mark.parametrize("name", ["card.json", "card.md", "card.png"])
def test_no_file_of_a_card_may_exist(tmp_path, name):
    check_out(tmp_path / "card.json")
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"{name} exists already.*--overwrite"):
        check_out(tmp_path / "card.json")
    check_out(tmp_path / "card.json", overwrite=True)
