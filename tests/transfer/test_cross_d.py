"""Whole networks to Cross-D and to 3D: functions kept, every value accounted for, what is unknown refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import splitshuffle_gan.metrics.fidelity  # noqa: F401  (makes torchvision importable beside any build of torch)
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.nn.cross_d import CrossDConv, slice_kernels
from splitshuffle_gan.transfer.cross_d import convert, raw_kernel, to_3d


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    from torchvision.models import resnet18

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = resnet18(num_classes=5).eval()
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.running_mean, std=0.1)
        return model


def values(model: nn.Module) -> int:
    return sum(v.numel() for v in (*model.parameters(), *model.buffers()))


def balanced(before: nn.Module, after: nn.Module, layers) -> bool:
    kept = sum(layer.carried for layer in layers)
    return values(before) == kept + sum(layer.dropped for layer in layers) and values(after) == kept + sum(
        layer.new for layer in layers
    )


def over_depth(x: torch.Tensor, depth: int) -> torch.Tensor:
    return x[:, :, None].expand(-1, -1, depth, -1, -1)


# A whole ResNet-18 ----------------------------------------------------------------------------------------------------


def test_resnet_converted_computes_the_same_and_so_does_its_volumetric_form(resnet):
    x = torch.randn(2, 3, 32, 32)
    flat, layers = convert(resnet, phase="rotation")
    assert balanced(resnet, flat, layers)
    assert sum(layer.dropped for layer in layers) == 0
    solid, layers = to_3d(flat, batch_norm="carry")
    assert balanced(flat, solid, layers)
    assert sum(layer.new + layer.dropped for layer in layers) == 0
    with torch.no_grad():
        expected = resnet(x)
        assert expected.std() > 0.01
        torch.testing.assert_close(flat(x), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(solid(over_depth(x, 8)), expected, atol=1e-5, rtol=1e-5)


def test_resnet_as_published(resnet):
    flat, layers = convert(resnet, keep_weights=False)
    assert not any(isinstance(m, nn.Conv2d) for name, m in flat.named_modules() if ".head." not in f".{name}.")
    convolutions = [m for m in resnet.modules() if isinstance(m, nn.Conv2d)]
    assert [layer.becomes for layer in layers].count("CrossDConv") == len(convolutions) == 20
    # K^2 weights become K^3; all but the three 1 x 1 get a head: in 16 + 16, 2 (16), 16 4 + 4, and 33 buffers.
    grown = sum(m.weight.numel() * m.kernel_size[0] for m in convolutions)
    heads = sum(16 * m.in_channels + 16 + 32 + 68 + 33 for m in convolutions if m.kernel_size[0] > 1)
    assert values(flat) == values(resnet) - sum(m.weight.numel() for m in convolutions) + grown + heads
    assert balanced(resnet, flat, layers)

    solid, layers = to_3d(flat)
    assert balanced(flat, solid, layers)
    norms = sum(4 * m.num_features + 1 for m in resnet.modules() if isinstance(m, nn.BatchNorm2d))
    assert sum(layer.new for layer in layers) == sum(layer.dropped for layer in layers) == norms
    assert {layer.name for layer in layers} >= {"conv1", "bn1", "maxpool", "layer2.0.downsample.0", "avgpool", "fc"}
    for name, conv in flat.named_modules():
        if isinstance(conv, CrossDConv):
            assert all(torch.equal(v, solid.get_submodule(name).state_dict()[k]) for k, v in conv.state_dict().items())
    with torch.no_grad():
        assert flat(torch.randn(2, 3, 32, 32)).shape == (2, 5)
        volumes = solid(torch.randn(2, 3, 8, 16, 16))
    assert volumes.shape == (2, 5)
    assert volumes.isfinite().all()


# Convert --------------------------------------------------------------------------------------------------------------


def small() -> nn.Sequential:
    layers = nn.Sequential(
        nn.Conv2d(2, 4, 5, stride=2, padding=2, padding_mode="circular"),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(),
        nn.Conv2d(4, 8, 3, padding="same", dilation=2, groups=2, bias=False),
        nn.Conv2d(8, 3, 1),
    )
    return layers.eval()


@pytest.mark.parametrize("phase", ["published", "rotation"])
def test_convert_keeps_the_function_and_every_setting(phase):
    model, x = small(), torch.randn(3, 2, 9, 8)
    before = copy.deepcopy(model.state_dict())
    model[4].weight.requires_grad_(False)
    flat, layers = convert(model, phase)
    torch.testing.assert_close(flat(x), model(x))
    assert balanced(model, flat, layers)
    for index in (0, 3, 4):
        for field in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "training"):
            assert getattr(flat[index], field) == getattr(model[index], field)
        assert flat[index].phase == phase
        assert (flat[index].bias is None) == (model[index].bias is None)
    assert not flat[4].weight.requires_grad
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("phase", ["published", "rotation"])
def test_what_starts_at_zero_learns(phase):
    flat, _ = convert(nn.Sequential(nn.Conv2d(2, 4, 3)), phase)
    flat.train()
    start, optimiser = flat[0].weight.detach().clone(), torch.optim.SGD(flat.parameters(), 0.1)
    x, target = torch.randn(4, 2, 6, 6), torch.randn(4, 4, 4, 4)
    for _ in range(3):
        optimiser.zero_grad()
        (flat(x) - target).square().mean().backward()
        optimiser.step()
    assert ((flat[0].weight - start).abs().amax((0, 1, 3, 4)) > 0).all()


@pytest.mark.parametrize("phase", ["published", "rotation"])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_raw_kernel_is_undone_by_the_slice_at_angle_zero(phase, size):
    kernel = torch.randn(2, 3, size, size)
    axis = torch.tensor([[0.0, 0.6, 0.8]])
    restored = slice_kernels(raw_kernel(kernel, phase), axis, torch.zeros(1), phase)
    torch.testing.assert_close(restored[0], kernel, atol=1e-5, rtol=0)


def test_fresh_weights_forget_the_old_ones():
    flat, layers = convert(small(), keep_weights=False)
    assert [layer.carried for layer in layers] == [0, 17, 0, 0, 0]
    assert (flat[0].weight.std((0, 1, 3, 4)) > 0.01).all()


def test_a_layer_used_twice_stays_one_layer():
    conv = nn.Conv2d(3, 3, 3)
    flat, layers = convert(nn.Sequential(conv, nn.ReLU(), conv))
    assert flat[0] is flat[2]
    assert [layer.name for layer in layers] == ["0", "1"]
    solid, _ = to_3d(flat)
    assert solid[0] is solid[2]


def test_a_single_layer_is_a_network_too():
    flat, layers = convert(nn.Conv2d(2, 3, 3))
    assert isinstance(flat, CrossDConv)
    assert [layer.name for layer in layers] == [""]


def test_convert_names_what_it_cannot_do():
    class Standardised(nn.Conv2d):
        pass

    tied = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    tied[1].weight = tied[0].weight
    for model, message in (
        (nn.Sequential(nn.Linear(2, 2)), "Sequential: found no Conv2d"),
        (nn.Sequential(Standardised(2, 2, 3)), r"^0 \(Standardised\): a subclass"),
        (nn.Sequential(nn.Conv2d(2, 2, (1, 7))), r"^0 \(Conv2d\): kernel_size: found \(1, 7\)"),
        (tied, r"^1\.weight: shared with 0\.weight"),
    ):
        with pytest.raises(UserError, match=message):
            convert(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda conv: conv.register_forward_hook(lambda *_: None),
            "found forward hooks, which the new layer would lose",
        ),
        (lambda conv: conv.register_full_backward_hook(lambda *_: None), "found backward hooks"),
        (nn.utils.spectral_norm, "found forward pre hooks, weight_orig, weight_u, weight_v"),
        (lambda conv: prune.l1_unstructured(conv, "weight", 0.5), "found forward pre hooks, weight_orig, weight_mask"),
    ],
)
def test_what_a_layer_would_lose_is_named(change, message):
    model = nn.Sequential(nn.Conv2d(2, 2, 3))
    change(model[0])
    with pytest.raises(UserError, match=message):
        convert(model)


def test_a_hook_on_a_converted_layer_is_not_lost_on_the_way_to_3d():
    model, _ = convert(nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.MaxPool2d(2)))
    model[1].register_forward_hook(lambda module, given, y: y + 1)  # this layer stays
    volumetric, _ = to_3d(model)
    assert volumetric[:2](torch.zeros(1, 2, 3, 3, 3)).min() >= 1
    for layer in (0, 2):
        hook = model[layer].register_forward_hook(lambda *_: None)
        with pytest.raises(UserError, match=rf"^{layer} \(.*found forward hooks"):
            to_3d(model)
        hook.remove()


# To 3D ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d((3, 3), stride=(1, 1), dilation=2, ceil_mode=True),
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.AdaptiveAvgPool2d((3, 3)),
        nn.AdaptiveMaxPool2d(1),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        nn.Upsample(size=(11, 11)),
        nn.UpsamplingBilinear2d(scale_factor=2),
        nn.UpsamplingNearest2d(size=9),
        nn.ReflectionPad2d(1),
        nn.ReplicationPad2d(2),
        nn.CircularPad2d(1),
        nn.ZeroPad2d(1),
        nn.ConstantPad2d(2, 0.5),
        nn.Dropout2d(0.3).eval(),
        nn.InstanceNorm2d(4, affine=True),
        nn.GroupNorm(2, 4),
        nn.PReLU(4),
        nn.Softmax(1),
        nn.Sequential(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_where_nothing_varies_over_depth_a_layer_does_what_it_did(layer):
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 4, 7, 7)
    solid, (row,) = to_3d(layer)
    y = solid(over_depth(x, 7))
    torch.testing.assert_close(y[:, :, y.shape[2] // 2], layer(x))
    assert y.shape[2] == y.shape[3]
    assert row.carried == values(layer) == values(solid)
    assert row.becomes == type(solid).__name__


def test_batch_norms_start_anew_or_are_carried():
    norm = nn.BatchNorm2d(3, eps=0.1, momentum=0.3).double()
    norm(torch.randn(4, 3, 5, 5, dtype=torch.double) + 2)
    nn.init.normal_(norm.weight)
    fresh, (row,) = to_3d(norm)
    assert (row.carried, row.new, row.dropped) == (0, 13, 13)
    reference = nn.BatchNorm3d(3).double().state_dict()
    assert all(torch.equal(value, reference[key]) for key, value in fresh.state_dict().items())
    carried, (row,) = to_3d(norm, batch_norm="carry")
    assert (row.carried, row.new, row.dropped) == (13, 0, 0)
    assert all(torch.equal(value, norm.state_dict()[key]) for key, value in carried.state_dict().items())
    for made in (fresh, carried):
        assert type(made) is nn.BatchNorm3d
        assert (made.eps, made.momentum, made.weight.dtype) == (0.1, 0.3, torch.double)


class Scaled(nn.Module):
    """A block with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.ReLU(), nn.Parameter(torch.full((4, 1, 1), 2.0))

    def forward(self, x):
        return self.inner(x) * self.scale


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(4, 4, 3), r"`convert` the network first"),
        (nn.ConvTranspose2d(4, 4, 2), r"not known"),
        (nn.PixelShuffle(2), r"not known.*rules=\{PixelShuffle"),
        (nn.Softmax2d(), r"not known"),
        (nn.Softmax(-3), r"not known"),
        (nn.Flatten(-3), r"not known"),
        (nn.LayerNorm((4, 7, 7)), r"not known"),
        (nn.Conv3d(4, 4, 3), r"not known"),
        (nn.SyncBatchNorm(4), r"not known"),
        (CrossDConv(4, 4, 3, rank=3), r"volumetric already"),
        (CrossDConv(4, 4, 3, stride=(2, 1)), r"stride: found \(2, 1\); wanted one value, which depth gets too"),
        (nn.MaxPool2d((3, 2)), r"kernel_size: found \(3, 2\)"),
        (nn.AdaptiveAvgPool2d((None, 1)), r"output_size: found"),
        (nn.ZeroPad2d((1, 0, 1, 0)), r"padding: found"),
        (nn.Upsample(scale_factor=2, mode="bicubic"), r"mode: found 'bicubic'"),
        (Scaled(), r"holds scale itself"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_known_in_3d_is_named(layer, message):
    with pytest.raises(UserError, match=rf"^1\.0 \({type(layer).__name__}\): .*{message}"):
        to_3d(nn.Sequential(nn.ReLU(), nn.Sequential(layer)))


def test_a_bad_choice_is_named():
    with pytest.raises(UserError, match="^batch_norm: found 'keep'"):
        to_3d(nn.ReLU(), batch_norm="keep")


def test_the_caller_can_give_rules():
    def volumetric(scaled: Scaled) -> Scaled:
        made = Scaled()
        made.scale = nn.Parameter(scaled.scale.detach()[..., None])
        return made

    model = nn.Sequential(Scaled(), nn.PixelShuffle(2), nn.Softmax2d())
    rules = {Scaled: volumetric, nn.PixelShuffle: lambda shuffle: shuffle, nn.Softmax2d: lambda _: nn.Softmax(1)}
    solid, layers = to_3d(model, rules=rules)
    assert [layer.kind for layer in layers] == ["Scaled", "PixelShuffle", "Softmax2d"]
    assert [layer.becomes for layer in layers] == ["Scaled", "PixelShuffle", "Softmax"]
    assert solid[0].scale.shape == (4, 1, 1, 1)
    assert solid[1] is not model[1]
    assert balanced(model, solid, layers)


def test_a_block_with_values_of_its_own_is_converted_around_them():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), Scaled())
    flat, layers = convert(model)
    assert [layer.name for layer in layers] == ["0", "1", "1.inner"]
    assert balanced(model, flat, layers)
    assert torch.equal(flat[1].scale, model[1].scale)
    assert flat[1].scale is not model[1].scale


def test_frozen_kernels_stay_frozen():
    conv = CrossDConv(2, 2, 3)
    conv.weight.requires_grad_(False)
    solid, _ = to_3d(conv)
    assert not solid.weight.requires_grad
    assert solid.bias.requires_grad
    assert solid.rank == 3
