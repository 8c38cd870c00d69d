"""Peak memory of training, and what the C library's allocator costs."""

from collections.abc import Callable

import torch

from splitshuffle_gan.benchmark.cases import COMPARED, Place, TrainingStep, networks
from splitshuffle_gan.benchmark.clock import milliseconds, ratio, summary, take_turns
from splitshuffle_gan.benchmark.setting import Setting, find_device
from splitshuffle_gan.benchmark.workers import Worker, isolated, peak_mib
from splitshuffle_gan.devices import keep_freed_memory


def measure_memory(setting: Setting) -> dict:
    """Peak memory of every kind and precision at the preset, and the cost of the default allocator."""
    return {"peaks": measure_peaks(setting), "allocator": measure_allocator(setting)}


def measure_peaks(setting: Setting) -> list[dict]:
    """Rows of dtype, kind: "peak_mib" of a process that makes two steps, "start_mib" of it before them."""
    rows = []
    for dtype in setting.dtypes:
        for kind in COMPARED:
            arguments = dtype, setting.seed, setting.preset, kind, setting.batch_size
            rows.append({"dtype": dtype, "kind": kind, **isolated(_preset_steps, *arguments)})
    return rows


def _preset_steps(dtype: str, seed: int, preset: str, kind: str, batch_size: int) -> dict[str, float]:
    place = Place(find_device(), dtype)
    torch.manual_seed(seed)
    return first_steps(TrainingStep(networks(preset, kind), place, batch_size))


def first_steps(step: TrainingStep) -> dict[str, float]:
    """Memory in MiB before and at the peak of a step with R1 and one without."""
    start = peak_mib(step.device)
    step.step(True)
    step.step(False)
    return {"start_mib": start, "peak_mib": max(start, peak_mib(step.device))}  # the kernel counts approximately


def measure_allocator(setting: Setting) -> dict:
    """A float32 step without R1, glibc returning freed memory (its default) against keeping it (ours), on a CPU.

    Returns:
        Summaries "default_ms" and "kept_ms", and the ratio "default_of_kept"; or "skipped", why.
    """
    if setting.device.type != "cpu":
        return {"skipped": "the C library's allocator matters on a CPU"}
    threads = torch.get_num_threads()
    arguments = setting.preset, setting.batch_size, setting.seed, threads
    workers = {keep: Worker(_allocating_step, keep, *arguments, environment={}) for keep in (False, True)}
    try:
        for worker in workers.values():
            worker.answer()
        cases = {keep: lambda worker=worker: _turn(worker) for keep, worker in workers.items()}
        times = take_turns(cases, setting.repetitions, "allocator")
    finally:
        for worker in workers.values():
            worker.close()
    default, kept = (times[keep]["ms"] for keep in (False, True))
    return {
        "dtype": "float32",
        "kind": "split_shuffle",
        "default_ms": summary(default),
        "kept_ms": summary(kept),
        "default_of_kept": ratio(default, kept),
    }


def _turn(worker: Worker) -> dict[str, float]:
    worker.ask()
    return {"ms": worker.answer()}


def _allocating_step(keep: bool, preset: str, batch_size: int, seed: int, threads: int) -> Callable[[], float]:
    """Milliseconds of a step, in a process whose allocator is as it comes or set; that cannot be undone."""
    if keep:
        keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    device = torch.device("cpu")
    step = TrainingStep(networks(preset, "split_shuffle"), Place(device, "float32"), batch_size)
    return lambda: milliseconds(lambda: step.step(False), device)
