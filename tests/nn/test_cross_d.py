"""Cross-D convolution against rolls, right angles, Fourier shifts of SciPy, and one sample at a time."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import nn

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.nn.cross_d import CrossDConv, RotationHead, moved_kernels, slice_kernels

PHASES = ["published", "rotation"]


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def kernel(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, size, dtype=torch.double)


def axes_and_angles(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    axis = F.normalize(torch.randn(n, 3, dtype=torch.double), dim=1)
    return axis, torch.empty(n, dtype=torch.double).uniform_(-math.pi / 4, math.pi / 4)


# The published phase --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_published_is_the_formula(size):
    weight, (axis, angle) = kernel(size), axes_and_angles()
    moved = moved_kernels(weight, axis, angle)
    f = np.stack(np.meshgrid(*[np.fft.fftfreq(size)] * 3, indexing="ij"))
    for n, (k, theta) in enumerate(zip(axis.numpy(), angle.numpy(), strict=True)):
        cross = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
        turned = np.tensordot(np.eye(3) + theta * cross, f, axes=1)
        spectrum = np.fft.fftn(weight.numpy(), axes=(2, 3, 4)) * np.exp(-2j * np.pi * turned.sum(0))
        expected = torch.from_numpy(np.fft.ifftn(spectrum, axes=(2, 3, 4)).real)
        torch.testing.assert_close(moved[n], expected)


@pytest.mark.parametrize("size", [3, 5])
def test_published_only_translates(size):
    weight, (axis, angle) = kernel(size), axes_and_angles()
    moved = moved_kernels(weight, axis, angle)
    ones = np.ones(3)
    for n in range(len(axis)):
        shift = ones + angle[n].item() * np.cross(ones, axis[n].numpy())
        for o, i in np.ndindex(2, 3):
            spectrum = ndimage.fourier_shift(np.fft.fftn(weight[o, i].numpy()), shift)
            torch.testing.assert_close(moved[n, o, i], torch.from_numpy(np.fft.ifftn(spectrum).real))


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_published_at_angle_zero_rolls_by_one_voxel(size):
    weight, axis = kernel(size).float(), torch.tensor([[0.6, 0.0, 0.8]])
    rolled = weight.roll((1, 1, 1), dims=(2, 3, 4))
    torch.testing.assert_close(moved_kernels(weight, axis, torch.zeros(1))[0], rolled, atol=1e-5, rtol=0)


def test_published_slice_at_angle_zero_is_the_first_raw_slice_rolled_in_plane():
    weight, axis = kernel(3).float(), torch.tensor([[0.0, 1.0, 0.0]])
    expected = weight[:, :, 0].roll((1, 1), dims=(2, 3))
    torch.testing.assert_close(slice_kernels(weight, axis, torch.zeros(1))[0], expected, atol=1e-5, rtol=0)


def test_published_at_one_radian_about_depth_rolls_by_one_two_zero():
    weight, axis = kernel(3), torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.double)
    moved = moved_kernels(weight, axis, torch.ones(1, dtype=torch.double))  # 1 + 1 (1 x k), with 1 x k = (0, 1, -1)
    torch.testing.assert_close(moved[0], weight.roll((1, 2, 0), dims=(2, 3, 4)))


# The rotation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("about", "plane"), [(0, (3, 4)), (1, (4, 2)), (2, (2, 3))])
def test_right_angles_are_rot90(size, about, plane):
    weight, axis = kernel(size).float(), torch.eye(3)[about].expand(4, 3)
    moved = moved_kernels(weight, axis, torch.arange(4) * math.pi / 2, phase="rotation")
    for turns in range(4):
        torch.testing.assert_close(moved[turns], torch.rot90(weight, turns, plane), atol=1e-5, rtol=0)


def test_a_third_of_a_turn_about_the_diagonal_permutes_the_axes():
    weight = kernel(3)
    axis = torch.full((1, 3), 3**-0.5, dtype=torch.double)
    moved = moved_kernels(weight, axis, torch.tensor([2 * math.pi / 3], dtype=torch.double), phase="rotation")
    torch.testing.assert_close(moved[0], weight.permute(0, 1, 4, 2, 3))  # depth goes to height, height to width


@pytest.mark.parametrize("size", [3, 5])
def test_rotation_sums_the_spectrum_at_turned_frequencies(size):
    weight, (axis, angle) = kernel(size), axes_and_angles(3)
    moved = moved_kernels(weight, axis, angle, phase="rotation")
    f = np.stack(np.meshgrid(*[np.fft.fftfreq(size)] * 3, indexing="ij"), -1).reshape(-1, 3)
    x = np.stack(np.meshgrid(*[np.arange(size) - size // 2] * 3, indexing="ij"), -1).reshape(-1, 3)
    values = weight.numpy().reshape(6, -1)
    spectrum = values @ np.exp(-2j * np.pi * x @ f.T)
    for n in range(3):
        turned = f @ Rotation.from_rotvec(axis[n].numpy() * angle[n].item()).as_matrix().T
        expected = (spectrum @ np.exp(2j * np.pi * turned @ x.T)).real / size**3
        torch.testing.assert_close(moved[n].reshape(6, -1), torch.from_numpy(expected))


def test_rotation_by_nothing_changes_nothing():
    weight, (axis, _) = kernel(3), axes_and_angles()
    torch.testing.assert_close(moved_kernels(weight, axis, torch.zeros(4, dtype=torch.double), "rotation")[2], weight)


# Both -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_slice_is_the_middle_of_the_whole(phase, size):
    weight, (axis, angle) = kernel(size), axes_and_angles()
    expected = moved_kernels(weight, axis, angle, phase)[:, :, :, size // 2]
    torch.testing.assert_close(slice_kernels(weight, axis, angle, phase), expected)


@pytest.mark.parametrize("phase", PHASES)
def test_kernels_are_float32_under_autocast_and_for_bfloat16(phase):
    weight, (axis, angle) = kernel(3).float(), axes_and_angles()
    axis, angle = axis.float(), angle.float()
    expected = slice_kernels(weight, axis, angle, phase)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(slice_kernels(weight, axis, angle, phase), expected, atol=0, rtol=0)
    assert slice_kernels(weight.bfloat16(), axis.bfloat16(), angle.bfloat16(), phase).dtype == torch.float32


def test_head_weighs_each_map_with_its_own_softmax():
    head, x = RotationHead(3).double().eval(), torch.randn(2, 3, 4, 5, dtype=torch.double)
    nn.init.uniform_(head.norm.running_mean)
    nn.init.uniform_(head.norm.running_var, 0.5, 2)
    axis, angle = head(x)
    state = {key: value.detach().numpy() for key, value in head.state_dict().items()}
    for n, image in enumerate(x.numpy()):
        hidden = np.einsum("oi,ihw->ohw", state["squeeze.weight"][..., 0, 0], image)
        hidden += state["squeeze.bias"][:, None, None]
        hidden -= state["norm.running_mean"][:, None, None]
        hidden /= np.sqrt(state["norm.running_var"] + 1e-5)[:, None, None]
        maps = np.einsum("oi,ihw->ohw", state["choose.weight"][..., 0, 0], hidden.clip(0))
        maps += state["choose.bias"][:, None, None]
        values = [np.average(m, weights=np.exp(m)) for m in maps]
        np.testing.assert_allclose(axis[n].detach(), values[:3] / np.linalg.norm(values[:3]), rtol=1e-6)
        np.testing.assert_allclose(angle[n].detach(), np.pi / 4 * np.tanh(values[3]))


# The layer ------------------------------------------------------------------------------------------------------------


def one_at_a_time(conv: CrossDConv, x: torch.Tensor, padding: int) -> torch.Tensor:
    """Every sample with plain PyTorch, its kernel the middle of the whole moved kernel."""
    kernels = moved_kernels(conv.weight, *conv.head(x), conv.phase)[:, :, :, conv.weight.shape[-1] // 2]
    return torch.cat(
        [
            F.conv2d(sample[None], k, conv.bias, conv.stride, padding, conv.dilation, conv.groups)
            for sample, k in zip(x, kernels, strict=True)
        ]
    )


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("channels", "settings"),
    [  # many places: the kernels are moved; few (below the outputs / K / groups): the patches
        ((4, 6), {"kernel_size": 3, "padding": 1}),
        ((4, 6), {"kernel_size": 3, "stride": (2, 1), "padding": 2, "dilation": 2, "groups": 2, "bias": False}),
        ((4, 4), {"kernel_size": 5, "padding": 2, "groups": 4}),
        ((4, 6), {"kernel_size": 2}),
        ((2, 300), {"kernel_size": 3, "padding": 1}),
        ((4, 400), {"kernel_size": 3, "stride": (2, 1), "padding": 2, "dilation": 2, "groups": 2, "bias": False}),
    ],
)
def test_rank_2_is_one_kernel_per_sample(phase, channels, settings):
    conv = CrossDConv(*channels, **settings, phase=phase).double()
    x = torch.randn(3, channels[0], 9, 8, dtype=torch.double)
    if conv.bias is not None:
        nn.init.normal_(conv.bias)
    torch.testing.assert_close(conv(x), one_at_a_time(conv, x, settings.get("padding", 0)))


def test_samples_do_not_share_a_kernel():
    conv, x = CrossDConv(2, 2, 3, padding=1).eval(), torch.randn(2, 2, 6, 6)
    axis, angle = conv.head(x)
    kernels = slice_kernels(conv.weight, axis, angle)
    assert (kernels[0] - kernels[1]).abs().max() > 0.01
    torch.testing.assert_close(conv(x)[1:], conv(x[1:]))


@pytest.mark.parametrize(("channels", "grid", "last"), [(4, 8, "conv2d"), (128, 2, "conv1d")])
@pytest.mark.parametrize("batch", [2, 7])
def test_no_loop_over_the_batch(channels, grid, last, batch, monkeypatch):
    calls = []
    for name in ("conv1d", "conv2d"):
        called, plain = partial(calls.append, name), getattr(F, name)
        monkeypatch.setattr(F, name, lambda *a, called=called, plain=plain, **k: called() or plain(*a, **k))
    CrossDConv(channels, channels, 3, padding=1)(torch.randn(batch, channels, grid, grid))
    assert calls == ["conv2d", "conv2d", last]  # the head's two, and one for all samples


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"padding": "same"},
        {"padding": "same", "dilation": 2, "groups": 2},
        {"padding": "valid", "stride": 2},
        {"padding": 1, "padding_mode": "reflect", "stride": 2},
        {"padding": "same", "padding_mode": "circular"},
        {"padding": (1, 2, 0), "padding_mode": "replicate"},
        {"padding": (0, 1, 2), "stride": (1, 2, 3), "dilation": (2, 1, 2)},
        {"padding": "same", "kernel_size": 2},
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_geometry_is_torchs(rank, settings):
    settings = {"kernel_size": 3} | {k: v[:rank] if isinstance(v, tuple) else v for k, v in settings.items()}
    ours = CrossDConv(4, 2, **settings, rank=rank).double()
    torchs = (nn.Conv2d, nn.Conv3d)[rank - 2](4, 2, **settings).double()
    x = torch.randn(1, 4, *(7, 6, 5)[:rank], dtype=torch.double)
    nn.init.normal_(ours.bias)
    weight = ours.weight if rank == 3 else slice_kernels(ours.weight, *ours.head(x))[0]
    torchs.load_state_dict({"weight": weight.detach(), "bias": ours.bias.detach()})
    torch.testing.assert_close(ours(x), torchs(x))


@pytest.mark.parametrize("size", [1, 3])
def test_one_state_dict_serves_both_ranks(size):
    flat, solid = (CrossDConv(4, 6, size, padding=size // 2, groups=2, rank=rank) for rank in (2, 3))
    solid.load_state_dict(flat.state_dict())
    x = torch.randn(2, 4, 3, 5, 4)
    torch.testing.assert_close(solid(x), F.conv3d(x, flat.weight, flat.bias, padding=size // 2, groups=2))
    nn.init.normal_(solid.weight)
    flat.load_state_dict(solid.state_dict())
    assert torch.equal(flat.weight, solid.weight)
    untrained = {name.split(".")[0] for name, p in solid.named_parameters() if not p.requires_grad}
    assert untrained == ({"head"} if size > 1 else set())
    assert all(p.requires_grad for p in flat.parameters())


@pytest.mark.parametrize("phase", PHASES)
def test_a_single_voxel_is_an_ordinary_convolution(phase):
    conv, x = CrossDConv(4, 6, 1, stride=2, phase=phase), torch.randn(2, 4, 5, 5)
    assert set(conv.state_dict()) == {"weight", "bias"}
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight[:, :, 0], conv.bias, stride=2))


@pytest.mark.parametrize(
    ("rank", "phase", "outputs"),
    [(2, "published", 2), (2, "rotation", 2), (2, "published", 28), (2, "rotation", 28), (3, "published", 2)],
)
def test_gradients_once_and_twice(rank, phase, outputs):
    conv = CrossDConv(2, outputs, 3, padding=1, rank=rank, phase=phase).double()
    x = torch.randn(2, 2, *(3,) * rank, dtype=torch.double, requires_grad=True)
    trained = tuple(p for p in conv.parameters() if p.requires_grad)
    assert torch.autograd.gradcheck(lambda x, *_: conv(x), (x, *trained), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, *_: conv(x), (x, *trained), fast_mode=True)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("outputs", [4, 100])
def test_bfloat16_is_near_float32(phase, outputs):
    conv, x = CrossDConv(4, outputs, 3, padding=1, phase=phase).eval(), torch.randn(2, 4, 5, 5)
    expected = conv(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = conv(x)
    half = conv.bfloat16()(x.bfloat16())
    for result in (mixed, half):
        assert result.dtype == torch.bfloat16
        assert (result - expected).abs().max() < 0.05 * expected.abs().max()


def test_starts_from_kaimings_normal_by_fan_out():
    conv = CrossDConv(64, 32, 3)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (32 * 27)), rel=0.02)
    assert conv.bias.count_nonzero() == 0


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"rank": 1}, "rank"),
        ({"phase": "true"}, "phase"),
        ({"kernel_size": (3, 5)}, "kernel_size"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size"),
        ({"kernel_size": 0}, "kernel_size"),
        ({"kernel_size": 3.0}, "kernel_size"),
        ({"kernel_size": None}, "kernel_size"),
        ({"kernel_size": True}, "kernel_size"),
        ({"stride": (1.5, 1)}, "stride"),
        ({"padding": None}, "padding"),
        ({"stride": 0}, "stride"),
        ({"padding": -1}, "padding"),
        ({"padding": "full"}, "padding"),
        ({"padding": "same", "stride": 2}, "padding"),
        ({"padding_mode": "mirror"}, "padding_mode"),
        ({"groups": 3}, "groups"),
    ],
)
def test_bad_arguments_are_named(settings, field):
    with pytest.raises(UserError, match=rf"^{field}: found"):
        CrossDConv(4, 4, **({"kernel_size": 3} | settings))


@pytest.mark.parametrize("phase", ["published", "rotation"])
def test_no_samples_make_no_samples(phase):
    conv = CrossDConv(4, 8, 3, stride=2, padding=1, phase=phase).eval()
    assert conv(torch.zeros(0, 4, 8, 8)).shape == (0, 8, 4, 4)


@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (4, 5, 5), (2, 4, 5, 5, 5)])
def test_a_bad_input_is_named(shape):
    with pytest.raises(UserError, match=r"^input: found shape \(.*wanted \[N, 4, H, W\]"):
        CrossDConv(4, 4, 3)(torch.zeros(shape))


def test_an_unknown_phase_is_named_by_the_function_too():
    with pytest.raises(UserError, match="^phase: found 'turn'"):
        slice_kernels(torch.zeros(1, 1, 3, 3, 3), torch.zeros(1, 3), torch.zeros(1), "turn")
