"""What this machine can do: the rate of a large matrix product, and of plain convolutions."""

import torch

from splitshuffle_gan.benchmark.cases import Bare, Place
from splitshuffle_gan.benchmark.clock import summary, take_turns, timed
from splitshuffle_gan.benchmark.setting import Setting

MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
CONV_BATCH = {"cpu": 2, "cuda": 16}
CONV_SIZES = ((16, 64), (32, 48), (64, 32), (128, 24))  # channels, side of the grid


def measure_rates(setting: Setting) -> dict:
    """GFLOP/s of a square matrix product and of `conv3d` 3x3x3, channels last, in every precision.

    Returns:
        "matrix": dtype -> summary; "convolution": rows of dtype, channels, shape, forward and training (forward with
        both gradients).
    """
    cases, flop = {}, {}
    for dtype in setting.dtypes:
        place = Place(setting.device, dtype)
        side = MATRIX_SIDE[setting.device.type]
        a, b = place.random(side, side), place.random(side, side)
        cases[dtype, "matrix"] = timed(lambda a=a, b=b: torch.mm(a, b), setting.device)
        flop[dtype, "matrix"] = 2 * side**3
        for channels, grid in CONV_SIZES:
            shape = (CONV_BATCH[setting.device.type], channels, grid, grid, grid)
            bare = Bare("plain", shape, place)
            for direction, factor in (("forward", 1), ("training", 3)):
                key = dtype, shape, direction
                cases[key] = timed(getattr(bare, direction), setting.device)
                flop[key] = factor * bare.flop
    times = take_turns(cases, setting.repetitions, "machine")
    rates = {key: summary([flop[key] / ms / 1e6 for ms in values["ms"]]) for key, values in times.items()}
    shapes = dict.fromkeys(key[:2] for key in rates if len(key) == 3)
    rows = [
        {
            "dtype": dtype,
            "channels": shape[1],
            "shape": list(shape),
            "forward": rates[dtype, shape, "forward"],
            "training": rates[dtype, shape, "training"],
        }
        for dtype, shape in shapes
    ]
    return {"matrix": {dtype: rates[dtype, "matrix"] for dtype in setting.dtypes}, "convolution": rows}


def best_plain_rate(rates: dict | None, dtype: str, direction: str) -> float | None:
    """GFLOP/s of the plain convolution of the fastest width: what networks are held against. None if not measured."""
    if rates is None:
        return None
    return max(row[direction]["median"] for row in rates["convolution"] if row["dtype"] == dtype)
