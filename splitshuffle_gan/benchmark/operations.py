"""What a computation is made of: the time of its operations, and the arithmetic of its convolutions."""

import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Operations(TorchDispatchMode):
    """While active, times every operation that reaches PyTorch's dispatcher and counts the FLOPs of convolutions.

    A multiplication and an addition are two FLOPs. Everything is seen, gradients of gradients too; what
    `torch.compile` has fused is not. On a GPU the times are those of launching.

    Attributes:
        convolution_ms: time in operations with "conv" in their name.
        other_ms: time in all others; not the interpreter's between operations.
        convolution_flop: the arithmetic of the convolutions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolution_ms = self.other_ms = 0.0
        self.convolution_flop = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        start = time.perf_counter()
        result = func(*args, **kwargs)
        elapsed = 1e3 * (time.perf_counter() - start)
        if "conv" in func.overloadpacket.__name__:
            self.convolution_ms += elapsed
            if (count := flop_registry.get(func.overloadpacket)) is not None:
                self.convolution_flop += count(*args, **kwargs, out_val=result)
        else:
            self.other_ms += elapsed
        return result


def operations_of(call: Callable[[], object], device: torch.device) -> Operations:
    """Call once and say what it was made of; on a GPU twice, the second time with the profiler for the times."""
    with Operations() as operations:
        call()
    if device.type == "cuda":
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            call()
            torch.cuda.synchronize(device)
        # Each kernel is listed twice, by itself and with the operation that launched it: the latter says what it is.
        launched = [event for event in trace.key_averages() if event.device_type == torch.autograd.DeviceType.CPU]
        times = {event.key: event.self_device_time_total / 1e3 for event in launched}
        operations.convolution_ms = sum(ms for key, ms in times.items() if "conv" in key)
        operations.other_ms = sum(times.values()) - operations.convolution_ms
    return operations
