"""Inflation of networks that draw and judge label maps beside images: exact in all channels."""

import pytest
import torch

from splitshuffle_gan.config import DiscriminatorConfig, GeneratorConfig
from splitshuffle_gan.models.discriminator import Discriminator
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.transfer.inflate import inflate, inflate_config

SIZES = {"rank": 2, "shape": (8, 16, 8), "channels": (8, 8, 8), "image_channels": 3}


def inflated(model: torch.nn.Module, method: str) -> torch.nn.Module:
    config = inflate_config(model.config)
    other = type(model)(config).eval()
    other.load_state_dict(inflate(type(model), model.state_dict(), model.config, config, method).state)
    return other


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("conv", ["split_shuffle", "plain", "separable"])
@torch.no_grad()
def test_every_channel_of_every_slice_is_the_2d_networks(conv):
    torch.manual_seed(0)
    flat = shaken(Generator(GeneratorConfig(conv=conv, z_dim=8, w_dim=8, **SIZES)))
    z = torch.randn(2, 8)
    volumes = inflated(flat, "center")(z, noise_mode="none")
    assert volumes.shape == (2, 3, 8, 16, 8)
    for depth in range(8):
        image = flat(z, noise_mode="none", depth=torch.full((2,), depth))
        assert len({float(channel.std()) for channel in image[0]}) == 3
        torch.testing.assert_close(volumes[:, :, depth], image, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["center", "mean"])
@torch.no_grad()
def test_the_discriminator_judges_as_before(method):
    torch.manual_seed(0)
    flat = shaken(Discriminator(DiscriminatorConfig(group_size=2, **SIZES)))
    images = torch.randn(4, 3, 16, 8)
    depth = torch.full((4,), 3)
    logits = inflated(flat, method)(images[:, :, None].expand(-1, -1, 8, -1, -1), depth)
    torch.testing.assert_close(logits, flat(images, depth), atol=1e-5, rtol=1e-5)
    assert (flat(images.flip(1), depth) - flat(images, depth)).abs().max() > 1e-3  # the channels count
