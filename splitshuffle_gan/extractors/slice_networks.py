"""The networks for slices that others published: RadImageNet's ResNet-50 and Inception, loaded strictly."""

import io
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from splitshuffle_gan.checkpoint import load_strictly
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.medicalnet import read_state


class RadImageNet(nn.Module):
    """ResNet-50 (stride in the 3x3 convolution) without its classifier, behind RadImageNet's own preprocessing.

    Slices `[N, 1, H, W]` in [-1, 1] to features `[N, 2048]`.
    """

    STAGES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}

    def __init__(self):
        super().__init__()
        self.network = ResNet(
            "bottleneck",
            [3, 4, 6, 3],
            [64, 128, 256, 512],
            spatial_dims=2,
            conv1_t_stride=2,
            bias_downsample=False,
            feed_forward=False,
        )

    def forward(self, slices: Tensor) -> Tensor:
        resized = F.interpolate(slices, size=(224, 224), mode="bilinear", align_corners=False)
        return self.network(resized.expand(-1, 3, -1, -1))


def load_radimagenet(path: Path) -> RadImageNet:
    """RadImageNet's network with the weights of a `.pt` or `.safetensors` file.

    Its keys are as published, `backbone.<i>` of a sequence of torchvision's children, or torchvision's own names. A
    classifier, `fc.`, is dropped: no feature depends on it.

    Raises:
        UserError: the weights are the Keras network's, or cannot be read, or do not fit.
    """
    state = {key.removeprefix("backbone."): value for key, value in read_state(path).items()}
    if "conv1.bias" in state:
        raise UserError(
            f"{path}: these are the weights of the Keras network (RadImageNet-ResNet50_notop), which has biases and "
            "other strides and would give wrong features here; wanted ResNet50.pt, the release for PyTorch."
        )
    module = RadImageNet()
    renamed = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        if first != "fc":
            renamed[f"{module.STAGES.get(first, first)}.{rest}"] = value
    remedy = "Use RadImageNet's ResNet50.pt, the release for PyTorch."
    load_strictly(module.network, renamed, f"{path}, read as RadImageNet's resnet50", remedy)
    return module


class Inception(nn.Module):
    """torch-fidelity's InceptionV3 behind the 24-bit images that it takes.

    Slices `[N, 1, H, W]` in [-1, 1] to features `[N, 2048]`.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, slices: Tensor) -> Tensor:
        grey = ((slices.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return self.network(grey.expand(-1, 3, -1, -1))[0]


def load_inception(path: Path) -> Inception:
    """Inception with the weights of a `.pth` or `.safetensors` file. Imports torchvision.

    Raises:
        UserError: the weights cannot be read or do not fit.
    """
    from splitshuffle_gan.metrics.fidelity import FeatureExtractorInceptionV3

    # torch-fidelity unpickles the file it is given; it is given one of ours, of tensors that were read safely.
    checked = io.BytesIO()
    torch.save(read_state(path), checked)
    checked.seek(0)
    try:
        return Inception(FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=checked))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{path}: the weights do not fit torch-fidelity's InceptionV3: {reason}. "
            "Use weights-inception-2015-12-05-6726825d.pth, as torch-fidelity publishes it."
        ) from error
