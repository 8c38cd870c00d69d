"""Where to compute, with how many threads and how precisely, for machines other than this one too."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from accelerate import PartialState

from splitshuffle_gan.devices import make_accelerator, resolve_precision, use_all_cores, wants_cpu


@pytest.fixture
def machine(monkeypatch):
    """`machine(cuda, bf16)` pretends; ACCELERATE_USE_CPU is unset."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)

    def pretend(cuda: bool, bf16: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: cuda and bf16)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bf16 and not cuda, raising=False)

    return pretend


@pytest.mark.parametrize("value", ["1", "true", "True", "YES"])
def test_the_environment_can_ask_for_the_cpu(machine, monkeypatch, value):
    machine(cuda=True)
    assert not wants_cpu()
    monkeypatch.setenv("ACCELERATE_USE_CPU", value)
    assert wants_cpu()


@pytest.mark.parametrize("value", ["", "0", "false", "no"])
def test_the_environment_can_leave_the_gpu_alone(machine, monkeypatch, value):
    machine(cuda=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", value)
    assert not wants_cpu()


def test_without_cuda_it_is_the_cpu(machine):
    machine(cuda=False)
    assert wants_cpu()


@pytest.mark.parametrize("cuda", [True, False])
def test_auto_precision_follows_the_hardware(machine, cuda):
    machine(cuda, bf16=True)
    assert resolve_precision("auto") == "bf16"
    machine(cuda, bf16=False)
    assert resolve_precision("auto") == "no"


def test_auto_on_a_gpu_machine_told_to_use_the_cpu_asks_the_cpu(machine, monkeypatch):
    machine(cuda=True, bf16=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    assert resolve_precision("auto") == "no"


@pytest.mark.parametrize("asked", ["no", "bf16"])
@pytest.mark.parametrize("bf16", [True, False])
def test_an_explicit_precision_is_taken_as_it_is(machine, asked, bf16):
    machine(cuda=False, bf16=bf16)
    assert resolve_precision(asked) == asked


def test_threads_are_the_cores_shared_among_local_processes(cpu, monkeypatch):
    state = PartialState(cpu=True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    torch.set_num_threads(1)
    use_all_cores(state)
    assert torch.get_num_threads() == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    use_all_cores(state)
    assert torch.get_num_threads() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "7")
    use_all_cores(state)
    assert torch.get_num_threads() == 1


def test_threads_where_the_system_cannot_tell_its_affinity(cpu, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    use_all_cores(PartialState(cpu=True))
    assert torch.get_num_threads() == 3


def test_the_accelerator_computes_and_logs_as_asked(cpu, tmp_path):
    accelerator = make_accelerator("bf16", tmp_path)
    assert (accelerator.device.type, accelerator.mixed_precision, accelerator.num_processes) == ("cpu", "bf16", 1)
    with accelerator.autocast():
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16 and torch.is_autocast_enabled("cpu")
    accelerator.init_trackers("tensorboard")
    accelerator.end_training()
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_without_a_folder_nothing_is_logged(cpu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    accelerator = make_accelerator("no")
    accelerator.init_trackers("tensorboard")
    assert (accelerator.trackers, list(tmp_path.iterdir())) == ([], [])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc takes these settings")
def test_freed_memory_is_used_again():
    """Page faults, as the system counts them, while a large tensor is made and dropped again and again."""
    script = (
        "import resource, sys, torch; from splitshuffle_gan.devices import keep_freed_memory\n"
        "if sys.argv[1] == 'keep': keep_freed_memory()\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "torch.ones(2**23); start = faults()\n"
        "for _ in range(10): torch.ones(2**23)\n"
        "print(faults() - start)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    default, kept = (
        int(subprocess.check_output([sys.executable, "-c", script, mode], text=True, env=environment))
        for mode in ("default", "keep")
    )
    assert kept < default / 5
