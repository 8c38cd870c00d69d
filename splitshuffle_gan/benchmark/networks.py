"""The networks of a preset: generator, both phases of a training step, the whole step, and what a step is made of."""

from splitshuffle_gan.benchmark.cases import COMPARED, Place, TrainingStep, count_parameters, networks
from splitshuffle_gan.benchmark.clock import amortised, ratio, summary, take_turns
from splitshuffle_gan.benchmark.layers import compiled
from splitshuffle_gan.benchmark.operations import operations_of
from splitshuffle_gan.benchmark.rates import best_plain_rate
from splitshuffle_gan.benchmark.setting import Setting
from splitshuffle_gan.presets import preset_names

TAKEN_APART = 3  # repetitions, at most, of steps whose operations are timed one by one
TIMES = ("generator_forward", "g_step", "d_step", "d_step_r1", "step_without_r1", "step_r1", "step")


def count_all_parameters() -> list[dict]:
    """Parameters of generator and discriminator at rank 3, per preset and convolution kind."""
    rows = []
    for name in preset_names():
        counts = {kind: sum(map(count_parameters, networks(name, kind))) for kind in COMPARED}
        for kind, count in counts.items():
            rows.append({"preset": name, "conv": kind, "parameters": count, "of_plain": count / counts["plain"]})
    return rows


def measure_networks(setting: Setting, rates: dict | None) -> dict:
    """Times of the preset's networks in every kind, precision and with and without compilation.

    Returns:
        "rows", one for each case: for each name in `TIMES` a summary of "ms" and the ratio "of_plain"; "step" is the
        mean over a period of R1. Further GFLOP of the convolutions, rates, shares of the measured `rates`, and
        "outside", the share of a step that is not in convolutions (whose time does not depend on compilation).
    """
    steps = {
        (dtype, kind): TrainingStep(networks(setting.preset, kind), Place(setting.device, dtype), setting.batch_size)
        for dtype in setting.dtypes
        for kind in COMPARED
    }
    cases = {  # kinds innermost: they are what is compared
        (dtype, on, kind): compiled(setting, on, steps[dtype, kind].measure)
        for dtype in setting.dtypes
        for on in setting.compilation.choices
        for kind in COMPARED
    }
    times = take_turns(cases, setting.repetitions, f"network {setting.preset}")
    setting.compilation.switch(False)
    interval = next(iter(steps.values())).r1_interval
    for values in times.values():
        values["step"] = amortised(values["step_without_r1"], values["step_r1"], interval)
    parts = take_turns(
        {key: lambda step=step: taken_apart(step) for key, step in steps.items()},
        min(TAKEN_APART, setting.repetitions),
        "network, operation by operation",
        warm_up=False,
    )
    rows = []
    for (dtype, on, kind), values in times.items():
        plain = times[dtype, on, "plain"]
        row = {"dtype": dtype, "compile": on, "kind": kind}
        row |= {name: {"ms": summary(values[name]), "of_plain": ratio(values[name], plain[name])} for name in TIMES}
        row |= _achieved(row, parts[dtype, kind], rates, dtype)
        row |= _outside(row, parts[dtype, kind])
        rows.append(row)
    first = steps[setting.dtypes[0], COMPARED[0]].trainer
    return {
        "preset": setting.preset,
        "shape": list(first.G.config.shape),
        "channels": list(first.G.config.channels),
        "batch_size": setting.batch_size,
        "r1_interval": interval,
        "rows": rows,
    }


def taken_apart(step: TrainingStep) -> dict[str, float]:
    """Where a step's time goes: convolutions and other operations, means over a period of R1; GFLOP."""
    without, penalised = (operations_of(lambda p=p: step.step(p), step.device) for p in (False, True))

    def mean(name: str) -> float:
        return amortised([getattr(without, name)], [getattr(penalised, name)], step.r1_interval)[0]

    return {
        "convolution_ms": mean("convolution_ms"),
        "other_ms": mean("other_ms"),
        "step_gflop": mean("convolution_flop") / 1e9,
        "generator_gflop": operations_of(step.generate, step.device).convolution_flop / 1e9,
        "discriminator_gflop": operations_of(step.judge, step.device).convolution_flop / 1e9,
    }


def _achieved(row: dict, parts: dict[str, list[float]], rates: dict | None, dtype: str) -> dict:
    """Rates of generator and step: the arithmetic of convolutions over all the time, and its share of `rates`."""
    result = {"discriminator_gflop": parts["discriminator_gflop"][0]}
    for name, gflop, direction in (("generator", "generator_gflop", "forward"), ("step", "step_gflop", "training")):
        ms = row["generator_forward" if name == "generator" else "step"]["ms"]["median"]
        rate = parts[gflop][0] / ms * 1e3
        best = best_plain_rate(rates, dtype, direction)
        result[gflop] = parts[gflop][0]
        result[f"{name}_gflop_s"] = rate
        result[f"{name}_of_plain_rate"] = None if best is None else rate / best
        result[f"{name}_of_matrix_rate"] = None if rates is None else rate / rates["matrix"][dtype]["median"]
    return result


def _outside(row: dict, parts: dict[str, list[float]]) -> dict:
    """What is not convolution: of the step as timed undisturbed, and, as a check, of the time in operations alone."""
    step = row["step"]["ms"]["median"]
    operations = [b / (a + b) for a, b in zip(parts["convolution_ms"], parts["other_ms"], strict=True)]
    return {
        "convolution_ms": summary(parts["convolution_ms"]),
        "outside": summary([1 - ms / step for ms in parts["convolution_ms"]]),
        "outside_of_operations": summary(operations),
    }
