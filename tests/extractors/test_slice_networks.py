"""RadImageNet's network against torchvision's, Inception against torch-fidelity's, and weights that are not theirs."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.catalogue import default_plane_extractor, open_extractor

pytestmark = pytest.mark.usefixtures("empty_caches")


def torchvision_resnet50() -> nn.Module:
    import splitshuffle_gan.metrics.fidelity  # noqa: F401 - lets torchvision be imported

    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = torchvision.models.resnet50().eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network


@pytest.mark.parametrize("form", ["as published", "sequence", "torchvision"])
@torch.no_grad()
def test_radimagenet_is_torchvisions_resnet50(form, tmp_path):
    network = torchvision_resnet50()
    sequence = nn.Sequential(*list(network.children())[:-1])
    state = network.state_dict()
    if form != "torchvision":
        prefix = "backbone." if form == "as published" else ""
        state = {prefix + key: value for key, value in sequence.state_dict().items()}
    torch.save(state, tmp_path / "mine.pt")
    slices = torch.rand(2, 1, 20, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    extractor = open_extractor("radimagenet-resnet50", tmp_path / "mine.pt")
    resized = F.interpolate(slices, size=(224, 224), mode="bilinear")
    expected = sequence(torch.cat([resized] * 3, dim=1)).flatten(1)
    assert extractor.dimension == expected.shape[1] == 2048
    torch.testing.assert_close(extractor.network(slices), expected, rtol=1e-4, atol=1e-5)


def test_radimagenets_keras_weights_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.ones(64, 3, 7, 7), "conv1.bias": torch.ones(64)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="Keras.*ResNet50.pt"):
        open_extractor("radimagenet-resnet50", tmp_path / "w.pth")


def test_radimagenets_weights_that_do_not_fit_are_refused_with_a_remedy(tmp_path):
    state = torchvision_resnet50().state_dict()
    del state["layer1.0.bn1.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match="missing key layer1.0.bn1.weight. Use RadImageNet's ResNet50.pt"):
        open_extractor("radimagenet-resnet50", tmp_path / "w.pth")


def test_torchvision_waits_until_inception_is_opened():
    code = "import sys, splitshuffle_gan.extractors.catalogue; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


@torch.no_grad()
def test_inception_is_torch_fidelitys_on_24_bit_images(tmp_path, publish, monkeypatch):
    import splitshuffle_gan.metrics.fidelity  # noqa: F401 - lets torchvision be imported

    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with monkeypatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **options: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *args, **options: None)
        reference = module.FeatureExtractorInceptionV3("reference", ["2048"])
    state = reference.state_dict()
    path = tmp_path / "hub" / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    publish("inception", path)
    extractor = default_plane_extractor()  # found under either name in torch's cache
    assert extractor.name == "inception" and extractor.dimension == 2048
    whole = torch.randint(0, 256, (2, 1, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = reference(whole.repeat(1, 3, 1, 1))[0]
    slices = whole / 127.5 - 1
    torch.testing.assert_close(extractor.network(slices), expected)
    seen = []
    extractor.network.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for part in (-0.4, 0.4):  # of a grey level: goes to the nearest, and no further than black or white
        extractor.network(slices + part / 127.5)
        assert torch.equal(seen.pop(), whole.repeat(1, 3, 1, 1))
    extractor.network(torch.tensor([-1.4, 1.4]).view(1, 1, 1, 2))
    assert seen.pop()[0, 0, 0].tolist() == [0, 255]
    del state["fc.bias"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match="do not fit torch-fidelity's InceptionV3.*fc.bias.*Use weights-inception"):
        open_extractor("inception", tmp_path / "w.pth")
