"""From 2D to 3D: the function on a slab of equal slices, MONAI's own transfer, and every key."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from monai.networks.nets import AHNet
from torch import nn

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.segmentation.network2d import Network2DConfig, SliceSegmenter
from splitshuffle_gan.segmentation.network3d import Network3DConfig, VolumeSegmenter
from splitshuffle_gan.segmentation.transfer import transfer

SHARED = {"labels": (0, 1, 2), "shape": (32, 32, 64), "layers": (2, 1, 1, 1)}
CONFIG2D = Network2DConfig(**SHARED, width=4)
CONFIG3D = Network3DConfig(**SHARED, psp_blocks=2)


@pytest.fixture(scope="module")
def source() -> SliceSegmenter:
    """A 2D network whose batch norms are far from fresh."""
    torch.manual_seed(0)
    network = SliceSegmenter(CONFIG2D).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.5)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
    return network


@pytest.fixture(scope="module")
def moved(source):
    return transfer(source.state_dict(), CONFIG2D, CONFIG3D)


def volume_network(state) -> VolumeSegmenter:
    network = VolumeSegmenter(CONFIG3D)
    network.load_state_dict(state)
    return network.eval()


def monais_transfer(source) -> AHNet:
    """MONAI's `copy_from` of the same 2D encoder."""
    encoder = source.encoder
    stages = {f"layer{n}": getattr(encoder, f"layer{n}") for n in range(1, 5)}
    given = SimpleNamespace(conv1=encoder.conv1, bn0=encoder.bn1, _modules=stages)
    network = AHNet(layers=SHARED["layers"], out_channels=3, psp_block_num=2, upsample_mode="trilinear")
    network.copy_from(given)
    return network.eval()


def errors_on_a_slab(source, network) -> list[float]:
    """Largest error of the stem's and the stages' features over the largest feature, on 32 equal slices."""
    seen = {}
    for name in ("relu", "layer1", "layer2", "layer3", "layer4"):
        getattr(network.body, name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out + 0}))
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 1, 32, 64, generator=generator)
    with torch.no_grad():
        wanted = source.features(image.expand(-1, 3, -1, -1))
        network(image[:, :, None].expand(-1, -1, 32, -1, -1))
    return [
        float((found - want[..., None]).abs().max() / want.abs().max())
        for found, want in zip(seen.values(), wanted, strict=True)
    ]


def test_the_encoder_sees_in_a_stack_of_equal_slices_what_it_sees_in_the_slice(source, moved):
    errors = errors_on_a_slab(source, volume_network(moved.state))
    assert max(errors) < 1e-5, errors


def test_weights_are_monais_and_running_statistics_are_not(source, moved):
    theirs = monais_transfer(source).state_dict()
    different = [
        key
        for key, origin in moved.origin.items()
        if origin != "new" and not torch.equal(moved.state[key], theirs[key.removeprefix("body.")])
    ]
    assert different and all("running_" in key for key in different)
    norms = [key for key in moved.origin if key.endswith("running_mean") and moved.origin[key] == "copied"]
    assert {key.rpartition(".")[0] for key in different} == {key.rpartition(".")[0] for key in norms}


def test_without_the_running_statistics_the_function_is_lost(source, moved):
    theirs = monais_transfer(source).state_dict()
    state = {
        key: theirs[key.removeprefix("body.")] if "running_" in key else value for key, value in moved.state.items()
    }
    assert min(errors_on_a_slab(source, volume_network(state))[1:]) > 0.05


def test_the_slices_of_the_stem_become_its_depth_in_their_order(source, moved):
    stem2d, stem3d = source.encoder.conv1.weight, moved.state["body.conv1.weight"]
    for index in range(3):
        assert torch.equal(stem3d[:, 0, :, :, index], stem2d[:, index])
    volume = torch.randn(1, 1, 32, 32, 64)
    with torch.no_grad():
        wanted = source.encoder.conv1(volume[:, 0, 4:7])
        found = nn.functional.conv3d(volume[:, :, 4:7].movedim(2, -1), stem3d, stride=(2, 2, 1), padding=(3, 3, 0))
    torch.testing.assert_close(found[..., 0], wanted, rtol=1e-4, atol=1e-4)


def test_every_key_is_accounted_for(source, moved):
    network = VolumeSegmenter(CONFIG3D)
    assert set(moved.state) == set(moved.origin) == set(network.state_dict())
    blocks = sum(SHARED["layers"])
    norms = 1 + 3 * blocks + 4
    assert Counter(moved.origin.values())["copied"] == 5 * norms
    assert Counter(moved.origin.values())["transferred"] == 1 + 3 * blocks + 4
    decoder = ("up", "dense", "trans1", "psp", "final")
    assert all((key.split(".")[1].startswith(decoder)) == (origin == "new") for key, origin in moved.origin.items())
    encoder = [key for key in source.state_dict() if key.startswith("encoder.")]
    assert set(moved.left) == set(source.state_dict()) - set(encoder)


def test_it_is_pure_and_the_seed_decides_on_the_rest(source, moved):
    before = {key: value.clone() for key, value in source.state_dict().items()}
    random = torch.random.get_rng_state()
    again = transfer(source.state_dict(), CONFIG2D, CONFIG3D)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    assert all(torch.equal(value, moved.state[key]) for key, value in again.state.items())
    again.state["body.conv1.weight"].zero_()
    assert source.encoder.conv1.weight.abs().max() > 0
    other = transfer(source.state_dict(), CONFIG2D, CONFIG3D, seed=1)
    kernel = "body.up0.conv.weight"
    assert not torch.equal(other.state[kernel], moved.state[kernel])


@pytest.mark.parametrize(
    ("config2d", "config3d", "message"),
    [
        ({"slices": 5}, {}, "slices: the 2D network has 5; only 3"),
        ({"layers": (1, 1, 1, 1)}, {}, "layers: the 3D config has"),
        ({"scale": (2, 2)}, {}, "scale: the 3D config has"),
    ],
)
def test_networks_that_do_not_correspond_are_refused(source, config2d, config3d, message):
    pair = Network2DConfig(**SHARED | config2d), Network3DConfig(**SHARED | {"psp_blocks": 2} | config3d)
    with pytest.raises(UserError, match=message):
        transfer(source.state_dict(), *pair)


def test_a_key_too_few_or_too_many_is_named(source):
    state = source.state_dict()
    lost = state.pop("encoder.layer1.0.bn1.running_var")
    with pytest.raises(UserError, match=r"misses 1 key\(s\), first encoder.layer1.0.bn1.running_var"):
        transfer(state, CONFIG2D, CONFIG3D)
    state = source.state_dict() | {"encoder.layer5.weight": lost}
    with pytest.raises(UserError, match=r"1 key\(s\) too many, first encoder.layer5.weight"):
        transfer(state, CONFIG2D, CONFIG3D)
    state = source.state_dict() | {"encoder.layer1.0.bn1.running_var": lost[:-1]}
    with pytest.raises(UserError, match="running_var became"):
        transfer(state, CONFIG2D, CONFIG3D)
