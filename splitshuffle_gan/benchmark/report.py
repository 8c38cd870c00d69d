"""The measurements for people: what matters most in a few lines, then a table for each part."""

from collections.abc import Callable

RATIO_NAMES = ("generator_forward", "g_step", "d_step", "d_step_r1", "step")
BUSY = 0.5  # cores; more at the start deserves a warning


def table(result: dict) -> str:
    """The whole of it as text. Ratios are medians with quartiles; below 1 is faster or less than the reference."""
    sections: dict[str, Callable[[dict], list[str]]] = {
        "rates": _rates,
        "operator": _operator,
        "layer": _layer,
        "network": _network,
        "cross_d": _cross_d,
        "sizes": _sizes,
        "large": _large,
        "sampling": _sampling,
        "processes": _processes,
        "memory": _memory,
    }
    machine, options = result["machine"], result["options"]
    lines = [
        "",
        f"{machine['device']}, {machine['processor']}, {machine['threads']} threads, torch {machine['torch']}; "
        f"{options['repetitions']} repetitions, seed {options['seed']}; median [quartiles]",
    ]
    if not machine["compile"]["available"]:
        lines += [f"compiled cases skipped, no compiler: {machine['compile']['reason']}"]
    if (machine["busy_cores_before"] or 0) > BUSY:
        busy = machine["busy_cores_before"]
        lines += [f"CAUTION: {busy:.1f} cores were busy before the start; times are those of a shared machine"]
    if short := headlines(result):
        lines += ["", "In short", *(f"  {name:72s}{value}" for name, value in short)]
    lines += ["", *_parameters(result)]
    for name, section in sections.items():
        if name in result:
            lines += ["", *section(result)]
    return "\n".join(lines)


def headlines(result: dict) -> list[tuple[str, str]]:
    """What was promised, as (what, value), of the parts that were measured."""
    lines = []
    if "network" in result:
        split = [r for r in result["network"]["rows"] if r["kind"] == "split_shuffle"]
        for name, what in (("step", "whole step"), ("generator_forward", "generator forward")):
            for row in split:
                lines.append((f"Split&Shuffle of plain, {what}, {_case(row)}", _ratio(row[name]["of_plain"])))
        for row in split:
            lines.append((f"Split&Shuffle step outside convolutions, {_case(row)}", _ratio(row["outside"])))
    for row in result.get("layer", []):
        if row["kind"] == "split_shuffle" and row["shape"] == result["layer"][-1]["shape"]:
            what = f"styled layer of its bare convolutions, {_shape(row['shape'])}, {_case(row)}"
            lines.append((what, _ratio(row["of_bare"])))
    if "sampling" in result:
        sampling = result["sampling"]
        what = f"diffusion, 50 steps, of generator, {_shape(sampling['shape'])}, {sampling['dtype']}"
        diffusion = sampling["diffusion"]
        lines.append((what, diffusion.get("skipped") or _ratio(diffusion["of_generator"], digits=0)))
        found = sampling["generator"]
        lines.append(("that generator's share of the plain-convolution rate", f"{found['of_best_plain_rate']:.2f}"))
        if "compiled_of_best_plain_rate" in found:
            lines.append(("the same, compiled", f"{found['compiled_of_best_plain_rate']:.2f}"))
    for row in result.get("large", []):
        found = row.get("failed") or f"{row['peak_mib'] / 1024:.1f} GiB, {row['step_ms'] / 1e3:.1f} s a step"
        lines.append((f"{row['preset']} at batch 1, recomputing above {row['checkpoint_above']}", found))
    for row in result.get("memory", {}).get("peaks", []):
        if row["kind"] == "split_shuffle":
            lines.append((f"Split&Shuffle training, peak memory, {row['dtype']}", f"{row['peak_mib']:.0f} MiB"))
    return lines


def _parameters(result: dict) -> list[str]:
    lines = [
        "Parameters, generator and discriminator",
        f"{'preset':14s}{'conv':16s}{'parameters':>12s}{'of plain':>10s}",
    ]
    return lines + [
        f"{r['preset']:14s}{r['conv']:16s}{r['parameters']:12,d}{r['of_plain']:10.3f}" for r in result["parameters"]
    ]


def _rates(result: dict) -> list[str]:
    rates = result["rates"]
    lines = ["Machine: GFLOP/s", f"{'':34s}{'dtype':9s}{'forward':>20s}{'training':>20s}"]
    lines += [f"{'matrix product':34s}{dtype:9s}{_ms(rate):>20s}" for dtype, rate in rates["matrix"].items()]
    return lines + [
        f"{'conv3d ' + _shape(r['shape']):34s}{r['dtype']:9s}{_ms(r['forward']):>20s}{_ms(r['training']):>20s}"
        for r in rates["convolution"]
    ]


def _operator(result: dict) -> list[str]:
    lines = [
        "Convolutions: whole modules against bare convolutions, ms",
        f"{'shape':18s}{'dtype':9s}{'layout':15s}{'direction':11s}{'kind':15s}{'bare':>22s}{'module':>22s}"
        f"{'module/bare':>13s}{'bare/plain':>12s}{'module/plain':>14s}",
    ]
    return lines + [
        f"{_shape(r['shape']):18s}{r['dtype']:9s}{r['layout']:15s}{r['direction']:11s}{r['kind']:15s}"
        f"{_ms(r['bare_ms']):>22s}{_ms(r['module_ms']):>22s}{r['module_of_bare']['median']:13.2f}"
        f"{r['bare_of_plain']['median']:12.2f}{r['module_of_plain']['median']:14.2f}"
        for r in result["operator"]
    ]


def _layer(result: dict) -> list[str]:
    lines = [
        "Styled layer, forward and backward, ms",
        f"{'shape':18s}{'case':20s}{'kind':15s}{'layer':>22s}{'its bare convolutions':>23s}{'of them':>20s}"
        f"{'of conv3d':>20s}",
    ]
    return lines + [
        f"{_shape(r['shape']):18s}{_case(r):20s}{r['kind']:15s}{_ms(r['ms']):>22s}{_ms(r['bare_ms']):>23s}"
        f"{_ratio(r['of_bare']):>20s}{_ratio(r['of_conv3d']):>20s}"
        for r in result["layer"]
    ]


def _network(result: dict) -> list[str]:
    network = result["network"]
    titles = [name.replace("_", " ") for name in RATIO_NAMES]
    head = f"{'case':20s}{'kind':15s}"
    lines = [
        f"Networks of {network['preset']}, {_shape(network['shape'])}, batch {network['batch_size']}, ms "
        f"(step: mean with R1 every {network['r1_interval']} steps)",
        head + "".join(f"{title:>22s}" for title in titles),
    ]
    for r in network["rows"]:
        lines.append(f"{_case(r):20s}{r['kind']:15s}" + "".join(f"{_ms(r[n]['ms']):>22s}" for n in RATIO_NAMES))
    lines += ["", "The same, of plain", head + "".join(f"{title:>22s}" for title in titles)]
    for r in network["rows"]:
        values = "".join(f"{_ratio(r[n]['of_plain']):>22s}" for n in RATIO_NAMES)
        lines.append(f"{_case(r):20s}{r['kind']:15s}{values}")
    lines += [
        "",
        "Arithmetic of convolutions; its rate over all the time, as a share of plain conv3d at its best width",
        "and of a matrix product (above 1: convolutions outrun the library's matrix product)",
        f"{head}{'G GFLOP':>9s}{'GFLOP/s':>9s}{'conv3d':>8s}{'matrix':>8s}{'step GFLOP':>12s}{'GFLOP/s':>9s}"
        f"{'conv3d':>8s}{'matrix':>8s}{'outside convolutions':>22s}",
    ]
    for r in network["rows"]:
        cells = ""
        for name, width in (("generator", 9), ("step", 12)):
            shares = (r[f"{name}_of_plain_rate"], r[f"{name}_of_matrix_rate"])
            cells += f"{r[f'{name}_gflop']:{width}.0f}{r[f'{name}_gflop_s']:9.0f}"
            cells += "".join(f"{'-' if share is None else format(share, '.2f'):>8s}" for share in shares)
        outside = _ratio(r["outside"])
        lines.append(f"{_case(r):20s}{r['kind']:15s}{cells}{outside:>22s}")
    return lines


def _cross_d(result: dict) -> list[str]:
    lines = [
        "Cross-D convolutions of images, 3x3, ms",
        f"{'shape':18s}{'dtype':9s}{'direction':11s}{'way':12s}{'':>22s}{'of conv2d':>20s}",
    ]
    return lines + [
        f"{_shape(r['shape']):18s}{r['dtype']:9s}{r['direction']:11s}{r['way']:12s}{_ms(r['ms']):>22s}"
        f"{_ratio(r['of_conv2d']):>20s}"
        for r in result["cross_d"]
    ]


def _sizes(result: dict) -> list[str]:
    lines = [
        "Sizes: cubes, batch 1",
        f"{'side':6s}{'dtype':9s}{'kind':15s}{'generator ms':>22s}{'of plain':>20s}{'step ms':>24s}{'of plain':>20s}"
        f"{'volumes/s':>11s}{'peak MiB':>10s}",
    ]
    return lines + [
        f"{r['side']:<6d}{r['dtype']:9s}{r['kind']:15s}{_ms(r['generator_ms']):>22s}"
        f"{_ratio(r['generator_of_plain']):>20s}{_ms(r['step_ms']):>24s}{_ratio(r['step_of_plain']):>20s}"
        f"{r['trained_per_s']:11.2f}{r['peak_mib']:10.0f}"
        for r in result["sizes"]
    ]


def _large(result: dict) -> list[str]:
    lines = [
        "Largest preset, batch 1",
        f"{'preset':14s}{'shape':16s}{'recomputed above':>17s}{'step s':>9s}{'peak MiB':>10s}",
    ]
    for r in result["large"]:
        found = r.get("failed") or f"{r['step_ms'] / 1e3:9.1f}{r['peak_mib']:10.0f}"
        lines.append(f"{r['preset']:14s}{_shape(r['shape']):16s}{r['checkpoint_above']!s:>17s}{found}")
    return lines


def _sampling(result: dict) -> list[str]:
    generator, diffusion = result["sampling"]["generator"], result["sampling"]["diffusion"]
    compiled = f", compiled {_ms(generator['compiled_ms'])}" if "compiled_ms" in generator else ""
    lines = [
        f"Sampling: one volume of {_shape(result['sampling']['shape'])}, {result['sampling']['dtype']}, ms",
        f"generator, {generator['parameters']:,} parameters: {_ms(generator['ms'])}{compiled}; "
        f"{generator['gflop']:.1f} GFLOP in convolutions at {generator['gflop_s']:.0f} GFLOP/s",
        f"  that is {generator['of_best_plain_rate']:.2f} of a plain conv3d at the best of its levels, "
        f"{generator['of_finest_plain_rate']:.2f} at the finest",
    ]
    if "skipped" in diffusion:
        return [*lines, f"diffusion network: skipped, {diffusion['skipped']}"]
    return [
        *lines,
        f"diffusion network, channels {diffusion['channels']}, {diffusion['parameters']:,} parameters: a step "
        f"{_ms(diffusion['step_ms'])}, 50 of them {_ms(diffusion['ms'])}, one whole run {diffusion['loop_ms']:.0f}",
    ]


def _processes(result: dict) -> list[str]:
    processes = result["processes"]
    lines = [
        "Each process sends, per step",
        f"{'kind':15s}{'generator MB':>13s}{'discriminator MB':>17s}{'of plain':>10s}",
    ]
    lines += [
        f"{r['kind']:15s}{r['generator'] / 1e6:13.2f}{r['discriminator'] / 1e6:17.2f}{r['of_plain']:10.3f}"
        for r in processes["bytes"]
    ]
    scaling = processes["scaling"]
    if "skipped" in scaling:
        return [*lines, f"scaling: {scaling['skipped']}"]
    lines += [
        "",
        "Processes on the CPU, the same batch",
        f"{'processes x threads':20s}{'ms':>22s}{'steps/s':>9s}{'speedup':>20s}",
    ]
    return lines + [
        f"{str(r['processes']) + ' x ' + str(r['threads']):20s}{_ms(r['step_ms']):>22s}{r['steps_per_s']:9.2f}"
        f"{_ratio(r['speedup']):>20s}"
        for r in scaling
    ]


def _memory(result: dict) -> list[str]:
    memory = result["memory"]
    lines = [f"Peak memory of training, {result['options']['preset']}, batch {result['options']['batch_size']}"]
    lines += [f"{'dtype':9s}{'kind':15s}{'MiB':>8s}{'before the first step':>23s}"]
    lines += [f"{r['dtype']:9s}{r['kind']:15s}{r['peak_mib']:8.0f}{r['start_mib']:23.0f}" for r in memory["peaks"]]
    allocator = memory["allocator"]
    if "skipped" in allocator:
        return [*lines, f"allocator: {allocator['skipped']}"]
    return [
        *lines,
        f"A float32 step: glibc's default {_ms(allocator['default_ms'])} ms, freed memory kept "
        f"{_ms(allocator['kept_ms'])} ms, ratio {_ratio(allocator['default_of_kept'])}",
    ]


def _case(row: dict) -> str:
    return f"{row['dtype']}{', compiled' if row['compile'] else ''}"


def _shape(shape: list[int]) -> str:
    return "x".join(map(str, shape))


def _ms(summary: dict[str, float]) -> str:
    digits = 2 if summary["median"] < 10 else 1 if summary["median"] < 100 else 0
    return f"{summary['median']:.{digits}f} [{summary['q1']:.{digits}f} {summary['q3']:.{digits}f}]"


def _ratio(summary: dict[str, float], digits: int = 2) -> str:
    return f"{summary['median']:.{digits}f} [{summary['q1']:.{digits}f} {summary['q3']:.{digits}f}]"
