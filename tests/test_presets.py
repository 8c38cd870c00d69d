"""Every shipped preset is a job that can start: valid options, networks that build, and the promised size."""

from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from splitshuffle_gan import nd
from splitshuffle_gan.config import DiscriminatorConfig, GeneratorConfig, Schedule
from splitshuffle_gan.data.phantom import FACTORS
from splitshuffle_gan.data.prepare import PrepareConfig
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.models.discriminator import Discriminator
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.presets import load_preset, preset_names
from splitshuffle_gan.training.augment import AugmentConfig
from splitshuffle_gan.training.options import NetworkOptions, TrainConfig

SECTIONS = ("train2d", "train3d")
PLACES = {"data": Path("data"), "out": Path("out")}


def tuples(values: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def shape_of(preset: str) -> tuple[int, int, int]:
    return tuple(load_preset(preset)["prepare"]["shape"])


def networks(preset: str, section: str, rank: int, conv: str = "split_shuffle") -> tuple[Generator, Discriminator]:
    """Without memory: on the meta device."""
    options = NetworkOptions(**tuples(load_preset(preset)[section]["network"]))
    common = {"rank": rank, "shape": shape_of(preset)}
    with torch.device("meta"):
        return tuple(
            model_class(config_class(**common, **options.given(config_class) | {"conv": conv}))
            for model_class, config_class in ((Generator, GeneratorConfig), (Discriminator, DiscriminatorConfig))
        )


def size(preset: str, conv: str) -> int:
    return sum(p.numel() for network in networks(preset, "train3d", 3, conv) for p in network.parameters())


def test_the_promised_presets_ship():
    assert preset_names() == ["brain", "heart-ct", "hippocampus", "quickstart"]
    shapes = {name: shape_of(name) for name in preset_names()}
    assert shapes["hippocampus"] == (32, 48, 32)
    assert shapes["brain"] == (80, 96, 112)
    assert shapes["heart-ct"] == (64, 256, 256)
    assert load_preset("heart-ct")["prepare"]["window"] == [-250, 650]


@pytest.mark.parametrize("preset", preset_names())
def test_what_2d_trains_is_what_3d_starts_from(preset):
    """`train3d --init` refuses an inflated pair whose options differ from its own."""
    in_2d, in_3d = (vars(NetworkOptions(**tuples(load_preset(preset)[section]["network"]))) for section in SECTIONS)
    assert in_2d | {"depth_upsample": None} == in_3d | {"depth_upsample": None}


def test_an_unknown_preset_is_refused():
    with pytest.raises(UserError, match="preset: found 'hearts', must be one of brain, heart-ct, hippocampus"):
        load_preset("hearts")


@pytest.mark.parametrize("preset", preset_names())
def test_it_prepares(preset):
    sections = load_preset(preset)
    assert set(sections) - {"phantom", "inflate"} == {"prepare", "train2d", "train3d"}
    config = PrepareConfig(source=Path("scans"), out=Path("out"), **tuples(sections["prepare"]))
    assert Schedule.for_shape(config.shape).grids[-1] == config.shape
    assert config.spacing is not None  # else it would depend on the set


def test_the_quickstart_makes_phantoms_of_the_shape_it_prepares():
    sections = load_preset("quickstart")
    assert sections["phantom"]["kind"] in FACTORS
    for name in ("shape", "spacing"):
        assert sections["phantom"][name] == sections["prepare"][name]


@pytest.mark.parametrize("section", ["train2d", "train3d"])
@pytest.mark.parametrize("preset", preset_names())
def test_it_trains(preset, section):
    values = load_preset(preset)[section]
    assert set(values) <= {field.name for field in fields(TrainConfig)} - set(PLACES)
    nested = {"network": NetworkOptions(**tuples(values["network"]))}
    nested["augment"] = AugmentConfig(**tuples(values.get("augment", {})))
    config = TrainConfig(**PLACES, **tuples(values) | nested)
    assert config.batch_size % (config.micro_batch or config.batch_size) == 0
    assert config.kimg > config.snapshot_kimg or config.minutes
    assert len(config.network.channels) == Schedule.for_shape(shape_of(preset)).levels


@pytest.mark.parametrize("section,rank", [("train2d", 2), ("train3d", 3)])
@pytest.mark.parametrize("preset", preset_names())
def test_its_networks_build_and_run(preset, section, rank, monkeypatch):
    monkeypatch.setattr(nd, "compute_dtype", lambda _: torch.float32)  # the meta device has no autocast
    monkeypatch.setattr(nd, "explicit_dtypes", lambda _: nullcontext())
    generator, discriminator = networks(preset, section, rank)
    shape = shape_of(preset)[3 - rank :]
    with torch.device("meta"):
        depth = torch.zeros(1, dtype=torch.int64) if rank == 2 else None
        images = generator(torch.zeros(1, generator.z_dim), depth=depth)
        assert images.shape == (1, 1, *shape)
        assert discriminator(images, depth).shape == (1,)


@pytest.mark.parametrize("preset", preset_names())
def test_the_2d_networks_inflate_to_the_3d_ones(preset):
    """What both sections say of the networks is the same, but for what only a batch of volumes needs."""
    flat, solid = (load_preset(preset)[section]["network"] for section in ("train2d", "train3d"))
    assert {k: v for k, v in flat.items() if k != "group_size"} == {k: v for k, v in solid.items() if k != "group_size"}


@pytest.mark.parametrize("preset", preset_names())
def test_split_shuffle_has_less_than_half_of_the_parameters(preset):
    """The paper's 48.5 %, of generator and discriminator together."""
    assert size(preset, "split_shuffle") <= 0.485 * size(preset, "plain")
