"""Samples are named by their seeds alone."""

import numpy as np
import pytest
import torch

from splitshuffle_gan.config import GeneratorConfig
from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.sampler import (
    SampleConfig,
    draw,
    latent_of_seed,
    mix_styles,
    sample,
    stored_type,
    write_samples,
)

SHAPE = (8, 16, 8)


def make_generator(rank: int = 3, **options) -> Generator:
    """Random weights, noise that shows, images well inside [-1, 1]."""
    sizes = {"channels": (8, 8, 8), "z_dim": 8, "w_dim": 8, "mapping_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(GeneratorConfig(rank=rank, shape=SHAPE, **sizes, **options)).eval()
        for name, parameter in generator.named_parameters():
            if name.endswith("noise_strength"):
                parameter.data.fill_(0.5)
            if "bias" in name and "mapping" not in name:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
            if "to_image.kernel" in name:
                parameter.data.mul_(0.2)
    generator.update_w_avg()
    return generator


def test_a_seed_gives_the_same_volume_in_any_company():
    generator = make_generator()
    together = list(sample(generator, [3, 1, 4, 1]))
    torch.rand(7)
    for seed, image in zip([3, 1, 4, 1], together, strict=True):
        (alone,) = sample(generator, [seed])
        np.testing.assert_array_equal(alone, image)
    assert np.abs(together[0] - together[1]).max() > 0.01


def test_samples_are_clipped_float32_volumes():
    generator = make_generator()
    (image,) = sample(generator, [0])
    assert (image.dtype, image.shape) == (np.float32, SHAPE)
    with torch.no_grad():
        np.testing.assert_array_equal(image, generator(latent_of_seed(0, 8), noise_mode="const")[0, 0].clamp(-1, 1))
        for block in generator.blocks:
            block.to_image.kernel.weight.mul_(100)
    (image,) = sample(generator, [0])
    assert (image.min(), image.max()) == (-1, 1)


def test_the_latent_of_a_seed_is_fixed_for_good():
    """Changing it would change every volume that anyone has named by its seed."""
    assert latent_of_seed(0, 3)[0].tolist() == pytest.approx([1.5409961, -0.2934289, -2.1787894])
    state = torch.get_rng_state()
    latent_of_seed(5, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_depth_aware_slice_generator_draws_volumes_of_one_subject():
    generator = make_generator(rank=2)
    (volume,) = sample(generator, [2])
    assert volume.shape == SHAPE
    z = latent_of_seed(2, 8)
    for depth in range(SHAPE[0]):
        with torch.no_grad():
            image = generator(z, noise_mode="const", depth=torch.tensor([depth]))[0, 0].clamp(-1, 1)
        np.testing.assert_allclose(volume[depth], image, atol=1e-6)
    assert np.abs(volume[0] - volume[-1]).max() > 0.01


def test_a_depth_blind_slice_generator_draws_slices():
    (image,) = sample(make_generator(rank=2, depth_aware=False), [0])
    assert image.shape == SHAPE[1:]


def test_truncation_pulls_towards_the_mean_volume():
    generator = make_generator()
    mean_ws = generator.w_avg.expand(1, generator.num_ws, -1)
    collapsed = list(sample(generator, [0, 1], truncation_psi=0))
    for image in collapsed:
        np.testing.assert_allclose(image, draw(generator, mean_ws), atol=1e-6)
    distances = []
    for psi in (0.25, 0.5, 1.0):
        (image,) = sample(generator, [0], truncation_psi=psi)
        with torch.no_grad():
            w = generator.mapping(latent_of_seed(0, 8))
        styles = (mean_ws + psi * (w - generator.w_avg)).detach()
        np.testing.assert_allclose(image, draw(generator, styles), atol=1e-5)
        distances.append(np.abs(image - collapsed[0]).mean())
    assert 0 < distances[0] < distances[1] < distances[2]


def test_noise_modes():
    generator = make_generator()
    const, again = (next(sample(generator, [0], noise_mode="const")) for _ in range(2))
    none, random, other = (next(sample(generator, [0], noise_mode=m)) for m in ("none", "random", "random"))
    np.testing.assert_array_equal(const, again)
    for a, b in ((const, none), (const, random), (none, random), (random, other)):
        assert np.abs(a - b).max() > 0.01
    with pytest.raises(UserError, match="noise_mode: found 'loud'"):
        next(sample(generator, [0], noise_mode="loud"))


def test_mixed_styles_are_coarse_first():
    generator = make_generator()
    with torch.no_grad():
        coarse, fine = (generator.map(latent_of_seed(seed, 8)) for seed in (0, 1))
    mixed = mix_styles(coarse, fine, 2)
    assert torch.equal(mixed[:, :2], coarse[:, :2])
    assert torch.equal(mixed[:, 2:], fine[:, 2:])
    assert mixed.shape == coarse.shape
    near_coarse = draw(generator, mix_styles(coarse, fine, generator.num_ws - 1))
    near_fine = draw(generator, mix_styles(coarse, fine, 1))
    ends = [draw(generator, ws) for ws in (coarse, fine)]
    for image in (near_coarse, near_fine):
        assert all(np.abs(image - end).max() > 1e-4 for end in ends)
    assert np.abs(near_coarse - ends[0]).mean() < np.abs(near_fine - ends[0]).mean()


def test_mixing_needs_layers_of_both():
    styles = torch.zeros(1, 5, 8)
    for layers in (-1, 0, 5, 6):
        with pytest.raises(UserError, match=f"mix_layers: found {layers}, must be 1 to 4"):
            mix_styles(styles, styles, layers)


@pytest.mark.parametrize(
    ("kind", "low", "high", "expected"),
    [
        ("window", -250, 650, np.int16),
        ("window", 0, 1, np.float32),  # normalised scans: whole numbers would leave two values
        ("window", 0, 40000, np.float32),  # 16 bit MR does not fit
        ("percentiles", 0, 900, np.float32),
    ],
)
def test_whole_numbers_only_where_they_serve(kind, low, high, expected):
    assert stored_type({"kind": kind, "low": low, "high": high}) is expected


def test_broken_weights_are_no_samples(tiny_config, tmp_path):
    network = Generator(GeneratorConfig(rank=3, shape=(8, 16, 8), channels=(8, 8, 8)))
    dataset = open_dataset(tiny_config().data)
    network.geometry = dataset.geometry()
    network.constant.data.fill_(float("nan"))
    network.save_pretrained(tmp_path / "g")
    with pytest.raises(UserError, match="seed0000 has voxels that are NaN"):
        write_samples(SampleConfig(checkpoint=str(tmp_path / "g"), out=tmp_path / "out", seeds=(0,)))
    assert not (tmp_path / "out").exists()
