"""The weight average against its formula."""

import pytest
import torch
from torch import nn

from splitshuffle_gan.training.ema import ema_beta, ema_update


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        model(torch.randn(5, 3))  # moves the buffers, one of them an integer
    return model


def test_half_the_weight_is_left_after_the_half_life():
    assert ema_beta(8, 10**9, 800, 0.1) ** 100 == pytest.approx(0.5)


def test_a_young_average_forgets_in_a_share_of_what_was_seen():
    assert ema_beta(8, 160, 5000, 0.1) == pytest.approx(0.5 ** (8 / 16))
    assert ema_beta(8, 49_999, 5000, 0.1) < ema_beta(8, 50_000, 5000, 0.1) == ema_beta(8, 90_000, 5000, 0.1)
    assert ema_beta(8, 0, 5000, 0.1) == 0
    assert ema_beta(8, 160, 5000, 0) == 0  # no ramp-up share: the average is the network


def test_parameters_move_and_buffers_are_copied():
    average, model = network(0), network(1)
    before = [p.detach().clone() for p in average.parameters()]
    current = [p.detach().clone() for p in model.parameters()]
    ema_update(average, model, 0.9)
    for kept, old, new in zip(average.parameters(), before, current, strict=True):
        assert torch.allclose(kept, 0.9 * old + 0.1 * new)
    for kept, source in zip(average.buffers(), model.buffers(), strict=True):
        assert torch.equal(kept, source)
    assert all(torch.equal(p, c) for p, c in zip(model.parameters(), current, strict=True))


def test_the_ends_of_the_scale():
    average, model = network(0), network(1)
    before = [p.detach().clone() for p in average.parameters()]
    ema_update(average, model, 1.0)
    assert all(torch.equal(p, b) for p, b in zip(average.parameters(), before, strict=True))
    ema_update(average, model, 0.0)
    assert all(torch.equal(p, q) for p, q in zip(average.parameters(), model.parameters(), strict=True))
