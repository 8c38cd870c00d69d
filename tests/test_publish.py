"""From a finished run to a checkpoint that ships."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from splitshuffle_gan.checkpoint import shipped_generators
from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.data.phantom import write_phantoms
from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.data.split import SplitConfig, split
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.catalogue import default_extractor
from splitshuffle_gan.extractors.weights import file_sha256
from splitshuffle_gan.metrics.card import read_card
from splitshuffle_gan.metrics.report import number
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.publish.choice import best_of, snapshots_of
from splitshuffle_gan.publish.model_card import model_card, write_model_card
from splitshuffle_gan.publish.record import portable
from splitshuffle_gan.publish.run import PublishConfig, publish
from splitshuffle_gan.publish.shelf import overview
from splitshuffle_gan.sampler import sample
from splitshuffle_gan.training.loop import train
from splitshuffle_gan.training.options import NetworkOptions, TrainConfig
from splitshuffle_gan.transfer.apply import inflate_checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent
FILES = {"README.md", "audit.json", "audit.png", "config.json", "model.safetensors", "montage.png"}
FILES |= {"score.json", "score.md", "score.png", "training.json"}
NETWORK = NetworkOptions(channels=(8, 8, 8), z_dim=8, w_dim=8, mapping_layers=2, group_size=2)


@pytest.fixture(scope="module")
def machine():
    """One core, no GPU, for the whole file."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        patch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
        AcceleratorState._reset_state(reset_partial_state=True)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def config(machine, tmp_path_factory) -> PublishConfig:
    """What to publish: a 3D run of 16 steps and two snapshots, begun from an inflated 2D run, on 20 of 40 phantoms."""
    home = tmp_path_factory.mktemp("somewhere")
    write_phantoms("brain", 40, (16, 16, 16), (12.0, 12.0, 12.0), 0, home / "phantoms")
    images = home / "phantoms" / "images"
    prepare(PrepareConfig(images, home / "dataset", (16, 16, 16), workers=1))
    split(SplitConfig(data=home / "dataset", out=home / "parts", held_out=20))
    of_all = {"data": home / "parts" / "train", "batch_size": 4, "mixed_precision": "no"}
    train(TrainConfig(**of_all, out=home / "run2d", kimg=0.016, network=NETWORK), rank=2)
    inflate_checkpoint(home / "run2d", home / "inflated")
    run = TrainConfig(**of_all, out=home / "run3d", init=home / "inflated", kimg=0.064, snapshot_kimg=0.032)
    train(run, rank=3)
    return PublishConfig(
        run=home / "run3d",
        train=home / "parts" / "train",
        held_out=home / "parts" / "held_out",
        out=home / "checkpoints" / "tiny-phantom",
        title="Synthetic phantoms of heads",
        data_from="Phantoms that this package draws, seed 0",
        data_licence="CC0 1.0",
        lacks="Anything real",
        data_name="phantoms",
        draws=2,
    )


@pytest.fixture(scope="module")
def published(config) -> Path:
    return publish(config)


@pytest.fixture
def shelf(published, monkeypatch) -> Path:
    """The published folder as the only one that ships."""
    beside = published.parents[1] / "splitshuffle_gan" / "checkpoint.py"
    monkeypatch.setattr("splitshuffle_gan.checkpoint.__file__", str(beside))
    monkeypatch.setattr("sysconfig.get_path", lambda name, scheme: str(published / "nothing"))
    return published


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def test_the_folder_holds_the_documented_files(published):
    assert {path.name for path in published.iterdir()} == FILES
    assert not [path for path in published.parent.iterdir() if path != published]
    for name in ("montage", "audit", "score"):
        assert Image.open(published / f"{name}.png").width > 300


def test_the_snapshot_with_the_lowest_mean_is_chosen(config, published):
    choice = read(published, "training.json")["choice"]
    numbers = {entry["snapshot"]: np.mean(entry["fid_3d"]["draws"]) for entry in choice["snapshots"]}
    assert list(numbers) == ["kimg00000.032", "kimg00000.064"]
    assert choice["chosen"] == min(numbers, key=numbers.get)
    chosen = config.run / "snapshots" / choice["chosen"] / "generator"
    for name in ("config.json", "model.safetensors"):
        assert (published / name).read_bytes() == (chosen / name).read_bytes()
    assert read(published, "training.json")["weights_sha256"] == file_sha256(published / "model.safetensors")


def test_the_numbers_of_a_draw_are_those_of_its_volumes(config, published):
    """Worked out from the features by the textbook's formula, with a matrix square root."""
    from scipy.linalg import sqrtm

    choice = read(published, "training.json")["choice"]
    generator = Generator.from_pretrained(config.run / "snapshots" / choice["snapshots"][0]["snapshot"] / "generator")
    made = np.stack(list(sample(generator, range(2_000_000, 2_000_020))))
    real = open_dataset(config.held_out).volumes[:, 0]
    with torch.inference_mode():
        network = default_extractor().network
        a, b = (network(torch.from_numpy(np.array(side))[:, None]).double().numpy() for side in (made, real))
    both = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    distance = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(both[0] + both[1] - 2 * sqrtm(both[0] @ both[1]).real)
    assert choice["snapshots"][0]["fid_3d"]["draws"][1] == pytest.approx(distance, rel=1e-2)


def test_the_card_of_numbers_is_of_other_seeds_and_has_the_training_volumes_as_floor(published):
    card = read_card(published / "score.json")
    assert card["generated"]["seeds"] == [0, 19] and card["ruler"]["n"] == 20
    assert card["generated"]["name"] == "tiny-phantom"
    assert card["real"]["name"] == "phantoms held out (20)"
    assert card["real"]["floor_from"]["name"] == "phantoms train (20)"


def test_nothing_says_where_it_lay(config, published):
    home = str(config.run.parent)
    for path in published.iterdir():
        content = path.read_bytes()
        for place in (home, str(Path.home()), str(Path.cwd()), str(REPOSITORY)):
            assert place.encode() not in content, (path.name, place)
        if path.suffix != ".png" and path.suffix != ".safetensors":
            assert not re.search(r"(?<![\w:/.])/(?:home|root|tmp|usr|var|private|Users)\b", content.decode())


def test_the_record_has_every_stage(config, published):
    training = read(published, "training.json")
    first, inflation, last = training["stages"]
    assert [stage["stage"] for stage in training["stages"]] == ["train2d", "inflate", "train3d"]
    assert (first["config"]["data"], first["config"]["out"], inflation["source"]) == ("train", "run2d", "run2d")
    assert (last["config"]["init"], last["kimg"], inflation["method"]) == ("inflated", 0.064, "center")
    assert last["chosen"]["kimg"] == float(training["choice"]["chosen"].removeprefix("kimg"))
    assert 0 < last["chosen"]["seconds"] <= last["seconds"]
    for name in ("train", "held_out"):
        dataset = open_dataset(getattr(config, name))
        assert training["data"][name]["data_hash"] == dataset.data_hash
        assert training["data"][name]["count"] == len(dataset) == 20
    generator = Generator.from_pretrained(published)
    assert training["parameters"]["generator"] == sum(p.numel() for p in generator.parameters())


def test_stages_that_are_gone_are_left_out(config, published, tmp_path):
    from splitshuffle_gan.publish.record import stages

    shutil.copytree(config.run, tmp_path / "run3d")
    record = json.loads((tmp_path / "run3d" / "run.json").read_text())
    record["config"]["init"] = "/gone/inflated"
    (tmp_path / "run3d" / "run.json").write_text(json.dumps(record))
    snapshot = snapshots_of(tmp_path / "run3d")[0]
    (last,) = stages(tmp_path / "run3d", snapshot)
    assert last["stage"] == "train3d" and last["chosen"]["kimg"] == 0.032
    assert 0 < last["chosen"]["seconds"] < last["seconds"]
    shutil.copytree(config.run.parent / "inflated", tmp_path / "inflated")  # moved along with the run
    found = stages(tmp_path / "run3d", snapshot)
    assert [stage["stage"] for stage in found] == ["train2d", "inflate", "train3d"]
    with (tmp_path / "run3d" / "log.jsonl").open("a") as log:
        log.write('{"step": 17, "kim')  # torn by a kill
    assert stages(tmp_path / "run3d", snapshot)[-1] == found[-1]


def test_a_run_that_began_from_a_snapshot_names_its_run(config, tmp_path):
    from splitshuffle_gan.publish.record import stages

    shutil.copytree(config.run, tmp_path / "again")
    record = json.loads((tmp_path / "again" / "run.json").read_text())
    record["config"]["init"] = str(snapshots_of(config.run)[-1])
    (tmp_path / "again" / "run.json").write_text(json.dumps(record))
    found = stages(tmp_path / "again", snapshots_of(tmp_path / "again")[-1])
    assert [stage["stage"] for stage in found] == ["train2d", "inflate", "train3d", "train3d"]


def test_the_audit_says_what_it_found_and_names_no_scan(config, published):
    audit = read(published, "audit.json")
    assert audit["n"] == {"generated": 20, "train": 20, "held-out": 20}
    assert audit["verdict"] and audit["level"] in ("none", "tendency", "copies")
    assert len(audit["samples"]) == 8
    scans = [entry["source"] for entry in open_dataset(config.train).manifest["volumes"]]
    text = (published / "audit.json").read_text() + (published / "training.json").read_text()
    assert not [scan for scan in scans if scan in text]


def test_every_number_of_the_card_stands_in_the_files_beside_it(published):
    card = (published / "README.md").read_text()
    score = read_card(published / "score.json")
    for row in score["metrics"]:
        if "omitted" not in row:
            line = next(line for line in card.splitlines() if line.startswith(f"| {row['title']} |"))
            assert f"| {number(row['value'])} [" in line and f"| {row['n']} |" in line
    assert read(published, "audit.json")["verdict"] in card
    for told in ("Synthetic phantoms of heads", "CC0 1.0", "Anything real", "license: cc0-1.0", "](montage.png)"):
        assert told in card
    assert "splitshuffle sample tiny-phantom --seeds 0-7 --out volumes" in card
    assert card.startswith("---\n") and card.count("\n# ") == 1


def test_the_card_follows_the_files(published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "tiny-phantom")
    write_model_card(folder)
    assert (folder / "README.md").read_text() == (published / "README.md").read_text()
    score = read(folder, "score.json")
    row = next(row for row in score["metrics"] if row["metric"] == "fid_3d")
    row["value"], row["interval"], row["n"] = 98.76, [97.65, 99.87], 4321
    (folder / "score.json").write_text(json.dumps(score))
    assert "| 3D FID | 98.76 [97.65, 99.87] | 4321 |" in model_card(folder, "tiny-phantom")
    (folder / "training.json").unlink()
    with pytest.raises(UserError, match="training.json: not readable"):
        model_card(folder, "tiny-phantom")


def test_the_card_of_pairs_says_where_the_label_maps_are(published, tmp_path):
    folder = Path(shutil.copytree(published, tmp_path / "tiny-phantom"))
    assert "labels/" not in model_card(folder, "tiny-phantom")
    header = read(folder, "config.json")
    header["geometry"]["labels"] = [2, 5]
    (folder / "config.json").write_text(json.dumps(header))
    assert "Each comes with a label map of 2, 5: volumes are in images/" in model_card(folder, "tiny-phantom")


def test_it_is_sampled_by_name(shelf, run, cpu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run("sample", "tiny-phantom", "--seeds", "0-1", "--out", "volumes")
    assert outcome.code == 0, outcome.err
    image = nib.load(tmp_path / "volumes" / "seed0001.nii.gz")
    assert image.shape == (16, 16, 16) and image.header.get_zooms() == pytest.approx((12, 12, 12))
    unknown = run("sample", "tiny-fantom", "--out", "others")
    assert unknown.code == 1 and "tiny-fantom: no such folder" in unknown.err and "tiny-phantom." in unknown.err


def test_it_is_listed(shelf, run):
    outcome = run("models")
    assert outcome.code == 0
    first = outcome.out.splitlines()[1].split()
    assert first[:4] == ["tiny-phantom", "generator", "16x16x16", "12x12x12"]
    assert outcome.out.splitlines()[2].strip().startswith("Synthetic phantoms of heads: a generator of volumes of 16 x")


def test_nothing_is_listed_where_nothing_ships(monkeypatch, tmp_path):
    monkeypatch.setattr("splitshuffle_gan.checkpoint.__file__", str(tmp_path / "a" / "b.py"))
    monkeypatch.setattr("sysconfig.get_path", lambda name, scheme: str(tmp_path))
    assert "No networks are installed" in overview()


# What is refused ------------------------------------------------------------------------------------------------------


def refused(config: PublishConfig, **changes) -> str:
    """The message; nothing is left behind."""
    config = replace(config, **{"out": config.out.with_name("other")} | changes)
    before = sorted(config.out.parent.iterdir()) if config.out.parent.exists() else []
    with pytest.raises(UserError) as caught:
        publish(config)
    assert (sorted(config.out.parent.iterdir()) if config.out.parent.exists() else []) == before
    return str(caught.value)


def test_data_that_the_run_did_not_see(config):
    assert "is not what" in refused(config, train=config.held_out)


def test_held_out_volumes_that_were_trained_on(config):
    assert "20 of its 20 volumes are in the training set" in refused(config, held_out=config.train)


def test_too_few_held_out_volumes(config, tmp_path):
    split(SplitConfig(data=config.held_out, out=tmp_path / "few", held_out=5))
    assert "held_out: found 5 volumes; the audit needs at least 20" in refused(
        config, held_out=tmp_path / "few" / "held_out"
    )


def test_a_run_of_slices(config):
    assert "is of rank 2; a 3D training run is wanted" in refused(config, run=config.run.parent / "run2d")


def test_what_is_no_run(config, tmp_path):
    assert "run.json: not readable" in refused(config, run=tmp_path)


def test_a_run_without_snapshots(config, tmp_path):
    shutil.copy(config.run / "run.json", tmp_path)
    assert "has no snapshots with a generator" in refused(config, run=tmp_path)


def test_weights_that_are_too_large(config, monkeypatch):
    monkeypatch.setattr("splitshuffle_gan.publish.run.LARGEST", 1000)
    message = refused(config)
    assert "model.safetensors: has 0." in message and "fewer --network.channels" in message


def test_a_folder_that_is_there(config, published):
    assert "exists already" in refused(config, out=published)
    with pytest.raises(UserError, match="has no training.json in it"):
        publish(replace(config, out=config.run, overwrite=True))


@pytest.mark.parametrize("field, value", [("skip", 1.0), ("skip", -0.1), ("draws", 0), ("lacks", " "), ("title", "")])
def test_options_that_make_no_sense(config, field, value):
    with pytest.raises(UserError, match=f"^{field}: "):
        replace(config, **{field: value})


# Parts ----------------------------------------------------------------------------------------------------------------


def test_skipped_snapshots(tmp_path):
    for kimg in ("001.000", "002.000", "010.000", "003.500"):
        (tmp_path / "snapshots" / f"kimg00{kimg}" / "generator").mkdir(parents=True)
    (tmp_path / "snapshots" / "kimg00011.000").mkdir()  # without a generator

    def kimg(skip):
        return [path.name[4:] for path in snapshots_of(tmp_path, skip)]

    assert kimg(0.0) == ["00001.000", "00002.000", "00003.500", "00010.000"]
    assert kimg(0.2) == ["00002.000", "00003.500", "00010.000"]
    assert kimg(0.99) == ["00010.000"]


def test_the_later_of_two_that_are_equal():
    entries = [{"kimg": kimg, "fid_3d": {"mean": mean}} for kimg, mean in ((1, 3.0), (2, 2.0), (3, 2.0), (4, 5.0))]
    assert best_of(entries)["kimg"] == 3


@pytest.mark.parametrize(
    "found, wanted",
    [
        ("/home/ann/runs/hippo", "hippo"),
        ("see /home/ann/runs/hippo, and /data/x/y.nii.gz.", "see hippo, and y.nii.gz."),
        ("~/runs/hippo", "hippo"),
        (r"C:\Users\ann\runs", "runs"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("ACS, 3/4 of it and/or more", "ACS, 3/4 of it and/or more"),
        ("arXiv 1904.06991 (k = 3)", "arXiv 1904.06991 (k = 3)"),
        ("CC BY-SA 4.0", "CC BY-SA 4.0"),
    ],
)
def test_places_in_texts(found, wanted):
    assert portable(found) == wanted
    assert portable({"note": [found]}) == {"note": [wanted]}


def test_places_in_fields_and_names_for_places():
    record = {"data": "sets/train", "init": None, "n": 3, "name": "/a/b/train", "text": "of /a/b/train and /a/b"}
    names = {"/a/b": "the folder", "/a/b/train": "train (3)"}
    wanted = {"data": "train", "init": None, "n": 3, "name": "train (3)", "text": "of train (3) and the folder"}
    assert portable(record, names) == wanted


# What ships -----------------------------------------------------------------------------------------------------------


def test_the_generators_that_ship_are_as_they_were_published():
    for folder in shipped_generators():
        assert {path.name for path in folder.iterdir()} == FILES
        assert read(folder, "training.json")["weights_sha256"] == file_sha256(folder / "model.safetensors")
        assert (folder / "README.md").read_text() == model_card(folder, folder.name)
        read_card(folder / "score.json")
