"""Label maps as channels, and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.label_channels import REACH, from_channels, structures_of, to_channels
from splitshuffle_gan.volume import check_geometry

GEOMETRY = {
    "spacing": [1.0, 1.0, 1.0],
    "plane": "axial",
    "affine": np.eye(4).tolist(),
    "intensity": {"kind": "window", "low": 0.0, "high": 1.0},
}


def test_each_structure_has_a_channel_of_its_own_that_rises_to_the_inside():
    labels = np.zeros((2, 9, 12), np.uint8)
    labels[0, :, 5:], labels[0, :, 10:] = 2, 5
    channels = to_channels(labels, (2, 5, 9))
    assert channels.dtype == np.float32 and channels.shape == (3, 2, 9, 12)
    steps = np.array([-6, -6, -5, -3, -1, 1, 3, 5, 3, 1, -1, -3]) / 6  # half a pixel of 3 at the border, then more
    np.testing.assert_allclose(channels[0, 0], np.tile(steps, (9, 1)), atol=1e-6)
    np.testing.assert_allclose(channels[1, 0, 0, -5:], np.array([-5, -3, -1, 1, 3]) / 6, atol=1e-6)
    assert (channels[2] == -1).all() and (channels[:, 1] == -1).all()  # not there; only in another slice
    assert (to_channels(np.full((2, 3), 9, np.uint8), (9,)) == 1).all()


@given(
    labels=arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.sampled_from([0, 0, 0, 3]))
)
def test_it_is_the_distance_to_the_nearest_pixel_that_is_other(labels):
    channel = to_channels(labels, (3,))[0]
    rows, columns = np.indices(labels.shape)
    for at in np.ndindex(labels.shape):
        others = labels != labels[at]
        far = np.sqrt((rows[others] - at[0]) ** 2 + (columns[others] - at[1]) ** 2).min(initial=np.inf) - 0.5
        assert channel[at] == pytest.approx((1 if labels[at] else -1) * min(far / REACH, 1), abs=1e-6)


def test_a_slice_of_a_volume_is_the_slice():
    labels = np.random.default_rng(1).integers(0, 3, (4, 9, 8)).astype(np.uint8)
    volume = to_channels(labels, (1, 2))
    for depth in range(4):
        np.testing.assert_array_equal(volume[:, depth], to_channels(labels[depth], (1, 2)))


@pytest.mark.parametrize("shape", [(6, 7), (4, 5, 6)])
def test_there_and_back(shape):
    structures = (1, 4, 255)
    labels = np.random.default_rng(0).choice(np.array([0, *structures], np.uint8), shape)
    found = from_channels(to_channels(labels, structures), structures)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, labels)


def test_the_greatest_above_zero_wins_whatever_the_values():
    channels = np.array([[-3.0, 0.2, 2.0, 0.0, 1.5], [-0.1, 0.1, 7.0, -1.0, 1.5]], np.float32)
    assert from_channels(channels, (3, 8)).tolist() == [0, 3, 8, 0, 3]


def test_no_rim_between_a_structure_and_the_background():
    """Half-way between two voxels of 0 and 2 lies neither a 1 of an ordinal map nor another structure."""
    edge = to_channels(np.array([[0, 0, 2, 2]], np.uint8), (1, 2))[:, 0]
    fine = np.stack([np.interp(np.linspace(0, 3, 31), range(4), channel) for channel in edge])
    assert set(from_channels(fine, (1, 2)).tolist()) == {0, 2}


def test_a_geometry_says_which_labels():
    assert structures_of(None) == structures_of(GEOMETRY) == ()
    assert structures_of(check_geometry(GEOMETRY | {"labels": [2, 5]}, "it")) == (2, 5)
    for labels in ([], [0, 1], [2, 1], [1, 1], [1, 256], [1.0], "12", None, [True]):
        with pytest.raises(UserError, match="config.json: geometry has labels"):
            check_geometry(GEOMETRY | {"labels": labels}, "config.json")
