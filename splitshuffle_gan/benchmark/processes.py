"""Several processes: what they send each other, and how much faster two are than one."""

import socket
from collections.abc import Callable

import torch

from splitshuffle_gan.benchmark.cases import COMPARED, Place, TrainingStep, count_parameters, networks
from splitshuffle_gan.benchmark.clock import milliseconds, ratio, summary, take_turns
from splitshuffle_gan.benchmark.setting import Setting
from splitshuffle_gan.benchmark.workers import Worker
from splitshuffle_gan.devices import make_accelerator

ARRANGEMENTS = ((1, 1), (1, 2), (2, 1))  # processes, threads of each


def measure_processes(setting: Setting) -> dict:
    """Communication counted, and scaling on a CPU measured at an equal global batch."""
    return {"bytes": count_bytes(setting.preset), "scaling": measure_scaling(setting)}


def count_bytes(preset: str) -> list[dict]:
    """Bytes that each process gives to the reduction in one training step: a float32 per parameter, once."""
    rows = []
    for kind in COMPARED:
        generator, discriminator = (4 * count_parameters(network) for network in networks(preset, kind))
        rows.append({"kind": kind, "generator": generator, "discriminator": discriminator})
    plain = next(row["generator"] + row["discriminator"] for row in rows if row["kind"] == "plain")
    return [row | {"of_plain": (row["generator"] + row["discriminator"]) / plain} for row in rows]


def measure_scaling(setting: Setting) -> list[dict] | dict:
    """Steps without R1 of one process with one and two threads, and of two processes with one thread each.

    Returns:
        Rows of processes, threads: "step_ms" summary, "steps_per_s", ratio "speedup" over one process and thread; or
        {"skipped": why}.
    """
    if setting.device.type != "cpu":
        return {"skipped": "measured on a CPU only"}
    batch_size = max(2, setting.batch_size // 2 * 2)  # to be shared by two
    groups: dict[tuple[int, int], list[Worker]] = {}
    try:
        for processes, threads in ARRANGEMENTS:
            arguments = setting.preset, batch_size, setting.fast, setting.seed, processes, threads
            groups[processes, threads] = [
                Worker(_training_process, *arguments, environment=environment | {"OMP_NUM_THREADS": str(threads)})
                for environment in _environments(processes)
            ]
        for group in groups.values():
            for worker in group:
                worker.answer()
        cases = {key: lambda group=group: _turn(group) for key, group in groups.items()}
        times = {key: values["ms"] for key, values in take_turns(cases, setting.repetitions, "processes").items()}
    finally:
        for group in groups.values():
            for worker in group:
                worker.close()
    return [
        {
            "processes": processes,
            "threads": threads,
            "batch_size": batch_size,
            "step_ms": summary(values),
            "steps_per_s": 1e3 / summary(values)["median"],
            "speedup": ratio(times[ARRANGEMENTS[0]], values),
        }
        for (processes, threads), values in times.items()
    ]


def _turn(group: list[Worker]) -> dict[str, float]:
    """One step of all processes of a group together; the slowest counts."""
    for worker in group:
        worker.ask()
    return {"ms": max(worker.answer() for worker in group)}


def _environments(processes: int) -> list[dict[str, str]]:
    """What a launcher sets, for each process."""
    if processes == 1:
        return [{"ACCELERATE_USE_CPU": "1"}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"ACCELERATE_USE_CPU": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _training_process(
    preset: str, batch_size: int, dtype: str, seed: int, processes: int, threads: int
) -> Callable[[], float]:
    """Milliseconds of a step, in a process that a launcher's environment makes one of several."""
    accelerator = make_accelerator("bf16" if dtype == "bf16" else "no")
    if accelerator.num_processes != processes:
        raise RuntimeError(f"processes: found {accelerator.num_processes} together, {processes} were started")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    place = Place(accelerator.device, dtype)
    step = TrainingStep(networks(preset, "split_shuffle"), place, batch_size, accelerator=accelerator)
    return lambda: milliseconds(lambda: step.step(False), accelerator.device)
