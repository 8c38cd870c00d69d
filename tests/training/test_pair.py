"""Training on volumes together with their label maps."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from splitshuffle_gan.data.dataset import SliceDataset, VolumeDataset, open_dataset
from splitshuffle_gan.devices import make_accelerator
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.training.augment import AugmentConfig, augment
from splitshuffle_gan.training.loop import train
from splitshuffle_gan.training.options import TrainConfig
from splitshuffle_gan.training.pair import build_networks
from splitshuffle_gan.training.state import load_state, save_state
from splitshuffle_gan.training.step import LABEL_NOISE, Trainer

STRUCTURES = (2, 5)


@pytest.fixture
def pairs_config(tiny_config, tiny_pairs):
    """`pairs_config(**changes)`: as `tiny_config`, of 4 steps on volumes with label maps."""

    def make(**changes) -> TrainConfig:
        return tiny_config(**({"data": tiny_pairs, "channels": "image,label", "kimg": 0.032} | changes))

    return make


def make_trainer(config: TrainConfig, rank: int) -> tuple[Trainer, dict[str, torch.Tensor]]:
    """A trainer and a global batch of real pairs."""
    dataset = open_dataset(config.data)
    trainer = Trainer(config, dataset.spacing, *build_networks(config, rank, dataset), make_accelerator("no"))
    items = (SliceDataset if rank == 2 else VolumeDataset)(dataset, labels=True)
    return trainer, torch.utils.data.default_collate([items[i % len(items)] for i in range(config.batch_size)])


def test_items_hold_the_image_and_a_channel_for_each_structure(tiny_pairs):
    prepared = open_dataset(tiny_pairs)
    assert prepared.structures == STRUCTURES
    volumes, slices = VolumeDataset(prepared, labels=True), SliceDataset(prepared, labels=True)
    for index in (0, 5):
        item = volumes[index]["image"]
        assert (item.dtype, tuple(item.shape)) == (torch.float32, (3, *prepared.shape))
        np.testing.assert_array_equal(item[0], prepared.volumes[index, 0])
        for channel, label in zip(item[1:], STRUCTURES, strict=True):
            np.testing.assert_array_equal(channel > 0, prepared.labels[index, 0] == label)
    volume, depth = slices.index[7]
    item = slices[7]
    assert item["depth"] == depth
    assert torch.equal(item["image"], volumes[volume]["image"][:, depth])
    assert VolumeDataset(prepared)[0]["image"].shape[0] == SliceDataset(prepared)[0]["image"].shape[0] == 1


@pytest.mark.parametrize("size", [(12, 10), (6, 12, 10)])
def test_augmentation_moves_all_channels_alike_and_keeps_the_labels_values(size):
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(16, 1, *size, generator=rng) * 2 - 1
    pair = torch.cat((image, image, -image), dim=1)
    strong = AugmentConfig(flip_lr=True, rotate=90, scale=0.3, gain=0.5, contrast=0.5, bias=0.5, noise=0.3)
    moving = dataclasses.replace(strong, gain=0.0, contrast=0.0, bias=0.0, noise=0.0)
    found = augment(pair, 0.7, strong, torch.Generator().manual_seed(1), labels=2)
    moved = augment(image, 0.7, moving, torch.Generator().manual_seed(1))
    alone = augment(image, 0.7, strong, torch.Generator().manual_seed(1))
    assert torch.equal(found[:, :1], alone)  # what the image gets, it gets without labels as well
    torch.testing.assert_close(found[:, 1:2], moved)
    torch.testing.assert_close(found[:, 2:], -moved)
    assert (moved - image).abs().max() > 0.1 and (alone - moved).abs().max() > 0.1


def test_a_step_augments_the_image_alone(pairs_config, monkeypatch):
    config = pairs_config(augment=AugmentConfig(translate=0, translate_depth=0, rotate=0, scale=0, noise=0.5))
    trainer, batch = make_trainer(config, 3)
    trainer.random, trainer.adaptive.p = torch.Generator().manual_seed(0), 0.8
    monkeypatch.setattr("splitshuffle_gan.training.step.LABEL_NOISE", 0.0)
    images = batch["image"]
    changed = trainer._show(images)
    assert torch.equal(changed[:, 1:], images[:, 1:])
    assert (changed[:, 0] - images[:, 0]).abs().max() > 0.1


@pytest.mark.parametrize("rank", [2, 3])
def test_a_run_leaves_networks_that_know_their_labels(pairs_config, rank):
    config = pairs_config(jitter=1)
    snapshot = train(config, rank)
    for name in ("generator", "discriminator"):
        header = json.loads((snapshot / name / "config.json").read_text())
        assert (header["config"]["image_channels"], header["geometry"]["labels"]) == (3, [2, 5])
    assert (snapshot / "montage.png").stat().st_size > 1000
    described = json.loads((config.out / "run.json").read_text())
    assert described["config"]["channels"] == "image,label"
    assert described["data"]["labels_hash"] == open_dataset(config.data).labels_hash

    train(dataclasses.replace(config, resume=True, kimg=0.064), rank)
    assert load_state(config.out)["trainer"]["step"] == 8


def test_without_labels_nothing_changes_in_a_checkpoint(pairs_config):
    snapshot = train(pairs_config(channels="image"), 3)
    header = json.loads((snapshot / "generator" / "config.json").read_text())
    assert header["config"]["image_channels"] == 1 and "labels" not in header["geometry"]


def test_a_dataset_without_labels_is_refused(pairs_config, tiny_dataset, tiny_pairs, tmp_path):
    with pytest.raises(UserError, match=r"^channels: .* has no label maps; prepare it with --labels DIR"):
        train(pairs_config(data=tiny_dataset), 3)
    shutil.copytree(tiny_pairs, tmp_path / "empty")
    manifest = json.loads((tmp_path / "empty" / "manifest.json").read_text())
    manifest["labels"]["values"] = [0]
    (tmp_path / "empty" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"^channels: .* has no label but 0"):
        train(pairs_config(data=tmp_path / "empty"), 3)
    assert not pairs_config().out.exists()
    with pytest.raises(UserError, match="channels: found 'label', must be one of image or image,label"):
        pairs_config(channels="label")


def test_resuming_needs_the_same_channels_and_labels(pairs_config, tiny_pairs, tmp_path):
    config = pairs_config()
    train(config, 3)
    go_on = dataclasses.replace(config, resume=True)
    with pytest.raises(UserError, match=r"^channels: the run in .* was started with 'image,label', found 'image'"):
        train(dataclasses.replace(go_on, channels="image"), 3)
    shutil.copytree(tiny_pairs, tmp_path / "other")
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    manifest["labels"]["data_hash"] = "0" * 64
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"^data: .*other is not the dataset"):
        train(dataclasses.replace(go_on, data=tmp_path / "other"), 3)


def test_a_state_from_before_there_were_channels_is_one_of_images(pairs_config):
    config = pairs_config(channels="image")
    train(config, 3)
    state = load_state(config.out)
    del state["config"]["channels"], state["labels_hash"], state["version"]
    save_state(config.out, state)
    with pytest.raises(UserError, match=r"^channels: the run in .* was started with 'image', found 'image,label'"):
        train(dataclasses.replace(config, resume=True, channels="image,label"), 3)
    train(dataclasses.replace(config, resume=True, kimg=0.064), 3)
    assert load_state(config.out)["trainer"]["step"] == 8


def test_a_start_with_other_channels_is_refused(pairs_config, tiny_pairs, tmp_path):
    saved = {}
    for name, channels in (("images", "image"), ("pairs", "image,label")):
        config = pairs_config(channels=channels)
        for network in build_networks(config, 3, open_dataset(tiny_pairs)):
            network.save_pretrained(tmp_path / name / type(network).__name__.lower())
        saved[name] = pairs_config(channels=channels, init=tmp_path / name)
    other = shutil.copytree(tiny_pairs, tmp_path / "other")
    text = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(
        text.replace('"values": [\n   0,\n   2,\n   5', '"values": [\n   0,\n   2,\n   6')
    )
    assert open_dataset(other).structures == (2, 6)
    for config, told in (
        (dataclasses.replace(saved["pairs"], channels="image"), "labels 2, 5, this run images alone; pass --channels"),
        (dataclasses.replace(saved["images"], channels="image,label"), "images alone, this run images with the labels"),
        (dataclasses.replace(saved["pairs"], data=other), "labels 2, 5, this run images with the labels 2, 6"),
    ):
        with pytest.raises(UserError, match=f"^channels: .*{told}"):
            train(config, 3)
    generator, _ = build_networks(saved["pairs"], 3, open_dataset(tiny_pairs))
    assert isinstance(generator, Generator) and generator.geometry["labels"] == [2, 5]


@pytest.mark.parametrize("rank", [2, 3])
def test_the_discriminator_sees_real_and_generated_labels_under_noise(pairs_config, shown_in_a_step, rank):
    trainer, batch = make_trainer(pairs_config(augment_target=0), rank)
    for parameter in trainer.G.parameters():
        parameter.data.zero_()
    seen = shown_in_a_step(trainer, batch)
    for shown, clean in zip(seen, (batch["image"], 0.0, 0.0), strict=True):
        noise = shown - clean
        assert noise[:, 0].abs().max() == 0
        assert noise[:, 1:].std().item() == pytest.approx(LABEL_NOISE, rel=0.05)


@pytest.mark.parametrize("rank", [2, 3])
def test_the_discriminator_sees_generated_pairs_cut_off(pairs_config, shown_in_a_step, rank, monkeypatch):
    monkeypatch.setattr("splitshuffle_gan.training.step.LABEL_NOISE", 0.0)
    trainer, batch = make_trainer(pairs_config(augment_target=0), rank)
    trainer.G.blocks[-1].to_image.bias.data.fill_(50.0)
    real, *generated = shown_in_a_step(trainer, batch)
    assert torch.equal(real, batch["image"])
    assert len(generated) == 2
    for pairs in generated:
        assert 1.2 < pairs.min() < pairs.max() < 1.8  # 1 + (50 - 1) / 100, and what the network adds
