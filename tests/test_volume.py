"""Geometry and intensities of a volume in memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.volume import (
    PLANES,
    IntensityMap,
    Volume,
    from_xyz,
    grid_affine,
    grid_centre,
    plane_axes,
    to_xyz,
)

# RAS unit vectors along D, H and W, written out by hand from the definition of the planes.
R, A, S = (1, 0, 0), (0, 1, 0), (0, 0, 1)
DIRECTIONS = {"axial": (S, A, R), "coronal": (A, S, R), "sagittal": (R, S, A)}


@pytest.mark.parametrize("plane", PLANES)
def test_a_grid_points_where_its_plane_says(plane):
    affine = grid_affine((4, 6, 8), (3.0, 2.0, 1.0), plane)
    for axis, (direction, length) in enumerate(zip(DIRECTIONS[plane], (3.0, 2.0, 1.0), strict=True)):
        np.testing.assert_allclose(affine[:3, axis], np.multiply(direction, length))


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("shape", [(4, 6, 8), (1, 5, 7)])
def test_the_middle_of_a_grid_is_where_it_was_asked_for(plane, shape):
    affine = grid_affine(shape, (3.0, 2.0, 0.5), plane, (10.0, -20.0, 30.0))
    corners = [affine @ [d, h, w, 1] for d in (0, shape[0] - 1) for h in (0, shape[1] - 1) for w in (0, shape[2] - 1)]
    np.testing.assert_allclose(np.mean(corners, axis=0)[:3], (10, -20, 30))
    np.testing.assert_allclose(grid_centre(affine, shape), (10, -20, 30))
    assert Volume(np.zeros((1, *shape)), affine).spacing == pytest.approx((3, 2, 0.5))


@pytest.mark.parametrize("plane", PLANES)
def test_every_voxel_keeps_its_place_in_the_patient(plane):
    rng = np.random.default_rng(0)
    # Each voxel's value is its own RAS x + 100 y + 10000 z, under a sheared, rotated affine.
    xyz_affine = np.eye(4) + 0.1 * rng.normal(size=(4, 4)) * [[1], [1], [1], [0]]
    index = np.moveaxis(np.indices((3, 4, 5)), 0, -1)
    values = (index @ xyz_affine[:3, :3].T + xyz_affine[:3, 3]) @ [1, 100, 10000]
    volume = from_xyz(values, xyz_affine, plane)
    for dhw in [(0, 0, 0), (1, 2, 1), (2, 2, 2)]:
        x, y, z = (volume.affine @ [*dhw, 1])[:3]
        assert volume.array[0][dhw] == pytest.approx(x + 100 * y + 10000 * z, rel=1e-5)
    array, affine = to_xyz(volume, plane)
    np.testing.assert_array_equal(array, values.astype(np.float32))
    np.testing.assert_allclose(affine, xyz_affine)


def test_a_volume_is_float32_and_refuses_what_is_none():
    volume = Volume(np.zeros((1, 2, 3, 4), np.uint8), np.eye(4))
    assert volume.array.dtype == np.float32
    assert volume.shape == (2, 3, 4)
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        Volume(np.zeros((2, 3, 4)), np.eye(4))
    with pytest.raises(ValueError, match="affine"):
        Volume(np.zeros((1, 2, 3, 4)), np.diag([1, 1, 0, 1]))
    with pytest.raises(ValueError, match="one channel"):
        to_xyz(Volume(np.zeros((2, 2, 3, 4)), np.eye(4)), "axial")


def test_an_unknown_plane_is_named():
    with pytest.raises(UserError, match="'oblique'.*axial, coronal, sagittal"):
        plane_axes("oblique")


def test_a_ct_window_maps_to_the_unit_range():
    window = IntensityMap("window", -250, 650)
    np.testing.assert_allclose(window.to_unit(np.array([-1024, -250, 200, 650, 3000])), [-1, -1, 0, 1, 1])
    np.testing.assert_allclose(window.from_unit(np.array([-1, 0, 1])), [-250, 200, 650])


@given(
    low=st.floats(-1e6, 1e6),
    width=st.floats(1e-3, 1e6),
    part=st.lists(st.floats(0, 1), min_size=1, max_size=20),
)
def test_intensities_come_back(low, width, part):
    bounds = IntensityMap("percentiles", low, low + width)
    values = low + width * np.array(part)
    unit = bounds.to_unit(values)
    assert unit.dtype == np.float32
    assert unit.min() >= -1 and unit.max() <= 1
    np.testing.assert_allclose(bounds.from_unit(unit), values, atol=1e-6 * (abs(low) + width))


@pytest.mark.parametrize("low, high", [(1, 1), (2, 1), (float("nan"), 1), (0, float("inf"))])
def test_bounds_out_of_order_are_refused(low, high):
    with pytest.raises(UserError, match="window: low"):
        IntensityMap("window", low, high)


def test_an_unknown_kind_of_bounds_is_refused():
    with pytest.raises(UserError, match="'zscore'"):
        IntensityMap("zscore", 0, 1)
