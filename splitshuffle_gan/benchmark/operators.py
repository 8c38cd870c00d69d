"""The convolutions alone: bare ones against the whole modules, which also split, pad, cast and shuffle."""

from splitshuffle_gan.benchmark.cases import COMPARED, LAYOUTS, Bare, Differentiated, Place, Shape, level_shapes
from splitshuffle_gan.benchmark.clock import ratio, summary, take_turns, timed
from splitshuffle_gan.benchmark.setting import Setting
from splitshuffle_gan.nn.conv import make_conv

CUBES = ((1, 64, 32, 32, 32), (1, 32, 64, 64, 64), (1, 16, 128, 128, 128))  # N, C, D, H, W
SLOW_REPETITIONS = 3  # at most, where convolutions are slow and nothing is promised: other layouts


def measure_operators(setting: Setting) -> list[dict]:
    """Forward and training (with all gradients) at the preset's levels and at cubes of 32 to 128 voxels a side.

    Returns:
        Rows of shape, dtype, layout, direction, kind: summaries of "bare_ms" and "module_ms", and the ratios
        "module_of_bare" (the same kind's), "bare_of_plain" and "module_of_plain" (module against module).
    """
    rows = []
    for shape in [*level_shapes(setting.preset, setting.batch_size), *CUBES]:
        for dtype in setting.dtypes:
            for layout in LAYOUTS:
                rows += _compare(setting, shape, Place(setting.device, dtype, layout))
    return rows


def _compare(setting: Setting, shape: Shape, place: Place) -> list[dict]:
    usual = place.layout == "channels_last"
    repetitions = setting.repetitions if usual else min(SLOW_REPETITIONS, setting.repetitions)
    calls = {}
    for kind in COMPARED:
        calls[kind, "bare"] = Bare(kind, shape, place)
        calls[kind, "module"] = _module(kind, shape, place)
    cases = {
        (direction, *key): timed(getattr(call, direction), setting.device)
        for direction in ("forward", "training")
        for key, call in calls.items()
    }
    label = f"operator {'x'.join(map(str, shape))} {place.dtype} {place.layout}"
    times = {key: values["ms"] for key, values in take_turns(cases, repetitions, label).items()}
    return [
        {
            "shape": list(shape),
            "dtype": place.dtype,
            "layout": place.layout,
            "direction": direction,
            "kind": kind,
            "bare_ms": summary(times[direction, kind, "bare"]),
            "module_ms": summary(times[direction, kind, "module"]),
            "module_of_bare": ratio(times[direction, kind, "module"], times[direction, kind, "bare"]),
            "bare_of_plain": ratio(times[direction, kind, "bare"], times[direction, "plain", "bare"]),
            "module_of_plain": ratio(times[direction, kind, "module"], times[direction, "plain", "module"]),
        }
        for direction in ("forward", "training")
        for kind in COMPARED
    ]


def _module(kind: str, shape: Shape, place: Place) -> Differentiated:
    module = make_conv(kind, 3, shape[1], shape[1]).to(place.device)
    x, gradient = place.random(*shape).requires_grad_(), place.random(*shape)
    return Differentiated(lambda: module(x), module, [x], gradient)
