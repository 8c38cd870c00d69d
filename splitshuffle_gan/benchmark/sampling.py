"""Drawing a volume: the generator against what one would pick instead, a diffusion network with 50 DDIM steps."""

import torch
from monai.networks.schedulers import DDIMScheduler
from monai.utils import OptionalImportError
from torch import Tensor

from splitshuffle_gan.benchmark.cases import Bare, Place, count_parameters
from splitshuffle_gan.benchmark.clock import milliseconds, ratio, summary, take_turns, timed
from splitshuffle_gan.benchmark.layers import compiled
from splitshuffle_gan.benchmark.operations import operations_of
from splitshuffle_gan.benchmark.setting import Setting
from splitshuffle_gan.config import GeneratorConfig
from splitshuffle_gan.experiment.denoiser import SCHEDULE, diffusion_network
from splitshuffle_gan.models.generator import Generator

SHAPE = (48, 64, 48)
DIFFUSION_STEPS = 50
# Narrower than the (256, 256, 512) of MONAI's tutorial on 3D diffusion, whose other choices these are: the comparison
# errs in the diffusion network's favour.
DIFFUSION_CHANNELS = (64, 128, 256)


class Diffusion:
    """MONAI's diffusion network and DDIM, one volume at a time."""

    def __init__(self, place: Place) -> None:
        self.place = place
        network = diffusion_network(DIFFUSION_CHANNELS, num_res_blocks=2)
        self.network = network.to(place.device, memory_format=torch.channels_last_3d)
        self.network.eval()
        self.scheduler = DDIMScheduler(clip_sample=False, **SCHEDULE)
        self.scheduler.set_timesteps(DIFFUSION_STEPS)
        self.noise = Place(place.device, "float32").random(1, 1, *SHAPE)

    @torch.no_grad()
    def step(self, x: Tensor, timestep: int) -> Tensor:
        """One step of the sampler."""
        time = torch.tensor([timestep], device=self.place.device)
        with torch.autocast(self.place.device.type, torch.bfloat16, enabled=self.place.dtype == "bf16"):
            predicted = self.network(x, timesteps=time)
        return self.scheduler.step(predicted, timestep, x)[0]

    def first_step(self) -> Tensor:
        """The step from pure noise."""
        return self.step(self.noise, int(self.scheduler.timesteps[0]))

    def draw(self) -> Tensor:
        """A volume, all steps."""
        x = self.noise
        for timestep in self.scheduler.timesteps:
            x = self.step(x, int(timestep))
        return x


def measure_sampling(setting: Setting) -> dict:
    """One volume of 48x64x48 without gradients, in the fastest precision, channels last; networks are untrained.

    Returns:
        "generator": summaries "ms" and, with a compiler, "compiled_ms"; GFLOP/s in convolutions and its share of bare
        plain convolutions at the same batch, measured in turn with it: of the level where those are fastest, and of
        the finest. "diffusion": summaries "step_ms" and "ms", 50 of those; "loop_ms", one whole run of the sampler;
        the ratio "of_generator", from "ms"; or "skipped", why there is none.
    """
    place = Place(setting.device, setting.fast)
    generator = Generator(GeneratorConfig(rank=3, shape=SHAPE)).to(setting.device).eval()
    z = torch.randn(1, generator.z_dim, device=setting.device)

    @torch.no_grad()
    def generate() -> None:
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=setting.fast == "bf16"):
            generator(z, noise_mode="const")

    grids = generator.config.schedule.grids
    plain = {
        grid: Bare("plain", (1, channels, *grid), place)
        for channels, grid in zip(generator.config.channels, grids, strict=True)
    }
    cases = {("conv3d", grid): timed(bare.forward, setting.device) for grid, bare in plain.items()}
    for on in setting.compilation.choices:
        cases["generator", on] = compiled(setting, on, timed(generate, setting.device))
    try:
        diffusion, missing = Diffusion(place), None
        cases["diffusion", "step"] = timed(diffusion.first_step, setting.device)
    except OptionalImportError as error:  # MONAI says which package its network lacks
        diffusion, missing = None, str(error).splitlines()[0]
    values = {key: value["ms"] for key, value in take_turns(cases, setting.repetitions, "sampling").items()}
    setting.compilation.switch(False)

    found = {"parameters": count_parameters(generator), "ms": summary(values["generator", False])}
    if ("generator", True) in values:
        found["compiled_ms"] = summary(values["generator", True])
    found["gflop"] = operations_of(generate, setting.device).convolution_flop / 1e9
    found["gflop_s"] = found["gflop"] / found["ms"]["median"] * 1e3
    rates = {grid: bare.flop / 1e6 / summary(values["conv3d", grid])["median"] for grid, bare in plain.items()}
    found["plain_gflop_s"] = {"x".join(map(str, grid)): rate for grid, rate in rates.items()}
    found["of_best_plain_rate"] = found["gflop_s"] / max(rates.values())
    found["of_finest_plain_rate"] = found["gflop_s"] / rates[grids[-1]]
    if "compiled_ms" in found:
        found["compiled_of_best_plain_rate"] = (
            found["of_best_plain_rate"] * found["ms"]["median"] / found["compiled_ms"]["median"]
        )
    return {
        "shape": list(SHAPE),
        "dtype": setting.fast,
        "generator": found,
        "diffusion": {"skipped": missing} if diffusion is None else _compare(diffusion, values),
    }


def _compare(diffusion: Diffusion, values: dict[tuple, list[float]]) -> dict:
    steps = [DIFFUSION_STEPS * ms for ms in values["diffusion", "step"]]
    return {
        "channels": list(DIFFUSION_CHANNELS),
        "parameters": count_parameters(diffusion.network),
        "step_ms": summary(values["diffusion", "step"]),
        "ms": summary(steps),
        "loop_ms": milliseconds(diffusion.draw, diffusion.place.device),
        "of_generator": ratio(steps, values["generator", False]),
    }
