"""A ResNet-18 of slices, with plain or Cross-D convolutions, from which volumetric networks are made."""

from dataclasses import dataclass
from typing import Literal

from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from splitshuffle_gan.checkpoint import Pretrained
from splitshuffle_gan.config import CheckpointConfig
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.transfer.cross_d import convert

BLOCKS = [2, 2, 2, 2]


@dataclass(frozen=True, kw_only=True)
class Network:
    """The ResNet-18. Small grids want another stem than ImageNet's 7x7, which with its pool divides them by 4 at once.

    Attributes:
        width: channels of the first stage, doubled at each of the three others; 64 is the published network.
        stem: kernel size of the first convolution, odd.
        stem_stride: its stride.
        max_pool: whether the published pool, stride 2, follows.
    """

    width: int = 64
    stem: int = 3
    stem_stride: int = 2
    max_pool: bool = False

    def __post_init__(self) -> None:
        for field in ("width", "stem", "stem_stride"):
            if not getattr(self, field) >= 1:
                raise UserError(f"{field}: found {getattr(self, field)}, must be at least 1")
        if self.stem % 2 == 0:
            raise UserError(f"stem: found {self.stem}, an odd size is wanted")

    @property
    def features(self) -> int:
        """Numbers that it makes of an image."""
        return 8 * self.width


@dataclass(frozen=True, kw_only=True)
class SliceResNetConfig(Network, CheckpointConfig):
    """The network, and its convolutions: plain, or Cross-D ones that move as `conv` says."""

    conv: Literal["plain", "published", "rotation"] = "plain"


class SliceResNet(nn.Module, Pretrained):
    """Slices `[N, 1, H, W]` in [-1, 1] to pooled features `[N, 8 * width]`."""

    config_class = SliceResNetConfig

    def __init__(self, config: SliceResNetConfig, geometry: dict | None = None):
        super().__init__()
        self.config, self.geometry = config, geometry
        body = resnet18(config, 2)
        # Cross-D kernels start afresh, as in the paper: what they are in 3D is to be learnt from slices alone.
        self.body = body if config.conv == "plain" else convert(body, config.conv, keep_weights=False)[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def resnet18(network: Network, rank: int) -> nn.Module:
    """torchvision's ResNet-18 for one channel, without classifier, in MONAI's modules, which serve both ranks."""
    return ResNet(
        "basic",
        BLOCKS,
        [network.width * factor for factor in (1, 2, 4, 8)],
        spatial_dims=rank,
        n_input_channels=1,
        conv1_t_size=network.stem,
        conv1_t_stride=network.stem_stride,
        no_max_pool=not network.max_pool,
        feed_forward=False,
        bias_downsample=False,
    )
