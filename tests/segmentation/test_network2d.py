"""The 2D network against torchvision's encoder and a slice-by-slice loop."""

import importlib

import pytest
import torch

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.segmentation.network2d import Network2DConfig, SliceSegmenter, load_resnet, neighbours

CONFIG = {"labels": (0, 2, 5), "shape": (4, 64, 32), "layers": (1, 1, 1, 1), "width": 8}


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return SliceSegmenter(Network2DConfig(**CONFIG)).eval()


def test_neighbours_are_below_itself_above_and_the_ends_are_repeated():
    volumes = torch.arange(2 * 4.0).reshape(2, 1, 4, 1, 1).expand(-1, -1, -1, 2, 3)
    found = neighbours(volumes, 3)[..., 0, 0]
    assert found.tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3], [4, 4, 5], [4, 5, 6], [5, 6, 7], [6, 7, 7]]
    assert neighbours(volumes, 5)[0, :, 0, 0].tolist() == [0, 0, 0, 1, 2]


def test_a_volume_is_segmented_slice_by_slice(segmenter):
    volumes = torch.randn(2, 1, 4, 64, 32)
    with torch.no_grad():
        found = segmenter.predict(volumes)
        assert found.shape == (2, 3, 4, 64, 32)
        for n, d in ((0, 0), (1, 2)):
            stack = torch.stack([volumes[n, 0, max(d - 1, 0)], volumes[n, 0, d], volumes[n, 0, d + 1]])
            torch.testing.assert_close(found[n, :, d], segmenter(stack[None])[0], rtol=1e-4, atol=1e-4)


def test_the_encoder_is_torchvisions(segmenter, tmp_path):
    importlib.import_module("splitshuffle_gan.metrics.fidelity")  # knows how to import torchvision beside any torch
    resnet = importlib.import_module("torchvision.models.resnet")
    torch.manual_seed(1)
    theirs = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1]).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    ours = SliceSegmenter(segmenter.config).eval()
    load_resnet(ours, tmp_path / "resnet.pth")
    images = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        for found, stage in zip(ours.features(images)[1:], (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4),
                                strict=True):  # fmt: skip
            x = stage(x)
            torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_weights_that_do_not_fit_the_encoder_are_refused(segmenter, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.zeros(64, 1, 7, 7)}, path)
    with pytest.raises(UserError, match=r"weights.pth.*layers and slices that fit"):
        load_resnet(segmenter, path)
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match="weights.pth"):
        load_resnet(segmenter, path)


def test_scale_magnifies_inside_and_gives_logits_on_the_images_own_grid():
    torch.manual_seed(0)
    segmenter = SliceSegmenter(Network2DConfig(**CONFIG | {"scale": (2, 4), "slices": 1})).eval()
    seen = []
    segmenter.encoder.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    with torch.no_grad():
        assert segmenter(torch.randn(1, 1, 20, 9)).shape == (1, 3, 20, 9)
    assert seen == [(1, 1, 40, 36)]


def test_a_checkpoint_comes_back(segmenter, tmp_path):
    segmenter.save_pretrained(tmp_path / "network")
    again = SliceSegmenter.from_pretrained(tmp_path / "network")
    assert again.config == segmenter.config
    images = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(again(images), segmenter(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slices": 2}, "slices: found 2, an odd number"),
        ({"labels": (1, 2)}, "labels: found"),
        ({"labels": (0,)}, "labels: found"),
        ({"labels": (0, 300)}, "labels: found"),
        ({"layers": (1, 1, 1)}, "layers: found"),
        ({"scale": (0, 1)}, "scale: found"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        Network2DConfig(**CONFIG | change)
