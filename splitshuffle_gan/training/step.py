"""One training step: discriminator, R1, generator, path length, weight average. No files, no clock."""

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.label_channels import structures_of
from splitshuffle_gan.models.discriminator import Discriminator
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.training.augment import AdaptiveP, augment, jitter
from splitshuffle_gan.training.ema import ema_beta, ema_update
from splitshuffle_gan.training.losses import (
    default_r1_gamma,
    discriminator_loss,
    generator_loss,
    path_lengths,
    r1_penalty,
)
from splitshuffle_gan.training.options import TrainConfig
from splitshuffle_gan.training.stream import derived_seed, latents

PL_INTERVAL, PL_DECAY = 4, 0.01
LEAK = 0.01
LABEL_NOISE = 0.3


def lazy_adam(model: nn.Module, lr: float, interval: int | None) -> torch.optim.Adam:
    """Adam (0, 0.99), corrected for a regulariser that comes every `interval` steps (StyleGAN2, appendix B)."""
    ratio = 1.0 if interval is None else interval / (interval + 1)
    return torch.optim.Adam(model.parameters(), lr=lr * ratio, betas=(0.0, 0.99**ratio), eps=1e-8, fused=True)


def leaky_clamp(images: Tensor) -> Tensor:
    """Images `[N, C, *S]` with what lies beyond -1 and 1 pulled in to `LEAK` of its excess; gradients pass through it.

    Scans and label channels end at -1 and 1, in long runs of exactly these values, and images are clipped there when
    they are written. A generator without an output activation only comes close, by which a discriminator can tell them
    apart.
    """
    inside = images.clamp(-1, 1)
    return inside + LEAK * (images - inside)


def label_noise(images: Tensor, labels: int) -> Tensor:
    """Images `[N, C, *S]` with normal noise, sigma `LABEL_NOISE`, on the last `labels` channels, those of a label map.

    Instance noise (arXiv 1610.04490), for real and generated images alike. Distances to a border are exact in every
    pixel, a generator's never are; and grain that it draws in the image leaks into the other channels, where without
    noise it would stand out. The borders still count.
    """
    if not labels:
        return images
    scans, maps = images.split((images.shape[1] - labels, labels), dim=1)
    return torch.cat((scans, maps + LABEL_NOISE * torch.randn_like(maps)), dim=1)


def warmup(seen: int, kimg: float) -> float:
    """Factor of a learning rate after `seen` images: linear from 0 to 1 over `kimg` thousand, then 1."""
    return min(1.0, seen / (kimg * 1000)) if kimg else 1.0


def share_of(batch_size: int, accelerator: Accelerator) -> slice:
    """The rows of the global batch that this process takes."""
    if batch_size % accelerator.num_processes:
        raise UserError(f"batch_size: found {batch_size}, must be a multiple of {accelerator.num_processes} processes")
    size = batch_size // accelerator.num_processes
    return slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)


class Trainer:
    """Both networks, their optimisers and all that a step changes.

    The networks are not wrapped for data parallelism: every process computes the gradients of its share of the global
    batch and they are averaged once per optimiser step. Lazy regularisers, accumulation and parameters that take no
    part in R1 then need no special case, and the result is that of one process with the whole batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        spacing: tuple[float, float, float],
        generator: Generator,
        discriminator: Discriminator,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.spacing, self.accelerator = config, spacing, accelerator
        self.device = accelerator.device
        self.G = generator.to(self.device).train()
        self.D = discriminator.to(self.device).train()
        self.average = deepcopy(self.G).eval().requires_grad_(False)
        for network in (self.G, self.D):
            network.checkpoint_above = config.checkpoint_above
        self.g_optimizer = lazy_adam(self.G, config.g_lr, PL_INTERVAL if config.pl_weight else None)
        self.g_lr = self.g_optimizer.param_groups[0]["lr"]
        self.d_optimizer = lazy_adam(self.D, config.d_lr, config.r1_interval)
        self.structures = len(structures_of(generator.geometry))  # as many channels at the end are a label map's
        self.share = share_of(config.batch_size, accelerator)
        size = self.share.stop - self.share.start
        self.micro = config.micro_batch or size
        if size % self.micro:
            raise UserError(f"micro_batch: found {self.micro}, must divide the share of one process, {size}")
        voxels = torch.Size(self.G.config.spatial(-1)).numel()
        self.r1_gamma = (
            default_r1_gamma(voxels, config.batch_size) if config.r1_gamma is None else float(config.r1_gamma)
        )
        self.adaptive = AdaptiveP()
        self.pl_mean = torch.zeros((), device=self.device)
        self.step = 0

    @property
    def seen(self) -> int:
        """Real images shown so far."""
        return self.step * self.config.batch_size

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step on this process's share of the real images; returns this process's losses and r_t, on the device."""
        seed, rank = self.config.seed, self.accelerator.process_index
        # Noise and augmentation follow from (seed, step, process) alone: a resumed run repeats them.
        torch.manual_seed(derived_seed(seed, self.step, rank, 1))
        self.random = torch.Generator().manual_seed(derived_seed(seed, self.step, rank, 2))
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        depth = batch.get("depth")
        stats = self._discriminator_phase(batch["image"], depth)
        stats |= self._generator_phase(depth)
        self.step += 1
        beta = ema_beta(self.config.batch_size, self.seen, self.config.ema_kimg * 1000, self.config.ema_rampup)
        ema_update(self.average, self.G, beta)
        return stats

    def _discriminator_phase(self, images: Tensor, depth: Tensor | None) -> dict[str, Tensor]:
        z, stats = self._latents(phase=0), {"loss_d": 0.0, "r_t": 0.0}
        penalise = self.step % self.config.r1_interval == 0
        self.G.requires_grad_(False)
        for rows, weight in self._micro_batches():
            d = None if depth is None else depth[rows]
            real = jitter(images[rows], self.config.jitter, self.random)
            real = self._show(real).detach().requires_grad_(penalise)
            with torch.no_grad():
                fake = self._show(self._generate(z[rows], d))
            real_logits = self._judge(real, d)
            loss = discriminator_loss(real_logits, self._judge(fake, d))
            stats["loss_d"] += loss.detach() * weight
            stats["r_t"] += real_logits.detach().sign().mean() * weight
            if penalise:  # on the logits of the loss: one forward pass and one backward pass serve both
                penalty = r1_penalty(real, real_logits)
                stats["r1"] = stats.get("r1", 0.0) + penalty.detach() * weight
                loss = loss + penalty * (self.r1_gamma * self.config.r1_interval)
            (loss * weight).backward()
        self.G.requires_grad_(True)
        self._optimise(self.D, self.d_optimizer)
        return stats

    def _generator_phase(self, depth: Tensor | None) -> dict[str, Tensor]:
        z, stats, lengths = self._latents(phase=1), {"loss_g": 0.0}, []
        regularise = self.config.pl_weight > 0 and self.step % PL_INTERVAL == 0
        self.D.requires_grad_(False)
        for rows, weight in self._micro_batches():
            d = None if depth is None else depth[rows]
            loss = generator_loss(self._judge(self._show(self._generate(z[rows], d)), d))
            (loss * weight).backward()
            stats["loss_g"] += loss.detach() * weight
            if regularise:
                lengths.append(self._path_lengths(z[rows], d))
                penalty = (lengths[-1] - self.pl_mean).square().mean()
                (penalty * (self.config.pl_weight * PL_INTERVAL * weight)).backward()
                stats["path"] = stats.get("path", 0.0) + penalty.detach() * weight
        if regularise:
            mean = self.accelerator.reduce(torch.cat(lengths).detach().mean(), reduction="mean")
            self.pl_mean = self.pl_mean.lerp(mean, PL_DECAY)
        self.D.requires_grad_(True)
        for group in self.g_optimizer.param_groups:
            group["lr"] = self.g_lr * warmup(self.seen, self.config.g_warmup_kimg)
        self._optimise(self.G, self.g_optimizer)
        return stats

    def _path_lengths(self, z: Tensor, depth: Tensor | None) -> Tensor:
        with self.accelerator.autocast():
            ws = self.G.map(z)
            images = self.G.synthesize(ws, depth=depth)
        return path_lengths(images, ws, torch.randn_like(images))

    def _generate(self, z: Tensor, depth: Tensor | None) -> Tensor:
        with self.accelerator.autocast():
            images = self.G(z, depth=depth)
        # Of images alone the gain was not seen: see docs/architecture.md.
        return leaky_clamp(images) if self.structures else images

    def _judge(self, images: Tensor, depth: Tensor | None) -> Tensor:
        with self.accelerator.autocast():
            return self.D(images, depth)

    def _show(self, images: Tensor) -> Tensor:
        """What the discriminator sees of real or generated images."""
        shown = augment(images, self.adaptive.p, self.config.augment, self.random, self.spacing, self.structures)
        return label_noise(shown, self.structures)

    def _latents(self, phase: int) -> Tensor:
        z = latents(self.config.seed, self.step, phase, self.config.batch_size, self.G.z_dim, self.share)
        return z.to(self.device, non_blocking=True)

    def _micro_batches(self) -> Iterator[tuple[slice, float]]:
        size = self.share.stop - self.share.start
        for start in range(0, size, self.micro):
            yield slice(start, start + self.micro), self.micro / size

    def _optimise(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self.accelerator.num_processes > 1:
            average_gradients(model, lambda flat: self.accelerator.reduce(flat, reduction="mean"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        """Everything that `load_state_dict` needs to go on exactly."""
        return {
            "step": self.step,
            "G": self.G.state_dict(),
            "D": self.D.state_dict(),
            "average": self.average.state_dict(),
            "g_optimizer": self.g_optimizer.state_dict(),
            "d_optimizer": self.d_optimizer.state_dict(),
            "adaptive": self.adaptive.state_dict(),
            "pl_mean": self.pl_mean,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go back to a saved state."""
        self.step = state["step"]
        self.G.load_state_dict(state["G"])
        self.D.load_state_dict(state["D"])
        self.average.load_state_dict(state["average"])
        self.g_optimizer.load_state_dict(state["g_optimizer"])
        self.d_optimizer.load_state_dict(state["d_optimizer"])
        self.adaptive.load_state_dict(state["adaptive"])
        self.pl_mean = state["pl_mean"].to(self.device)


def average_gradients(model: nn.Module, reduce: Callable[[Tensor], Tensor]) -> None:
    """Replace the gradients by their mean over processes, in one communication."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = reduce(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
