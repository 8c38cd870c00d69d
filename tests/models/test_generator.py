"""What a generator promises, at both ranks, on networks of a few thousand weights with random parameters."""

from functools import partial

import pytest
import torch

from splitshuffle_gan import passes
from splitshuffle_gan.config import CONV_KINDS, GeneratorConfig
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.models.generator import Generator, Mapping

SHAPE = (8, 16, 8)

# What a file of weights holds: it must not change with the way a layer is computed.
STATE = {
    "constant": (8, 4, 4, 4),
    "w_avg": (5,),
    "mapping.layers.0.weight": (5, 6),
    "mapping.layers.0.bias": (5,),
    "blocks.0.conv.bias": (8, 4),
    "blocks.0.conv.noise_strength": (),
    "blocks.0.conv.demod_gain": (8,),
    "blocks.0.conv.affine.weight": (8, 5),
    "blocks.0.conv.affine.bias": (8,),
    "blocks.0.conv.conv.volumetric.weight": (4, 4, 3, 3, 3),
    "blocks.0.conv.conv.planar.weight": (4, 4, 1, 3, 3),
    "blocks.0.to_image.bias": (1, 4),
    "blocks.0.to_image.affine.weight": (8, 5),
    "blocks.0.to_image.affine.bias": (8,),
    "blocks.0.to_image.kernel.weight": (1, 8, 1, 1, 1),
    "blocks.1.grow.bias": (4, 4),
    "blocks.1.grow.noise_strength": (),
    "blocks.1.grow.demod_gain": (4,),
    "blocks.1.grow.affine.weight": (8, 5),
    "blocks.1.grow.affine.bias": (8,),
    "blocks.1.grow.conv.volumetric.weight": (2, 4, 3, 3, 3),
    "blocks.1.grow.conv.planar.weight": (2, 4, 1, 3, 3),
    "blocks.1.conv.bias": (4, 4),
    "blocks.1.conv.noise_strength": (),
    "blocks.1.conv.demod_gain": (4,),
    "blocks.1.conv.affine.weight": (4, 5),
    "blocks.1.conv.affine.bias": (4,),
    "blocks.1.conv.conv.volumetric.weight": (2, 2, 3, 3, 3),
    "blocks.1.conv.conv.planar.weight": (2, 2, 1, 3, 3),
    "blocks.1.to_image.bias": (1, 4),
    "blocks.1.to_image.affine.weight": (4, 5),
    "blocks.1.to_image.affine.bias": (4,),
    "blocks.1.to_image.kernel.weight": (1, 4, 1, 1, 1),
}


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def generator(rank: int = 3, randomise: bool = True, **values) -> Generator:
    """A tiny generator; `randomise` moves every parameter off its initial value, so that none is idle."""
    config = {"shape": SHAPE, "channels": (8, 8, 4), "z_dim": 6, "w_dim": 5, "mapping_layers": 2, **values}
    g = Generator(GeneratorConfig(rank=rank, **config))
    if randomise:
        with torch.no_grad():
            for parameter in g.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    return g.eval()


def gradients(g: Generator, z: torch.Tensor, **arguments) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return torch.autograd.grad(g(z, **arguments).square().sum(), list(g.parameters()))


# Shapes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONV_KINDS)
@pytest.mark.parametrize(
    ("shape", "channels"), [(SHAPE, (8, 8, 4)), ((8, 8, 8), (4, 4)), ((5, 20, 22), (4, 4, 4)), ((4, 6, 9), (4,))]
)
def test_images_have_the_shape_of_the_rank(shape, channels, kind):
    for rank in (2, 3):
        g = generator(rank, shape=shape, channels=channels, conv=kind, image_channels=2)
        image = g(torch.randn(3, g.z_dim))
        assert image.shape == (3, 2, *shape[3 - rank :]) and image.dtype == torch.float32
        assert image.isfinite().all()


def test_sizes_of_the_latents():
    g = generator()
    assert g.z_dim == 6 and g.num_ws == 5
    assert g.map(torch.randn(2, 6)).shape == (2, 5, 5)


@pytest.mark.parametrize("depth_aware", [True, False])
@pytest.mark.parametrize("kind", CONV_KINDS)
def test_keys_are_the_same_at_both_ranks(kind, depth_aware):
    flat, volume = (set(generator(rank, conv=kind, depth_aware=depth_aware).state_dict()) for rank in (2, 3))
    assert flat <= volume
    assert all(".axial." in key for key in volume - flat)
    assert bool(volume - flat) == (kind == "separable")


def test_the_state_keeps_its_names_and_shapes():
    g = generator(channels=(8, 4), shape=(4, 8, 4), mapping_layers=1)
    assert {name: tuple(value.shape) for name, value in g.state_dict().items()} == STATE


def test_a_fresh_network_has_a_reasonable_contrast():
    g = generator(randomise=False, shape=(16, 32, 32), channels=(16, 16, 16, 16))
    assert 0.1 < g(torch.randn(4, 6)).std().item() < 10


# Latents --------------------------------------------------------------------------------------------------------------


def test_the_mapping_ignores_the_length_of_z():
    mapping, z = Mapping(6, 5, 2), torch.randn(3, 6)
    torch.testing.assert_close(mapping(5 * z), mapping(z))
    unit = z / z.square().mean(1, keepdim=True).sqrt()
    assert not torch.allclose(mapping(z)[0], mapping(z)[1])
    x = unit
    for layer in mapping.layers:
        x = layer(x)
        x = torch.where(x < 0, 0.2 * x, x) * 2**0.5
    torch.testing.assert_close(mapping(z), x)


def test_truncation_pulls_towards_the_mean():
    g, z = generator(), torch.randn(3, 6)
    g.w_avg.normal_()
    images = g(z, truncation_psi=0, noise_mode="none")
    torch.testing.assert_close(images, images[:1].expand_as(images))
    full, half = g.map(z), g.map(z, truncation_psi=0.5)
    torch.testing.assert_close(half, (full + g.w_avg) / 2)
    torch.testing.assert_close(g(z, noise_mode="none"), g.synthesize(full, noise_mode="none"))
    assert not torch.allclose(g(z, noise_mode="none")[0], g(z, noise_mode="none")[1])


def test_w_avg_is_the_mean_of_w():
    g = generator()
    g.update_w_avg(samples=4000)
    first = g.w_avg.clone()
    w = g.mapping(torch.randn(20000, 6)).detach()
    error = (first - w.mean(0)) / (w.std(0) / 4000**0.5)
    assert error.abs().max() < 5
    g.update_w_avg(samples=4000)
    assert torch.equal(g.w_avg, first)


def test_every_layer_follows_its_own_w():
    g = generator()
    ws = g.map(torch.randn(1, 6)).clone()
    before = g.synthesize(ws, "none")
    for layer in range(g.num_ws):
        mixed = ws.clone()
        mixed[:, layer] += 1
        assert not torch.allclose(g.synthesize(mixed, "none"), before), f"layer {layer} ignores its w"


@pytest.mark.parametrize("rank", [2, 3])
def test_a_sample_is_the_same_alone_and_in_a_batch(rank):
    g, z = generator(rank), torch.randn(5, 6)
    together = g(z, noise_mode="const")
    for i in range(5):
        torch.testing.assert_close(g(z[i : i + 1], noise_mode="const")[0], together[i], atol=1e-5, rtol=1e-5)


# Noise ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 3])
def test_only_random_noise_varies(rank):
    g, z = generator(rank), torch.randn(2, 6)
    images = {mode: [g(z, noise_mode=mode) for _ in range(2)] for mode in ("none", "const", "random")}
    assert torch.equal(*images["none"]) and torch.equal(*images["const"])
    assert not torch.allclose(*images["random"])
    assert not torch.allclose(images["none"][0], images["const"][0])


def test_a_fresh_network_has_no_noise_yet():
    g, z = generator(randomise=False), torch.randn(2, 6)
    assert torch.equal(g(z, noise_mode="random"), g(z, noise_mode="none"))


def test_an_unknown_noise_mode_is_refused():
    with pytest.raises(UserError, match="noise_mode: found 'constant'"):
        generator()(torch.randn(1, 6), noise_mode="constant")


# Depth ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth_aware", [True, False])
def test_slices_differ_with_depth_only_when_depth_aware(depth_aware):
    g = generator(2, depth_aware=depth_aware)
    z = torch.randn(1, 6).expand(SHAPE[0], -1)
    images = g(z, noise_mode="none", depth=torch.arange(SHAPE[0]))
    changes = (images[1:] - images[:-1]).abs().amax((1, 2, 3))
    assert (changes > 1e-3).all() if depth_aware else (changes < 1e-5).all()


@pytest.mark.parametrize("depth_aware", [True, False])
def test_a_fresh_depth_blind_volume_still_varies_over_depth(depth_aware):
    volume = generator(3, depth_aware=depth_aware)(torch.randn(1, 6), noise_mode="none")
    assert (volume[:, :, 1:] - volume[:, :, :-1]).abs().amax() > 1e-3


def test_the_default_slice_is_the_middle_one():
    g, z = generator(2), torch.randn(2, 6)
    middle = g(z, noise_mode="const", depth=torch.tensor([4, 4]))
    assert torch.equal(g(z, noise_mode="const"), middle)


def test_each_sample_has_its_own_depth():
    g, z = generator(2), torch.randn(3, 6)
    together = g(z, noise_mode="const", depth=torch.tensor([0, 5, 7]))
    for i, depth in enumerate((0, 5, 7)):
        alone = g(z[i : i + 1], noise_mode="const", depth=torch.tensor([depth]))
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("depth_upsample", ["nearest", "linear"])
def test_depth_upsampling_is_as_configured(depth_upsample):
    """With a silent last level, the image is that of the level before, grown."""
    g = generator(depth_upsample=depth_upsample)
    with torch.no_grad():
        g.blocks[2].to_image.kernel.weight.zero_()
        g.blocks[2].to_image.bias.zero_()
    volume = g(torch.randn(1, 6), noise_mode="none")
    pairs_equal = torch.allclose(volume[:, :, 0::2], volume[:, :, 1::2])
    assert pairs_equal == (depth_upsample == "nearest")


# Precision and memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("kind", CONV_KINDS)
def test_bfloat16_is_close_to_float32(kind, rank):
    g, z = generator(rank, conv=kind), torch.randn(4, 6)
    exact = g(z, noise_mode="const")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = g(z, noise_mode="const")
    assert rounded.dtype == torch.float32
    error = (rounded - exact).square().mean().sqrt() / exact.std()
    assert 0 < error < 0.05


@pytest.mark.parametrize("noise_mode", ["const", "random"])
@pytest.mark.parametrize("rank", [2, 3])
def test_recomputing_activations_changes_no_gradient(rank, noise_mode):
    g, z = generator(rank), torch.randn(2, 6)
    stored = gradients(g, z, noise_mode=noise_mode)
    g.checkpoint_above = 0
    for a, b in zip(stored, gradients(g, z, noise_mode=noise_mode), strict=True):
        torch.testing.assert_close(a, b)


def test_recomputing_stores_less():
    """Saved tensors are counted, not timed."""
    g, z, saved = generator(), torch.randn(2, 6), []

    def count(tensor):
        saved[-1] += tensor.numel()
        return tensor

    for g.checkpoint_above in (None, 8, 0):
        saved.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            g(z, noise_mode="none")
    assert saved[2] < saved[0] / 2 and saved[2] < saved[1] < saved[0]


def test_every_parameter_receives_a_gradient():
    g = generator(conv="separable")
    for (name, _), gradient in zip(g.named_parameters(), gradients(g, torch.randn(2, 6)), strict=True):
        assert gradient.isfinite().all() and gradient.abs().max() > 0, name


@pytest.mark.parametrize("rank", [2, 3])
def test_path_length_gradients_are_right(rank, monkeypatch):
    """Along their own direction equal to a difference quotient, with an activation that has no kink to jump over."""
    monkeypatch.setattr(passes, "finish", partial(passes.finish, slope=1.0))
    g, probe = generator(rank), torch.randn(2, 1, *SHAPE[3 - rank :])
    ws = g.map(torch.randn(2, 6)).detach().requires_grad_()
    parameters = list(g.blocks.parameters())

    def penalty():
        (gradient,) = torch.autograd.grad((g.synthesize(ws, "none") * probe).sum(), ws, create_graph=True)
        return gradient.square().sum()

    direction = torch.autograd.grad(penalty(), parameters, allow_unused=True, materialize_grads=True)
    norm = sum(d.square().sum() for d in direction).sqrt()
    values = []
    for step in (1e-3, -2e-3):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += step * d / norm
        values.append(penalty().item())
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(norm.item(), rel=0.02)
