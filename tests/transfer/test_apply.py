"""Inflation on disk: what is written, what is reported, what is refused."""

import json

import pytest
import torch

from splitshuffle_gan.config import DiscriminatorConfig, GeneratorConfig
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.models.discriminator import Discriminator
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.transfer.apply import discriminator_error, generator_error, inflate_checkpoint
from splitshuffle_gan.transfer.inflate import METHODS, inflate, inflate_config

TINY = {"rank": 2, "shape": (8, 16, 8), "channels": (4, 4, 4)}
GEOMETRY = {
    "spacing": [3.0, 1.0, 1.0],
    "plane": "axial",
    "affine": [[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]],
    "intensity": {"kind": "window", "low": -250.0, "high": 650.0},
}


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def pair(depth_aware: bool = True) -> tuple[Generator, Discriminator]:
    """A 2D pair with random parameters."""
    networks = (
        Generator(GeneratorConfig(**TINY, z_dim=4, w_dim=4, mapping_layers=1, depth_aware=depth_aware), GEOMETRY),
        Discriminator(DiscriminatorConfig(**TINY, depth_aware=depth_aware), GEOMETRY),
    )
    with torch.no_grad():
        for network in networks:
            for parameter in network.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    return networks


def twin(network, method: str = "center", shape=None):
    """The 3D network of a 2D one, in memory."""
    config = inflate_config(network.config, shape)
    volume = type(network)(config, network.geometry)
    volume.load_state_dict(inflate(type(network), network.state_dict(), network.config, config, method).state)
    return volume.eval()


@pytest.fixture
def run2d(tmp_path):
    """A run with two snapshots, of which the later counts."""
    run = tmp_path / "run2d"
    for name in ("kimg000001", "kimg000002"):
        for network in pair():
            network.save_pretrained(run / "snapshots" / name / type(network).__name__.lower())
    return run


# Measured errors ------------------------------------------------------------------------------------------------------


def test_generator_error_is_measured_per_depth():
    g2, _ = pair()
    g3 = twin(g2)
    errors = generator_error(g2, g3)
    assert len(errors) == 8 and all(isinstance(e, float) for e in errors) and max(errors) < 1e-5
    z = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    image = g2(z, noise_mode="none", depth=torch.tensor([5, 5]))
    with torch.no_grad():
        g3.blocks[-1].to_image.bias[:, 5] += 0.5  # one slice of the last image
    errors = generator_error(g2, g3)
    assert errors[5] == pytest.approx(0.5 / image.abs().max().item(), rel=1e-3)
    assert max(errors[:5] + errors[6:]) < 1e-5


def test_discriminator_error_is_relative_to_the_largest_logit():
    _, d2 = pair()
    d3 = twin(d2)
    assert 0 <= discriminator_error(d2, d3) < 1e-5
    images = torch.randn(4, 1, 16, 8, generator=torch.Generator().manual_seed(0))
    largest = d2(images, torch.tensor([4] * 4)).abs().max().item()
    with torch.no_grad():
        d3.logit.bias += 0.5
    assert discriminator_error(d2, d3) == pytest.approx(0.5 / largest, rel=1e-3)


@pytest.mark.parametrize("depth_aware", [True, False])
@pytest.mark.parametrize("shape", [(4, 16, 8), (16, 16, 8)])
def test_errors_stay_small_at_another_depth(shape, depth_aware):
    g2, d2 = pair(depth_aware)
    errors = generator_error(g2, twin(g2, shape=shape))
    assert len(errors) == shape[0] and max(errors) < 1e-5
    assert discriminator_error(d2, twin(d2, shape=shape)) < 1e-5


def test_measuring_is_repeatable_and_leaves_global_random_numbers_alone():
    g2, d2 = pair()
    g3, d3 = twin(g2, "mean"), twin(d2, "triaxial")
    before = torch.get_rng_state()
    assert generator_error(g2, g3) == generator_error(g2, g3)
    assert discriminator_error(d2, d3) == discriminator_error(d2, d3) > 1e-3
    assert torch.equal(torch.get_rng_state(), before)


# On disk --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_inflate_checkpoint_writes_the_pair_and_the_report(run2d, tmp_path, method):
    out = tmp_path / "out"
    report = inflate_checkpoint(run2d, out, method)
    assert sorted(p.name for p in out.iterdir()) == ["discriminator", "generator", "inflation.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "run2d"]
    assert json.loads((out / "inflation.json").read_text()) == report
    assert report["method"] == method and report["source"] == str(run2d)

    for network_class in (Generator, Discriminator):
        name = network_class.__name__.lower()
        network = network_class.from_pretrained(out / name)
        assert network.config.rank == 3 and network.geometry == GEOMETRY
        entry = report["networks"][name]
        assert entry["keys"].keys() == network.state_dict().keys()
        assert sum(entry["counts"].values()) == len(entry["keys"])
        assert entry["counts"] == {o: list(entry["keys"].values()).count(o) for o in set(entry["keys"].values())}

    errors = report["generator_error_per_depth"], report["discriminator_error"]
    if method == "random":
        assert errors == (None, None)
        return
    snapshot = run2d / "snapshots" / "kimg000002"
    g2, d2 = (c.from_pretrained(snapshot / c.__name__.lower()) for c in (Generator, Discriminator))
    g3, d3 = (c.from_pretrained(out / c.__name__.lower()) for c in (Generator, Discriminator))
    assert errors == (pytest.approx(generator_error(g2, g3)), pytest.approx(discriminator_error(d2, d3)))
    if method == "center":
        assert max(errors[0]) < 1e-5 and errors[1] < 1e-5


def test_shape_upsampling_and_seed_are_passed_on(run2d, tmp_path):
    inflate_checkpoint(run2d, tmp_path / "a", "random", (16, 16, 8), depth_upsample="linear", seed=1)
    inflate_checkpoint(run2d, tmp_path / "b", "random", (16, 16, 8), seed=2)
    first, second = (Generator.from_pretrained(tmp_path / name / "generator") for name in "ab")
    assert first.config.shape == second.config.shape == (16, 16, 8)
    assert (first.config.depth_upsample, second.config.depth_upsample) == ("linear", "nearest")
    assert Discriminator.from_pretrained(tmp_path / "a" / "discriminator").config.shape == (16, 16, 8)
    assert not torch.equal(first.constant, second.constant)


def test_an_existing_folder_is_refused_unless_it_is_an_inflation(run2d, tmp_path):
    out = tmp_path / "out"
    inflate_checkpoint(run2d, out, "center")
    with pytest.raises(UserError, match="out: .*exists"):
        inflate_checkpoint(run2d, out, "mean")
    assert json.loads((out / "inflation.json").read_text())["method"] == "center"
    inflate_checkpoint(run2d, out, "mean", overwrite=True)
    assert json.loads((out / "inflation.json").read_text())["method"] == "mean"
    with pytest.raises(UserError, match=r"no inflation\.json"):
        inflate_checkpoint(run2d, run2d, "mean", overwrite=True)
    assert (run2d / "snapshots" / "kimg000002" / "generator" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "centre"}, "method: found 'centre'"),
        ({"shape": (8, 32, 8)}, "shape: found 8x32x8"),
        ({"shape": (8, 17, 8)}, "shape: found 8x17x8"),
        ({"depth_upsample": "cubic"}, "depth_upsample"),
    ],
)
def test_bad_requests_write_nothing(run2d, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        inflate_checkpoint(run2d, tmp_path / "out", **arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["run2d"]


def test_a_run_without_discriminator_writes_nothing(tmp_path):
    g2, _ = pair()
    g2.save_pretrained(tmp_path / "half" / "generator")
    with pytest.raises(UserError, match="no discriminator"):
        inflate_checkpoint(tmp_path / "half", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["half"]


def test_a_volume_network_cannot_be_inflated_again(run2d, tmp_path):
    inflate_checkpoint(run2d, tmp_path / "once")
    with pytest.raises(UserError, match="rank: found 3"):
        inflate_checkpoint(tmp_path / "once", tmp_path / "twice")
