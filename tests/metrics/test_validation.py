"""The validation measures what it says: straight rulers pass, blind ones are called blind."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import nn

from splitshuffle_gan.data.phantom import make_phantom, write_phantoms
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.catalogue import Extractor
from splitshuffle_gan.metrics import validation, validation_report
from splitshuffle_gan.metrics.corruptions import CORRUPTIONS, VolumeDamage
from splitshuffle_gan.metrics.resampling import split_pairs
from splitshuffle_gan.metrics.source import from_arrays
from splitshuffle_gan.metrics.validation import ValidationConfig, blind_spots, measure, spearman, validate
from splitshuffle_gan.metrics.validation_report import plot

NAMES = [damage.name for damage in CORRUPTIONS]
SHAPE, SPACING = (16, 16, 24), (10.0, 12.0, 8.0)


class Blind(nn.Module):
    """Features that do not depend on the input."""

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        return torch.arange(1.0, 6.0).expand(len(volumes), 5) / 3


class Pooled(nn.Module):
    """Local means and local roughness: a ruler whose properties are known."""

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        mean = nn.functional.adaptive_avg_pool3d(volumes, 2)
        rough = nn.functional.adaptive_avg_pool3d(volumes.square(), 2) - mean.square()
        return torch.cat([mean.flatten(1), rough.flatten(1)], 1)


def extractor(name: str, rank: int = 3) -> Extractor:
    network, dimension = {"blind": (Blind(), 5), "pooled": (Pooled(), 16)}[name]
    return Extractor(name, rank, dimension, network.eval(), "a test", "none", "any", "none", "0" * 64)


@pytest.fixture
def rulers(monkeypatch, cpu) -> None:
    """`open_extractor` finds the rulers above, and the genuine random ones."""
    genuine = validation.open_extractor

    def opened(name: str, weights=None) -> Extractor:
        return genuine(name, weights) if name.startswith("random") else extractor(name)

    monkeypatch.setattr(validation, "open_extractor", opened)


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    """A folder of 22 brain phantoms."""
    return write_phantoms("brain", 22, SHAPE, SPACING, 5, tmp_path_factory.mktemp("phantoms") / "brains")


def toy_features(n: int = 60, d: int = 4, seed: int = 0) -> dict:
    """Features of a ruler that moves by exactly the strength of every damage, along an axis of which all know."""
    rng = np.random.default_rng(seed)
    clean = rng.standard_normal((2 * n, d))
    features = {"clean": clean, "mirror": clean + 6, "other": rng.standard_normal((n, d)) + 30}
    for damage in CORRUPTIONS:
        if isinstance(damage, VolumeDamage):
            features |= {(damage.name, s): clean + 10 * s for s in damage.strengths}
    return features


def test_the_whole_of_it_on_phantoms(brains, rulers, tmp_path):
    out = tmp_path / "validation"
    config = ValidationConfig(real=brains, out=out, extractors=("random-0", "blind"), n=10, splits=4)
    assert validate(config) == out
    result = json.loads((out / "validation.json").read_text())
    assert (result["format"], result["version"], result["n"]) == ("splitshuffle-validation", 1, 10)
    assert (result["real"]["n"], result["real"]["available"], result["other"]["n"]) == (20, 22, 10)
    assert result["real"]["shape"] == list(SHAPE) and len(result["real"]["data_hash"]) == 64
    assert result["settings"]["seed"] == 0 and result["environment"]["torch"] == torch.__version__
    assert list(result["extractors"]) == ["random-0", "blind"]
    for table in result["extractors"].values():
        assert list(table["corruptions"]) == NAMES
        assert set(table["extractor"]) >= {"name", "weights_sha256", "topology"}
        for damage in CORRUPTIONS:
            rows = table["corruptions"][damage.name]["rows"]
            assert [row["strength"] for row in rows] == list(damage.strengths)
            assert all(0 <= row[name] <= 1 for row in rows for name in ("precision", "recall"))
            assert all(row["interval"][0] <= row["distance"] <= row["interval"][1] for row in rows)
    seeing = result["extractors"]["random-0"]["corruptions"]
    assert seeing["gain"]["spearman"] == seeing["mixture"]["spearman"] == 1
    assert seeing["mixture"]["rows"][-1]["above_floor"]
    blind = result["extractors"]["blind"]
    assert [entry["spearman"] for entry in blind["corruptions"].values()] == [0] * 9
    assert blind["blind_spots"] == ["Blind to everything: the features of different volumes are the same."]

    text = (out / "validation.md").read_text()
    assert blind["blind_spots"][0] in text and "## random-0" in text and result["real"]["data_hash"] in text
    assert all(damage.heading in text and damage.label(damage.strengths[-1]) in text for damage in CORRUPTIONS)
    with Image.open(out / "validation.png") as picture:
        assert picture.width > 1000 and picture.height > 900
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50
    assert {path.name for path in out.iterdir()} == {"validation.json", "validation.md", "validation.png"}


def test_the_seed_repeats_every_number_and_another_changes_them(brains, rulers, tmp_path):
    tables = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(number)
        validate(ValidationConfig(real=brains, out=out, extractors=("pooled",), n=8, splits=3, seed=seed))
        tables.append(json.loads((out / "validation.json").read_text())["extractors"])
    assert tables[0] == tables[1] != tables[2]


def test_a_straight_ruler_is_called_straight():
    features = toy_features()
    table = measure(features, split_pairs(120, 60, 6, 0), 0)
    assert [entry["spearman"] for entry in table["corruptions"].values()] == [1.0] * 9
    assert all(row["above_floor"] for entry in table["corruptions"].values() for row in entry["rows"])
    assert blind_spots(table) == []


def test_distances_are_those_of_the_damaged_half_to_the_other():
    """A shift by s in d dimensions is a distance of d s^2, on top of what the halves are apart anyway."""
    features = toy_features()
    table = measure(features, split_pairs(120, 60, 40, 0), 0)
    for row in table["corruptions"]["noise"]["rows"]:
        assert row["distance"] - table["floor"]["value"] == pytest.approx(4 * (10 * row["strength"]) ** 2, rel=0.15)
        assert row["over_floor"] == row["distance"] / table["floor"]["value"]
    swapped = table["corruptions"]["swap"]["rows"][-1]
    assert swapped["distance"] == pytest.approx(4 * 6**2, rel=0.05)


def test_a_damage_that_changes_nothing_gives_the_floor_split_by_split():
    """So the volumes that are damaged are those of the half, each in its place."""
    features = toy_features()
    features |= {("blur", s): features["clean"] for s in (0.6, 0.8, 1.0, 1.5, 2.0)}
    features["mirror"] = features["clean"]
    table = measure(features, split_pairs(120, 60, 6, 0), 0)
    for name in ("blur", "swap"):
        for row in table["corruptions"][name]["rows"]:
            assert row["interval"] == table["floor"]["interval"]
            assert (row["precision"], row["recall"]) == (table["floor"]["precision"], table["floor"]["recall"])
        assert table["corruptions"][name]["spearman"] == 0


def test_copies_cost_recall_not_precision():
    table = measure(toy_features(), split_pairs(120, 60, 6, 0), 0)
    rows = table["corruptions"]["duplicates"]["rows"]
    assert table["floor"]["recall"] - rows[-1]["recall"] > 0.5
    assert abs(table["floor"]["precision"] - rows[-1]["precision"]) < 0.15
    recalls = [row["recall"] for row in rows]
    assert recalls == sorted(recalls, reverse=True)


def test_what_is_not_seen_weak_or_out_of_order_is_said():
    features = toy_features()
    clean = features["clean"]
    features |= {("blur", s): clean for s in (0.6, 0.8, 1.0, 1.5, 2.0)}
    features |= {("gain", s): clean + (5 if s > 0.25 else 0.01) * s for s in (0.1, 0.2, 0.3, 0.4, 0.5)}
    features |= {("noise", s): clean + 1 / s for s in (0.1, 0.15, 0.2, 0.3, 0.4)}
    features["mirror"] = clean
    sentences = blind_spots(measure(features, split_pairs(120, 60, 6, 0), 0))
    assert len(sentences) == 4
    assert sentences[0].startswith("Misjudges how strong Gaussian noise is: Spearman -1.00")
    assert sentences[1].startswith("Blind to blur: ")
    assert sentences[2].startswith("Weak on intensity gain: gain 0.9 gives ") and "from gain 0.7 on" in sentences[2]
    assert sentences[3].startswith("Blind to left-right swap: ")


def test_a_ruler_that_takes_collapse_for_poor_quality_is_found_out():
    table = measure(toy_features(), split_pairs(120, 60, 6, 0), 0)
    table["corruptions"]["duplicates"]["rows"][-1] |= {"precision": 0.1, "recall": 0.8}
    assert [s.split(":")[0] for s in blind_spots(table)] == ["Does not tell collapse from poor quality"]


@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_scipys(seed):
    rng = np.random.default_rng(seed)
    strengths, distances = rng.permutation(7), rng.integers(0, 4, 7)
    assert spearman(strengths, distances) == pytest.approx(spearmanr(strengths, distances).statistic, abs=1e-9)
    assert spearman(strengths, np.exp(strengths)) == 1.0
    assert spearman(strengths, np.ones(7)) == 0.0


@pytest.mark.parametrize("plane, order", [("axial", (0, 1, 2)), ("coronal", (1, 0, 2)), ("sagittal", (2, 0, 1))])
def test_the_other_organ_lies_in_the_plane_of_the_real_volumes(plane, order, tmp_path):
    shape, spacing = (tuple(values[axis] for axis in order) for values in (SHAPE, SPACING))
    real = from_arrays([np.zeros(shape)], spacing, plane)
    config = ValidationConfig(real=tmp_path, out=tmp_path / "out", seed=3)
    other, record = validation._other_organ(config, real, 2)
    image = make_phantom("heart", SHAPE, SPACING, 4).image
    expected = np.clip((image + 250) / 450 - 1, -1, 1).transpose(order)
    np.testing.assert_allclose(other[1], expected, atol=1e-6)
    assert (other.shape, record["plane"], record["name"]) == (shape, plane, "heart phantoms")


def test_the_other_organ_may_be_a_folder(brains, rulers, tmp_path):
    hearts = write_phantoms("heart", 8, SHAPE, SPACING, 1, tmp_path / "hearts")
    config = ValidationConfig(
        real=brains, out=tmp_path / "out", other=str(hearts), extractors=("pooled",), n=8, splits=2
    )
    record = json.loads((validate(config) / "validation.json").read_text())["other"]
    assert (record["kind"], record["n"]) == ("scans", 8)
    with pytest.raises(UserError, match="other: .*hearts holds 8 volumes, 11 are wanted"):
        validate(ValidationConfig(real=brains, out=tmp_path / "more", other=str(hearts), extractors=("pooled",)))
    small = write_phantoms("heart", 8, (8, 8, 8), SPACING, 1, tmp_path / "small")
    with pytest.raises(UserError, match="other: .*small is 8 x 8 x 8, axial; 16 x 16 x 24, axial"):
        validate(ValidationConfig(real=brains, out=tmp_path / "more", other=str(small), extractors=("pooled",)))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n": 12}, "holds 22 volumes, two disjoint halves of 12 need 24"),
        ({"n": 7}, "n: found 7, at least 8"),
        ({"splits": 1}, "splits: found 1, at least 2"),
        ({"seed": -1}, "seed: found -1"),
        ({"extractors": ("pooled", "pooled")}, "in which a name comes twice"),
        ({"weights": "resnet.pth"}, "weights: resnet.pth is for one medicalnet or cross_d"),
        ({"weights": "w", "extractors": ("cross_d-resnet18", "medicalnet-resnet10")}, "weights: w is for one"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(brains, rulers, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        validate(ValidationConfig(**{"real": brains, "out": tmp_path / "out", "extractors": ("pooled",)} | changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["medicalnet-resnet10", "cross_d-resnet18"])
def test_weights_go_to_the_one_that_does_not_ship(brains, tmp_path, monkeypatch, name):
    given = {}

    def opened(name: str, weights=None) -> Extractor:
        given[name] = weights
        raise UserError("enough")

    for names in ((name,), (name, "med3d-mini")):
        monkeypatch.setattr(validation, "open_extractor", opened)
        with pytest.raises(UserError, match="enough"):
            validate(ValidationConfig(real=brains, out=tmp_path / "out", extractors=names, weights=tmp_path))
    assert given == {name: tmp_path}


def test_an_extractor_of_slices_is_refused(brains, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "open_extractor", lambda name, weights=None: extractor("pooled", rank=2))
    with pytest.raises(UserError, match="looks at slices"):
        validate(ValidationConfig(real=brains, out=tmp_path / "out", extractors=("pooled",)))


def test_an_existing_folder_is_replaced_only_when_it_is_a_validation(brains, rulers, tmp_path):
    out = tmp_path / "out"
    config = {"real": brains, "out": out, "extractors": ("pooled",), "n": 8, "splits": 2}
    validate(ValidationConfig(**config))
    with pytest.raises(UserError, match="exists already"):
        validate(ValidationConfig(**config))
    validate(ValidationConfig(**config, overwrite=True))
    (out / "validation.json").unlink()
    with pytest.raises(UserError, match="has no validation.json"):
        validate(ValidationConfig(**config, overwrite=True))


def test_the_plot_has_a_line_for_every_extractor_that_has_a_floor(tmp_path, monkeypatch):
    drawn = {}
    table = measure(toy_features(), split_pairs(120, 60, 3, 0), 0)
    zero = measure({key: np.ones((60 if key == "other" else 120, 2)) for key in toy_features()},
                   split_pairs(120, 60, 3, 0), 0)  # fmt: skip
    genuine = validation_report._draw

    def spy(panel, damage, tables):
        genuine(panel, damage, tables)
        drawn[damage.name] = [(line.get_label(), line.get_ydata()) for line in panel.lines[::2]]
        reach = table["floor"]["interval"][1] / table["floor"]["value"]
        assert all(set(dotted.get_ydata()) == {reach} for dotted in panel.lines[1::2])

    monkeypatch.setattr(validation_report, "_draw", spy)
    result = {"n": 60, "real": {"name": "a/b"}, "extractors": {"one": table, "zero": zero, "two": table}}
    plot(result, tmp_path / "plot.png")
    assert list(drawn) == NAMES
    for name, lines in drawn.items():
        assert [label for label, _ in lines] == ["one", "two"]
        ratios = [row["over_floor"] for row in table["corruptions"][name]["rows"]]
        np.testing.assert_allclose(lines[0][1], [1, *ratios])
