"""Opening extractors: what they say of themselves, random ones, and the defaults."""

import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.catalogue import (
    EXTRACTORS,
    default_extractor,
    default_plane_extractor,
    draw_weights,
    open_extractor,
)
from splitshuffle_gan.extractors.medicalnet import medicalnet

pytestmark = pytest.mark.usefixtures("empty_caches")

# --- what an extractor is --------------------------------------------------------------------------------------------


def test_an_extractor_describes_itself_in_json(resnet10_file):
    extractor = open_extractor("medicalnet-resnet10", resnet10_file)
    card = json.loads(json.dumps(extractor.describe()))
    assert set(card) == {field for field in extractor.__dataclass_fields__ if field != "network"}
    assert card["name"] == "medicalnet-resnet10" and card["rank"] == 3 and card["dimension"] == 512
    assert card["weights"] == "mine.pth"
    assert card["weights_sha256"] == hashlib.sha256(resnet10_file.read_bytes()).hexdigest()
    assert card["expected_range"] == [-1.0, 1.0]
    assert "dilation 2 and 4" in card["topology"]
    assert "not those published as resnet_10_23dataset.pth" in card["note"]
    assert not extractor.network.training
    assert not any(parameter.requires_grad for parameter in extractor.network.parameters())
    assert extractor.network(torch.zeros(2, 1, 8, 16, 8)).shape == (2, 512)


def test_the_table_names_ranks_and_sizes():
    assert {name for name, kind in EXTRACTORS.items() if kind.rank == 2} == {
        "med2d-mini",
        "inception",
        "radimagenet-resnet50",
    }
    for kind in EXTRACTORS.values():
        if kind.published:
            assert len(kind.published.sha256) == 64
    for depth in (10, 50):  # a state dict is four bytes a value and little else
        megabytes = sum(value.numel() for value in medicalnet(depth).state_dict().values()) * 4e-6
        assert EXTRACTORS[f"medicalnet-resnet{depth}"].published.megabytes == pytest.approx(megabytes, abs=0.4)


@pytest.mark.parametrize("name", ["med3d", "random", "random-01", "random--1", "random-1.5", "random-<seed>", ""])
def test_unknown_names_are_refused_with_the_known_ones(name):
    with pytest.raises(UserError, match="med3d-mini, .*random-<seed>"):
        open_extractor(name)


# --- random ----------------------------------------------------------------------------------------------------------


def test_random_weights_are_a_function_of_the_seed():
    a, again, b = (open_extractor(f"random-{seed}") for seed in (0, 0, 1))
    volumes = torch.rand(3, 1, 8, 12, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert a.describe() == again.describe()
    assert torch.equal(a.network(volumes), again.network(volumes))
    assert a.weights_sha256 != b.weights_sha256 and a.weights == "seed 0"
    assert a.network(volumes).shape == (3, a.dimension)
    features = a.network(volumes)
    assert features.isfinite().all() and (features.std(0) > 1e-4).float().mean() > 0.5  # it does see something


def test_random_weights_are_the_documented_bits():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3), nn.Linear(4, 5)

    network = draw_weights(Two(), 5)
    raw = [int(value) for value in np.random.PCG64(5).random_raw(162 + 20)]
    for weight, values, fan_in in ((network.a.weight, raw[:162], 54), (network.b.weight, raw[162:], 4)):
        bound = (6 / fan_in) ** 0.5
        expected = [(2 * ((value >> 11) / 2**53) - 1) * bound for value in values]
        assert weight.flatten().tolist() == np.array(expected, dtype=np.float32).tolist()
    assert network.norm.weight.tolist() == [1, 1, 1]
    # the stream itself, so that another numpy cannot change it unseen
    assert np.random.PCG64(0).random_raw(2).tolist() == [11749869230777074271, 4976686463289251617]


def test_random_takes_no_weights(resnet10_file):
    with pytest.raises(UserError, match="random-0 draws its weights from its seed"):
        open_extractor("random-0", weights=resnet10_file)


# --- the defaults ----------------------------------------------------------------------------------------------------


def test_the_defaults_without_other_weights_are_the_mini_networks_and_say_so(minis):
    volumes, planes = default_extractor(), default_plane_extractor()
    assert (volumes.name, planes.name) == ("med3d-mini", "med2d-mini")
    assert "medicalnet-resnet50 are not at hand" in volumes.note
    assert "radimagenet-resnet50 and inception are not at hand" in planes.note


def test_the_default_uses_weights_that_are_at_hand(minis, tmp_path, publish, cache):
    path = tmp_path / "resnet_50_23dataset.pth"
    torch.save(medicalnet(50).state_dict(), path)
    publish("medicalnet-resnet50", path)
    cache(path)
    extractor = default_extractor()
    assert extractor.name == "medicalnet-resnet50"
    assert "at hand" in extractor.note and "med3d-mini" in extractor.note
