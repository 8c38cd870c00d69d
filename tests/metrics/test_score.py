"""From two folders to a card: the numbers by hand, the right way round, on any number of processes."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from splitshuffle_gan.config import GeneratorConfig
from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.data.phantom import write_phantoms
from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.data.split import write_part
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.catalogue import open_extractor
from splitshuffle_gan.extractors.encoder import Encoder, EncoderConfig
from splitshuffle_gan.metrics.card import check_card, read_card
from splitshuffle_gan.metrics.features import extract
from splitshuffle_gan.metrics.frechet import frechet_of
from splitshuffle_gan.metrics.score import ScoreConfig, Settings, measure, score
from splitshuffle_gan.metrics.source import from_arrays, open_pair, open_volumes
from splitshuffle_gan.metrics.ssim import disjoint_pairs, diversity
from splitshuffle_gan.models.generator import Generator

# Last: `fidelity`, which the score imports, lets torchvision be imported.
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric  # isort: skip
from torch_fidelity.metric_kid import kid_features_to_metric  # isort: skip
from torch_fidelity.metric_prc import prc_features_to_metric  # isort: skip

pytestmark = pytest.mark.usefixtures("cpu")
SCRIPT = Path(__file__).resolve().parents[2] / "evaluate" / "score.py"
SHAPE, SPACING = (16, 16, 16), (14.0, 14.0, 14.0)
NUMBERS = ("fid_3d", "fid_3d_infinity", "kid_3d", "precision", "recall", "density", "coverage",
           "fid_axial", "fid_coronal", "fid_sagittal", "ms_ssim")  # fmt: skip
QUICK = {"resamples": 20, "splits": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """hearts/ (13 phantoms), real/ (24 brains, prepared), planes/ (a network for slices)."""
    folder = tmp_path_factory.mktemp("score")
    write_phantoms("heart", 13, SHAPE, SPACING, 1, folder / "hearts")
    write_phantoms("brain", 24, SHAPE, SPACING, 0, folder / "brains")
    prepare(PrepareConfig(folder / "brains" / "images", folder / "real", SHAPE, workers=1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Encoder(EncoderConfig(rank=2, widths=(8, 8, 8, 8), lateral=2)).save_pretrained(folder / "planes")
    weights = folder / "planes" / "model.safetensors"
    (folder / "planes" / "weights.sha256").write_text(f"{file_hash(weights)}  model.safetensors\n")
    return folder


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def config(folder, tmp_path):
    """`config(...)`: the hearts against the brains."""

    def make(**changes) -> ScoreConfig:
        values = {
            "generated": str(folder / "hearts"),
            "real": str(folder / "real"),
            "out": tmp_path / "card.json",
            "extractor": "random-0",
            "plane_extractor": "med2d-mini",
            "plane_weights": folder / "planes",
            "cache": tmp_path / "cache",
        }
        return ScoreConfig(**(values | QUICK | changes))

    return make


def rows_of(card: dict) -> dict[str, dict]:
    return {row["metric"]: row for row in card["metrics"]}


def numbers_of(card: dict) -> dict[str, list[float]]:
    """Every number of every row, by metric."""

    def leaves(value):
        if isinstance(value, dict):
            return [leaf for key in sorted(value) for leaf in leaves(value[key])]
        if isinstance(value, list | tuple):
            return [leaf for item in value for leaf in leaves(item)]
        return [float(value)] if isinstance(value, int | float) else []

    return {name: leaves(row) for name, row in rows_of(card).items()}


# --- the whole -------------------------------------------------------------------------------------------------------


def test_a_card_is_written_and_whole(config, folder, tmp_path):
    card = score(config())
    assert read_card(tmp_path / "card.json") == json.loads(json.dumps(card))
    assert (tmp_path / "card.md").is_file() and (tmp_path / "card.png").is_file()
    assert [row["metric"] for row in card["metrics"]] == sorted(NUMBERS, key=list(rows_of(card)).index)
    assert set(rows_of(card)) == set(NUMBERS)
    assert [name for name, row in rows_of(card).items() if "omitted" in row] == ["fid_3d_infinity"]  # 64 features
    assert card["ruler"]["n"] == 13 and all(row["n"] == 13 for row in card["metrics"] if "n" in row)
    assert card["ruler"]["extractor"]["name"] == "random-0"
    assert card["ruler"]["plane_extractor"]["weights_sha256"] == file_hash(folder / "planes" / "model.safetensors")
    expected = {"shape": list(SHAPE), "spacing": list(SPACING), "plane": "axial", "range": [-1.0, 1.0]}
    intensity = {"kind": "percentiles", "low": 0.5, "high": 99.5}
    assert card["ruler"]["preprocessing"] == expected | {"intensity": intensity}
    made, real = open_pair(folder / "hearts", folder / "real")
    sides = {"generated": (made, 13, "scans"), "real": (real, 24, "dataset")}
    for side, (volumes, available, kind) in sides.items():
        found = {key: card[side][key] for key in ("name", "kind", "n", "available", "data_hash")}
        assert found["name"] == volumes.name and found["data_hash"] == volumes.data_hash
        assert (found["kind"], found["n"], found["available"]) == (kind, 13, available)
    assert card["environment"]["processes"] == 1 and card["environment"]["torch"] == torch.__version__
    notes = " ".join(card["notes"])
    assert "floor is between halves of 12" in notes and "n = 13 is below the 64 features" in notes


def test_the_numbers_are_those_of_features_by_hand_and_of_torch_fidelity(folder):
    """All 13 hearts against 13 brains, which are all there are."""
    made, real = open_pair(folder / "hearts", folder / "real")
    real, extractor = real.subset(range(13)), open_extractor("random-0")
    planes = open_extractor("med2d-mini", folder / "planes")
    found = rows_of(measure(made, real, extractor, planes, Settings(**QUICK)))
    a, b = extract(made, extractor), extract(real, extractor)
    assert found["fid_3d"]["value"] == pytest.approx(frechet_of(a, b), rel=1e-9)
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    theirs = fid_statistics_to_metric(*map(fid_features_to_statistics, (a, b)), verbose=False)
    assert found["fid_3d"]["value"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    options = {"kid_subsets": 100, "kid_subset_size": 6, "rng_seed": 0, "verbose": False}
    theirs = kid_features_to_metric(a, b, **options)["kernel_inception_distance_mean"]
    assert found["kid_3d"]["value"] == pytest.approx(theirs, rel=1e-6)
    theirs = prc_features_to_metric(a, b, prc_neighborhood=3, verbose=False)
    assert (found["precision"]["value"], found["recall"]["value"]) == (theirs["precision"], theirs["recall"])
    for plane in ("axial", "coronal", "sagittal"):
        slices = (extract(side, planes, plane=plane, slices=8).reshape(-1, planes.dimension) for side in (made, real))
        assert found[f"fid_{plane}"]["value"] == pytest.approx(frechet_of(*slices), rel=1e-9)


def test_sides_that_are_swapped_are_told_apart(folder):
    """One side varies little: it is precise and recalls little. Swapped, the two change places."""
    _, real = open_pair(folder / "hearts", folder / "real")
    few = real.array()[:2].repeat(7, axis=0)[:13] * 0.99
    few += np.random.default_rng(0).normal(0, 1e-3, few.shape).astype(np.float32)
    sides = from_arrays(few.clip(-1, 1), SPACING, name="few"), from_arrays(real.array()[:13], SPACING, name="many")
    settings = Settings(metrics=("fid", "prdc", "ms-ssim"), **QUICK)
    extractor = open_extractor("random-0")
    card, swapped = (measure(*order, extractor, settings=settings) for order in (sides, sides[::-1]))
    assert card["generated"]["name"] == swapped["real"]["name"] == "few"
    assert card["real"]["name"] == swapped["generated"]["name"] == "many"
    found, turned = rows_of(card), rows_of(swapped)
    assert found["recall"]["value"] < 0.5 < found["precision"]["value"]
    assert turned["precision"]["value"] == found["recall"]["value"]
    assert turned["recall"]["value"] == found["precision"]["value"]
    assert turned["fid_3d"]["value"] == pytest.approx(found["fid_3d"]["value"], rel=1e-9)
    assert turned["fid_3d"]["floor"] != found["fid_3d"]["floor"]
    alike = [diversity(side, disjoint_pairs(13, 0)).mean() for side in sides]
    assert alike[0] != pytest.approx(alike[1], rel=0.01)
    for card_row, expected in ((found["ms_ssim"], alike), (turned["ms_ssim"], alike[::-1])):
        assert [card_row["value"], card_row["real"]["value"]] == pytest.approx(expected)


def test_brains_are_nearer_to_brains_than_hearts_are(folder):
    made, real = open_pair(folder / "hearts", folder / "real")
    settings, extractor = Settings(metrics=("fid", "kid"), **QUICK), open_extractor("random-0")
    far = rows_of(measure(made.subset(range(12)), real, extractor, settings=settings))
    near = rows_of(measure(real.subset(range(12)), real.subset(range(12, 24)), extractor, settings=settings))
    for name in ("fid_3d", "kid_3d"):
        assert near[name]["interval"][1] < far[name]["interval"][0]
    assert far["fid_3d"]["value_at_floor_n"] > 2 * far["fid_3d"]["floor"]["interval"][1]


def test_numbers_are_the_same_again_and_from_another_batch(config, folder, tmp_path):
    card = score(config())
    again = score(config(out=tmp_path / "again.json", no_cache=True, batch_size=5))
    assert list((tmp_path / "cache").iterdir())
    ours, theirs = numbers_of(card), numbers_of(again)
    for name in NUMBERS:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), name


def test_a_changed_real_voxel_is_not_scored_from_the_cache(config, folder, tmp_path):
    first = score(config(metrics=("fid",)))
    shutil.copytree(folder / "real", tmp_path / "real")
    array = np.load(tmp_path / "real" / "volumes.npy", mmap_mode="r+")
    array[:, 0, 8, 8, 8] = 1.0
    array.flush()
    changes = {"real": str(tmp_path / "real"), "metrics": ("fid",)}
    second = score(config(out=tmp_path / "second.json", **changes))
    fresh = score(config(out=tmp_path / "fresh.json", no_cache=True, **changes))
    assert numbers_of(second) == numbers_of(fresh) != numbers_of(first)
    assert first["real"]["data_hash"] != second["real"]["data_hash"]


# --- which volumes ---------------------------------------------------------------------------------------------------


def test_the_reference_is_picked_by_content(folder):
    """Neither the seed nor the order of the files decides which 5 of the 24 real volumes count."""
    _, real = open_pair(folder / "hearts", folder / "real")
    array, extractor = real.array(), open_extractor("random-0")
    made = from_arrays(array[:5] * 0.9)

    def distance(truth: np.ndarray, seed: int = 0) -> float:
        settings = Settings(metrics=("fid",), seed=seed, n=5, **QUICK)
        return rows_of(measure(made, from_arrays(truth), extractor, settings=settings))["fid_3d"]["value"]

    first = distance(array)
    assert distance(array, seed=7) == first
    assert distance(array[::-1]) == pytest.approx(first, rel=1e-6)
    assert distance(array[np.random.default_rng(0).permutation(24)]) == pytest.approx(first, rel=1e-6)
    features = extract(made, extractor), extract(real, extractor)
    chosen = np.argsort([hashlib.sha256(volume.tobytes()).hexdigest() for volume in array])[:5]
    assert first == pytest.approx(frechet_of(features[0], features[1][chosen]), rel=1e-9)


def test_the_seed_picks_among_generated_volumes(folder):
    made, real = open_pair(folder / "hearts", folder / "real")
    extractor = open_extractor("random-0")
    cards = [measure(made, real, extractor, settings=Settings(metrics=("fid",), seed=seed, n=6, **QUICK))
             for seed in (0, 0, 1)]  # fmt: skip
    values = [rows_of(card)["fid_3d"]["value"] for card in cards]
    assert values[0] == values[1] != values[2]
    hashes = [card["generated"]["data_hash"] for card in cards]
    assert hashes[0] == hashes[1] != hashes[2]
    assert cards[0]["generated"]["available"] == 13 and cards[0]["generated"]["n"] == 6


@pytest.mark.parametrize("count", [24, 23])
def test_half_of_the_real_volumes_give_the_floor_the_same_n(folder, count):
    made, real = open_pair(folder / "hearts", folder / "real")
    settings = Settings(metrics=("fid", "kid"), reference_split=0.5, **QUICK)
    card = measure(made, real.subset(range(count)), open_extractor("random-0"), settings=settings)
    n = card["ruler"]["n"]
    assert n == count // 2 and card["real"]["reference_split"] == 0.5
    for name in ("fid_3d", "kid_3d"):
        row = rows_of(card)[name]
        assert row["n"] == row["floor"]["n"] == n and row["value_at_floor_n"] == row["value"]
    assert not any("floor is between halves" in note for note in card["notes"])


def test_the_floor_can_be_between_other_real_volumes_and_the_real_ones(folder, config, tmp_path):
    """The first 11 brains to be compared with, the other 13 for the floor: all 11 against 11 of 13, by hand."""
    manifest = json.loads((folder / "real" / "manifest.json").read_text())
    assert manifest["count"] == 24
    for name, rows in (("held_out", range(11)), ("train", range(11, 24))):
        write_part(open_dataset(folder / "real"), list(rows), tmp_path / name)
    changes = {"real": str(tmp_path / "held_out"), "floor_from": str(tmp_path / "train"), "metrics": ("fid", "kid")}
    card = score(config(**changes, n=11))
    extractor = open_extractor("random-0")
    others, real = (extract(open_volumes(tmp_path / name), extractor) for name in ("train", "held_out"))
    rng = np.random.default_rng(0)
    choices = [(np.sort(rng.choice(13, 11, replace=False)), rng.choice(11, 11, replace=False)) for _ in range(4)]
    floors = [frechet_of(others[rows], real) for rows, _ in choices]
    row = rows_of(card)["fid_3d"]
    assert row["floor"]["value"] == pytest.approx(np.median(floors), rel=1e-6)
    assert row["floor"]["n"] == row["n"] == 11 and row["value_at_floor_n"] == row["value"]
    found = card["real"]["floor_from"]
    assert (found["name"], found["n"], found["available"]) == (str(tmp_path / "train"), 11, 13)
    assert card["ruler"]["settings"]["floor_from"] == found["data_hash"]
    notes = " ".join(card["notes"])
    assert "floor is between 11 of the 13 volumes of" in notes and "between halves" not in notes
    assert read_card(tmp_path / "card.json") == json.loads(json.dumps(card))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"floor_from": "real"}, "floor_from: 24 of the 24 volumes of .*real are among the real ones"),
        ({"floor_from": "nothing"}, "nothing: no such file or folder"),
        ({"floor_from": "hearts", "reference_split": 0.5}, "reference_split and floor_from: give one"),
    ],
)
def test_a_floor_from_what_cannot_give_one_is_refused(config, folder, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        score(config(**{**changes, "floor_from": str(folder / changes["floor_from"])}))
    assert not (tmp_path / "card.json").exists()


def test_a_generator_draws_as_many_as_are_compared(tiny_dataset, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"channels": (8, 8, 8), "z_dim": 8, "w_dim": 8, "mapping_layers": 2}
        made = Generator(GeneratorConfig(rank=3, shape=(8, 16, 8), **sizes), open_dataset(tiny_dataset).geometry())
    made.update_w_avg()
    made.eval().save_pretrained(tmp_path / "generator")
    settings = {"extractor": "random-0", "metrics": ("fid",), "no_cache": True, "truncation_psi": 0.5, "seed": 2}
    values = {"generated": str(tmp_path / "generator"), "real": str(tiny_dataset), "out": tmp_path / "card.json"}
    card = score(ScoreConfig(**values, **settings, **QUICK))
    expected = {"checkpoint": str(tmp_path / "generator"), "truncation_psi": 0.5, "seeds": [2_000_000, 2_000_005]}
    assert card["generated"].items() >= expected.items()
    assert (card["generated"]["kind"], card["generated"]["n"], card["ruler"]["n"]) == ("checkpoint", 6, 6)
    assert card["ruler"]["preprocessing"]["intensity"] == {"kind": "window", "low": 0.0, "high": 1000.0}
    assert card["ruler"]["plane_extractor"] is None


# --- few volumes, bad volumes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 5])
def test_few_volumes_leave_some_numbers_out_and_the_others_in(config, n):
    card = score(config(n=n, no_cache=True))
    rows = rows_of(card)
    omitted = {name for name, row in rows.items() if "omitted" in row}
    # Halves of 4 or 5 hold no fourth neighbour.
    assert omitted == {"fid_3d_infinity", "precision", "recall", "density", "coverage"}
    assert all("the smaller side has" in rows[name]["omitted"] for name in omitted)
    assert rows["fid_3d"]["n"] == rows["kid_3d"]["n"] == n


def test_a_tiny_real_set_gives_what_it_can(folder):
    made, real = open_pair(folder / "hearts", folder / "real")
    card = measure(made, real.subset(range(5)), open_extractor("random-0"),
                   settings=Settings(metrics=("fid", "kid", "prdc", "ms-ssim"), **QUICK))  # fmt: skip
    check_card(json.loads(json.dumps(card)), "card")
    rows = rows_of(card)
    assert "omitted" in rows["kid_3d"]  # its floor would be of halves of 2
    assert rows["fid_3d"]["n"] == 5 and rows["fid_3d"]["floor"]["n"] == 2 and rows["ms_ssim"]["real"]["pairs"] == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n": 14}, "n: 14 on each side are wanted, but generated .*hearts.* has 13 volumes"),
        ({"n": 9, "reference_split": 1 / 3}, "n: 9 on each side are wanted.* real .* has 8 to compare with"),
        ({"reference_split": 0.1}, "n: .* real .* has 2 to compare with; at least 4"),
    ],
)
def test_more_than_there_is_is_refused(config, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        score(config(**changes))
    assert not (tmp_path / "card.json").exists()


@pytest.mark.parametrize("value, message", [(np.nan, "heart0003.nii.gz.*NaN"), (5.0, "heart0003.nii.gz.*5")])
def test_a_bad_volume_is_named_before_anything_is_computed(config, folder, tmp_path, value, message, monkeypatch):
    shutil.copytree(folder / "hearts", tmp_path / "bad")
    path = tmp_path / "bad" / "images" / "heart0003.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.full(SHAPE, value, np.float32), image.affine), path)
    monkeypatch.setattr("splitshuffle_gan.metrics.score.extract", lambda *args, **options: pytest.fail("computed"))
    with pytest.raises(UserError, match=message):
        score(config(generated=str(tmp_path / "bad")))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"extractor": "med2d-mini"}, "extractor: med2d-mini sees slices; choose a network for volumes"),
        ({"plane_extractor": "random-0", "plane_weights": None}, "plane_extractor: random-0 sees volumes; .* slices"),
    ],
)
def test_a_network_for_the_other_rank_is_refused(config, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        score(config(**changes))
    assert not (tmp_path / "card.json").exists()


def test_an_out_that_cannot_be_written_is_refused_before_the_work(config, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("splitshuffle_gan.metrics.score.open_pair", lambda *args: pytest.fail("read"))
    with pytest.raises(UserError, match="out: .*card.json cannot be written, as .*file is not a folder"):
        score(config(out=tmp_path / "file" / "deep" / "card.json"))


def test_a_card_that_exists_is_kept(config, tmp_path):
    (tmp_path / "card.md").write_text("mine")
    with pytest.raises(UserError, match="card.md exists already"):
        score(config())
    assert (tmp_path / "card.md").read_text() == "mine"


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"metrics": ("fid", "is")}, "metrics: found is, choose from fid, planes, kid, prdc, ms-ssim"),
        ({"metrics": ()}, "metrics: found none"),
        ({"dtype": "fp8"}, "dtype: found 'fp8', must be one of float32, bf16"),
        ({"n": 3}, "n: found 3, at least 4"),
        ({"slices": 0}, "slices: found 0, must be at least 1"),
        ({"batch_size": 0}, "batch_size: found 0"),
        ({"resamples": 19}, "resamples: found 19, must be at least 20"),
        ({"splits": 1}, "splits: found 1"),
        ({"seed": -1}, "seed: found -1"),
        ({"seed": 2**32}, "seed: found 4294967296, must be at most 4294967295"),
        ({"reference_split": 0.0}, "reference_split: found 0.0, a share between 0 and 1"),
        ({"reference_split": 1.0}, "reference_split: found 1.0"),
        ({"weights": Path("w"), "extractor": None}, "weights: say which network .* --extractor"),
        ({"weights_sha256": "ab", "extractor": None}, "weights_sha256: say which network .* --extractor"),
        ({"plane_extractor": None}, "plane_weights: say which network .* --plane-extractor"),
    ],
)
def test_senseless_settings_are_refused(config, changes, message):
    with pytest.raises(UserError, match=message):
        config(**changes)


def test_only_what_is_asked_for_is_measured(config, monkeypatch, tmp_path):
    assert list(rows_of(score(config(metrics=("ms-ssim",))))) == ["ms_ssim"]
    assert not (tmp_path / "cache").exists()
    card = score(config(metrics=("planes",), out=tmp_path / "planes.json"))
    assert list(rows_of(card)) == ["fid_axial", "fid_coronal", "fid_sagittal"]
    assert len(list((tmp_path / "cache").iterdir())) == 3


# --- many processes --------------------------------------------------------------------------------------------------

MORE = """
import os
import runpy
import sys
from pathlib import Path

import numpy as np

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.catalogue import open_extractor
from splitshuffle_gan.metrics.features import extract
from splitshuffle_gan.metrics.score import Settings, measure
from splitshuffle_gan.metrics.source import from_arrays

script, out, rank = sys.argv.pop(1), Path(sys.argv.pop(1)), os.environ["RANK"]
array = np.random.default_rng(0).uniform(-1, 1, (7, 16, 16, 16)).astype(np.float32)
array[3] = np.nan
try:
    measure(from_arrays(array), from_arrays(array), open_extractor("random-0"), settings=Settings(metrics=("fid",)))
except UserError as error:
    (out / f"error-{rank}").write_text(str(error))
array[3] = -array[2]
for batch_size in (2, 16):  # four batches; one, of which the second process has none
    np.save(out / f"{batch_size}-{rank}.npy", extract(from_arrays(array), open_extractor("random-0"), batch_size))
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def two(folder, tmp_path_factory) -> Path:
    """A folder with what two processes made."""
    out = tmp_path_factory.mktemp("two")
    (out / "more.py").write_text(MORE)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = ["--generated", folder / "hearts", "--real", folder / "real", "--out", out / "card.json",
                 "--extractor", "random-0", "--plane-extractor", "med2d-mini", "--plane-weights", folder / "planes",
                 "--resamples", 20, "--splits", 4, "--batch-size", 3, "--cache", out / "cache"]  # fmt: skip
    done = subprocess.run(
        [*launcher, out / "more.py", SCRIPT, out, *map(str, arguments)],
        env=os.environ | {"ACCELERATE_USE_CPU": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return out


def test_two_processes_give_the_card_of_one(two, config):
    """13 volumes in batches of 3: five batches, the last of one volume."""
    theirs = read_card(two / "card.json")
    ours = score(config(batch_size=3))
    assert theirs["environment"]["processes"] == 2 and ours["environment"]["processes"] == 1
    found, expected = numbers_of(theirs), numbers_of(ours)
    assert found.keys() == expected.keys()
    for name in NUMBERS:
        assert found[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-6), name
    for key in ("ruler", "generated", "real", "notes"):
        assert theirs[key] == json.loads(json.dumps(ours[key]))


@pytest.mark.parametrize("batch_size", [2, 16])
def test_every_process_gets_all_features(two, batch_size):
    array = np.random.default_rng(0).uniform(-1, 1, (7, 16, 16, 16)).astype(np.float32)
    array[3] = -array[2]
    expected = extract(from_arrays(array), open_extractor("random-0"), batch_size)
    for rank in range(2):
        np.testing.assert_allclose(np.load(two / f"{batch_size}-{rank}.npy"), expected, rtol=1e-6, atol=1e-7)


def test_a_bad_volume_stops_every_process(two):
    for rank in range(2):
        assert "volume 3 has 4096 voxels that are NaN" in (two / f"error-{rank}").read_text()
