"""Parameters, and the bytes that they cost between processes, counted by hand."""

import pytest

from splitshuffle_gan.benchmark.cases import COMPARED
from splitshuffle_gan.benchmark.networks import count_all_parameters
from splitshuffle_gan.benchmark.processes import count_bytes
from splitshuffle_gan.presets import load_preset, preset_names

BASE_MIN = 4


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

    generator = 2 * affine(latent, latent) + channels[0] * base_voxels
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
    discriminator += weights(top, top) + top + top * base_voxels + 2 * affine(top, top) + affine(top, 1)
    return generator + discriminator


def test_parameters_are_those_counted_by_hand():
    rows = count_all_parameters()
    assert [(r["preset"], r["conv"]) for r in rows] == [(p, c) for p in preset_names() for c in COMPARED]
    for row in rows:
        sections = load_preset(row["preset"])
        sizes = sections["prepare"]["shape"], sections["train3d"]["network"]["channels"]
        assert row["parameters"] == count_by_hand(*sizes, row["conv"])
        assert row["of_plain"] == row["parameters"] / count_by_hand(*sizes, "plain")


def test_each_parameter_is_sent_once_as_four_bytes():
    rows = {row["kind"]: row for row in count_bytes("hippocampus")}
    parameters = {r["conv"]: r for r in count_all_parameters() if r["preset"] == "hippocampus"}
    for kind in COMPARED:
        assert rows[kind]["generator"] + rows[kind]["discriminator"] == 4 * parameters[kind]["parameters"]
        assert rows[kind]["of_plain"] == pytest.approx(parameters[kind]["of_plain"])
