"""Every damage does what its name and its number say, by measures that owe nothing to its code."""

from collections import Counter

import numpy as np
import pytest

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.metrics.corruptions import (
    CORRUPTIONS,
    SetDamage,
    VolumeDamage,
    blur,
    checkerboard,
    elastic_warp,
    gain,
    gaussian_noise,
    mirror,
    rearrange,
    shuffle_slices,
)
from splitshuffle_gan.volume import from_xyz

SHAPE = (16, 20, 18)
VOLUME_DAMAGES = [damage for damage in CORRUPTIONS if isinstance(damage, VolumeDamage)]
SET_DAMAGES = {damage.name: damage for damage in CORRUPTIONS if isinstance(damage, SetDamage)}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def volumes() -> np.ndarray:
    """Six volumes of smooth shapes, well inside [-1, 1]; read-only, so that no damage can change its input."""
    grid = np.indices(SHAPE) / np.array(SHAPE).reshape(3, 1, 1, 1)
    phases = rng(7).uniform(0, 6, (6, 3, 1, 1, 1))
    stack = 0.5 * np.sin(9 * grid + phases).mean(1).astype(np.float32)
    stack.flags.writeable = False
    return stack


def apply(damage: VolumeDamage | SetDamage, volumes: np.ndarray, strength: float, seed: int = 0) -> np.ndarray:
    if isinstance(damage, VolumeDamage):
        return damage.apply(volumes, strength, rng(seed))
    pool = {"none": volumes[:0], "mirror": mirror(volumes), "other": volumes[::-1] + 0.25}[damage.pool]
    return rearrange(damage, volumes, pool, strength, rng(seed))


def test_all_nine_are_there_with_five_rising_strengths_and_a_label_each():
    names = {"noise", "blur", "gain", "warp", "slices", "checkerboard", "swap", "duplicates", "mixture"}
    assert {damage.name for damage in CORRUPTIONS} == names and len(CORRUPTIONS) == 9
    for damage in CORRUPTIONS:
        assert len(damage.strengths) == 5 and list(damage.strengths) == sorted(set(damage.strengths))
        assert damage.strengths[0] > 0
        assert len({damage.label(strength) for strength in damage.strengths}) == 5
    labels = {damage.name: damage.label(damage.strengths[0]) for damage in CORRUPTIONS}
    assert (labels["noise"], labels["gain"], labels["slices"]) == ("sigma 0.1", "gain 0.9", "12.5 % of the slices")


@pytest.mark.parametrize("damage", CORRUPTIONS, ids=lambda damage: damage.name)
class TestEvery:
    def test_strength_zero_is_the_identity(self, damage, volumes):
        np.testing.assert_array_equal(apply(damage, volumes, 0.0), volumes)

    def test_the_seed_decides_alone(self, damage, volumes):
        once, again = (apply(damage, volumes, damage.strengths[2]) for _ in range(2))
        np.testing.assert_array_equal(once, again)
        random = damage.name not in ("blur", "gain", "checkerboard")
        assert np.array_equal(once, apply(damage, volumes, damage.strengths[2], seed=1)) is not random

    def test_what_comes_back_is_float32_of_the_same_shape_within_the_range(self, damage, volumes):
        for strength in damage.strengths:
            damaged = apply(damage, volumes, strength)
            assert damaged.dtype == np.float32 and damaged.shape == volumes.shape
            assert np.abs(damaged).max() <= 1 and not np.shares_memory(damaged, volumes)

    def test_stronger_is_further_from_the_original(self, damage, volumes):
        distances = [np.square(apply(damage, volumes, strength) - volumes).mean() for strength in damage.strengths]
        if damage.name == "duplicates":  # of six volumes, few numbers can be left
            assert distances == sorted(distances)
        else:
            assert all(distances[i] <= distances[i + 1] for i in range(4)) and distances[0] < distances[4]


@pytest.mark.parametrize("sigma", [0.05, 0.2])
def test_noise_has_the_stated_deviation_and_is_white(sigma):
    noise = gaussian_noise(np.zeros((4, 24, 24, 24), np.float32), sigma, rng())
    assert noise.std() == pytest.approx(sigma, rel=0.01) and abs(noise.mean()) < sigma / 100
    neighbours = np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]
    assert abs(neighbours) < 0.02 and not np.array_equal(noise[0], noise[1])


def test_louder_noise_is_the_same_noise(volumes):
    quiet, loud = (gaussian_noise(np.zeros_like(volumes), sigma, rng()) for sigma in (0.01, 0.02))
    np.testing.assert_allclose(loud, 2 * quiet, rtol=1e-6)


def test_noise_is_clipped():
    assert np.abs(gaussian_noise(np.ones((1, 8, 8, 8), np.float32), 0.4, rng())).max() == 1


def test_blur_lowers_the_gradients_and_keeps_the_mean(volumes):
    def gradients(stack: np.ndarray) -> float:
        return sum(np.square(np.diff(stack, axis=axis)).mean() for axis in (1, 2, 3))

    rough = gaussian_noise(volumes, 0.1, rng())
    energies = [gradients(blur(rough, sigma)) for sigma in (0.0, 0.5, 1.0, 2.0)]
    assert all(energies[i + 1] < 0.8 * energies[i] for i in range(3))
    np.testing.assert_allclose(blur(rough, 1.5).mean((1, 2, 3)), rough.mean((1, 2, 3)), atol=1e-5)


def test_blur_of_a_point_has_the_stated_width_on_every_axis_and_stays_in_its_volume():
    points = np.zeros((2, 25, 25, 25), np.float32)
    points[0, 12, 12, 12] = 1
    spread = blur(points, 1.5)
    assert not spread[1].any()
    for axis in range(3):
        marginal = spread[0].sum(axis=tuple({0, 1, 2} - {axis}))
        assert np.sqrt(marginal @ (np.arange(25) - 12) ** 2) == pytest.approx(1.5, rel=0.02)


def test_gain_scales_the_deviation_and_leaves_black_black(volumes):
    with_black = volumes.copy()
    with_black[:, 0] = -1
    darker = gain(with_black, 0.3)
    np.testing.assert_allclose(darker.std((1, 2, 3)), 0.7 * with_black.std((1, 2, 3)), rtol=1e-5)
    assert (darker[:, 0] == -1).all() and darker.mean() < with_black.mean()


@pytest.mark.parametrize("stated, margin", [(0.5, 2), (2.0, 7)])
def test_warp_moves_by_the_stated_distance_and_neighbours_together(stated, margin):
    """Warped ramps show where every voxel was taken from: a ramp along each axis is a coordinate."""
    shape, slope = (24, 26, 28), 0.01
    ramps = slope * (np.indices(shape, dtype=np.float32) - 13)
    displacement = [(elastic_warp(np.tile(ramp, (20, 1, 1, 1)), stated, rng()) - ramp) / slope for ramp in ramps]
    inside = np.stack(displacement)[:, :, margin:-margin, margin:-margin, margin:-margin]
    assert np.sqrt(np.square(inside).sum(0).mean()) == pytest.approx(stated, rel=0.06)
    assert np.abs(np.diff(inside, axis=2)).max() < 0.6 * stated


def test_warp_keeps_the_intensities_and_bends_every_volume_its_own_way(volumes):
    warped = elastic_warp(volumes, 1.0, rng())
    levels = np.linspace(0.1, 0.9, 9)
    np.testing.assert_allclose(np.quantile(warped, levels), np.quantile(volumes, levels), atol=0.05)
    twins = elastic_warp(np.repeat(volumes[:1], 2, axis=0), 1.0, rng())
    assert np.abs(twins[0] - twins[1]).max() > 0.05


def test_warp_does_not_blur():
    rough = gaussian_noise(np.zeros((2, 20, 20, 20), np.float32), 0.2, rng())
    assert elastic_warp(rough, 2.0, rng()).std() > 0.75 * rough.std()  # linear interpolation: 0.55


@pytest.mark.parametrize("share, moved", [(0.01, 2), (0.25, 4), (0.5, 8), (1.0, 16)])
def test_shuffling_permutes_the_stated_share_of_slices(volumes, share, moved):
    shuffled = shuffle_slices(volumes, share, rng())
    for before, after in zip(volumes, shuffled, strict=True):
        assert Counter(s.tobytes() for s in before) == Counter(s.tobytes() for s in after)
        assert sum(not np.array_equal(a, b) for a, b in zip(before, after, strict=True)) == moved


def test_a_slice_that_moves_moves_at_every_higher_share(volumes):
    def moved(share: float) -> np.ndarray:
        return (shuffle_slices(volumes, share, rng()) != volumes).any((2, 3))

    few, more = moved(0.25), moved(0.5)
    assert (more | ~few).all() and more.sum() == 2 * few.sum()
    assert not np.array_equal(few[0], few[1]), "every volume has its own order"


def test_the_checkerboard_is_at_the_nyquist_frequency_of_all_axes_and_nowhere_else(volumes):
    spectrum = np.fft.fftn(checkerboard(volumes, 0.2)[0] - volumes[0])
    half = tuple(side // 2 for side in SHAPE)
    assert abs(spectrum[half]) / np.prod(SHAPE) == pytest.approx(0.2, rel=1e-4)
    spectrum[half] = 0
    assert np.abs(spectrum).max() / np.prod(SHAPE) < 1e-4


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_mirroring_swaps_left_and_right_in_every_plane_and_twice_is_nothing(plane):
    left_bright = np.zeros((8, 10, 12), np.float32)  # x, y, z, where x runs from left to right
    left_bright[:2], left_bright[:, 0], left_bright[:, :, 0] = 0.5, 0.75, 0.25
    volumes = from_xyz(left_bright, np.eye(4), plane).array
    expected = from_xyz(left_bright[::-1], np.eye(4), plane).array
    mirrored = mirror(volumes, plane)
    np.testing.assert_array_equal(mirrored, expected)
    np.testing.assert_array_equal(mirror(mirrored, plane), volumes)
    assert not np.array_equal(mirrored, volumes)


def test_an_unknown_plane_is_refused(volumes):
    with pytest.raises(UserError, match="oblique"):
        mirror(volumes, "oblique")


class TestSets:
    """Volumes are numbers here, the pool's from 1000 on."""

    n = 40

    def arranged(self, name: str, share: float, pool: int = 40) -> np.ndarray:
        return rearrange(SET_DAMAGES[name], np.arange(self.n), 1000 + np.arange(pool), share, rng())

    @pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 1.0])
    def test_swap_mirrors_the_stated_share_each_in_its_own_place(self, share):
        result = self.arranged("swap", share)
        np.testing.assert_array_equal(result % 1000, np.arange(self.n))
        assert (result >= 1000).sum() == max(1, share * self.n)

    @pytest.mark.parametrize("share, left", [(0.5, 20), (0.9, 4), (0.95, 2), (1.0, 1)])
    def test_duplicates_leave_the_stated_number_about_equally_often(self, share, left):
        counts = Counter(self.arranged("duplicates", share).tolist())
        assert len(counts) == left and max(counts.values()) - min(counts.values()) <= 1
        assert max(counts) < self.n

    @pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
    def test_mixture_replaces_the_stated_share_by_different_ones(self, share):
        result = self.arranged("mixture", share)
        strangers = result[result >= 1000]
        assert len(set(strangers)) == len(strangers) == share * self.n
        kept = result < 1000
        np.testing.assert_array_equal(result[kept], np.arange(self.n)[kept])

    @pytest.mark.parametrize("name", ["swap", "mixture"])
    def test_what_is_replaced_stays_replaced_at_a_higher_share(self, name):
        few, more = self.arranged(name, 0.2), self.arranged(name, 0.6)
        np.testing.assert_array_equal(more[few >= 1000], few[few >= 1000])

    def test_who_survives_a_larger_share_survives_a_smaller_one(self):
        assert set(self.arranged("duplicates", 0.9)) < set(self.arranged("duplicates", 0.5))

    def test_features_are_arranged_as_the_volumes_they_belong_to(self, volumes):
        for damage in SET_DAMAGES.values():
            pool = volumes[::-1] + 0.25
            whole = rearrange(damage, volumes, pool, 0.5, rng())
            means = rearrange(damage, volumes.mean((1, 2, 3)), pool.mean((1, 2, 3)), 0.5, rng())
            np.testing.assert_array_equal(whole.mean((1, 2, 3)), means)

    def test_too_small_a_pool_is_an_error(self):
        with pytest.raises(ValueError, match="holds 3 volumes, 20 are needed"):
            self.arranged("mixture", 0.5, pool=3)
