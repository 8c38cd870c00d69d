"""AH-Net's first stage: a 2D network on slices and their neighbours (arXiv 1711.08580, MC-GCN).

A ResNet encoder; at each of five levels a global convolution block and a residual refinement; bilinear growth and sums.
Beside the paper and its code: the neighbouring slices enter the 7x7 stem directly, without a 1x1 convolution that
mixes them before, so that the stem becomes the 3D network's 7x7x3 exactly; the decoder has a width of its own; and a
refinement has a batch norm before each of its convolutions, where the published block uses one twice, whose running
statistics then fit neither place.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.networks.blocks.fcn import GCN
from monai.networks.nets import ResNet
from torch import Tensor, nn

from splitshuffle_gan import nd
from splitshuffle_gan.checkpoint import load_strictly
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.medicalnet import read_state
from splitshuffle_gan.segmentation.framing import bring_back, magnify
from splitshuffle_gan.segmentation.segmenter import Segmenter, SegmenterConfig, check_whole

PLANES = (64, 128, 256, 512)
LEVELS = (64, 256, 512, 1024, 2048)  # channels at strides 2, 4, 8, 16, 32
PREDICTED = 32  # slices at a time


@dataclass(frozen=True, kw_only=True)
class Network2DConfig(SegmenterConfig):
    """The 2D network.

    Attributes:
        slices: neighbouring slices that enter as channels, an odd number: 3 are the one below, itself, the one above.
        width: channels of the decoder.
        scale: factors by which H and W are magnified first, for slices that are small against the encoder's stride 32.
    """

    slices: int = 3
    width: int = 16
    scale: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("scale", self.scale, 2)
        check_whole("slices, width", (self.slices, self.width), 2)
        if self.slices % 2 == 0:
            raise UserError(f"slices: found {self.slices}, an odd number is wanted: as many above as below")


class SliceSegmenter(Segmenter):
    """Slices with their neighbours, `[N, slices, H, W]` in [-1, 1], to logits `[N, config.outputs, H, W]`."""

    config_class = Network2DConfig
    rank = 2

    def __init__(self, config: Network2DConfig, geometry: dict | None = None):
        super().__init__()
        self.config, self.geometry = config, geometry
        self.encoder = ResNet(
            "bottleneck",
            list(config.layers),
            list(PLANES),
            spatial_dims=2,
            n_input_channels=config.slices,
            conv1_t_size=7,
            conv1_t_stride=2,
            bias_downsample=False,
            feed_forward=False,
        )
        self.globals = nn.ModuleList(GCN(channels, config.width) for channels in LEVELS)
        self.refines = nn.ModuleList(Refine(config.width) for _ in LEVELS)
        self.merges = nn.ModuleList(Refine(config.width) for _ in LEVELS)
        self.head = nn.Conv2d(config.width, config.outputs, 1)

    def features(self, images: Tensor) -> list[Tensor]:
        """The encoder's levels at strides 2 (the stem), 4, 8, 16, 32 of the magnified grid."""
        encoder = self.encoder
        levels = [encoder.act(encoder.bn1(encoder.conv1(images)))]
        x = encoder.maxpool(levels[0])
        for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
            x = stage(x)
            levels.append(x)
        return levels

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32, on the grid of `images`."""
        large = magnify(images, self.config.scale).contiguous(memory_format=nd.channels_last(2))
        levels = self.features(large)
        views = [refine(gcn(x)) for refine, gcn, x in zip(self.refines, self.globals, levels, strict=True)]
        x = views[-1]
        for merge, view in zip(self.merges[:0:-1], views[-2::-1], strict=True):
            x = merge(_grow(x, view.shape[2:]) + view)
        logits = self.head(self.merges[0](_grow(x, large.shape[2:])))
        return bring_back(logits, images.shape[2:], self.config.scale)

    def predict(self, volumes: Tensor) -> Tensor:
        """As `Segmenter.predict`, slice by slice along D."""
        images = neighbours(volumes, self.config.slices)
        logits = torch.cat([self(part) for part in images.split(PREDICTED)])
        return logits.unflatten(0, (len(volumes), -1)).transpose(1, 2)


class Refine(nn.Module):
    """x + convolutions(x): twice batch norm, ReLU, 3x3."""

    def __init__(self, width: int):
        super().__init__()
        layers = [(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)) for _ in range(2)]
        self.body = nn.Sequential(*layers[0], *layers[1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def neighbours(volumes: Tensor, slices: int) -> Tensor:
    """Volumes `[N, 1, D, H, W]` to `[N * D, slices, H, W]`: each slice amid its neighbours, the end slices repeated."""
    reach = slices // 2
    padded = F.pad(volumes, (0, 0, 0, 0, reach, reach), mode="replicate")[:, 0]
    return padded.unfold(1, slices, 1).movedim(-1, 2).flatten(0, 1)


def load_resnet(segmenter: SliceSegmenter, path: Path) -> None:
    """Load the encoder from a state dict of torchvision's ResNet-50 (or -101, -152) on disk, without its classifier.

    Raises UserError when the file cannot be read, or its layers or channels are not the encoder's.
    """
    state = {key: value for key, value in read_state(path).items() if not key.startswith("fc.")}
    load_strictly(segmenter.encoder, state, str(path), "Use layers and slices that fit: 3 4 6 3 and 3 for ResNet-50.")


def _grow(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
