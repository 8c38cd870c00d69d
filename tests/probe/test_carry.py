"""The ways to 3D against 2D convolutions applied slice by slice."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.slice_resnet import Network, SliceResNetConfig, resnet18
from splitshuffle_gan.nn.cross_d import CrossDConv
from splitshuffle_gan.probe.carry import ACSConv, carry, inflated
from splitshuffle_gan.probe.network import seeded_slices
from splitshuffle_gan.probe.plan import Arm

SMALL = Network(width=3)


def slices_of(conv: str = "plain"):
    """A 2D network whose batch norms have seen something."""
    network = seeded_slices(SliceResNetConfig(width=3, conv=conv), 0)
    network(torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(1)))
    return network.eval()


def planewise(x: torch.Tensor, kernel: torch.Tensor, axis: int, stride: int) -> torch.Tensor:
    """A k x k kernel on every slice across `axis` (0 to 2), every `stride`-th slice kept."""
    slices = x.movedim(2 + axis, 0)[::stride]
    return torch.stack([F.conv2d(one, kernel, stride=stride, padding=1) for one in slices]).movedim(0, 2 + axis)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("outputs", "groups"), [(6, [2, 2, 2]), (7, [3, 2, 2]), (8, [3, 3, 2]), (2, [1, 1, 0])])
def test_acs_is_the_2d_convolution_in_each_plane(outputs, groups, stride):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, outputs, 3, stride, padding=1)
    x = torch.randn(2, 4, 5, 6, 7)
    wanted, start = [], 0
    for axis, count in enumerate(groups):
        if count:
            wanted.append(planewise(x, conv.weight[start : start + count], axis, stride))
        start += count
    wanted = torch.cat(wanted, 1) + conv.bias[:, None, None, None]
    torch.testing.assert_close(ACSConv(conv)(x), wanted)


def test_acs_keeps_the_weights_and_learns_all_of_them():
    conv = nn.Conv2d(2, 5, 3, padding=1, bias=False)
    made = ACSConv(conv)
    assert made.weight.shape == conv.weight.shape and torch.equal(made.weight, conv.weight)
    made(torch.randn(1, 2, 4, 4, 4)).square().sum().backward()
    assert (made.weight.grad.flatten(1).abs().sum(1) > 0).all()
    conv.weight.data.zero_()
    assert made.weight.abs().sum() > 0  # the two share nothing


def test_a_1_x_1_kernel_is_the_same_in_every_plane():
    conv, x = nn.Conv2d(3, 4, 1, stride=2), torch.randn(1, 3, 4, 6, 6)
    wanted = torch.einsum("oi,nidhw->nodhw", conv.weight[..., 0, 0], x[:, :, ::2, ::2, ::2])
    torch.testing.assert_close(ACSConv(conv)(x), wanted + conv.bias[:, None, None, None])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel_size": (3, 5), "padding": (1, 2)}, "kernel_size: found"),
        ({"kernel_size": 3, "padding": 0}, "padding: found 0"),
        ({"kernel_size": 3, "padding": "same"}, "padding: found 'same'"),
        ({"kernel_size": 3, "padding": 1, "groups": 2}, "groups 2"),
        ({"kernel_size": 3, "padding": 1, "padding_mode": "circular"}, "padding_mode circular"),
    ],
)
def test_what_acs_cannot_carry(settings, message):
    with pytest.raises(UserError, match=message):
        ACSConv(nn.Conv2d(2, 4, **settings))


def test_inflated_kernels_give_the_2d_image_inside_a_depth_constant_volume():
    conv = nn.Conv2d(2, 4, 3, stride=1, padding=1, dilation=1)
    image = torch.randn(1, 2, 6, 7)
    volume = inflated(conv)(image[:, :, None].expand(-1, -1, 5, -1, -1))
    for depth in (1, 2, 3):
        torch.testing.assert_close(volume[:, :, depth], conv(image))
    assert not torch.allclose(volume[:, :, 0], conv(image))  # at the border a third of the kernel sees zeros
    with pytest.raises(UserError, match="stride: found"):
        inflated(nn.Conv2d(1, 1, 3, stride=(1, 2)))


def test_a_whole_inflated_network_is_the_2d_one_on_depth_constant_volumes():
    slices = slices_of()
    for module in slices.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode, module._reversed_padding_repeated_twice = "circular", [module.padding[0]] * 4
    network, layers = carry(Arm(way="i3d"), SMALL, slices, 0)
    image = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        found = network.eval()(image[:, :, None].expand(-1, -1, 16, -1, -1))
        torch.testing.assert_close(found, slices(image), rtol=1e-4, atol=1e-5)
    assert {layer.what for layer in layers if layer.kind == "Conv2d"} == {"by the caller's rule"}


def test_what_each_way_carries():
    plain, cross = slices_of(), slices_of("published")
    made = {way: carry(Arm(way=way), SMALL, cross if way == "cross_d" else plain, 0)[0]
            for way in ("scratch", "i3d", "acs", "cross_d")}  # fmt: skip
    count = {way: sum(w.numel() for w in net.parameters() if w.requires_grad) for way, net in made.items()}
    assert count["scratch"] == count["i3d"] == count["cross_d"] > count["acs"]
    assert count["acs"] == sum(w.numel() for w in plain.parameters())
    for module, source in zip(made["cross_d"].modules(), cross.body.modules(), strict=True):
        if isinstance(module, CrossDConv):
            assert torch.equal(module.weight, source.weight)
    for network in made.values():
        assert network(torch.randn(2, 1, 16, 16, 16)).shape == (2, 24)


def test_batch_norms_are_carried_or_fresh():
    plain = slices_of()
    plain.body.bn1.weight.data.fill_(3)
    carried, fresh = (carry(Arm(way="acs", batch_norm=how), SMALL, plain, 0)[0] for how in ("carry", "fresh"))
    assert (carried.bn1.weight == 3).all() and (fresh.bn1.weight == 1).all()


def test_a_seed_gives_the_same_scratch_network_whatever_came_before():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, two, other = (carry(Arm(way="scratch"), SMALL, None, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.conv1.weight, two.conv1.weight) and not torch.equal(one.conv1.weight, other.conv1.weight)


def test_the_published_network_is_torchvisions():
    importlib.import_module("splitshuffle_gan.metrics.fidelity")  # knows how to import torchvision beside any torch
    theirs = importlib.import_module("torchvision.models.resnet").resnet18(num_classes=1).eval()
    theirs.conv1, theirs.fc = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False), nn.Identity()
    ours = resnet18(Network(width=64, stem=7, stem_stride=2, max_pool=True), 2).eval()
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image))
