"""Heat maps against their formula, lesions against lists of voxels, peaks at places that are known."""

import math

import numpy as np
import pytest

from splitshuffle_gan.segmentation.lesions import find_peaks, heat_map, lesion_centres, number_lesions

SPACING = (4.5, 3.0, 2.0)


def test_a_heat_map_is_the_gaussian_of_the_distance_in_mm_to_the_nearest_centre():
    centres = np.array([[1.0, 2.0, 3.0], [3.25, 5.5, 0.75], [-1.0, 4.0, 9.0]])
    heat = heat_map(centres, (5, 7, 6), SPACING, sigma=4.0)
    assert heat.dtype == np.float32 and heat.shape == (5, 7, 6)
    for voxel in np.ndindex(heat.shape):
        mm = [math.dist([v * s for v, s in zip(voxel, SPACING, strict=True)], centre * SPACING) for centre in centres]
        assert heat[voxel] == pytest.approx(math.exp(-(min(mm) ** 2) / 32), rel=1e-5, abs=1e-9)
    assert heat[1, 2, 3] == 1
    assert not heat_map(np.zeros((0, 3)), (5, 7, 6), SPACING, 4.0).any()


def test_lesions_are_what_touches_be_it_at_a_corner():
    groups = [[(0, 0, 0), (1, 1, 1)], [(0, 3, 0), (0, 3, 1), (0, 3, 2)], [(3, 0, 4)]]
    mask = np.zeros((4, 5, 6), np.uint8)
    for voxel in sum(groups, []):
        mask[voxel] = 1
    lesions = number_lesions(mask)
    assert lesions.max() == 3 and np.array_equal(lesions > 0, mask > 0)
    numbers = [{int(lesions[voxel]) for voxel in group} for group in groups]
    assert sorted(len(number) for number in numbers) == [1, 1, 1] and len(set().union(*numbers)) == 3
    centres = {tuple(centre) for centre in lesion_centres(lesions)}
    assert centres == {tuple(np.mean(group, axis=0)) for group in groups}
    assert lesion_centres(np.zeros_like(lesions)).shape == (0, 3)


def test_peaks_are_the_voxels_nearest_to_the_centres():
    centres = np.array([[2.2, 3.1, 4.0], [6.0, 10.4, 12.8], [9.9, 2.0, 15.0]])
    voxels, heights = find_peaks(heat_map(centres, (12, 14, 18), SPACING, 4.0), SPACING, apart=4.0)
    assert {tuple(voxel) for voxel in voxels} == {(2, 3, 4), (6, 10, 13), (10, 2, 15)}
    assert list(heights) == sorted(heights, reverse=True)
    for voxel, height in zip(voxels, heights, strict=True):
        nearest = np.linalg.norm((centres - voxel) * SPACING, axis=1).min()
        assert height == pytest.approx(math.exp(-(nearest**2) / 32), rel=1e-5)


def test_a_lower_peak_is_passed_over_within_a_distance_in_mm():
    heat = np.zeros((9, 9, 9), np.float32)
    heat[4, 4, 4] = 0.9
    heat[6, 4, 4] = 0.8  # 9 mm away, through the slices
    heat[4, 4, 6] = 0.7  # 4 mm away, in the slice
    heat[4, 4, 8] = 0.6  # 4 mm from what is passed over, 8 mm from the highest
    for apart, wanted in ((0.0, 4), (4.0, 3), (7.9, 3), (8.0, 2), (9.0, 1)):
        voxels, heights = find_peaks(heat, SPACING, apart)
        assert len(voxels) == wanted, apart
        assert tuple(voxels[0]) == (4, 4, 4)
    assert find_peaks(heat, SPACING, 4.0)[1] == pytest.approx([0.9, 0.8, 0.6])


def test_only_so_many_peaks_and_none_that_is_low_or_a_flank():
    heat = heat_map(np.array([[4.0, 4.0, 4.0], [4.0, 15.0, 4.0]]), (9, 20, 9), (1, 1, 1), 3.0)
    heat[:, 10:] *= 0.05
    assert len(find_peaks(heat, (1, 1, 1), 1.0)[0]) == 2
    assert [tuple(voxel) for voxel in find_peaks(heat, (1, 1, 1), 1.0, least=0.06)[0]] == [(4, 4, 4)]
    assert [tuple(voxel) for voxel in find_peaks(heat, (1, 1, 1), 1.0, most=1)[0]] == [(4, 4, 4)]
    assert find_peaks(np.zeros((5, 5, 5), np.float32), (1, 1, 1), 1.0)[0].shape == (0, 3)


def test_a_plateau_is_one_peak_in_its_middle():
    heat = np.zeros((6, 9, 9), np.float32)
    heat[2, 3:6, 2:7] = 1  # as where a sigmoid is 1 to the last bit
    heat[5, 8, 8] = 0.5
    voxels, heights = find_peaks(heat, SPACING, apart=1.0)
    assert voxels.tolist() == [[2, 4, 4], [5, 8, 8]] and heights.tolist() == [1, 0.5]
    assert find_peaks(np.full((5, 5, 5), 0.5, np.float32), SPACING, 1.0)[0].tolist() == [[2, 2, 2]]


def test_the_peak_of_a_ring_is_on_the_ring():
    heat = np.full((1, 9, 9), 0.05, np.float32)
    heat[0, 1:8, 1:8] = 1
    heat[0, 2:7, 2:7] = 0.05
    voxels, heights = find_peaks(heat, SPACING, apart=1.0)
    assert heat[tuple(voxels[0])] == heights[0] == 1 and np.abs(voxels[0, 1:] - 4).max() == 3
