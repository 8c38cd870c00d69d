"""The command: what it writes, what it prints, what it refuses."""

import json

import pytest
import torch

from splitshuffle_gan.benchmark import BenchmarkOptions, benchmark, run, table
from splitshuffle_gan.benchmark import setting as setting_module
from splitshuffle_gan.benchmark.options import PARTS
from splitshuffle_gan.benchmark.setting import Compilation
from splitshuffle_gan.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def stubbed(monkeypatch, tiny):
    """Parts that only say that they were measured."""
    called = []
    for part in (
        "rates",
        "operators",
        "layers",
        "networks",
        "cross_d",
        "sizes",
        "large",
        "sampling",
        "processes",
        "memory",
    ):
        monkeypatch.setattr(run, f"measure_{part}", lambda *_, part=part: called.append(part) or {"part": part})
    monkeypatch.setattr(run, "draw", lambda result, path: path)
    return called


def test_the_whole_of_it(tiny, tmp_path):
    out = tmp_path / "benchmark.json"
    options = BenchmarkOptions(out=out, repetitions=2, batch_size=2, seed=5)
    result = benchmark(options)
    assert json.loads(out.read_text()) == result
    assert set(result) == {
        "created_with", "created", "options", "machine", "parameters", "rates", "operator", "layer", "network",
        "cross_d", "sizes", "large", "sampling", "processes", "memory",
    }  # fmt: skip
    assert result["options"] == {
        "preset": "hippocampus", "batch_size": 2, "repetitions": 2, "seed": 5, "parts": list(PARTS)
    }  # fmt: skip
    machine = result["machine"]
    assert (machine["device"], machine["threads"], machine["torch"]) == ("cpu", 1, torch.__version__)
    assert machine["compile"] == {"available": False, "reason": "no g++"}
    assert (tmp_path / "benchmark.png").read_bytes().startswith(PNG)
    assert result["network"]["rows"][0]["step_of_plain_rate"] is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["benchmark.json", "benchmark.png"]
    check_table(result)


def check_table(result: dict) -> None:
    text = table(result)
    lines = text.splitlines()
    assert "compiled cases skipped, no compiler: no g++" in lines
    for row in result["parameters"]:
        assert any(line.split() == [row["preset"], row["conv"], f"{row['parameters']:,}", f"{row['of_plain']:.3f}"]
                   for line in lines)  # fmt: skip
    summary = text.split("In short")[1].split("\n\n")[0].splitlines()
    for what in ("whole step, float32", "whole step, bf16", "generator forward, float32", "generator forward, bf16",
                 "outside convolutions, bf16", "diffusion, 50 steps", "plain-convolution rate",
                 "styled layer of its bare convolutions, 2x8x8x16x8, bf16", "heart-ct at batch 1, recomputing above 8",
                 "heart-ct at batch 1, recomputing above None", "training, peak memory, bf16"):  # fmt: skip
        assert sum(what in line for line in summary) == 1, what
    step = result["network"]["rows"][3]["step"]["of_plain"]
    (line,) = [line for line in summary if "whole step, bf16" in line]
    assert line.endswith(f" {step['median']:.2f} [{step['q1']:.2f} {step['q3']:.2f}]")
    for heading in ("Machine: GFLOP/s", "Convolutions: ", "Styled layer, ", "Networks of hippocampus", "Cross-D",
                    "Sizes: ", "Largest preset", "Sampling: ", "Each process sends", "Processes on the CPU",
                    "Peak memory of", "A float32 step: "):  # fmt: skip
        assert sum(line.startswith(heading) for line in lines) == 1, heading


@pytest.mark.parametrize("part", PARTS)
def test_every_part_stands_alone(tiny, tmp_path, part):
    result = benchmark(BenchmarkOptions(out=tmp_path / "b.json", repetitions=1, batch_size=2, parts=(part,)))
    keys = {"rates" if part == "machine" else part} | ({"large"} if part == "sizes" else set())
    assert set(result) == {"created_with", "created", "options", "machine", "parameters"} | keys
    assert "parameters" in table(result).lower()
    assert (tmp_path / "b.png").read_bytes().startswith(PNG)


def test_only_the_parts_that_are_asked_for(stubbed, tmp_path):
    benchmark(BenchmarkOptions(out=tmp_path / "b.json", parts=("memory", "layer")))
    assert stubbed == ["layers", "memory"]


def test_the_large_step_can_be_left_out(stubbed, tmp_path):
    result = benchmark(BenchmarkOptions(out=tmp_path / "b.json", parts=("sizes",), skip_large=True))
    assert stubbed == ["sizes"] and "large" not in result


def test_compiled_cases_need_a_compiler(tiny, monkeypatch):
    assert Compilation(torch.device("cpu")).choices == (False,)
    calls = []
    monkeypatch.setattr(setting_module, "compile_passes", lambda device, enable=True: calls.append(enable))
    compilation = Compilation(torch.device("cpu"))
    assert compilation.choices == (False, True)
    for on in (False, True, True, False):
        compilation.switch(on)
    assert calls == [True, False, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": ("layer", "kernel")}, "parts: found kernel, must be among machine, operator, "),
        ({"parts": ()}, "parts: found none"),
        ({"repetitions": 0}, "repetitions: found 0, must be at least 1"),
        ({"batch_size": 0}, "batch_size: found 0, must be at least 1"),
        ({"preset": "liver"}, "preset: found 'liver', must be one of brain, "),
        ({"seed": -1}, "seed: found -1"),
    ],
)
def test_nonsense_is_refused(tmp_path, change, message):
    with pytest.raises(UserError) as error:
        BenchmarkOptions(out=tmp_path / "b.json", **change)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", ["b.json", "b.png"])
def test_nothing_is_overwritten_unasked(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{name} exists already"):
        BenchmarkOptions(out=tmp_path / "b.json")
    BenchmarkOptions(out=tmp_path / "b.json", overwrite=True)
    with pytest.raises(UserError, match="does not exist"):
        BenchmarkOptions(out=tmp_path / "nowhere" / "b.json")
    with pytest.raises(UserError, match="a name for JSON is wanted"):
        BenchmarkOptions(out=tmp_path / "c.png")


def test_the_command(tiny, run, tmp_path, monkeypatch):
    out = tmp_path / "b.json"
    done = run(
        "benchmark", "--out", out, "--preset", "quickstart", "--parts", "machine", "processes", "--batch-size", 2
    )
    assert done.code == 0, done.err
    assert "Machine: GFLOP/s" in done.out and "Networks" not in done.out
    assert done.out.rstrip().endswith(f"the same in {out}; look at {tmp_path / 'b.png'}")
    assert json.loads(out.read_text())["options"]["preset"] == "quickstart"
    assert run("benchmark", "--out", tmp_path / "c.json", "--parts", "kernel").code == 2
    refused = run("benchmark", "--out", tmp_path / "c.json", "--preset", "liver")
    assert refused.code == 2 and "preset: found 'liver'" in refused.err
