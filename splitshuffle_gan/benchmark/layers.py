"""The styled layer: style, convolution, demodulation, bias, noise and activation, against its own bare convolutions."""

from collections.abc import Callable

import torch

from splitshuffle_gan.benchmark.cases import COMPARED, Bare, Differentiated, Place, Shape, level_shapes
from splitshuffle_gan.benchmark.clock import Measurement, ratio, summary, take_turns, timed
from splitshuffle_gan.benchmark.setting import Setting
from splitshuffle_gan.config import GeneratorConfig, Schedule
from splitshuffle_gan.nn.styled import StyledConv


def measure_layers(setting: Setting) -> list[dict]:
    """Forward and backward of a `StyledConv` without growth, channels last, at every level of the preset.

    Returns:
        Rows of shape, dtype, kind, compile: summaries of "ms" and "bare_ms", the ratios "of_bare" (its own kind's
        convolutions) and "of_conv3d" (a plain bare `conv3d`).
    """
    rows = []
    for shape in level_shapes(setting.preset, setting.batch_size):
        for dtype in setting.dtypes:
            rows += _compare(setting, shape, Place(setting.device, dtype))
    return rows


def _compare(setting: Setting, shape: Shape, place: Place) -> list[dict]:
    layers = {kind: _layer(kind, shape, place) for kind in COMPARED}
    cases: dict[tuple, Measurement] = {
        ("bare", kind): timed(Bare(kind, shape, place).training, place.device) for kind in COMPARED
    }
    for on in setting.compilation.choices:
        for kind, layer in layers.items():
            cases[on, kind] = compiled(setting, on, timed(layer.training, place.device))
    label = f"layer {'x'.join(map(str, shape))} {place.dtype}"
    times = {key: values["ms"] for key, values in take_turns(cases, setting.repetitions, label).items()}
    setting.compilation.switch(False)
    return [
        {
            "shape": list(shape),
            "dtype": place.dtype,
            "kind": kind,
            "compile": on,
            "ms": summary(times[on, kind]),
            "bare_ms": summary(times["bare", kind]),
            "of_bare": ratio(times[on, kind], times["bare", kind]),
            "of_conv3d": ratio(times[on, kind], times["bare", "plain"]),
        }
        for on in setting.compilation.choices
        for kind in COMPARED
    ]


def compiled(setting: Setting, on: bool, measure: Measurement) -> Callable[[], dict[str, float]]:
    """The measurement, with compilation switched on or off before it, off the clock."""

    def switched() -> dict[str, float]:
        setting.compilation.switch(on)
        return measure()

    return switched


def _layer(kind: str, shape: Shape, place: Place) -> Differentiated:
    batch, channels, *grid = shape
    levels = Schedule.for_shape(tuple(grid)).levels
    config = GeneratorConfig(rank=3, shape=tuple(grid), channels=(channels,) * levels, conv=kind)
    layer = StyledConv(config, levels - 1, channels, channels, grow=False).to(place.device)
    x, gradient = place.random(*shape).requires_grad_(), place.random(*shape)
    w = torch.randn(batch, config.w_dim, device=place.device, requires_grad=True)
    return Differentiated(lambda: layer(x, w, None, "random"), layer, [x, w], gradient)
