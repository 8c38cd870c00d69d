"""Parameters, speed and memory of the networks, measured on this machine in one run: a table and a JSON.

Every timing is a median over interleaved repetitions, so that what is compared was measured side by side. Times depend
on the machine and on what else it does; the ratios travel better.
"""

import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from splitshuffle_gan import __version__
from splitshuffle_gan.config import CONV_KINDS, DiscriminatorConfig, GeneratorConfig
from splitshuffle_gan.devices import make_accelerator, resolve_precision, use_all_cores, wants_cpu
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.models.discriminator import Discriminator
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.nn.styled import StyledConv
from splitshuffle_gan.output import write_json
from splitshuffle_gan.presets import load_preset, preset_names
from splitshuffle_gan.training.options import TrainConfig
from splitshuffle_gan.training.step import Trainer

CONV_SHAPES = ((4, 64, 32, 32, 32), (8, 32, 48, 64, 48))  # N, C, D, H, W
FORWARD_SHAPES = ((32, 32, 32), (48, 48, 48), (64, 64, 64))
LARGE_PRESET = "heart-ct"


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Measure parameters, speed and memory of the networks on this machine.

    Attributes:
        out: JSON file to write, in a folder that exists; the table is printed.
        repetitions: of every timing; the median counts.
        overwrite: replace the file `out`.
        skip_large: leave out the training step at 64x256x256, which takes minutes on a CPU.
    """

    out: Path = Path("benchmark.json")
    repetitions: int = 7
    overwrite: bool = False
    skip_large: bool = False

    def __post_init__(self) -> None:
        if self.repetitions < 1:
            raise UserError(f"repetitions: found {self.repetitions}, must be at least 1")
        if not self.out.parent.is_dir():
            raise UserError(f"out: the folder {self.out.parent} does not exist; make it or choose another")
        if self.out.exists() and not self.overwrite:
            raise UserError(f"out: {self.out} exists already; choose another file, or pass --overwrite to replace it")


def benchmark(options: BenchmarkOptions) -> dict:
    """Run everything, write `options.out`, and return its content. Heavy parts run in processes of their own."""
    parts: dict[str, Callable[[], object]] = {
        "parameters": parameters,
        "styled_conv": lambda: isolated(styled_conv, options.repetitions),
        "train_step": lambda: isolated(train_step, "hippocampus", "split_shuffle", 8, options.repetitions),
        "train_step_plain": lambda: isolated(train_step, "hippocampus", "plain", 8, options.repetitions),
        "generator_forward": lambda: isolated(generator_forward, options.repetitions),
    }
    if not options.skip_large:
        parts["train_step_large"] = lambda: isolated(train_step, LARGE_PRESET, "split_shuffle", 1, 1)
    result = {"created_with": __version__, "machine": machine()}
    for name, part in tqdm(parts.items(), desc="benchmark", unit="part"):
        result[name] = part()
    write_json(options.out, result)
    return result


def machine() -> dict:
    """What the numbers were measured on."""
    use_all_cores(PartialState(cpu=wants_cpu()))
    device = "cpu" if wants_cpu() else torch.cuda.get_device_name()
    return {
        "device": device,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "mixed_precision": resolve_precision("auto"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def isolated(function: Callable, *arguments: object) -> object:
    """Call in a fresh process, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def parameters() -> list[dict]:
    """Parameters of generator and discriminator at rank 3, per preset and convolution kind."""
    rows = []
    for name in preset_names():
        counts = {kind: sum(_count(network) for network in _networks(name, kind)) for kind in CONV_KINDS}
        for kind, count in counts.items():
            rows.append({"preset": name, "conv": kind, "parameters": count, "of_plain": count / counts["plain"]})
    return rows


def styled_conv(repetitions: int) -> list[dict]:
    """Forward and backward of one 3x3x3 convolution, styled against a plain `conv3d` of the same size, channels last.

    "styled" is style, convolution and demodulation; "whole layer" adds noise, bias and activation.
    """
    state = PartialState(cpu=wants_cpu())
    use_all_cores(state)
    dtype = torch.bfloat16 if resolve_precision("auto") == "bf16" else torch.float32
    rows = []
    for shape in CONV_SHAPES:
        n, channels, *grid = shape
        x, gradient = (
            torch.randn(shape, device=state.device, dtype=dtype).to(memory_format=torch.channels_last_3d) for _ in "xg"
        )
        x.requires_grad_()
        w = torch.randn(n, 128, device=state.device)
        weight = torch.randn(channels, channels, 3, 3, 3, device=state.device, requires_grad=True)
        calls = {"conv3d": lambda x=x, weight=weight: F.conv3d(x, weight.to(x.dtype), padding=1)}
        for kind in CONV_KINDS:
            # A one-level config would not reach these grids; the layer takes its grid from its input.
            config = GeneratorConfig(rank=3, shape=(4, 4, 4), channels=(channels,), conv=kind, depth_aware=False)
            layer = StyledConv(config, 0, channels, channels, grow=False).to(state.device)
            calls[f"styled {kind}"] = lambda x=x, w=w, layer=layer: layer.modulate(x, w)
            calls[f"whole layer {kind}"] = lambda x=x, w=w, layer=layer: layer(x, w, None, "random")
        medians = _medians(
            {name: lambda call=call, g=gradient: call().backward(g) for name, call in calls.items()}, repetitions
        )
        rows += [
            {"shape": list(shape), "layer": name, "ms": ms, "of_conv3d": ms / medians["conv3d"]}
            for name, ms in medians.items()
        ]
    return rows


def train_step(preset: str, conv: str, batch_size: int, repetitions: int) -> dict:
    """A whole step (discriminator and generator; R1 apart): ms, share of time in convolutions, peak memory in MiB."""
    accelerator = make_accelerator()
    section = load_preset(preset)["train3d"]
    micro = min(batch_size, section.get("micro_batch") or batch_size)
    config = TrainConfig(
        data=Path(),
        out=Path(),
        batch_size=batch_size,
        micro_batch=micro,
        r1_interval=10**9,
        checkpoint_activations=section.get("checkpoint_activations", False),
    )
    trainer = Trainer(config, (1.0, 1.0, 1.0), *_networks(preset, conv), accelerator)
    batch = {"image": torch.rand(batch_size, 1, *trainer.G.config.shape) * 2 - 1}
    with_r1 = _seconds(lambda: trainer.train_step(batch))  # step 0 is due for R1, and warms up
    seconds = [_seconds(lambda: trainer.train_step(batch)) for _ in range(repetitions)]
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (accelerator.device.type == "cuda")
    with profile(activities=activities) as trace:
        trainer.train_step(batch)
    return {
        "preset": preset,
        "conv": conv,
        "shape": list(trainer.G.config.shape),
        "batch_size": batch_size,
        "checkpoint_activations": config.checkpoint_activations,
        "ms": 1e3 * statistics.median(seconds),
        "ms_first_with_r1": 1e3 * with_r1,
        "convolution_share": _convolution_share(trace, accelerator.device.type),
        "peak_mib": _peak_mib(accelerator.device.type),
    }


@torch.no_grad()
def generator_forward(repetitions: int) -> list[dict]:
    """Voxels per second of the generator with default channels, batch 1, float32 and the device's fast precision."""
    state = PartialState(cpu=wants_cpu())
    use_all_cores(state)
    rows = []
    for shape in FORWARD_SHAPES:
        generator = Generator(GeneratorConfig(rank=3, shape=shape)).to(state.device).eval()
        z = torch.randn(1, generator.z_dim, device=state.device)

        def fast(generator: Generator = generator, z: torch.Tensor = z) -> torch.Tensor:
            with torch.autocast(state.device.type, torch.bfloat16, enabled=resolve_precision("auto") == "bf16"):
                return generator(z)

        medians = _medians({"float32": lambda g=generator, z=z: g(z), "fast": fast}, repetitions)
        voxels = torch.Size(shape).numel()
        rows += [{"shape": list(shape), "precision": p, "voxels_s": voxels / ms * 1e3} for p, ms in medians.items()]
    return rows


def _networks(preset: str, conv: str) -> tuple[Generator, Discriminator]:
    sections = load_preset(preset)
    shape, channels = tuple(sections["prepare"]["shape"]), tuple(sections["train3d"]["network"]["channels"])
    common = {"rank": 3, "shape": shape, "channels": channels, "conv": conv}
    return Generator(GeneratorConfig(**common)), Discriminator(DiscriminatorConfig(**common))


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _medians(calls: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median ms per call, after one warm-up each, taking turns."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            times[name].append(_seconds(call))
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def _convolution_share(trace: profile, device: str) -> float:
    attribute = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    times = {event.key: getattr(event, attribute) for event in trace.key_averages()}
    convolutions = sum(t for key, t in times.items() if "conv" in key.lower() and "autograd" not in key)
    return convolutions / sum(times.values())


def _peak_mib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def table(result: dict) -> str:
    """The measurements for people."""
    lines = ["", "Parameters, generator and discriminator"]
    lines += [f"{'preset':14s}{'conv':16s}{'parameters':>12s}{'of plain':>10s}"]
    lines += [
        f"{r['preset']:14s}{r['conv']:16s}{r['parameters']:12,d}{r['of_plain']:10.3f}" for r in result["parameters"]
    ]
    lines += ["", f"One 3x3x3 layer, forward and backward, {result['machine']['mixed_precision']}, channels last"]
    lines += [f"{'shape':20s}{'layer':28s}{'ms':>8s}{'of conv3d':>11s}"]
    lines += [
        f"{'x'.join(map(str, r['shape'])):20s}{r['layer']:28s}{r['ms']:8.1f}{r['of_conv3d']:11.2f}"
        for r in result["styled_conv"]
    ]
    lines += ["", "Training step"]
    lines += [f"{'preset':14s}{'conv':16s}{'batch':>6s}{'ms':>9s}{'in convolutions':>17s}{'peak MiB':>10s}"]
    steps = [result[key] for key in ("train_step", "train_step_plain", "train_step_large") if key in result]
    lines += [
        f"{r['preset']:14s}{r['conv']:16s}{r['batch_size']:6d}{r['ms']:9.0f}"
        f"{r['convolution_share']:17.2f}{r['peak_mib']:10.0f}"
        for r in steps
    ]
    lines += ["", "Generator, batch 1", f"{'shape':14s}{'precision':12s}{'voxels/s':>12s}"]
    lines += [
        f"{'x'.join(map(str, r['shape'])):14s}{r['precision']:12s}{r['voxels_s']:12,.0f}"
        for r in result["generator_forward"]
    ]
    return "\n".join(lines)
