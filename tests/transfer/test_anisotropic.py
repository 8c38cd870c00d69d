"""AH-Net's transfer for the GAN: the same function at the start, in-plane kernels only, and nothing invented."""

import pytest
import torch

from splitshuffle_gan.config import DiscriminatorConfig, GeneratorConfig
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.models.discriminator import Discriminator
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.transfer.anisotropic import as_separable
from splitshuffle_gan.transfer.apply import inflate_checkpoint

THICK = (11, 48, 48)  # the depth is the base of the schedule and never grows: four in-plane doublings, no slice wasted
MODELS = {"generator": (Generator, GeneratorConfig), "discriminator": (Discriminator, DiscriminatorConfig)}


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def network2d(name: str, conv: str = "plain"):
    """Every parameter off its initial value."""
    model_class, config_class = MODELS[name]
    network = model_class(config_class(rank=2, shape=THICK, channels=(4, 6, 6, 4), conv=conv))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return network.eval()


@pytest.fixture
def run2d(tmp_path):
    for name in MODELS:
        network2d(name).save_pretrained(tmp_path / "run2d" / name)
    return tmp_path / "run2d"


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_at_rank_2_the_separable_form_is_the_same_function(name):
    plain = network2d(name)
    state, config = as_separable(type(plain), plain.state_dict(), plain.config)
    same = type(plain)(config).eval()
    same.load_state_dict(state)
    depth = torch.tensor([0, 7])
    x = torch.randn(2, plain.z_dim) if name == "generator" else torch.randn(2, 1, *THICK[1:])
    options = {"noise_mode": "const"} if name == "generator" else {}
    torch.testing.assert_close(same(x, depth=depth, **options), plain(x, depth=depth, **options), rtol=0, atol=1e-6)


def test_the_volume_starts_as_the_2d_images(run2d, tmp_path):
    report = inflate_checkpoint(run2d, tmp_path / "pair", "anisotropic")
    assert report["method"] == "anisotropic"
    assert max(report["generator_error_per_depth"]) <= 1e-5
    assert report["discriminator_error"] <= 1e-5
    for name, (model_class, _) in MODELS.items():
        assert model_class.from_pretrained(tmp_path / "pair" / name).config.conv == "separable"


def test_in_plane_kernels_stay_in_their_slice_and_the_new_ones_are_the_identity(run2d, tmp_path):
    report = inflate_checkpoint(run2d, tmp_path / "pair", "anisotropic")
    for name, (model_class, _) in MODELS.items():
        source, target = model_class.from_pretrained(run2d), model_class.from_pretrained(tmp_path / "pair" / name)
        kernels = {key: m for key, m in target.named_modules() if key.endswith("planar")}
        assert kernels
        for key, planar in kernels.items():
            plain = source.get_submodule(key.removesuffix(".planar"))
            assert planar.weight.shape[2:] == (1, 3, 3)
            torch.testing.assert_close(planar.effective()[:, :, 0], plain.effective())
            axial = target.get_submodule(key.replace("planar", "axial"))
            assert axial.weight.shape[2:] == (3, 1, 1)
            impulse = torch.zeros(len(axial.weight), len(axial.weight), 3)
            impulse[:, :, 1] = torch.eye(len(axial.weight))
            torch.testing.assert_close(axial.effective().flatten(2), impulse)
            assert report["networks"][name]["keys"][f"{key}.weight"] == "copied"
            assert report["networks"][name]["keys"][f"{key.replace('planar', 'axial')}.weight"] == "new"


def test_the_new_kernels_learn(run2d, tmp_path):
    """The start is no saddle: the loss depends on the through-plane taps beside the centre."""
    inflate_checkpoint(run2d, tmp_path / "pair", "anisotropic")
    generator = Generator.from_pretrained(tmp_path / "pair" / "generator")
    volume = generator(torch.randn(1, generator.z_dim))
    volume.diff(dim=2).square().sum().backward()
    for key, parameter in generator.named_parameters():
        if "axial" in key:
            assert parameter.grad[:, :, 0].abs().sum() > 0 and parameter.grad[:, :, 2].abs().sum() > 0


def test_halves_are_refused(tmp_path):
    for name in MODELS:
        network2d(name, "split_shuffle").save_pretrained(tmp_path / "run2d" / name)
    with pytest.raises(UserError, match="conv: .*'split_shuffle'.*separable"):
        inflate_checkpoint(tmp_path / "run2d", tmp_path / "pair", "anisotropic")
    assert not (tmp_path / "pair").exists()


def test_a_separable_network_is_taken_as_it_is():
    network = network2d("generator", "separable")
    state = network.state_dict()
    assert as_separable(Generator, state, network.config) == (state, network.config)
