"""Batches against the dataset's own arrays."""

import numpy as np
import pytest

from splitshuffle_gan.segmentation.batches import Cases, place_window
from splitshuffle_gan.segmentation.lesions import heat_map
from splitshuffle_gan.segmentation.network2d import Network2DConfig
from splitshuffle_gan.segmentation.network3d import Network3DConfig
from splitshuffle_gan.segmentation.segmenter import labels_of, open_labelled

SMALLEST = (1, 1, 1, 1)


@pytest.fixture
def dataset(balls):
    return open_labelled(balls.train)


def rng():
    return np.random.default_rng(0)


def test_slices_come_with_their_neighbours_and_their_own_labels(dataset):
    cases = Cases(dataset, Network2DConfig(labels=labels_of(dataset), shape=dataset.shape, layers=SMALLEST))
    assert len(cases) == np.count_nonzero(dataset.volumes[:].std(axis=(1, 3, 4)) > 0)
    for item in (0, len(cases) - 1):
        row, depth = cases.index[item]
        images, classes = cases.batch([item], rng())
        volume, last = dataset.volumes[row][0], dataset.shape[0] - 1
        wanted = np.stack([volume[max(depth - 1, 0)], volume[depth], volume[min(depth + 1, last)]])
        assert np.array_equal(images[0], wanted)
        assert np.array_equal(np.array(labels_of(dataset))[classes[0, 0]], dataset.labels[row][0, depth])


def test_volumes_come_whole(dataset):
    config = Network3DConfig(labels=labels_of(dataset), shape=dataset.shape, layers=SMALLEST, pad=True)
    images, classes = Cases(dataset, config).batch([2, 0], rng())
    assert np.array_equal(images, np.stack([dataset.volumes[2], dataset.volumes[0]]))
    assert classes.unique().tolist() == [0, 1, 2]
    assert np.array_equal(classes[0] > 0, dataset.labels[2] > 0)


def test_windows_lie_inside_and_image_and_labels_are_cut_alike(dataset):
    config = Network3DConfig(labels=labels_of(dataset), shape=(4, 16, 24), layers=SMALLEST, pad=True)
    images, classes = Cases(dataset, config).batch([0] * 8, rng())
    assert images.shape == (8, 1, 4, 16, 24) and classes.shape == images.shape
    # Balls are brighter than air by far, whatever the window.
    assert images[classes > 0].min() > images[classes == 0].mean()


def test_windows_of_slices(dataset):
    config = Network2DConfig(labels=labels_of(dataset), shape=(8, 16, 24), layers=SMALLEST)
    images, classes = Cases(dataset, config).batch([0, 1], rng())
    assert images.shape == (2, 3, 16, 24) and classes.shape == (2, 1, 16, 24)


def test_half_of_the_windows_are_over_a_label_wherever_it_is():
    labels, random = np.zeros((10, 40, 40), np.uint8), rng()
    labels[9, 0, 39] = 3
    hits = sum(labels[place_window(labels, (4, 8, 8), random)].any() for _ in range(400))
    assert 160 < hits < 240
    assert place_window(labels, (10, 40, 40), random) == (slice(None),) * 3
    starts = {place_window(np.zeros((3, 3)), (2, 3), random)[0].start for _ in range(40)}
    assert starts == {0, 1}  # no label anywhere: anywhere


def test_heat_maps_are_about_the_middles_of_lesions_in_slices_and_windows_as_in_volumes(dataset):
    rows, sigma = range(len(dataset)), 3.0
    middles = [np.argwhere(dataset.labels[row][0] == 5).mean(0) for row in rows]
    wanted = np.stack([heat_map(middle[None], dataset.shape, dataset.spacing, sigma)[None] for middle in middles])
    config = Network3DConfig(labels=(0, 5), shape=dataset.shape, layers=SMALLEST, pad=True, sigma=sigma)
    images, heat = Cases(dataset, config).batch(list(rows), rng())
    assert np.array_equal(images, dataset.volumes[:]) and heat.dtype.is_floating_point
    assert np.allclose(heat, wanted)
    slices = Cases(dataset, Network2DConfig(labels=(0, 5), shape=dataset.shape, layers=SMALLEST, sigma=sigma))
    for item in (0, 3, len(slices) - 1):
        row, depth = slices.index[item]
        assert np.allclose(slices.batch([item], rng())[1][0], wanted[row, :, depth])
    window = Network3DConfig(labels=(0, 5), shape=(4, 16, 16), layers=SMALLEST, pad=True, sigma=sigma)
    images, heat = Cases(dataset, window).batch([1], rng())
    views = np.lib.stride_tricks.sliding_window_view(dataset.volumes[1][0], (4, 16, 16))
    start = np.argwhere(np.all(views == images[0, 0].numpy(), axis=(3, 4, 5)))[0]
    cut = tuple(slice(a, a + n) for a, n in zip(start, (4, 16, 16), strict=True))
    assert np.allclose(heat[0, 0], wanted[1, 0][cut])
