"""The Cross-D convolution on images: what a kernel for each sample costs, against one for all and against a loop."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitshuffle_gan.benchmark.cases import Differentiated, Place, Shape
from splitshuffle_gan.benchmark.clock import ratio, summary, take_turns, timed
from splitshuffle_gan.benchmark.setting import Setting
from splitshuffle_gan.nn.cross_d import CrossDConv, slice_kernels

STAGES = ((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4))  # C, H, W in a ResNet-18 of small images
DIRECTIONS = ("forward", "training")


def measure_cross_d(setting: Setting) -> list[dict]:
    """Forward and training (with all gradients) of 3x3 convolutions at the stages of a ResNet-18.

    Returns:
        Rows of shape [N, C, H, W], dtype, direction, way: a summary "ms" and the ratio "of_conv2d". The ways: "conv2d",
        "published" and "rotation" (`CrossDConv` of that phase), and "loop", published, sample after sample.
    """
    shapes = [(setting.batch_size, *stage) for stage in STAGES]
    return [row for shape in shapes for dtype in setting.dtypes for row in _compare(setting, shape, dtype)]


def _compare(setting: Setting, shape: Shape, dtype: str) -> list[dict]:
    place, channels = Place(setting.device, dtype), shape[1]
    layers = {phase: CrossDConv(channels, channels, 3, padding=1, bias=False, phase=phase)
              for phase in ("published", "rotation")}  # fmt: skip
    modules: dict[str, nn.Module] = {"conv2d": nn.Conv2d(channels, channels, 3, padding=1, bias=False), **layers}
    modules["loop"] = Loop(layers["published"])
    cases = {
        (direction, way): timed(getattr(_case(module.to(place.device), shape, place), direction), place.device)
        for direction in DIRECTIONS
        for way, module in modules.items()
    }
    label = f"cross_d {'x'.join(map(str, shape))} {dtype}"
    times = {key: values["ms"] for key, values in take_turns(cases, setting.repetitions, label).items()}
    return [
        {
            "shape": list(shape),
            "dtype": dtype,
            "direction": direction,
            "way": way,
            "ms": summary(times[direction, way]),
            "of_conv2d": ratio(times[direction, way], times[direction, "conv2d"]),
        }
        for direction in DIRECTIONS
        for way in modules
    ]


class Loop(nn.Module):
    """What `layer` does on images, sample after sample, each with its own kernel."""

    def __init__(self, layer: CrossDConv) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        kernels = slice_kernels(self.layer.weight, *self.layer.head(x), self.layer.phase)
        return torch.cat([F.conv2d(image[None], kernel, padding=1) for image, kernel in zip(x, kernels, strict=True)])


def _case(module: nn.Module, shape: Shape, place: Place) -> Differentiated:
    x, gradient = place.random(*shape).requires_grad_(), place.random(*shape)

    def call() -> Tensor:
        with torch.autocast(place.device.type, torch.bfloat16, enabled=place.dtype == "bf16"):
            return module(x)

    return Differentiated(call, module, [x], gradient)
