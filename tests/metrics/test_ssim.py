"""Multi-scale similarity against MONAI's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics.regression import compute_ms_ssim
from scipy.ndimage import gaussian_filter

from splitshuffle_gan.metrics.resampling import TooFewSamples
from splitshuffle_gan.metrics.ssim import WEIGHTS, disjoint_pairs, diversity, ms_ssim, settings_for


def smooth_volumes(n: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Blobs in [-1, 1] that share their layout to some degree."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(n, *shape)) + rng.normal(size=shape)
    smooth = np.stack([gaussian_filter(volume, 2) for volume in noise])
    return np.clip(smooth / (2 * smooth.std()), -1, 1).astype(np.float32)


@pytest.mark.parametrize("shape", [(32, 48, 32), (16, 24, 20), (8, 9, 10), (5, 7, 6), (3, 4, 3), (48, 44, 45)])
def test_agrees_with_monai(shape):
    volumes = smooth_volumes(6, shape)
    how = settings_for(shape)
    pair = (torch.from_numpy(volumes[side])[:, None] for side in (slice(0, 3), slice(3, 6)))
    truth = compute_ms_ssim(
        *pair, 3, 2.0, kernel_size=how.kernel_size, kernel_sigma=how.kernel_sigma, weights=how.weights
    )
    found = ms_ssim(volumes[:3], volumes[3:])
    assert found == pytest.approx(truth[:, 0].numpy(), abs=1e-5)
    assert found.max() > 0.01


@pytest.mark.parametrize(
    ("shape", "kernel_size", "scales"),
    [
        ((32, 48, 32), 11, 2),
        ((22, 64, 64), 11, 2),
        ((21, 64, 64), 9, 2),
        ((16, 16, 16), 7, 2),
        ((6, 9, 9), 3, 2),
        ((5, 9, 9), 5, 1),
        ((3, 9, 9), 3, 1),
        ((44, 44, 44), 11, 3),
        ((88, 99, 88), 11, 3),
        ((99, 99, 120), 11, 4),
        ((400, 400, 400), 11, 5),
    ],
)
def test_settings_fit_the_shape(shape, kernel_size, scales):
    found = settings_for(shape)
    assert (found.kernel_size, len(found.weights)) == (kernel_size, scales)
    assert found.kernel_sigma == pytest.approx(1.5 * kernel_size / 11)
    assert sum(found.weights) == pytest.approx(1)
    assert np.array(found.weights) / found.weights[0] == pytest.approx(np.array(WEIGHTS[:scales]) / WEIGHTS[0])


@given(st.tuples(*[st.integers(3, 40)] * 3))
@settings(deadline=None, max_examples=25)
def test_every_shape_that_has_settings_can_be_scored(shape):
    volume = np.random.default_rng(0).uniform(-1, 1, (1, *shape)).astype(np.float32)
    assert ms_ssim(volume, volume) == pytest.approx([1], abs=1e-5)


def test_a_side_too_short_is_said():
    with pytest.raises(TooFewSamples, match=r"3 voxels along each side, the volumes are \(2, 30, 30\)"):
        settings_for((2, 30, 30))


def test_symmetric_and_lower_for_more_noise():
    volumes = smooth_volumes(2, (24, 24, 24))
    assert ms_ssim(volumes[:1], volumes[1:]) == pytest.approx(ms_ssim(volumes[1:], volumes[:1]))
    noise = np.random.default_rng(1).normal(size=volumes.shape).astype(np.float32)
    values = [ms_ssim(volumes, np.clip(volumes + level * noise, -1, 1)).mean() for level in (0, 0.1, 0.3, 1)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert values[3] < 0.7


def test_inverted_structure_and_constant_volumes_are_finite():
    volume = smooth_volumes(1, (24, 24, 24))
    assert ms_ssim(volume, -volume).tolist() == [0]
    flat = np.full_like(volume, -1)
    assert ms_ssim(flat, flat) == pytest.approx([1], abs=1e-5)
    assert np.isfinite(ms_ssim(flat, volume)).all()


def test_bad_volumes_are_refused():
    volumes = smooth_volumes(2, (8, 8, 8))
    with pytest.raises(ValueError, match="one shape"):
        ms_ssim(volumes, volumes[:, :7])
    volumes[0, 3, 3, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        ms_ssim(volumes, volumes)


@given(n=st.integers(2, 60), seed=st.integers(0, 1000))
def test_pairs_share_no_volume(n, seed):
    pairs = disjoint_pairs(n, seed)
    assert pairs.shape == (n // 2, 2)
    assert len(set(pairs.ravel().tolist())) == pairs.size
    assert 0 <= pairs.min() <= pairs.max() < n


def test_pairs_are_drawn_evenly_and_repeat():
    assert disjoint_pairs(50, 0).tolist() == disjoint_pairs(50, 0).tolist() != disjoint_pairs(50, 1).tolist()
    partners = [frozenset(pair) for seed in range(600) for pair in disjoint_pairs(4, seed).tolist()]
    counts = [partners.count(frozenset(pair)) for pair in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))]
    assert counts == pytest.approx([200] * 6, rel=0.25)
    with pytest.raises(TooFewSamples, match="there are 1"):
        disjoint_pairs(1, 0)


class OneByOne:
    """Volumes that can only be had singly, as those of a dataset."""

    def __init__(self, volumes):
        self.volumes = volumes

    def __len__(self):
        return len(self.volumes)

    def __getitem__(self, index):
        assert isinstance(index, int)
        return self.volumes[index]


def test_diversity_is_the_similarity_of_each_pair_in_any_batch():
    volumes = smooth_volumes(5, (16, 16, 16))
    pairs = np.array([[0, 1], [2, 4], [3, 0], [1, 2], [4, 3]])
    single = [ms_ssim(volumes[i : i + 1], volumes[j : j + 1])[0] for i, j in pairs]
    for batch in (1, 3, 100):
        assert diversity(OneByOne(volumes), pairs, batch) == pytest.approx(single, abs=1e-6)


def test_diversity_is_one_where_all_volumes_are_the_same():
    volumes = np.repeat(smooth_volumes(1, (16, 16, 16)), 4, axis=0)
    pairs = np.array([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]])
    assert diversity(volumes, pairs) == pytest.approx(np.ones(6), abs=1e-6)
    assert diversity(smooth_volumes(4, (16, 16, 16)), pairs).mean() < 0.9
