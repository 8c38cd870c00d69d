"""The benchmark counts and reports right. How fast anything is, is not asserted."""

import json
import os

import pytest
import torch

from splitshuffle_gan import benchmark as module
from splitshuffle_gan.benchmark import BenchmarkOptions, benchmark, isolated, parameters, styled_conv, table
from splitshuffle_gan.config import CONV_KINDS
from splitshuffle_gan.presets import load_preset, preset_names

BASE_MIN = 4


@pytest.fixture
def tiny(monkeypatch, cpu):
    """Every preset is tiny, and so are all grids; nothing runs in a process of its own."""

    def tiny_preset(name: str) -> dict:
        train3d = {"network": {"channels": [8, 8, 8]}, "micro_batch": 2, "checkpoint_activations": name == "heart-ct"}
        return {"prepare": {"shape": [8, 16, 8]}, "train3d": train3d}

    monkeypatch.setattr(module, "load_preset", tiny_preset)
    monkeypatch.setattr(module, "CONV_SHAPES", ((1, 4, 4, 6, 8),))
    monkeypatch.setattr(module, "FORWARD_SHAPES", ((4, 4, 8),))
    monkeypatch.setattr(module, "isolated", lambda function, *arguments: function(*arguments))


def halvings(side: int) -> int:
    return 0 if side % 2 or side // 2 < BASE_MIN else 1 + halvings(side // 2)


def count_by_hand(shape: list[int], channels: list[int], conv: str, latent: int = 128) -> int:
    """Parameters of generator and discriminator at rank 3, written down from the description of the networks."""
    weights = {
        "plain": lambda i, o: 27 * i * o,
        "split_shuffle": lambda i, o: (27 + 9) * (i // 2) * (o // 2),
        "separable": lambda i, o: 9 * i * o + 3 * o * o,
    }[conv]
    levels = len(channels)
    assert levels == 1 + max(map(halvings, shape))
    base = [side >> halvings(side) for side in shape]
    base_voxels = base[0] * base[1] * base[2]
    depths = [base[0] << max(0, level - (levels - 1 - halvings(shape[0]))) for level in range(levels)]

    def affine(i: int, o: int) -> int:
        return i * o + o

    generator = 4 * affine(latent, latent) + channels[0] * base_voxels
    discriminator = 2 * channels[-1] + channels[-1]  # from the image and its depth
    for level, c in enumerate(channels):
        before = [c] if level == 0 else [channels[level - 1], c]
        for i in before:  # style, convolution, bias over depth, strength of the noise
            generator += affine(latent, i) + weights(i, c) + c * depths[level] + 1
        generator += affine(latent, c) + c + depths[level]  # to the image
        if level:
            coarse = channels[level - 1]
            discriminator += weights(c, c) + c + weights(c, coarse) + coarse + c * coarse
    top = channels[0]
    discriminator += weights(top, top) + top + top * base_voxels + affine(top, top) + affine(1, top) + affine(top, 1)
    return generator + discriminator


def test_parameters_are_those_counted_by_hand():
    rows = parameters()
    assert [(r["preset"], r["conv"]) for r in rows] == [(p, c) for p in preset_names() for c in CONV_KINDS]
    for row in rows:
        sections = load_preset(row["preset"])
        sizes = sections["prepare"]["shape"], sections["train3d"]["network"]["channels"]
        assert row["parameters"] == count_by_hand(*sizes, row["conv"])
        assert row["of_plain"] == row["parameters"] / count_by_hand(*sizes, "plain")


def test_a_function_runs_in_a_process_of_its_own():
    assert isolated(os.getpid) != os.getpid()
    assert isolated(max, 3, 5) == 5


def test_every_layer_is_measured_against_the_plain_one(tiny):
    rows = styled_conv(2)
    layers = [f"{what} {kind}" for kind in CONV_KINDS for what in ("styled", "whole layer")]
    assert [row["layer"] for row in rows] == ["conv3d", *layers]
    for row in rows:
        assert row["shape"] == [1, 4, 4, 6, 8]
        assert row["ms"] > 0
        assert row["of_conv3d"] == pytest.approx(row["ms"] / rows[0]["ms"])


def test_the_whole_of_it(tiny, tmp_path):
    out = tmp_path / "benchmark.json"
    result = benchmark(BenchmarkOptions(out=out, repetitions=1))
    assert json.loads(out.read_text()) == result
    assert set(result) == {
        "created_with", "machine", "parameters", "styled_conv", "train_step", "train_step_plain", "generator_forward",
        "train_step_large",
    }  # fmt: skip
    assert (result["machine"]["device"], result["machine"]["torch"]) == ("cpu", torch.__version__)
    for key, conv, size, checkpointed in (
        ("train_step", "split_shuffle", 8, False),
        ("train_step_plain", "plain", 8, False),
        ("train_step_large", "split_shuffle", 1, True),
    ):
        step = result[key]
        assert (step["conv"], step["batch_size"], step["shape"]) == (conv, size, [8, 16, 8])
        assert step["checkpoint_activations"] is checkpointed
        assert step["ms"] > 0 and step["peak_mib"] > 10
        assert 0 < step["convolution_share"] < 1
    assert [row["precision"] for row in result["generator_forward"]] == ["float32", "fast"]
    assert all(row["voxels_s"] > 0 for row in result["generator_forward"])

    lines = table(result).splitlines()
    for row in result["parameters"]:
        assert any(line.split() == [row["preset"], row["conv"], f"{row['parameters']:,}", f"{row['of_plain']:.3f}"]
                   for line in lines)  # fmt: skip
    for row in result["styled_conv"]:
        assert any(line.startswith("1x4x4x6x8 ") and f" {row['layer']} " in line for line in lines)
    assert sum("hippocampus" in line and line.split()[2] == "8" for line in lines) == 2
    assert sum("4x4x8" in line and "voxels" not in line for line in lines) == 2


def test_the_large_step_can_be_left_out(tiny, tmp_path, monkeypatch):
    step = {"preset": "p", "conv": "c", "batch_size": 8, "ms": 1.0, "convolution_share": 0.5, "peak_mib": 1.0}
    monkeypatch.setattr(module, "train_step", lambda preset, *_: step | {"preset": preset})
    result = benchmark(BenchmarkOptions(out=tmp_path / "b.json", repetitions=1, skip_large=True))
    assert "train_step_large" not in result
    assert "heart-ct" not in table(result).split("Training step")[1]
