"""Each part measures what it says, in the shape it says. How fast anything is, is not asserted."""

import pytest
import torch
from monai.utils import OptionalImportError

from splitshuffle_gan.benchmark import processes, sampling, sizes, workers
from splitshuffle_gan.benchmark.cases import COMPARED, Place, TrainingStep, networks
from splitshuffle_gan.benchmark.cross_d import Loop, measure_cross_d
from splitshuffle_gan.benchmark.layers import measure_layers
from splitshuffle_gan.benchmark.memory import measure_allocator, measure_memory
from splitshuffle_gan.benchmark.networks import TIMES, measure_networks, taken_apart
from splitshuffle_gan.benchmark.operators import measure_operators
from splitshuffle_gan.benchmark.processes import measure_processes
from splitshuffle_gan.benchmark.rates import best_plain_rate, measure_rates
from splitshuffle_gan.benchmark.sampling import Diffusion, measure_sampling
from splitshuffle_gan.benchmark.sizes import measure_large, measure_sizes
from splitshuffle_gan.nn.cross_d import CrossDConv

CPU = torch.device("cpu")
LEVELS = [[2, 8, 4, 4, 4], [2, 8, 4, 8, 4], [2, 8, 8, 16, 8]]


def is_summary(value: dict, n: int) -> bool:
    return value["q1"] <= value["median"] <= value["q3"] and value["median"] > 0 and value["n"] == n


def test_rates(make_setting):
    rates = measure_rates(make_setting(("float32", "bf16")))
    assert set(rates["matrix"]) == {"float32", "bf16"}
    assert [(r["dtype"], r["shape"]) for r in rates["convolution"]] == [
        (dtype, [2, channels, 4, 4, 4]) for dtype in ("float32", "bf16") for channels in (2, 4)
    ]
    for row in rates["convolution"]:
        assert is_summary(row["forward"], 2) and is_summary(row["training"], 2)
    best = max(row["forward"]["median"] for row in rates["convolution"][2:])
    assert best_plain_rate(rates, "bf16", "forward") == best
    assert best_plain_rate(None, "bf16", "forward") is None


def test_operators(make_setting):
    rows = measure_operators(make_setting(("float32", "bf16")))
    cases = [(tuple(r["shape"]), r["dtype"], r["layout"], r["direction"], r["kind"]) for r in rows]
    shapes = [*map(tuple, LEVELS), (1, 4, 4, 4, 4), (1, 2, 8, 8, 8)]
    assert len(set(cases)) == len(cases) == len(shapes) * 2 * 2 * 2 * 3
    assert [*dict.fromkeys(case[0] for case in cases)] == shapes
    assert {case[1:] for case in cases} == {
        (dtype, layout, direction, kind)
        for dtype in ("float32", "bf16")
        for layout in ("channels_last", "contiguous")
        for direction in ("forward", "training")
        for kind in COMPARED
    }
    for row in rows:
        assert is_summary(row["bare_ms"], 2) and is_summary(row["module_ms"], 2)
        assert row["module_of_bare"]["n"] == 2
        if row["kind"] == "plain":
            assert row["bare_of_plain"]["median"] == row["module_of_plain"]["median"] == 1


def test_one_repetition_makes_ratios_of_medians(make_setting):
    for row in measure_operators(make_setting(repetitions=1)):
        assert row["module_of_bare"]["median"] == pytest.approx(row["module_ms"]["median"] / row["bare_ms"]["median"])
    for row in measure_layers(make_setting(repetitions=1)):
        assert row["of_bare"]["median"] == pytest.approx(row["ms"]["median"] / row["bare_ms"]["median"])


def test_cross_d(make_setting):
    rows = measure_cross_d(make_setting(("float32", "bf16")))
    ways = ["conv2d", "published", "rotation", "loop"]
    assert [(tuple(r["shape"]), r["dtype"], r["direction"], r["way"]) for r in rows] == [
        (shape, dtype, direction, way)
        for shape in ((2, 4, 4, 4), (2, 8, 2, 2))
        for dtype in ("float32", "bf16")
        for direction in ("forward", "training")
        for way in ways
    ]
    for row in rows:
        assert is_summary(row["ms"], 2) and row["of_conv2d"]["n"] == 2
        assert row["way"] != "conv2d" or row["of_conv2d"]["median"] == 1


def test_the_loop_is_the_layer():
    layer, x = CrossDConv(6, 4, 3, padding=1, bias=False), torch.randn(3, 6, 5, 7)
    assert torch.allclose(Loop(layer)(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("compile", [False, True])
def test_layers(make_setting, compile):
    rows = measure_layers(make_setting(compile=compile))
    choices = [False, True] if compile else [False]
    assert [(r["shape"], r["compile"], r["kind"]) for r in rows] == [
        (shape, on, kind) for shape in LEVELS for on in choices for kind in COMPARED
    ]
    for row in rows:
        assert is_summary(row["ms"], 2) and is_summary(row["of_bare"], 2) and is_summary(row["of_conv3d"], 2)


def test_compilation_is_on_for_what_is_called_compiled(make_setting, monkeypatch):
    setting, seen = make_setting(compile=True), []
    training = TrainingStep.measure
    monkeypatch.setattr(TrainingStep, "measure", lambda step: seen.append(setting.compilation.on) or training(step))
    result = measure_networks(setting, None)
    assert [row["compile"] for row in result["rows"]] == [False] * 3 + [True] * 3
    assert seen == ([False] * 3 + [True] * 3) * (1 + setting.repetitions)
    assert not setting.compilation.on


def test_networks(make_setting):
    setting = make_setting(("float32", "bf16"))
    rates = {
        "matrix": {dtype: {"median": 50.0} for dtype in setting.dtypes},
        "convolution": [
            {"dtype": dtype, "forward": {"median": 10.0}, "training": {"median": 20.0}} for dtype in setting.dtypes
        ],
    }
    result = measure_networks(setting, rates)
    assert (result["shape"], result["channels"], result["batch_size"]) == ([8, 16, 8], [8, 8, 8], 2)
    assert [(r["dtype"], r["kind"]) for r in result["rows"]] == [(d, k) for d in setting.dtypes for k in COMPARED]
    plain = result["rows"][1]
    for row in result["rows"]:
        for name in TIMES:
            assert is_summary(row[name]["ms"], 2)
            assert row["kind"] != "plain" or row[name]["of_plain"]["median"] == 1
        phases = row["g_step"]["ms"]["median"] + row["d_step"]["ms"]["median"]
        assert phases < row["step_without_r1"]["ms"]["q3"]
        assert row["step_gflop_s"] == pytest.approx(row["step_gflop"] / row["step"]["ms"]["median"] * 1e3)
        assert row["step_of_plain_rate"] == pytest.approx(row["step_gflop_s"] / 20)
        assert row["generator_of_plain_rate"] == pytest.approx(row["generator_gflop_s"] / 10)
        assert row["generator_of_matrix_rate"] == pytest.approx(row["generator_gflop_s"] / 50)
        assert 0 < row["outside_of_operations"]["median"] < 1
        assert row["outside"]["median"] < 1
        assert row["generator_gflop"] == pytest.approx(plain["generator_gflop"] * {
            "plain": 27, "split_shuffle": 9, "separable": 12}[row["kind"]] / 27)  # fmt: skip
    assert measure_networks(make_setting(), None)["rows"][0]["step_of_plain_rate"] is None


def test_a_step_without_r1_has_no_gradients_of_gradients(tiny):
    step = TrainingStep(networks("hippocampus", "plain"), Place(CPU, "float32"), 2)
    parts = taken_apart(step)
    generator, discriminator = parts["generator_gflop"], parts["discriminator_gflop"]
    step.r1_interval = 10**9
    # Generator: drawn for D, then trained. Discriminator: twice trained, then a pass and a gradient of its input.
    expected = generator * (1 + 3) + discriminator * (2 * 3 + 2)
    assert taken_apart(step)["step_gflop"] == pytest.approx(expected, rel=0.05)  # an image's gradient is not needed
    assert parts["step_gflop"] > taken_apart(step)["step_gflop"]


def test_phases_add_up_to_a_step(tiny):
    step = TrainingStep(networks("hippocampus", "split_shuffle"), Place(CPU, "float32"), 2)
    times = step.measure()
    assert set(times) == set(TIMES) - {"step"}
    assert times["d_step"] + times["g_step"] < times["step_without_r1"]
    assert times["d_step_r1"] < times["step_r1"]


def test_sizes(make_setting):
    rows = measure_sizes(make_setting(("float32", "bf16")))
    assert [(r["side"], r["kind"]) for r in rows] == [(side, kind) for side in (4, 8) for kind in sizes.KINDS]
    for row in rows:
        assert row["dtype"] == "bf16"
        assert row["trained_per_s"] == pytest.approx(1e3 / row["step_ms"]["median"])
        assert row["generated_per_s"] == pytest.approx(1e3 / row["generator_ms"]["median"])
        assert row["peak_mib"] >= row["start_mib"] > 10
    assert rows[0]["channels"] == [32] and rows[2]["channels"] == [64, 32]


def test_the_largest_preset_with_and_without_recomputing(make_setting, monkeypatch):
    rows = measure_large(make_setting())
    assert [row["checkpoint_above"] for row in rows] == [8, None]
    for row in rows:
        assert (row["preset"], row["shape"]) == ("heart-ct", [8, 16, 8])
        assert row["step_ms"] > 0 and row["peak_mib"] > 10

    def killed(*_):
        raise MemoryError("the process was killed")

    monkeypatch.setattr(sizes, "isolated", killed)
    assert [row["failed"] for row in measure_large(make_setting())] == ["the process was killed"] * 2


def test_sampling(make_setting, monkeypatch):
    result = measure_sampling(make_setting(compile=True))
    generator = result["generator"]
    assert (result["shape"], result["dtype"]) == ([8, 8, 8], "float32")
    assert is_summary(generator["ms"], 2) and is_summary(generator["compiled_ms"], 2)
    assert list(generator["plain_gflop_s"]) == ["4x4x4", "8x8x8"]
    assert generator["of_best_plain_rate"] <= generator["of_finest_plain_rate"]
    # Split&Shuffle, 64 and 32 channels: base, 64 to 32 before it grows, fine.
    multiplications = 9 * ((64 * 64 + 64 * 32) * 4**3 + 32 * 32 * 8**3)
    assert generator["gflop"] == pytest.approx(2 * multiplications / 1e9)


def test_the_diffusion_network_takes_50_steps(make_setting):
    pytest.importorskip("einops", reason="MONAI's diffusion network needs einops")
    diffusion = measure_sampling(make_setting())["diffusion"]
    assert diffusion["ms"]["median"] == pytest.approx(2 * diffusion["step_ms"]["median"])  # 2 here
    assert diffusion["loop_ms"] > 0 and is_summary(diffusion["of_generator"], 2)


def test_without_the_diffusion_network_the_generator_is_measured(make_setting, monkeypatch):
    def lacking(place):
        raise OptionalImportError("from einops.layers.torch import Rearrange (No module named 'einops').\n\nDetails")

    monkeypatch.setattr(sampling, "Diffusion", lacking)
    result = measure_sampling(make_setting())
    reason = "from einops.layers.torch import Rearrange (No module named 'einops')."
    assert result["diffusion"] == {"skipped": reason}
    assert is_summary(result["generator"]["ms"], 2)


def test_the_diffusion_sampler_makes_all_its_steps(tiny):
    pytest.importorskip("einops", reason="MONAI's diffusion network needs einops")
    diffusion, seen = Diffusion(Place(CPU, "float32")), []
    step = diffusion.step
    diffusion.step = lambda x, timestep: seen.append(timestep) or step(x, timestep)
    volume = diffusion.draw()
    assert len(seen) == 2 and seen[0] > seen[1] >= 0
    assert volume.shape == (1, 1, 8, 8, 8) and volume.isfinite().all()


def test_memory(make_setting):
    memory = measure_memory(make_setting())
    assert [row["kind"] for row in memory["peaks"]] == list(COMPARED)
    assert all(row["peak_mib"] >= row["start_mib"] > 10 for row in memory["peaks"])
    allocator = memory["allocator"]
    assert is_summary(allocator["default_ms"], 2) and is_summary(allocator["kept_ms"], 2)
    assert is_summary(allocator["default_of_kept"], 2)


def test_one_allocator_is_left_alone(make_setting, monkeypatch):
    kept = []
    monkeypatch.setattr("splitshuffle_gan.benchmark.memory.keep_freed_memory", lambda: kept.append(True))
    measure_allocator(make_setting())
    assert kept == [True]


def test_processes_in_turn(make_setting):
    scaling = measure_processes(make_setting())["scaling"]
    assert [(row["processes"], row["threads"]) for row in scaling] == [(1, 1), (1, 2)]
    assert scaling[0]["speedup"]["median"] == 1
    assert all(row["batch_size"] == 2 for row in scaling)


def test_two_real_processes_train_together(make_setting, monkeypatch):
    monkeypatch.setattr(processes, "Worker", workers.Worker)
    monkeypatch.setattr(processes, "ARRANGEMENTS", ((2, 1),))
    setting = make_setting(repetitions=1)
    object.__setattr__(setting, "preset", "quickstart")  # the children know no tiny one
    (row,) = processes.measure_scaling(setting)
    assert (row["processes"], row["threads"], row["batch_size"]) == (2, 1, 2)
    assert row["steps_per_s"] == pytest.approx(1e3 / row["step_ms"]["median"])


def test_a_lost_process_is_an_error(make_setting, monkeypatch):
    monkeypatch.setattr(processes, "ARRANGEMENTS", ((2, 1),))  # but both run here, in one process
    with pytest.raises(RuntimeError, match="found 1 together, 2 were started"):
        processes.measure_scaling(make_setting())
