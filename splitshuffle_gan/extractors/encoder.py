"""The small residual encoder that ships: `med3d-mini` at rank 3, `med2d-mini` at rank 2."""

from dataclasses import dataclass

import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn

from splitshuffle_gan import nd
from splitshuffle_gan.checkpoint import Pretrained
from splitshuffle_gan.config import CheckpointConfig
from splitshuffle_gan.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(CheckpointConfig):
    """Shape of an `Encoder`.

    Attributes:
        rank: 3 for volumes, 2 for slices.
        widths: channels of the four residual stages, which work at strides 1, 2, 4 and 8.
        lateral: channels that each stage hands on; the features are four times as many.
    """

    rank: int
    widths: tuple[int, int, int, int] = (16, 32, 64, 96)
    lateral: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.rank not in (2, 3):
            raise UserError(f"rank: found {self.rank!r}, must be 2 (slices) or 3 (volumes)")
        if len(self.widths) != 4 or min(*self.widths, self.lateral) < 1:
            raise UserError(f"widths: found {self.widths}, lateral {self.lateral}; four positive numbers and one")


class Encoder(nn.Module, Pretrained):
    """Volumes `[N, 1, D, H, W]` or slices `[N, 1, H, W]` in [-1, 1] to features `[N, dimension]`.

    MONAI's residual network with one basic block a stage and full resolution in the first. A 1x1 convolution,
    normalised and rectified, reads each stage; these laterals are all that the decoders see in training (`med3d`), and
    their averages over the grid, fine to coarse, make the features. So every scale has its say: grain and edges as
    well as organs. A fixed affine map, (averages - centre) @ whitening, ends it; in a fresh encoder it is the identity.
    """

    config_class = EncoderConfig

    def __init__(self, config: EncoderConfig, geometry: dict | None = None):
        super().__init__()
        self.config, self.geometry = config, geometry
        self.body = ResNet(
            "basic",
            [1, 1, 1, 1],
            list(config.widths),
            spatial_dims=config.rank,
            n_input_channels=1,
            conv1_t_size=3,
            no_max_pool=True,
            bias_downsample=False,
            feed_forward=False,
        )
        convolution, norm = (nn.Conv2d, nn.BatchNorm2d) if config.rank == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.laterals = nn.ModuleList(
            nn.Sequential(convolution(width, config.lateral, 1, bias=False), norm(config.lateral), nn.ReLU())
            for width in config.widths
        )

        self.register_buffer("centre", torch.zeros(self.dimension))
        self.register_buffer("whitening", torch.eye(self.dimension))

    @property
    def dimension(self) -> int:
        """Number of features."""
        return len(self.laterals) * self.config.lateral

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The laterals `[N, lateral, *S / stride]` at strides 1, 2, 4, 8."""
        body = self.body
        x = body.act(body.bn1(body.conv1(images)))
        maps = []
        for stage, lateral in zip((body.layer1, body.layer2, body.layer3, body.layer4), self.laterals, strict=True):
            x = stage(x)
            maps.append(lateral(x))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """The features, float32."""
        averages = torch.cat([level.flatten(2).float().mean(2) for level in self.pyramid(images)], dim=1)
        with nd.explicit_dtypes(images.device):
            return (averages - self.centre) @ self.whitening

    def whiten(self, sets: list[Tensor], shrinkage: float = 0.05) -> None:
        """Fix the affine map by features `[n, dimension]` of several sets of volumes, taken before it was fixed.

        Without it the brightness of the volumes, one direction, holds about half of the variance, and chance there
        drowns all other differences. The covariance within each set, scaled to the same trace, is averaged over the
        sets; `shrinkage` of the mean variance is added, so that directions that hardly vary are not blown up.
        """
        covariances = [torch.cov(rows.double().T) for rows in sets]
        pooled = sum(c * (self.dimension / c.trace()) for c in covariances) / len(covariances)
        variances, directions = torch.linalg.eigh(pooled + shrinkage * torch.eye(self.dimension, dtype=torch.double))
        self.whitening.copy_(directions / variances.sqrt())
        self.centre.copy_(torch.stack([rows.double().mean(0) for rows in sets]).mean(0))
