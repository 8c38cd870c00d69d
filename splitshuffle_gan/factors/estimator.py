"""The network that measures factors of anatomy on volumes without labels."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from torch import Tensor, nn

from splitshuffle_gan import nd
from splitshuffle_gan.checkpoint import Pretrained
from splitshuffle_gan.config import CheckpointConfig
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.factors.anatomy import Factor, classes_of, measure

STRIDE = 8


@dataclass(frozen=True, kw_only=True)
class EstimatorConfig(CheckpointConfig):
    """What an `Estimator` measures, by name, and the channels of its levels at strides 2, 4, 8 and 8."""

    factors: dict[str, Factor]
    channels: tuple[int, int, int, int] = (16, 32, 64, 96)

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if not self.factors:
            raise UserError("factors: none; at least one is wanted")
        if len(self.channels) != 4 or min(self.channels) < 1:
            raise UserError(f"channels: found {self.channels}; four positive numbers are wanted")

    @classmethod
    def from_dict(cls, values: dict) -> "EstimatorConfig":
        """As of any checkpoint; its factors are checked as well."""
        config = super().from_dict(values)
        try:
            return replace(config, factors={name: Factor(**fields) for name, fields in config.factors.items()})
        except (TypeError, AttributeError) as error:
            raise UserError(f"{cls.__name__}: factors: {error}") from error


class Estimator(nn.Module, Pretrained):
    """Volumes `[N, 1, D, H, W]` in [-1, 1] to factors.

    MONAI's U-Net gives each voxel a probability for every class. Their sums are the volumes that are to be expected, so
    a border that cannot be seen is not drawn somewhere: each of its voxels counts in part. That needs probabilities
    that are true, hence training by cross entropy (`training`).
    """

    config_class = EstimatorConfig

    def __init__(self, config: EstimatorConfig, geometry: dict | None = None):
        super().__init__()
        self.config, self.geometry = config, geometry
        classes = len(classes_of(config.factors)[1])
        width = config.channels[0]
        self.body = UNet(
            3, 1, width, channels=config.channels, strides=(2, 2, 2), num_res_units=1,
            norm=("INSTANCE", {"affine": True}), act="LEAKYRELU",
        )  # fmt: skip
        # The body starts with a stride; what is a voxel or two in size must be seen beside what it found.
        fine = nn.Conv3d(width + 1, width, 3, padding=1)
        self.head = nn.Sequential(fine, nn.LeakyReLU(), nn.Conv3d(width, classes, 1))
        nd.pad_beforehand(self)

    @torch.no_grad()
    def shift(self, logits: np.ndarray, fresh: bool = False) -> None:
        """Add to the logits of each class, `[classes]`, for good; `fresh`: these are what it starts from."""
        bias = self.head[-1].bias
        bias.copy_(torch.as_tensor(logits) + (0 if fresh else bias.cpu()))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, classes, D, H, W]`."""
        depth, height, width = images.shape[2:]
        # At least two voxels must be left at the last level, or there is nothing to normalise by.
        least = max(width + -width % STRIDE, 2 * STRIDE) - width
        pads = (0, least, 0, -height % STRIDE, 0, -depth % STRIDE)
        padded = F.pad(images, pads, mode="replicate") if any(pads) else images
        found = self.body(padded)[:, :, :depth, :height, :width]
        return self.head(torch.cat([found, images], dim=1))

    @torch.no_grad()
    def estimate(self, images: Tensor) -> np.ndarray:
        """The factors, float64 `[N, factors]`, in the units of the config. Needs the geometry."""
        shares = self(images).float().softmax(1).flatten(2)
        counts, sums = shares.sum(2), (shares * images.flatten(2)).sum(2)
        return measure(
            self.config.factors, counts.cpu().numpy(), sums.cpu().numpy(), self.geometry["spacing"],
            self.geometry["intensity"],
        )  # fmt: skip
