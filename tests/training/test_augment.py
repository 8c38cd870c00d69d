"""Augmentation against index shifts, rot90, scipy and the distribution it promises."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.training.augment import (
    MAX_P,
    AdaptiveP,
    AugmentConfig,
    augment,
    jitter,
    resample,
    sampling_affine,
)

OFF = AugmentConfig(translate=0, translate_depth=0, rotate=0, scale=0, gain=0, contrast=0, bias=0, noise=0)
GEOMETRY = AugmentConfig(flip_lr=True, gain=0, contrast=0, bias=0, noise=0)
EVERYTHING = AugmentConfig(flip_lr=True)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=seeded(99)) * 2 - 1


def warp(x, flip=0.0, log2_scale=0.0, angle=0.0, shift=None, spacing=(1.0, 1.0)):
    """`x` under one explicit transform."""
    n, rank = len(x), x.ndim - 2
    shift = torch.tensor([shift or [0.0] * rank]).repeat(n, 1)
    full = [torch.full((n,), float(value)) for value in (flip, log2_scale, angle)]
    return resample(x, *sampling_affine(*full, shift, x.shape[2:], spacing))


def blob(size, centre, sigma):
    """A Gaussian blob `[1, 1, *size]`, centre and sigma in voxels per axis."""
    grid = np.meshgrid(*[np.arange(s) for s in size], indexing="ij")
    exponent = sum(((g - c) / s) ** 2 for g, c, s in zip(grid, centre, sigma, strict=True))
    return torch.tensor(np.exp(-exponent / 2), dtype=torch.float32)[None, None]


# The whole function ---------------------------------------------------------------------------------------------------


def test_p_zero_returns_the_input_itself():
    x = images(2, 1, 4, 8, 8)
    assert augment(x, 0.0, EVERYTHING, seeded()) is x


def test_all_off_changes_nothing():
    x = images(2, 1, 4, 8, 8)
    assert torch.equal(augment(x, 1.0, OFF, seeded()), x)


@given(
    size=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    n=st.integers(0, 3),
    channels=st.integers(1, 2),
    p=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
@settings(max_examples=40, deadline=None)
def test_any_shape_keeps_shape_and_dtype_and_stays_finite(size, n, channels, p, dtype):
    x = images(n, channels, *size).to(dtype)
    out = augment(x, p, EVERYTHING, seeded())
    assert out.shape == x.shape and out.dtype == dtype and out.isfinite().all()


def test_same_generator_same_result_and_another_seed_another():
    x = images(4, 1, 8, 12, 10)
    first, again, other = (augment(x, 0.7, EVERYTHING, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_global_random_state_is_untouched():
    before = torch.get_rng_state()
    augment(images(4, 1, 8, 8), 1.0, EVERYTHING, seeded())
    assert torch.equal(before, torch.get_rng_state())


def test_autocast_does_not_lower_the_precision():
    x = images(4, 1, 8, 48, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = augment(x, 1.0, EVERYTHING, seeded())
    assert torch.equal(inside, augment(x, 1.0, EVERYTHING, seeded()))


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_p_that_is_no_probability_is_refused(p):
    with pytest.raises(ValueError, match="p is"):
        augment(images(1, 1, 4, 4), p, OFF, seeded())


def test_wrong_rank_and_integers_are_refused():
    with pytest.raises(ValueError, match="wanted floats"):
        augment(images(4, 4, 4), 0.5, OFF, seeded())
    with pytest.raises(ValueError, match="wanted floats"):
        augment(torch.zeros(1, 1, 4, 4, dtype=torch.int16), 0.5, OFF, seeded())


# Geometry -------------------------------------------------------------------------------------------------------------


def test_translation_is_a_whole_voxel_shift_with_mirrored_borders():
    x = images(64, 1, 8, 16, 12)
    out = augment(x, 1.0, replace(OFF, translate=0.25, translate_depth=0.25), seeded()).numpy()
    seen = set()
    for before, after in zip(x[:, 0].numpy(), out[:, 0], strict=True):
        padded = np.pad(before, ((2, 2), (4, 4), (3, 3)), mode="symmetric")
        error = {
            (d, h, w): np.abs(padded[2 - d : 10 - d, 4 - h : 20 - h, 3 - w : 15 - w] - after).max()
            for d in range(-2, 3)
            for h in range(-4, 5)
            for w in range(-3, 4)
        }
        best = min(error, key=error.get)
        assert error[best] < 1e-5
        seen.add(best)
    for axis, largest in enumerate((2, 4, 3)):
        assert {min(s[axis] for s in seen), max(s[axis] for s in seen)} == {-largest, largest}


@pytest.mark.parametrize("size", [(9, 9), (4, 8, 8)])
def test_quarter_turn_is_rot90(size):
    x = images(2, 1, *size)
    torch.testing.assert_close(warp(x, angle=90), torch.rot90(x, 1, (-2, -1)), atol=1e-5, rtol=0)


def test_rotation_agrees_with_scipy():
    x = blob((33, 33), (12, 20), (3, 5))
    truth = scipy.ndimage.rotate(x[0, 0].numpy(), 25, reshape=False, order=1, mode="reflect")
    np.testing.assert_allclose(warp(x, angle=25)[0, 0], truth, atol=1e-4)


@pytest.mark.parametrize(("size", "spacing"), [((48, 32), (1, 1)), ((48, 32), (1, 2)), ((3, 40, 60), (9, 2, 1))])
def test_rotation_is_rigid_in_mm_on_grids_that_are_not_square(size, spacing):
    """A blob that is round in mm and off centre stays round and keeps its distance from the centre."""
    mm = np.array(spacing[-2:])
    middle = (np.array(size[-2:]) - 1) / 2
    plane = blob(size[-2:], middle + np.array([8, 0]) / mm, 3 / mm)
    x = plane if len(size) == 2 else plane[:, :, None].expand(1, 1, *size)
    out = warp(x.contiguous(), angle=30, spacing=spacing).reshape(-1, *size[-2:])[-1].numpy()
    angle = math.radians(30)
    truth = blob(size[-2:], middle + np.array([8 * math.cos(angle), 8 * math.sin(angle)]) / mm, 3 / mm)[0, 0]
    np.testing.assert_allclose(out, truth, atol=0.06)  # linear interpolation of a 1.5-voxel blob, measured 0.03-0.05


def test_flip_scale_and_order():
    x = blob((33, 33), (16, 10), (2, 2))
    assert torch.allclose(warp(x, flip=1), x.flip(-1), atol=1e-5)
    half = warp(x, log2_scale=-1)[0, 0].numpy()
    assert np.unravel_index(half.argmax(), half.shape) == (16, 13)
    # Flipped (w = 22), magnified about the centre (w = 28), then shifted.
    both = warp(x, flip=1, log2_scale=1, shift=[3.0, -2.0])[0, 0].numpy()
    assert np.unravel_index(both.argmax(), both.shape) == (19, 26)


def test_volume_constant_along_depth_moves_like_its_slice():
    slices = images(16, 1, 24, 20)
    config = replace(GEOMETRY, translate_depth=0)
    flat = augment(slices, 0.9, config, seeded(3))
    volume = augment(slices[:, :, None].repeat(1, 1, 5, 1, 1), 0.9, config, seeded(3))
    torch.testing.assert_close(volume, flat[:, :, None].expand_as(volume), atol=1e-5, rtol=0)


def test_samples_that_do_not_move_are_bit_identical():
    x = images(400, 1, 8, 8)
    out = augment(x, 0.2, replace(OFF, rotate=15), seeded())
    still = (out == x).flatten(1).all(1).float().mean()
    assert abs(still - 0.8) < 4 * math.sqrt(0.2 * 0.8 / 400)


# Intensity ------------------------------------------------------------------------------------------------------------


def test_gain_keeps_the_bottom_and_is_linear_above_it():
    x = torch.full((500, 1, 2, 2), -1.0)
    x[:, :, 0, 0], x[:, :, 0, 1] = 0.0, 1.0
    out = augment(x, 1.0, replace(OFF, gain=0.3), seeded())
    torch.testing.assert_close(out[:, 0, 1], x[:, 0, 1])
    torch.testing.assert_close(out[:, 0, 0, 1] + 1, 2 * (out[:, 0, 0, 0] + 1))
    assert torch.log2(out[:, 0, 0, 0] + 1).std() == pytest.approx(0.3, rel=0.15)


def test_contrast_keeps_the_middle_and_bias_adds():
    x = torch.zeros(500, 1, 1, 2)
    x[..., 1] = 0.5
    contrast = augment(x, 1.0, replace(OFF, contrast=0.3), seeded())[:, 0, 0]
    assert (contrast[:, 0] == 0).all()
    assert torch.log2(contrast[:, 1] * 2).std() == pytest.approx(0.3, rel=0.15)
    bias = augment(x, 1.0, replace(OFF, bias=0.3), seeded())[:, 0, 0]
    torch.testing.assert_close(bias[:, 1] - bias[:, 0], torch.full((500,), 0.5))
    assert bias[:, 0].std() == pytest.approx(0.3, rel=0.15)


def test_gain_contrast_and_bias_compose_in_that_order():
    """The one affine map per sample equals the three steps, whose draws follow each other from one generator."""
    x = images(20, 1, 4, 4)
    steps, generator = x, seeded(5)
    for config in (replace(OFF, gain=0.3), replace(OFF, contrast=0.3), replace(OFF, bias=0.3)):
        steps = augment(steps, 1.0, config, generator)
    torch.testing.assert_close(augment(x, 1.0, replace(OFF, gain=0.3, contrast=0.3, bias=0.3), seeded(5)), steps)


def test_noise_has_the_promised_power():
    out = augment(torch.zeros(2000, 1, 8, 8), 1.0, replace(OFF, noise=0.2), seeded())
    assert out.square().mean().sqrt() == pytest.approx(0.2, rel=0.08)  # E sigma^2 = noise^2


# Probability and gradients --------------------------------------------------------------------------------------------

ALONE = {
    "flip_lr": (replace(OFF, flip_lr=True), 0.5),
    "rotate": (replace(OFF, rotate=20), 1.0),
    "scale": (replace(OFF, scale=0.2), 1.0),
    "gain": (replace(OFF, gain=0.2), 1.0),
    "contrast": (replace(OFF, contrast=0.2), 1.0),
    "bias": (replace(OFF, bias=0.2), 1.0),
    "noise": (replace(OFF, noise=0.2), 1.0),
}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("p", [0.3, 0.8])
def test_each_transform_fires_with_probability_p(name, p):
    config, visible = ALONE[name]
    n, expected = 3000, p * visible
    x = images(n, 1, 4, 4)
    changed = (augment(x, p, config, seeded(7)) != x).flatten(1).any(1).float().mean().item()
    assert abs(changed - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


def test_shifts_never_cancel_the_unshifted_share():
    """The share of each shift is that of `1 - p + p * triangle`, whose Fourier coefficients stay above 1 - p."""
    n, p = 6000, 0.8
    x = torch.zeros(n, 1, 1, 9)
    x[..., 4] = 1.0
    out = augment(x, p, replace(OFF, translate=0.23), seeded(8))
    share = out.reshape(n, 9).round().mean(0)[2:7]
    triangle = torch.tensor([1, 2, 3, 2, 1]) / 9
    expected = p * triangle + (1 - p) * torch.tensor([0.0, 0, 1, 0, 0])
    torch.testing.assert_close(share, expected, atol=0.025, rtol=0)


@pytest.mark.parametrize("size", [(6, 5), (3, 6, 5)])
def test_gradients_flow_and_can_be_differentiated_again(size):
    x = images(3, 1, *size).requires_grad_()
    out = augment(x, 1.0, EVERYTHING, seeded(2))
    gradient = torch.autograd.grad(out.pow(3).sum(), x, create_graph=True)[0]
    penalty_gradient = torch.autograd.grad(gradient.square().sum(), x)[0]
    assert gradient.abs().sum() > 0
    # Central differences of the penalty along one direction are the independent truth.
    direction, step = images(3, 1, *size), 1e-2

    def penalty(at: torch.Tensor) -> float:
        at = at.detach().requires_grad_()
        inner = torch.autograd.grad(augment(at, 1.0, EVERYTHING, seeded(2)).pow(3).sum(), at)[0]
        return inner.double().square().sum().item()

    slope = (penalty(x + step * direction) - penalty(x - step * direction)) / (2 * step)
    assert slope == pytest.approx((penalty_gradient * direction).sum().item(), rel=1e-2)


# The controller -------------------------------------------------------------------------------------------------------


def test_controller_follows_the_sign_and_stops_at_its_limits():
    adaptive = AdaptiveP()
    assert adaptive.update(0.9, 1000) == pytest.approx(0.01)
    assert adaptive.update(0.6, 1000) == pytest.approx(0.01)
    assert adaptive.update(0.1, 400) == pytest.approx(0.006)
    assert adaptive.update(0.1, 10_000) == 0.0
    assert adaptive.update(0.9, 10_000_000) == MAX_P
    assert AdaptiveP().update(0.5, 1000, target=0.4, speed_kimg=10) == pytest.approx(0.1)


def test_controller_state_round_trip_and_refusals():
    adaptive, other = AdaptiveP(0.37), AdaptiveP()
    other.load_state_dict(adaptive.state_dict())
    assert other == adaptive
    with pytest.raises(ValueError, match="saved augmentation state"):
        other.load_state_dict({"p": 0.9})
    with pytest.raises(ValueError, match="r_t is nan"):
        other.update(math.nan, 8)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rotate", -1), ("translate", 0.6), ("noise", math.nan)],
)
def test_configuration_names_the_bad_field(field, value):
    with pytest.raises(UserError, match=f"augment.{field}"):
        AugmentConfig(**{field: value})


# Jitter of the crop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 6), (4, 5, 6)])
def test_jitter_moves_whole_samples_to_every_place_equally_often(size):
    """Index volumes say where each voxel came from; borders are repeated."""
    rank, n = len(size), 2700
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(s)) for s in size], indexing="ij"))
    moved = jitter(grid.expand(n, -1, *size), 1, seeded())
    inner = (slice(None), slice(None), *[slice(1, -1)] * rank)
    shifts = (moved - grid)[inner].flatten(2)
    assert (shifts == shifts[..., :1]).all()  # one shift for a sample, along each axis
    shifts = shifts[..., 0]
    counts = torch.stack([(shifts == step).float().mean(0) for step in (-1, 0, 1)])
    torch.testing.assert_close(counts, torch.full((3, rank), 1 / 3), atol=0.04, rtol=0)
    expected = (grid + shifts[:, :, None, None].reshape(n, rank, *[1] * rank)).clamp(min=0)
    limits = torch.tensor(size).reshape(1, rank, *[1] * rank) - 1
    assert torch.equal(moved, expected.minimum(limits))


def test_jitter_of_nothing_is_the_input_and_the_same_seed_the_same_shifts():
    x = images(3, 2, 4, 5)
    assert jitter(x, 0, seeded()) is x
    assert torch.equal(jitter(x, 2, seeded()), jitter(x, 2, seeded()))
    assert not torch.equal(jitter(x, 2, seeded()), jitter(x, 2, seeded(1)))
    assert jitter(x.bfloat16(), 1, seeded()).dtype == torch.bfloat16
