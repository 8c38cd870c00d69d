"""The whole benchmark: part by part, in one process, into one JSON and a picture."""

import datetime
from collections.abc import Callable

import torch
from tqdm import tqdm

from splitshuffle_gan import __version__
from splitshuffle_gan.benchmark.cross_d import measure_cross_d
from splitshuffle_gan.benchmark.layers import measure_layers
from splitshuffle_gan.benchmark.memory import measure_memory
from splitshuffle_gan.benchmark.networks import count_all_parameters, measure_networks
from splitshuffle_gan.benchmark.operators import measure_operators
from splitshuffle_gan.benchmark.options import PARTS, BenchmarkOptions
from splitshuffle_gan.benchmark.picture import draw
from splitshuffle_gan.benchmark.processes import measure_processes
from splitshuffle_gan.benchmark.rates import measure_rates
from splitshuffle_gan.benchmark.sampling import measure_sampling
from splitshuffle_gan.benchmark.setting import Compilation, Setting, available_dtypes, describe, find_device
from splitshuffle_gan.benchmark.sizes import measure_large, measure_sizes
from splitshuffle_gan.output import write_json


def benchmark(options: BenchmarkOptions) -> dict:
    """Measure `options.parts`, write `options.out` and the picture, and return the JSON's content.

    All that is compared is measured in this process, in turns; only peaks of memory, allocators and several processes
    need processes of their own.
    """
    device = find_device()
    torch.manual_seed(options.seed)
    setting = Setting(
        device=device,
        dtypes=available_dtypes(),
        compilation=Compilation(device),
        preset=options.preset,
        batch_size=options.batch_size,
        repetitions=options.repetitions,
        seed=options.seed,
    )
    result: dict = {
        "created_with": __version__,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "options": {
            "preset": options.preset,
            "batch_size": options.batch_size,
            "repetitions": options.repetitions,
            "seed": options.seed,
            "parts": [part for part in PARTS if part in options.parts],
        },
        "machine": describe(setting),
        "parameters": count_all_parameters(),
    }
    measure: dict[str, Callable[[], object]] = {
        "machine": lambda: measure_rates(setting),
        "operator": lambda: measure_operators(setting),
        "layer": lambda: measure_layers(setting),
        "network": lambda: measure_networks(setting, result.get("rates")),
        "cross_d": lambda: measure_cross_d(setting),
        "sizes": lambda: measure_sizes(setting),
        "sampling": lambda: measure_sampling(setting),
        "processes": lambda: measure_processes(setting),
        "memory": lambda: measure_memory(setting),
    }
    with tqdm(result["options"]["parts"], desc="benchmark", unit="part") as progress:
        for part in progress:
            progress.set_postfix_str(part)
            result["rates" if part == "machine" else part] = measure[part]()
            if part == "sizes" and not options.skip_large:
                result["large"] = measure_large(setting)
    write_json(options.out, result)
    draw(result, options.picture)
    return result
