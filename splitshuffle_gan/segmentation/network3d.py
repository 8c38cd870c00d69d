"""AH-Net's third stage: the anisotropic 3D network (arXiv 1711.08580), MONAI's `AHNet` behind the package's contract.

MONAI has the through-plane axis last, `[N, C, H, W, D]`; here it comes first, `[N, C, D, H, W]`. `VolumeSegmenter`
permutes, and nothing else does: its `body` is MONAI's network with MONAI's keys. Two things in it differ from MONAI's:

- The stem's 7x7x3 kernel sees the end slices repeated instead of zeros beyond the depth border, as the 2D network's
  input has them. So the transfer is exact up to the border.
- The max pooling behind the stem is ResNet's, 3 voxels wide at stride 2, in every mode; in two of its modes MONAI takes
  2 voxels, for which the 2D encoder was not trained.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from monai.networks.nets import AHNet
from torch import Tensor, nn

from splitshuffle_gan import nd
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.segmentation.framing import bring_back, magnify, pad_to
from splitshuffle_gan.segmentation.segmenter import Segmenter, SegmenterConfig, check_whole

STRIDE = 32
LARGE = 64  # one axis at least, or a batch norm at the coarsest level is left with a single voxel
MOST_PSP_BLOCKS = 4
Upsample = Literal["trilinear", "transpose", "nearest"]
AXES = "DHW"


@dataclass(frozen=True, kw_only=True)
class Network3DConfig(SegmenterConfig):
    """The 3D network. Raises UserError where `shape` breaks its size rules; the message names a size that fits.

    Attributes:
        psp_blocks: levels of the pyramid volumetric pooling, 0 to 4; level i pools (8, 8) to (64, 64) of the finest
            features in-plane and so asks for slices of 64 to 128 voxels.
        upsample: growth in the decoder: trilinear as in the paper; transpose (learned; twice the weights) and nearest
            have a reproducible backward on a GPU.
        scale: factors by which D, H, W are magnified first, for volumes that are small against the total stride 32.
        pad: repeat the border up to a size that fits, instead of refusing.
    """

    psp_blocks: int = MOST_PSP_BLOCKS
    upsample: Upsample = "trilinear"
    scale: tuple[int, int, int] = (1, 1, 1)
    pad: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("scale", self.scale, 3)
        if self.psp_blocks not in range(MOST_PSP_BLOCKS + 1):
            raise UserError(f"psp_blocks: found {self.psp_blocks}, must be 0 to {MOST_PSP_BLOCKS}")
        if self.upsample not in ("trilinear", "transpose", "nearest"):
            raise UserError(f"upsample: found {self.upsample!r}, must be trilinear, transpose or nearest")
        self.inner_size(self.shape)

    def inner_size(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The size (D, H, W) at which a volume of `shape` goes through the network: magnified, and padded if it may be.

        Raises UserError for a size that does not fit unless `pad`.
        """
        large = tuple(length * factor for length, factor in zip(shape, self.scale, strict=True))
        fitting = fitting_size(large, self.psp_blocks, self.upsample)
        if fitting == large or self.pad:
            return fitting
        raise UserError(self._misfit(shape, large))

    def _misfit(self, shape: tuple[int, int, int], large: tuple[int, int, int]) -> str:
        rules = _axis_rules(self.psp_blocks, self.upsample)
        faults = [
            f"{axis} is {length}, must be at least {least} and a multiple of {multiple}"
            for axis, length, (multiple, least) in zip(AXES, large, rules, strict=True)
            if length < least or length % multiple
        ] or [f"one axis must be at least {LARGE}"]
        nearest = "x".join(map(str, nearest_shape(shape, self.scale, self.psp_blocks, self.upsample)))
        scaled = "" if large == tuple(shape) else f" (scaled to {'x'.join(map(str, large))})"
        return (
            f"shape: {'x'.join(map(str, shape))}{scaled} does not fit the network: {'; '.join(faults)}. The nearest "
            f"that fits is {nearest}: prepare the dataset, or choose the window, of that shape; or let the network pad "
            "(--network.pad; --network3d.pad in trials) or magnify small volumes (--network.scale)"
        )


class VolumeSegmenter(Segmenter):
    """Volumes `[N, 1, D, H, W]` in [-1, 1] to logits `[N, config.outputs, D, H, W]`."""

    config_class = Network3DConfig
    rank = 3

    def __init__(self, config: Network3DConfig, geometry: dict | None = None):
        super().__init__()
        self.config, self.geometry = config, geometry
        self.body = AHNet(
            layers=config.layers,
            spatial_dims=3,
            in_channels=1,
            out_channels=config.outputs,
            psp_block_num=config.psp_blocks,
            upsample_mode=config.upsample,
        )
        nd.pad_beforehand(self.body)
        stem = self.body.conv1
        stem.padding_mode, stem.padding = "zeros", (3, 3, 0)  # over depth `forward` repeats the end slices instead
        self.body.maxpool = nn.MaxPool3d(3, stride=2, padding=1)

    def forward(self, volumes: Tensor) -> Tensor:
        """Logits, float32, on the grid of `volumes`. Raises UserError for a size that does not fit."""
        shape, scale = tuple(volumes.shape[2:]), self.config.scale
        inside = pad_to(magnify(volumes, scale), self.config.inner_size(shape))
        depth_last = F.pad(inside.permute(0, 1, 3, 4, 2), (1, 1, 0, 0, 0, 0), mode="replicate")
        logits = self.body(depth_last.contiguous(memory_format=nd.channels_last(3)))
        return bring_back(logits.permute(0, 1, 4, 2, 3), shape, scale)

    def predict(self, volumes: Tensor) -> Tensor:
        """As `Segmenter.predict`."""
        return self(volumes)


def fitting_size(size: tuple[int, int, int], psp_blocks: int, upsample: Upsample) -> tuple[int, int, int]:
    """The smallest size (D, H, W) at which MONAI's `AHNet` works that holds `size`."""
    rules = _axis_rules(psp_blocks, upsample)
    fitting = [max(-(-n // multiple) * multiple, least) for n, (multiple, least) in zip(size, rules, strict=True)]
    if max(fitting) < LARGE:
        fitting[size.index(max(size))] = LARGE
    return tuple(fitting)


def nearest_shape(
    shape: tuple[int, int, int], scale: tuple[int, int, int], psp_blocks: int, upsample: Upsample
) -> tuple[int, int, int]:
    """The shape (D, H, W) nearest to `shape` that fits once it is magnified."""
    rules = _axis_rules(psp_blocks, upsample)
    nearest = []
    for length, factor, (multiple, least) in zip(shape, scale, rules, strict=True):
        fits = [n for n in range(1, length + multiple + least) if n * factor % multiple == 0 and n * factor >= least]
        nearest.append(min(fits, key=lambda n: (abs(n - length), -n)))
    if max(n * factor for n, factor in zip(nearest, scale, strict=True)) < LARGE:
        axis = shape.index(max(shape))
        nearest[axis] = -(-LARGE // scale[axis])
    return tuple(nearest)


def most_psp_blocks(shape: tuple[int, int, int], scale: tuple[int, int, int], upsample: Upsample) -> int:
    """As many levels of pyramid pooling, up to the paper's four, as need no larger size than the encoder itself."""
    large = tuple(length * factor for length, factor in zip(shape, scale, strict=True))
    without = fitting_size(large, 0, upsample)
    return max(n for n in range(MOST_PSP_BLOCKS + 1) if fitting_size(large, n, upsample) == without)


def _axis_rules(psp_blocks: int, upsample: Upsample) -> tuple[tuple[int, int], ...]:
    """For D, H and W: of what their size is a multiple, and its least value."""
    pooled = 2 ** (psp_blocks + 3)
    in_plane = (max(STRIDE, pooled),) * 2 if upsample == "transpose" else (STRIDE, max(STRIDE, pooled))
    return (STRIDE, STRIDE), in_plane, in_plane
