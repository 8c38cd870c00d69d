"""Augmentation of images with their label maps: both move alike, only images change in intensity."""

import pytest
import torch

from splitshuffle_gan.segmentation.augment import augment_pairs
from splitshuffle_gan.training.augment import AugmentConfig

STILL = {"translate": 0.0, "translate_depth": 0.0, "rotate": 0.0, "scale": 0.0}
CALM = {"gain": 0.0, "contrast": 0.0, "bias": 0.0, "noise": 0.0}


def pairs(rank, n=6, side=24):
    """Images that are their own class maps: a smooth bar in every sample, off the centre."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, side)] * rank, indexing="ij")
    classes = ((axes[-1] - 0.2).abs() < 0.3) & ((axes[-2] + 0.1).abs() < 0.6)
    classes = classes.long().expand(n, 1, *[-1] * rank)
    return classes.float().clone(), classes.clone()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rank", [2, 3])
def test_image_and_labels_move_alike(rank):
    images, classes = pairs(rank)
    moved, labels = augment_pairs(images, classes, 2, AugmentConfig(**CALM), 1.0, generator(), (1.0,) * rank)
    assert labels.dtype == torch.int64 and labels.shape == classes.shape
    assert (labels != classes).float().mean() > 0.02  # something happened
    # The image is linear in what the label's class weighs, so 1/2 parts both; ties alone may differ.
    assert ((moved > 0.5) != (labels > 0))[(moved - 0.5).abs() > 1e-4].sum() == 0


def test_nothing_changes_at_probability_0():
    images, classes = pairs(2)
    same, labels = augment_pairs(images, classes, 2, AugmentConfig(), 0.0, generator(), (1.0, 1.0))
    assert torch.equal(same, images) and torch.equal(labels, classes)


def test_contrast_and_noise_leave_the_labels_alone():
    images, classes = pairs(3)
    changed, labels = augment_pairs(images, classes, 2, AugmentConfig(**STILL), 1.0, generator(), (1.0,) * 3)
    assert torch.equal(labels, classes)
    assert (changed != images).any(dim=(1, 2, 3, 4)).all()


def test_the_generator_decides():
    images, classes = pairs(2)
    first, again, other = (
        augment_pairs(images, classes, 2, AugmentConfig(), 0.5, generator(seed), (1.0, 1.0)) for seed in (0, 0, 1)
    )
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_slices_of_a_stack_move_together():
    images, classes = pairs(2)
    stack = images.expand(-1, 3, -1, -1).clone()
    moved, _ = augment_pairs(stack, classes, 2, AugmentConfig(**CALM), 1.0, generator(), (1.0, 1.0))
    assert torch.equal(moved[:, 0], moved[:, 2])


def test_depth_is_shifted_but_never_turned():
    images, classes = pairs(3)
    config = AugmentConfig(**CALM | {"translate_depth": 0.0, "rotate": 90.0})
    moved, labels = augment_pairs(images, classes, 2, config, 1.0, generator(), (2.0, 1.0, 1.0))
    # The bar is the same in all slices; in-plane motion keeps it so.
    assert torch.equal(labels[:, :, 0], labels[:, :, -1])
    torch.testing.assert_close(moved[:, :, 0], moved[:, :, -1])


@pytest.mark.parametrize("rank", [2, 3])
def test_heat_maps_move_as_images_do(rank):
    images, _ = pairs(rank)
    moved, heat = augment_pairs(images, images.clone(), 2, AugmentConfig(**CALM), 1.0, generator(), (1.0,) * rank)
    assert (heat - images).abs().mean() > 0.01 and torch.equal(heat, moved)
