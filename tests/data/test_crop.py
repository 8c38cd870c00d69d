"""What a prepared volume is centred on."""

import numpy as np
import pytest

from splitshuffle_gan.data.crop import find_centre, fit, otsu
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.volume import IntensityMap, Volume

BOUNDS = IntensityMap("window", 0, 1000)


def scan(shape=(40, 60, 50), boxes=(), noise=10.0, spacing=(1, 1, 1)) -> Volume:
    """Faint noise with brighter boxes, each (start, stop, value)."""
    array = np.random.default_rng(0).uniform(0, noise, size=shape)
    for start, stop, value in boxes:
        array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] += value
    return Volume(array[None], np.diag([*spacing, 1.0]))


BODY = ((5, 10, 20), (26, 51, 41), 500)


def test_the_foreground_is_the_body():
    centre = find_centre("foreground", scan(boxes=[BODY]), BOUNDS, None, "scan")
    np.testing.assert_allclose(centre, (15, 30, 30))


@pytest.mark.parametrize(
    "extra",
    [((38, 58, 48), (39, 59, 49), 9000), ((0, 56, 0), (40, 57, 50), 600), ((0, 0, 0), (4, 4, 4), 900)],
    ids=["speck", "table", "marker"],
)
def test_what_is_not_the_body_does_not_move_it(extra):
    centre = find_centre("foreground", scan(boxes=[BODY, extra]), BOUNDS, None, "scan")
    np.testing.assert_allclose(centre, (15, 30, 30))


def test_padding_far_below_the_window_is_not_the_background():
    volume = scan(boxes=[BODY])
    volume.array[0, :, :5] = -2000
    np.testing.assert_allclose(find_centre("foreground", volume, BOUNDS, None, "scan"), (15, 30, 30))


def test_a_large_scan_is_looked_at_coarsely_and_a_thin_one_whole():
    big = scan((3, 300, 260), boxes=[((0, 100, 40), (3, 201, 121), 500)])
    np.testing.assert_allclose(find_centre("foreground", big, BOUNDS, None, "scan"), (1, 150, 80), atol=4)


@pytest.mark.parametrize("depth", [1, 2])
def test_thin_stacks_of_slices_are_parted_too(depth):
    body, bridge, table = [((0, *start), (depth, *stop), 500) for start, stop in [
        ((10, 10), (31, 41)), ((31, 25), (50, 26)), ((50, 0), (53, 50))
    ]]  # fmt: skip
    volume = scan((depth, 60, 50), boxes=[body, bridge, table])
    centre = find_centre("foreground", volume, BOUNDS, None, "scan")
    np.testing.assert_allclose(centre, ((depth - 1) / 2, 20, 25), atol=1)


def test_the_labels_middle_is_that_of_their_box():
    labels = np.zeros((40, 60, 50), np.uint8)
    labels[3, 4, 5] = 1
    labels[10:14, 20:31, 40] = 7
    np.testing.assert_allclose(find_centre("label", scan(), BOUNDS, labels, "scan"), (8, 17, 22.5))
    with pytest.raises(UserError, match="scan.nii: its label map is 0 everywhere"):
        find_centre("label", scan(), BOUNDS, np.zeros_like(labels), "scan.nii")


def test_otsu_parts_two_heaps():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(100, 10, 5000), rng.normal(300, 20, 2000)])
    assert 130 < otsu(values) < 250


@pytest.mark.parametrize("side", [1, 4, 9, 10, 11, 30])
@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0), (0.7, 0.7, 0.7), (2.2, 2.2, 2.2)])
@pytest.mark.parametrize("centre", [-3.0, 0.0, 2.5, 4.5, 8.75, 20.0])
def test_the_crop_takes_no_padding_that_it_can_do_without(side, spacing, centre):
    volume = scan((10, 10, 10))
    step, offset = fit(volume, (side,) * 3, spacing, np.full(3, centre))
    first, last = offset, offset + step * (side - 1)
    if step[0] * (side - 1) <= 9:
        assert first.min() >= -1e-9 and last.max() <= 9 + 1e-9
    else:
        assert first.max() <= 1e-9 and last.min() >= 9 - 1e-9 - (0.5 if spacing is None or spacing[0] == 1 else 0)
    if spacing is None:
        np.testing.assert_array_equal(offset, np.rint(offset))


def test_the_middle_is_where_it_always_was():
    volume = scan((7, 12, 9), spacing=(3, 1, 1))
    step, offset = fit(volume, (4, 4, 20), (3, 2, 1), find_centre("center", volume, BOUNDS, None, "scan"))
    np.testing.assert_array_equal(step, (1, 2, 1))
    np.testing.assert_array_equal(offset, (1, 2.5, -6))
