"""Label maps as channels, and back."""

import numpy as np
import pytest

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.label_channels import from_channels, structures_of, to_channels
from splitshuffle_gan.volume import check_geometry

GEOMETRY = {
    "spacing": [1.0, 1.0, 1.0],
    "plane": "axial",
    "affine": np.eye(4).tolist(),
    "intensity": {"kind": "window", "low": 0.0, "high": 1.0},
}


def test_each_structure_has_a_channel_of_its_own():
    labels = np.array([[0, 2], [5, 2]], np.uint8)
    channels = to_channels(labels, (2, 5, 9))
    assert channels.dtype == np.float32
    np.testing.assert_array_equal(channels[0], [[-1, 1], [-1, 1]])
    np.testing.assert_array_equal(channels[1], [[-1, -1], [1, -1]])
    np.testing.assert_array_equal(channels[2], [[-1, -1], [-1, -1]])


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
    edge = to_channels(np.array([0, 0, 2, 2], np.uint8), (1, 2))
    fine = np.stack([np.interp(np.linspace(0, 3, 31), range(4), channel) for channel in edge])
    assert set(from_channels(fine, (1, 2)).tolist()) == {0, 2}


def test_a_geometry_says_which_labels():
    assert structures_of(None) == structures_of(GEOMETRY) == ()
    assert structures_of(check_geometry(GEOMETRY | {"labels": [2, 5]}, "it")) == (2, 5)
    for labels in ([], [0, 1], [2, 1], [1, 1], [1, 256], [1.0], "12", None, [True]):
        with pytest.raises(UserError, match="config.json: geometry has labels"):
            check_geometry(GEOMETRY | {"labels": labels}, "config.json")
