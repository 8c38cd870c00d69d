"""Which cards may stand side by side, and how they do."""

import json
import re

import pytest

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.metrics.compare import NOT_THE_RULER, CompareConfig, Comparison, compare, run_compare

# Any other value for each field of the ruler, all of which must agree.
SAME_RULER = {
    "ruler.extractor.name": "medicalnet-resnet10",
    "ruler.extractor.rank": 2,
    "ruler.extractor.dimension": 512,
    "ruler.extractor.topology": "dilated",
    "ruler.extractor.preprocessing": "z-score",
    "ruler.extractor.expected_range": [0.0, 1.0],
    "ruler.extractor.spacing": "2 mm",
    "ruler.extractor.weights_sha256": "12" * 32,
    "ruler.plane_extractor.weights_sha256": "34" * 32,
    "ruler.preprocessing.range": [0, 1],
    "ruler.preprocessing.shape": [32, 48, 48],
    "ruler.preprocessing.spacing": [1.0, 0.74219, 1.0],
    "ruler.preprocessing.plane": "coronal",
    "ruler.preprocessing.intensity.low": -1000.0,
    "ruler.n": 99,
    "ruler.dtype": "bfloat16",
    "ruler.settings.resamples": 200,
    "generated.n": 64,
    "real.n": 64,
    "real.data_hash": "56" * 32,
    "real.reference_split": None,
}
SAME_ROWS = {
    "metrics.0.n": ("metrics.fid_3d.n", 90),
    "metrics.0.better": ("metrics.fid_3d.better", "higher"),
    "metrics.0.settings.nested.k": ("metrics.fid_3d.settings.nested.k", 5),
    "metrics.0.floor.n": ("metrics.fid_3d.floor.n", 40),
    "metrics.0.floor.splits": ("metrics.fid_3d.floor.splits", 5),
    "metrics.2.real.pairs": ("metrics.ms_ssim.real.pairs", 12),
}


def test_every_field_of_the_ruler_is_tried_here(cards):
    leaves = [path for path in cards.paths_of(cards.make()["ruler"], "ruler") if not isinstance(cards.get(path), dict)]
    allowed = {f"ruler.{name}" for name in NOT_THE_RULER}
    alike = {path.replace("plane_extractor", "extractor") for path in SAME_RULER}
    twins = {path for path in leaves if path.replace("plane_extractor", "extractor") in alike}
    assert set(leaves) - allowed - twins == {f"ruler.preprocessing.intensity.{x}" for x in ("kind", "high")}


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [(path, path, value) for path, value in SAME_RULER.items()] + [(p, *rest) for p, rest in SAME_ROWS.items()],
)
@pytest.mark.parametrize("third", [False, True])
def test_cards_of_another_ruler_are_refused_with_field_and_values(cards, tmp_path, path, name, value, third):
    one, other = cards.save(tmp_path, "one", cards.make()), cards.save(tmp_path, "other", cards.changed(path, value))
    with pytest.raises(UserError) as refusal:
        compare([one, one, other] if third else [one, other])
    message = str(refusal.value)
    assert f"{name} is {json.dumps(cards.get(path))} in {one} and {json.dumps(value)} in {other}" in message
    assert message.count(" and ") == 1  # no other field is accused
    with pytest.raises(UserError, match=re.escape(f"{name} is {json.dumps(value)}")):
        compare([other, one])


def test_a_setting_that_one_card_lacks_is_another_setting(cards, tmp_path):
    card = cards.make()
    del card["metrics"][0]["settings"]["resamples"]
    with pytest.raises(UserError, match=r"metrics\.fid_3d\.settings\.resamples is 1000 in .* and nothing in"):
        compare([cards.save(tmp_path, "a", cards.make()), cards.save(tmp_path, "b", card)])


def test_many_differences_are_counted(cards, tmp_path):
    card = cards.make()
    changes = {path: value for path, value in SAME_RULER.items() if path != "ruler.n"}
    for path, value in changes.items():
        container, key = cards.at(card, path)
        container[key] = value
    with pytest.raises(UserError, match=f"and {len(changes) - 8} fields more"):
        compare([cards.save(tmp_path, "a", cards.make()), cards.save(tmp_path, "b", card)])


def test_another_n_is_refused_alone_with_what_to_do(cards, tmp_path):
    paths = [cards.save(tmp_path, "a", cards.make()), cards.save(tmp_path, "b", cards.changed("ruler.n", 60))]
    with pytest.raises(UserError, match=r"ruler\.n is 100 in .* and 60 in .*Score both with --n 60$"):
        compare(paths)


@pytest.mark.parametrize(
    ("path", "value", "remark"),
    [
        ("ruler.seed", 7, "ruler.seed differs: 0 (a), 7 (b)"),
        ("environment.torch", "2.6.0", 'environment.torch differs: "2.13.0" (a), "2.6.0" (b)'),
        ("environment.monai", None, "environment.monai differs"),
        ("environment.torch_fidelity", "0.3.0", "environment.torch_fidelity differs"),
        ("environment.device", "cuda", "environment.device differs"),
        ("created_with", "9.0", "created_with differs"),
        ("ruler.extractor.note", "asked for", None),
        ("ruler.extractor.weights", "renamed.safetensors", None),
        ("ruler.plane_extractor", None, None),
        ("ruler.preprocessing.spacing", [1.0, 0.7421875 * (1 + 1e-8), 1.0], None),
        ("environment.python", "3.10.0", None),
        ("environment.processes", 2, None),
        ("generated.truncation_psi", 1.0, "truncation_psi differs: 0.7 (a), 1.0 (b). Lower raises precision"),
        ("generated.truncation_psi", None, None),
        ("generated.available", None, None),
        ("real.name", "the same, moved", None),
        ("seconds", 1.0, None),
        ("created", "later", None),
        ("notes", [], None),
    ],
)
def test_what_may_differ(cards, tmp_path, path, value, remark):
    card = cards.changed(path, value)
    card["generated"]["data_hash"] = "78" * 32
    comparison = compare([cards.save(tmp_path, "a", cards.make()), cards.save(tmp_path, "b", card)], names=["a", "b"])
    assert len(comparison.remarks) == (remark is not None)
    assert remark is None or remark in comparison.remarks[0] and f"- Note: {remark}" in comparison.table()


def test_the_same_card_twice_is_said(cards, tmp_path):
    path = cards.save(tmp_path, "a", cards.make())
    again = cards.save(tmp_path, "b", cards.changed("created", "later"))
    comparison = compare([path, path, again])
    names = [f"samples of run3d #{number}" for number in (1, 2, 3)]
    assert list(comparison.names) == names
    assert comparison.remarks == (
        f"{names[0]} and {names[1]} are the same card.",
        f"{names[0]} and {names[2]} measure the same generated volumes.",
        f"{names[1]} and {names[2]} measure the same generated volumes.",
    )


def test_a_distance_below_the_floor_is_pointed_out(cards, tmp_path):
    copier = cards.changed("metrics.0.value_at_floor_n", 0.5)
    paths = [cards.save(tmp_path, "a", cards.make()), cards.save(tmp_path, "b", copier)]
    (remark,) = [text for text in compare(paths, ["honest", "copier"]).remarks if "audit" in text]
    assert remark.startswith("copier: fid 3d below the floor's interval")


def with_rows(cards, folder, name, *rows):
    card = cards.changed("metrics", list(rows))
    card["generated"] |= {"name": name, "data_hash": name * 8}
    return cards.save(folder, name, card)


def ms_ssim(cards, interval):
    real = {"value": 0.6, "interval": [0.58, 0.62], "pairs": 100}
    return cards.measured("ms_ssim", "like real", sum(interval) / 2, interval, 0.6, real=real)


@pytest.mark.parametrize(
    ("better", "intervals", "best"),
    [
        ("lower", [(1, 2), (3, 4)], 0),
        ("lower", [(3, 4), (1, 2)], 1),
        ("lower", [(1, 3), (2, 4)], None),  # they overlap
        ("lower", [(1, 2), (2, 4)], None),  # they touch
        ("lower", [(1, 2), (3, 5), (4, 6)], 0),  # the losers may overlap
        ("lower", [(1, 2), (1.5, 3), (8, 9)], None),
        ("higher", [(1, 2), (3, 4)], 1),
        ("higher", [(1, 3), (2, 4)], None),
        ("like real", [(0.5, 0.52), (0.59, 0.61)], 1),
        ("like real", [(0.5, 0.52), (0.63, 0.65)], 1),  # from the other side, nearer
        ("like real", [(0.55, 0.56), (0.64, 0.65)], None),  # about as far on both sides
        ("like real", [(0.5, 0.7), (0.63, 0.65)], None),
    ],
)
def test_the_best_is_marked_only_where_intervals_do_not_overlap(cards, tmp_path, better, intervals, best):
    paths = []
    for index, interval in enumerate(intervals):
        row = cards.measured("m", better, sum(interval) / 2, interval)
        row = ms_ssim(cards, interval) if better == "like real" else row
        paths.append(with_rows(cards, tmp_path, f"card{index}", row))
    comparison = compare(paths)
    assert comparison.rows[0]["best"] == best
    line = comparison.table().splitlines()[4]
    assert line.startswith(f"| {comparison.rows[0]['title']} |")
    bold = [index for index, cell in enumerate(line.strip("| ").split(" | ")[2:]) if "**" in cell]
    assert bold == ([] if best is None else [best])


def test_rows_and_cells_of_the_table(cards, tmp_path):
    omitted = {"metric": "recall", "title": "recall", "omitted": "n = 3 is too small"}
    kid = cards.measured("kid", value=0.5, floor=0.1)
    kid["floor"]["interval"] = [-0.1, 0.3]
    paths = [
        with_rows(cards, tmp_path, "a", cards.measured(), cards.measured("recall", "higher", 0.25, (0.2, 0.3), 0.5)),
        with_rows(cards, tmp_path, "b", cards.measured(value=14.0, interval=(13.0, 15.0)), omitted, kid),
    ]
    comparison = compare(paths)
    lines = comparison.table().splitlines()
    assert "| metric | better | a | b |" in lines
    assert "| fid 3d | lower | 12.35 [11.00, 13.50], 3.858x floor | 14.00 [13.00, 15.00], 4.375x floor |" in lines
    assert "| recall | higher | 0.2500 [0.2000, 0.3000], 0.6250x floor | omitted |" in lines
    assert "| kid | lower | not in the card | 0.5000 [11.00, 13.50] |" in lines
    assert "- recall of b: n = 3 is too small" in lines
    assert [row["best"] for row in comparison.rows] == [None, None, None]  # alone is not best
    assert "med3d-mini (weights sha256 abababababab...), n = 100" in lines[0] and "hippocampus" in lines[0]


def test_names_and_counts(cards, tmp_path):
    path = cards.save(tmp_path, "a", cards.make())
    with pytest.raises(UserError, match="found 1, give at least two"):
        compare([path])
    with pytest.raises(UserError, match="found 1, give at least two"):
        CompareConfig(cards=(path,))
    with pytest.raises(UserError, match="names: found 3 for 2 cards"):
        compare([path, path], names=["x", "y", "z"])
    assert compare([path, path], names=["x", "y|z"]).table().count("y\\|z") == 1


def test_the_comparison_is_written_as_table_and_json(cards, tmp_path):
    paths = (cards.save(tmp_path, "a", cards.make()), cards.save(tmp_path, "b", cards.changed("metrics.0.value", 11.5)))
    out = tmp_path / "out" / "table.md"
    comparison = run_compare(CompareConfig(cards=paths, names=("a", "b"), out=out))
    assert isinstance(comparison, Comparison) and sorted(out.parent.iterdir()) == [out.with_suffix(".json"), out]
    assert out.read_text() == comparison.table()
    content = json.loads(out.with_suffix(".json").read_text())
    assert content["names"] == ["a", "b"] and content["rows"][0]["cards"][1]["value"] == 11.5
    assert content["paths"] == [str(path) for path in paths]
    with pytest.raises(UserError, match="exists already"):
        CompareConfig(cards=paths, out=out)
    run_compare(CompareConfig(cards=paths, out=out, overwrite=True))
    with pytest.raises(UserError, match=r"ends in \.md"):
        CompareConfig(cards=paths, out=tmp_path / "table.txt")


def test_a_table_never_takes_a_cards_place(cards, tmp_path):
    paths = (cards.save(tmp_path, "a", cards.make()), cards.save(tmp_path, "b", cards.make()))
    with pytest.raises(UserError, match="in the place of a card"):
        CompareConfig(cards=paths, out=tmp_path / "a" / "card.md", overwrite=True)
