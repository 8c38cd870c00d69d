"""Grids in and out, against shapes and values written down by hand."""

import pytest
import torch

from splitshuffle_gan.segmentation.framing import bring_back, magnify, pad_to


def test_padding_repeats_the_border_and_is_cropped_again():
    image = torch.arange(6.0).reshape(1, 1, 2, 3)
    padded = pad_to(image, (5, 4))
    assert padded[0, 0].tolist() == [[0, 1, 2, 2]] * 2 + [[3, 4, 5, 5]] * 3
    assert torch.equal(bring_back(padded, (2, 3), (1, 1)), image)


@pytest.mark.parametrize("scale", [(2, 2, 2), (1, 2, 2), (3, 1, 2)])
def test_a_linear_image_comes_back_after_magnifying_and_padding(scale):
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in (5, 6, 7)], indexing="ij")
    image = (axes[0] + 10 * axes[1] - 3 * axes[2])[None, None]
    large = magnify(image, scale)
    assert large.shape[2:] == tuple(n * factor for n, factor in zip((5, 6, 7), scale, strict=True))
    back = bring_back(pad_to(large, (32, 32, 32)), (5, 6, 7), scale)
    # Beyond the outermost voxel centres magnifying repeats them, so the border is not linear.
    inside = (slice(None), slice(None), *[slice(1, -1)] * 3)
    torch.testing.assert_close(back[inside], image[inside])


def test_every_axis_is_magnified_by_its_own_factor():
    image = torch.rand(1, 1, 3, 4, 5)
    assert torch.equal(magnify(image, (1, 1, 1)), image)
    along = magnify(image, (1, 1, 2))
    torch.testing.assert_close(along[..., 1], 0.75 * image[..., 0] + 0.25 * image[..., 1])
