"""Where to compute, with how many threads, and how precisely."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState


def wants_cpu() -> bool:
    """No CUDA here, or `ACCELERATE_USE_CPU` asks for the CPU."""
    return not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def resolve_precision(mixed_precision: str) -> str:
    """"auto" becomes "bf16" where the hardware computes in it, else "no"."""
    if mixed_precision != "auto":
        return mixed_precision
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported() if wants_cpu() else torch.cuda.is_bf16_supported()
    return "bf16" if fast else "no"


def use_all_cores(state: PartialState) -> None:
    """On a CPU, share the cores among the local processes; launchers set one thread per process."""
    if state.device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        local = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        torch.set_num_threads(max(1, cores // local))


def make_accelerator(mixed_precision: str = "auto", out: Path | None = None) -> Accelerator:
    """Device and processes from the launcher, precision from `mixed_precision`, TensorBoard logs in `out`."""
    accelerator = Accelerator(
        mixed_precision=resolve_precision(mixed_precision),
        cpu=wants_cpu(),
        log_with="tensorboard" if out else None,
        project_dir=out,
    )
    use_all_cores(PartialState())
    if accelerator.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    return accelerator
