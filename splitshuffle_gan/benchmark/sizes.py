"""From 32^3 to 128^3, and the largest preset: time and peak memory of volumes, one at a time."""

import torch

from splitshuffle_gan.benchmark.cases import Place, TrainingStep, make_networks, networks
from splitshuffle_gan.benchmark.clock import amortised, milliseconds, ratio, summary, take_turns
from splitshuffle_gan.benchmark.memory import first_steps
from splitshuffle_gan.benchmark.setting import Setting, find_device
from splitshuffle_gan.benchmark.workers import isolated, peak_mib
from splitshuffle_gan.presets import load_preset

SIDES = (32, 64, 128)
KINDS = ("split_shuffle", "plain")
LARGE_PRESET = "heart-ct"
LARGE_SIDE, LARGE_REPETITIONS = 128, 3  # from this side on, at most so many repetitions


def measure_sizes(setting: Setting) -> list[dict]:
    """Cubes at batch 1, with the config's own channels, in the fastest precision.

    Returns:
        Rows of side, kind, channels: summaries "generator_ms", "step_ms" (mean over a period of R1) and their ratios
        to plain; medians "generated_per_s", "trained_per_s" in volumes; "peak_mib" of a process that trains.
    """
    return [row for side in SIDES for row in _measure_side(setting, side)]


def _measure_side(setting: Setting, side: int) -> list[dict]:
    place = Place(setting.device, setting.fast)
    steps = {kind: TrainingStep(make_networks(kind, (side,) * 3), place, 1) for kind in KINDS}
    repetitions = setting.repetitions if side < LARGE_SIDE else min(LARGE_REPETITIONS, setting.repetitions)
    times = take_turns({kind: step.measure for kind, step in steps.items()}, repetitions, f"size {side}")
    channels = {kind: step.trainer.G.config.channels for kind, step in steps.items()}
    for kind, values in times.items():
        values["step"] = amortised(values["step_without_r1"], values["step_r1"], steps[kind].r1_interval)
    del steps  # their memory is the children's now
    rows = []
    for kind, values in times.items():
        generator, step = summary(values["generator_forward"]), summary(values["step"])
        rows.append(
            {
                "side": side,
                "kind": kind,
                "dtype": setting.fast,
                "channels": list(channels[kind]),
                "generator_ms": generator,
                "generator_of_plain": ratio(values["generator_forward"], times["plain"]["generator_forward"]),
                "generated_per_s": 1e3 / generator["median"],
                "step_ms": step,
                "step_of_plain": ratio(values["step"], times["plain"]["step"]),
                "trained_per_s": 1e3 / step["median"],
                **isolated(_cube_steps, setting.fast, setting.seed, side, kind),
            }
        )
    return rows


def _cube_steps(dtype: str, seed: int, side: int, kind: str) -> dict[str, float]:
    place = Place(find_device(), dtype)
    torch.manual_seed(seed)
    return first_steps(TrainingStep(make_networks(kind, (side,) * 3), place, 1))


def measure_large(setting: Setting) -> list[dict]:
    """A step of the largest preset at batch 1, with activations stored and recomputed, each in its own process.

    Returns:
        Rows of preset, shape, checkpoint_above, and either "step_ms" (mean over a period of R1), "step_r1_ms" and
        "peak_mib", or "failed", why not.
    """
    section = load_preset(LARGE_PRESET)
    rows = []
    for checkpoint_above in dict.fromkeys((section["train3d"].get("checkpoint_above"), None)):
        row = {
            "preset": LARGE_PRESET,
            "shape": list(section["prepare"]["shape"]),
            "kind": "split_shuffle",
            "dtype": setting.fast,
            "checkpoint_above": checkpoint_above,
        }
        try:
            row |= isolated(_large_steps, setting.fast, setting.seed, checkpoint_above)
        except MemoryError as error:
            row["failed"] = str(error)
        rows.append(row)
    return rows


def _large_steps(dtype: str, seed: int, checkpoint_above: int | None) -> dict[str, float]:
    place = Place(find_device(), dtype)
    torch.manual_seed(seed)
    step = TrainingStep(networks(LARGE_PRESET, "split_shuffle"), place, 1, checkpoint_above)
    step.step(True)  # warms up, and is the step that needs the most memory
    with_r1, without = (milliseconds(lambda p=p: step.step(p), place.device) for p in (True, False))
    (mean,) = amortised([without], [with_r1], step.r1_interval)
    return {"step_ms": mean, "step_r1_ms": with_r1, "peak_mib": peak_mib(place.device)}
