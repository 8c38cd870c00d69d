"""Where to compute, with how many threads, and how precisely."""

import ctypes
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState

from splitshuffle_gan.passes import compile_passes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def wants_cpu() -> bool:
    """No CUDA here, or `ACCELERATE_USE_CPU` asks for the CPU."""
    return not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def resolve_precision(mixed_precision: str) -> str:
    """ "auto" becomes "bf16" where the hardware computes in it, else "no"."""
    if mixed_precision != "auto":
        return mixed_precision
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported() if wants_cpu() else torch.cuda.is_bf16_supported()
    return "bf16" if fast else "no"


def use_all_cores(state: PartialState) -> None:
    """On a CPU, share the cores among the local processes, and keep freed memory; launchers set one thread each."""
    if state.device.type == "cpu":
        keep_freed_memory()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        local = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        torch.set_num_threads(max(1, cores // local))


def keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks instead of returning them; does nothing with another C library.

    By default every large activation is mapped afresh and faulted in page by page, which can cost more than the
    convolution that fills it. The environment's `MALLOC_MMAP_MAX_` and `MALLOC_TRIM_THRESHOLD_` do the same.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never


def start_compiler(device: torch.device) -> None:
    """Compile what lies between convolutions (`passes.compile_passes`); say so in one line where that cannot be."""
    reason = compile_passes(device)
    if reason is not None and PartialState().is_main_process:
        print(f"compile: not possible here ({reason}); going on without, to the same results", file=sys.stderr)


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
