"""An extractor made of a Cross-D network of slices, against torch's own convolution and moments."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.catalogue import open_extractor
from splitshuffle_gan.extractors.cross_d import CarryConfig, CrossDEncoder, carry_to_volumes
from splitshuffle_gan.extractors.slice_resnet import SliceResNet, SliceResNetConfig
from splitshuffle_gan.metrics.features import extract
from splitshuffle_gan.metrics.source import from_arrays

SHAPE = (12, 16, 16)


@pytest.fixture(params=["published", "rotation"])
def slices(request, tmp_path):
    """The folder of a small 2D network, as a probe leaves it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SliceResNet(SliceResNetConfig(width=4, conv=request.param))
    network.save_pretrained(tmp_path / "pretrained" / "network")
    (tmp_path / "pretrained" / "pretrained.json").write_text('{"seed": 7}')
    return tmp_path / "pretrained" / "network"


@pytest.fixture
def datasets(tmp_path):
    """Two datasets, of other brightness and spread, of 3 and 5 volumes: their folders, and the volumes."""
    rng, folders = np.random.default_rng(0), []
    for name, count, mean, spread in (("dim", 3, 300, 40), ("bright", 5, 600, 150)):
        (tmp_path / name).mkdir()
        for number in range(count):
            noise = rng.normal(mean, spread, SHAPE[::-1]).astype(np.float32)
            nib.save(nib.Nifti1Image(noise, np.eye(4)), tmp_path / name / f"{number}.nii.gz")
        config = PrepareConfig(tmp_path / name, tmp_path / f"{name}_data", SHAPE, window=(0, 1000), workers=1)
        folders.append(prepare(config))
    return folders, [np.array(open_dataset(folder).volumes[:]) for folder in folders]


def test_kernels_are_those_of_the_slices_and_statistics_those_of_the_volumes(slices, datasets, tmp_path):
    folders, arrays = datasets
    out = carry_to_volumes(CarryConfig(network=slices, data=tuple(folders), out=tmp_path / "out"))
    flat, encoder = SliceResNet.from_pretrained(slices), CrossDEncoder.from_pretrained(out)
    kernels = {key: value for key, value in flat.state_dict().items() if value.ndim == 5}
    assert len(kernels) == 20
    for key, kernel in kernels.items():
        assert torch.equal(encoder.state_dict()[key], kernel)

    # Both sets weigh the same if the volumes of each are repeated until they are as many.
    repeated = [np.tile(array, (count, 1, 1, 1, 1)) for array, count in zip(arrays, (5, 3), strict=True)]
    volumes = torch.from_numpy(np.concatenate(repeated))
    seen = F.conv3d(volumes, flat.body.conv1.weight, stride=2, padding=1).transpose(0, 1).flatten(1)
    torch.testing.assert_close(encoder.body.bn1.running_mean, seen.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder.body.bn1.running_var, seen.var(1), rtol=1e-2, atol=0)


def test_it_serves_behind_the_contract(slices, datasets, tmp_path):
    folders, arrays = datasets
    out = carry_to_volumes(CarryConfig(network=slices, data=tuple(folders), out=tmp_path / "out", volumes=2))
    extractor = open_extractor("cross_d-resnet18", out)
    assert (extractor.rank, extractor.dimension) == (3, 32)
    features = extractor.network(torch.from_numpy(arrays[1]))
    assert features.shape == (5, 32) and (features.std(0) > 0).sum() > 16
    assert extractor.network(torch.zeros(1, 1, 20, 8, 12)).shape == (1, 32)  # another grid
    np.testing.assert_allclose(extract(from_arrays(arrays[1]), extractor), features.detach(), atol=1e-5)
    record = json.loads((out / "training.json").read_text())
    assert [entry["volumes"] for entry in record["statistics"]] == [2, 2]
    assert record["network"]["trained"] == {"seed": 7}

    weights = bytearray((out / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (out / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="tampered with or damaged"):
        open_extractor("cross_d-resnet18", out)


def test_says_what_is_missing(tmp_path, datasets):
    with pytest.raises(UserError, match="none ship for cross_d-resnet18.*splitshuffle carry.*--weights"):
        open_extractor("cross_d-resnet18")
    SliceResNet(SliceResNetConfig(width=4)).save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="network: .*plain has plain convolutions, wanted Cross-D ones"):
        carry_to_volumes(CarryConfig(network=tmp_path / "plain", data=tuple(datasets[0]), out=tmp_path / "out"))
    with pytest.raises(UserError, match="no network here.*did you mean .*folder/inside"):
        (tmp_path / "folder").mkdir()
        shutil.copytree(tmp_path / "plain", tmp_path / "folder" / "inside")
        carry_to_volumes(CarryConfig(network=tmp_path / "folder", data=tuple(datasets[0]), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="data: found none"):
        CarryConfig(network=tmp_path, data=(), out=tmp_path)
