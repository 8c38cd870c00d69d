"""MONAI's 3D diffusion network as a checkpoint, its noise schedule, and DDIM.

The network predicts the velocity v (arXiv 2202.00512). Predicted noise gives the volume with its error divided by the
signal that is left, 0.02 at the start: after a short training, and in few steps, that alone ruins a volume.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler
from monai.utils import OptionalImportError
from torch import Tensor, nn

from splitshuffle_gan.checkpoint import Pretrained
from splitshuffle_gan.config import CheckpointConfig
from splitshuffle_gan.errors import UserError

# As in MONAI's tutorial on 3D diffusion.
SCHEDULE = {"num_train_timesteps": 1000, "schedule": "scaled_linear_beta", "beta_start": 0.0005, "beta_end": 0.0195}
TIMESTEPS = SCHEDULE["num_train_timesteps"]
CHANNELS_PER_GROUP = 8  # of the finest level, in the tutorial; one a group would wipe out each channel's mean


def diffusion_network(
    channels: tuple[int, ...], num_res_blocks: int, norm_num_groups: int = 32, use_flash_attention: bool = False
) -> DiffusionModelUNet:
    """MONAI's network for volumes of one channel; `channels` per level, fine to coarse, attention at the coarsest.

    Raises OptionalImportError when a package that MONAI wants for it is missing.
    """
    fine = len(channels) - 1
    return DiffusionModelUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=channels,
        attention_levels=(False,) * fine + (True,),
        num_head_channels=(0,) * fine + (channels[-1],),
        num_res_blocks=num_res_blocks,
        norm_num_groups=norm_num_groups,
        use_flash_attention=use_flash_attention,
    )


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig(CheckpointConfig):
    """What the network is made of; see `DiffusionConfig`. `shape` (D, H, W), halved at every level but the finest."""

    shape: tuple[int, int, int]
    channels: tuple[int, ...]
    num_res_blocks: int

    def __post_init__(self) -> None:
        for name in ("shape", "channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.channels or any(c < 1 or c % self.groups for c in self.channels):
            raise UserError(f"channels: found {self.channels}, multiples of {CHANNELS_PER_GROUP} are wanted")
        if self.num_res_blocks < 1:
            raise UserError(f"num_res_blocks: found {self.num_res_blocks}, must be at least 1")
        factor = 2 ** (len(self.channels) - 1)
        if any(size % factor for size in self.shape):
            raise UserError(
                f"channels: found {self.channels}, {len(self.channels)} levels, for which every axis of the volumes, "
                f"{self.shape}, must be a multiple of {factor}; give fewer"
            )

    @property
    def groups(self) -> int:
        """Groups of the normalisation."""
        return max(1, self.channels[0] // CHANNELS_PER_GROUP)


class Denoiser(nn.Module, Pretrained):
    """Noisy volumes `[N, 1, D, H, W]` and timesteps `[N]` to their velocities, float32.

    Raises UserError when MONAI lacks a package.
    """

    config_class = DenoiserConfig

    def __init__(self, config: DenoiserConfig, geometry: dict | None = None) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        try:
            self.network = diffusion_network(config.channels, config.num_res_blocks, config.groups, True)
        except OptionalImportError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"MONAI's diffusion network lacks a package ({reason}); `pip install einops`") from error
        self.network.to(memory_format=torch.channels_last_3d)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """`x` as `DDPMScheduler.add_noise` makes it."""
        return self.network(x, timesteps=timesteps).float()


def ddim(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Volumes in [-1, 1] from noise `[N, 1, D, H, W]` by `velocity(x, timesteps)`; steps as MONAI spaces them.

    Raises UserError for steps outside 1..1000.
    """
    if not 1 <= steps <= TIMESTEPS:
        raise UserError(f"steps: found {steps}, 1 to {TIMESTEPS} are wanted")
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=True, **SCHEDULE)
    scheduler.set_timesteps(steps)
    x = noise
    for timestep in scheduler.timesteps.tolist():
        predicted = velocity(x, torch.full((len(x),), timestep, device=x.device))
        x, _ = scheduler.step(predicted, timestep, x)
    return x.clamp(-1, 1)
