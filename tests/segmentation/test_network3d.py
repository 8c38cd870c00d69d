"""The 3D network against MONAI's own `AHNet`, axes and size rules included."""

import json

import pytest
import torch
from monai.networks.nets import AHNet

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.segmentation.network3d import (
    Network3DConfig,
    VolumeSegmenter,
    fitting_size,
    most_psp_blocks,
)

CONFIG = {"labels": (0, 1, 4), "shape": (32, 64, 32), "layers": (1, 1, 1, 1), "psp_blocks": 2}


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return VolumeSegmenter(Network3DConfig(**CONFIG)).eval()


def monai_network(upsample="trilinear", psp_blocks=2):
    torch.manual_seed(0)
    return AHNet(layers=(1, 1, 1, 1), out_channels=3, psp_block_num=psp_blocks, upsample_mode=upsample)


def test_it_is_monais_network_with_the_depth_first(segmenter):
    theirs = monai_network().eval()
    theirs.load_state_dict(segmenter.body.state_dict())
    volumes = torch.randn(1, 1, 32, 64, 32)
    volumes[:, :, [0, -1]] = 0  # so that repeating the end slices is padding with zeros, as MONAI does
    with torch.no_grad():
        wanted = theirs(volumes.movedim(2, -1)).movedim(-1, 2)
        # Untrained, it gives logits of 1e5 and more.
        torch.testing.assert_close(segmenter(volumes), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_the_first_axis_is_the_one_through_the_slices(segmenter):
    kernel = segmenter.body.conv1.weight
    assert kernel.shape[2:] == (7, 7, 3)
    sizes = []
    hook = segmenter.body.conv1.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    with torch.no_grad():
        segmenter(torch.zeros(1, 1, 32, 64, 96))
    hook.remove()
    assert sizes == [(64, 96, 32 + 2)]  # H, W, D and a repeated slice at either end


@pytest.mark.parametrize("upsample", ["trilinear", "transpose"])
@pytest.mark.parametrize("size", [(32, 64, 32), (32, 32, 32), (48, 64, 32), (32, 48, 64), (64, 32, 96), (32, 64, 64)])
def test_sizes_fit_exactly_where_monais_network_trains(upsample, size):
    theirs = monai_network(upsample, psp_blocks=3).train()
    try:
        with torch.no_grad():
            runs = theirs(torch.zeros(1, 1, *size).movedim(2, -1)).shape[2:] == (*size[1:], size[0])
    except (RuntimeError, ValueError):
        runs = False
    assert runs == (fitting_size(size, 3, upsample) == size)


def test_the_smallest_size_that_holds_a_volume():
    assert fitting_size((32, 96, 64), 3, "trilinear") == (32, 96, 64)
    assert fitting_size((20, 48, 33), 0, "trilinear") == (32, 64, 64)
    assert fitting_size((20, 20, 30), 0, "nearest") == (32, 32, 64)  # one axis of 64
    assert fitting_size((33, 65, 64), 3, "transpose") == (64, 128, 64)
    assert fitting_size((32, 100, 100), 4, "trilinear") == (32, 128, 128)


def test_as_much_pyramid_pooling_as_costs_no_padding():
    assert most_psp_blocks((32, 48, 32), (1, 2, 2), "trilinear") == 3
    assert most_psp_blocks((32, 128, 256), (1, 1, 1), "trilinear") == 4
    assert most_psp_blocks((32, 96, 64), (1, 1, 1), "transpose") == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": (32, 48, 32)}, ["H is 48", "multiple of 32", "nearest that fits is 32x64x32", "pad", "scale"]),
        ({"shape": (20, 64, 64)}, ["D is 20, must be at least 32", "32x64x64"]),
        ({"shape": (32, 32, 32)}, ["one axis must be at least 64", "64x32x32"]),
        ({"shape": (8, 40, 32), "scale": (4, 2, 2)}, ["scaled to 32x80x64", "nearest that fits is 8x48x32"]),
        ({"shape": (32, 64, 64), "psp_blocks": 4}, ["W is 64, must be at least 128", "32x128x128"]),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_the_nearest_that_does(change, words):
    with pytest.raises(UserError) as caught:
        Network3DConfig(**CONFIG | change)
    assert all(word in str(caught.value) for word in words), caught.value


def test_pad_and_scale_take_small_volumes_and_give_logits_on_their_grid():
    torch.manual_seed(0)
    config = Network3DConfig(**CONFIG | {"shape": (8, 40, 30), "scale": (2, 1, 2), "pad": True, "psp_blocks": 0})
    assert config.inner_size((8, 40, 30)) == (32, 64, 64)
    segmenter = VolumeSegmenter(config).eval()
    with torch.no_grad():
        assert segmenter(torch.randn(1, 1, 8, 40, 30)).shape == (1, 3, 8, 40, 30)


def test_the_grid_is_checked_at_the_call_too(segmenter):
    with pytest.raises(UserError, match="D is 16"):
        segmenter(torch.zeros(1, 1, 16, 64, 32))


def test_a_checkpoint_comes_back_and_is_strict(segmenter, tmp_path):
    segmenter.save_pretrained(tmp_path)
    again = VolumeSegmenter.from_pretrained(tmp_path)
    assert again.config == segmenter.config
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in segmenter.state_dict().items())
    header = json.loads((tmp_path / "config.json").read_text())
    header["config"]["depth"] = 3
    (tmp_path / "config.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match="unknown field depth"):
        VolumeSegmenter.from_pretrained(tmp_path)
