"""Where and how everything is measured: device, precisions, compiler."""

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState

from splitshuffle_gan.devices import resolve_precision, use_all_cores, wants_cpu
from splitshuffle_gan.passes import compile_passes

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Compilation:
    """Switches compilation of the passes between convolutions on and off; knows why where it cannot be.

    Attributes:
        reason: why nothing can be compiled here, or None.
    """

    device: torch.device
    reason: str | None = None
    on: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.reason = compile_passes(self.device)
        self.on = self.reason is None
        self.switch(False)

    @property
    def choices(self) -> tuple[bool, ...]:
        """What can be measured: without, and where there is a compiler, with."""
        return (False, True) if self.reason is None else (False,)

    def switch(self, on: bool) -> None:
        """Compiled from now on, or not."""
        if on != self.on:
            compile_passes(self.device, enable=on)
            self.on = on


@dataclass(frozen=True)
class Setting:
    """What all parts share.

    Attributes:
        dtypes: names of the precisions that the hardware computes in, the fastest last.
    """

    device: torch.device
    dtypes: tuple[str, ...]
    compilation: Compilation
    preset: str
    batch_size: int
    repetitions: int
    seed: int

    @property
    def fast(self) -> str:
        """The fastest precision."""
        return self.dtypes[-1]


def find_device() -> torch.device:
    """The device to measure on, all its cores in use."""
    state = PartialState(cpu=wants_cpu())
    use_all_cores(state)
    torch.backends.cudnn.benchmark = True
    return state.device


def available_dtypes() -> tuple[str, ...]:
    """float32, and bf16 where the hardware computes in it: emulated, it would only say how slow that is."""
    return ("float32", "bf16") if resolve_precision("auto") == "bf16" else ("float32",)


def busy_cores() -> float | None:
    """How many cores all programs together kept busy in the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def describe(setting: Setting) -> dict:
    """What the numbers were measured on."""
    device = "cpu" if setting.device.type == "cpu" else torch.cuda.get_device_name(setting.device)
    return {
        "device": device,
        "processor": _processor(),
        "system": platform.platform(),
        "busy_cores_before": busy_cores(),
        "threads": torch.get_num_threads(),
        "dtypes": list(setting.dtypes),
        "compile": {"available": setting.compilation.reason is None, "reason": setting.compilation.reason},
        "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "convolution": torch.backends.cudnn.allow_tf32},
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
