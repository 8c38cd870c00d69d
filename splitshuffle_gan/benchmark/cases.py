"""What is timed: bare convolutions, modules, networks and training steps of every kind."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitshuffle_gan.benchmark.clock import milliseconds
from splitshuffle_gan.benchmark.setting import DTYPES
from splitshuffle_gan.config import DiscriminatorConfig, GeneratorConfig
from splitshuffle_gan.models.discriminator import Discriminator
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.nn.conv import Kernel, make_conv
from splitshuffle_gan.presets import load_preset
from splitshuffle_gan.training.options import NetworkOptions, TrainConfig
from splitshuffle_gan.training.step import Trainer

LAYOUTS = {"channels_last": torch.channels_last_3d, "contiguous": torch.contiguous_format}
COMPARED = ("split_shuffle", "plain", "separable")  # kinds of convolution; those for ablation are not timed
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where tensors are made and how: device, precision by name, layout by name."""

    device: torch.device
    dtype: str
    layout: str = "channels_last"

    def random(self, *shape: int) -> Tensor:
        """Standard normal."""
        x = torch.randn(shape, device=self.device, dtype=DTYPES[self.dtype])
        return x.contiguous(memory_format=LAYOUTS[self.layout]) if len(shape) == 5 else x


class Bare:
    """The convolutions of one kind at `shape` [N, C, D, H, W], C to C, and nothing else: inputs lie ready.

    Attributes:
        flop: of `forward`; `training` has three times as many.
    """

    def __init__(self, kind: str, shape: Shape, place: Place) -> None:
        batch, channels, *grid = shape
        kernels = [m.weight.shape for m in make_conv(kind, 3, channels, channels).modules() if isinstance(m, Kernel)]
        self.weights = [place.random(*kernel).requires_grad_() for kernel in kernels]
        self.inputs = [place.random(batch, kernel[1], *grid).requires_grad_() for kernel in kernels]
        self.gradients = [place.random(batch, kernel[0], *grid) for kernel in kernels]
        self.flop = sum(2 * batch * torch.Size(grid).numel() * kernel.numel() for kernel in kernels)

    def _outputs(self) -> list[Tensor]:
        return [
            F.conv3d(x, weight, padding=[size // 2 for size in weight.shape[2:]])
            for x, weight in zip(self.inputs, self.weights, strict=True)
        ]

    @torch.no_grad()
    def forward(self) -> None:
        """Convolve."""
        self._outputs()

    def training(self) -> None:
        """Convolve, then the gradients of inputs and kernels."""
        torch.autograd.grad(self._outputs(), [*self.inputs, *self.weights], self.gradients)


class Differentiated:
    """`call`, without gradients (`forward`) or with those of `inputs` and of the parameters of `module`."""

    def __init__(self, call: Callable[[], Tensor], module: nn.Module, inputs: list[Tensor], gradient: Tensor) -> None:
        self.call, self.gradient = call, gradient
        self.inputs = [*inputs, *(p for p in module.parameters() if p.requires_grad)]

    @torch.no_grad()
    def forward(self) -> None:
        """Call."""
        self.call()

    def training(self) -> None:
        """Call, then the gradients."""
        torch.autograd.grad(self.call(), self.inputs, self.gradient)


def level_shapes(preset: str, batch_size: int) -> list[Shape]:
    """`[N, C, D, H, W]` of the features at every level of a preset's generator, coarse to fine."""
    config = networks(preset, "split_shuffle")[0].config
    grids = zip(config.channels, config.schedule.grids, strict=True)
    return [(batch_size, channels, *grid) for channels, grid in grids]


def networks(preset: str, conv: str) -> tuple[Generator, Discriminator]:
    """Generator and discriminator that a preset trains at rank 3, with convolutions of one kind."""
    sections = load_preset(preset)
    return make_networks(conv, tuple(sections["prepare"]["shape"]), sections["train3d"]["network"])


def make_networks(conv: str, shape: Shape, options: dict | None = None) -> tuple[Generator, Discriminator]:
    """Generator and discriminator of rank 3, with the `options` of a preset's "network" or the configs' defaults."""
    given = NetworkOptions(**{**(options or {}), "conv": conv})
    configs = (c(rank=3, shape=shape, **given.given(c)) for c in (GeneratorConfig, DiscriminatorConfig))
    return Generator(next(configs)), Discriminator(next(configs))


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers."""
    return sum(parameter.numel() for parameter in network.parameters())


@dataclass(frozen=True)
class OneProcess:
    """What `Trainer` asks of an Accelerator. Of those there is one precision per process; here they are compared."""

    device: torch.device
    dtype: str
    num_processes: int = 1
    process_index: int = 0

    def autocast(self) -> AbstractContextManager:
        """The precision of the networks."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bf16")


class PhasedTrainer(Trainer):
    """A trainer that times its phases.

    Attributes:
        phases: milliseconds of "d_step" and "g_step", after a step.
    """

    phases: dict[str, float]

    def _discriminator_phase(self, images: Tensor, depth: Tensor | None) -> dict[str, Tensor]:
        return self._phase("d_step", lambda: super(PhasedTrainer, self)._discriminator_phase(images, depth))

    def _generator_phase(self, depth: Tensor | None) -> dict[str, Tensor]:
        return self._phase("g_step", lambda: super(PhasedTrainer, self)._generator_phase(depth))

    def _phase(self, name: str, call: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        results: list[dict[str, Tensor]] = []
        self.phases[name] = milliseconds(lambda: results.append(call()), self.device)
        return results[0]


class TrainingStep:
    """A training step, timed as a whole and by phase, on random volumes.

    Attributes:
        r1_interval: one step in so many carries the R1 penalty.
        generate: the generator alone on a batch, without gradients.
    """

    def __init__(
        self,
        pair: tuple[Generator, Discriminator],
        place: Place,
        batch_size: int,
        checkpoint_above: int | None = None,
        accelerator: object | None = None,
    ) -> None:
        config = TrainConfig(data=Path(), out=Path(), batch_size=batch_size, checkpoint_above=checkpoint_above)
        self.accelerator = accelerator or OneProcess(place.device, place.dtype)
        self.trainer = PhasedTrainer(config, (1.0, 1.0, 1.0), *pair, self.accelerator)
        self.trainer.phases = {}
        self.r1_interval, self.device = config.r1_interval, place.device
        size = self.trainer.share.stop - self.trainer.share.start
        images = torch.rand(size, 1, *self.trainer.G.config.shape) * 2 - 1
        self.batch = {"image": images.to(place.device)}
        self.z = torch.randn(size, self.trainer.G.z_dim, device=place.device)

    @torch.no_grad()
    def generate(self) -> None:
        """Draw a batch."""
        with self.accelerator.autocast():
            self.trainer.G(self.z)

    def judge(self) -> None:
        """Logits of a batch, without gradients."""
        with torch.no_grad(), self.accelerator.autocast():
            self.trainer.D(self.batch["image"])

    def step(self, penalise: bool) -> None:
        """One step, with or without R1."""
        self.trainer.step = 0 if penalise else 1
        self.trainer.train_step(self.batch)

    def measure(self) -> dict[str, float]:
        """Milliseconds of the generator alone, of both phases and of the whole step, without and with R1."""
        times = {"generator_forward": milliseconds(self.generate, self.device)}
        times["step_r1"] = milliseconds(lambda: self.step(True), self.device)
        times["d_step_r1"] = self.trainer.phases["d_step"]
        times["step_without_r1"] = milliseconds(lambda: self.step(False), self.device)
        return times | self.trainer.phases
