"""Data order and latents are functions of seed and step, whatever the number of processes."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splitshuffle_gan.training.stream import BatchStream, derived_seed, latents


def batches(length: int, batch_size: int, count: int, share: slice = slice(None), seed: int = 0, start: int = 0):
    return list(islice(BatchStream(length, batch_size, share, seed, start), count))


@given(length=st.integers(1, 30), batch_size=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_every_epoch_is_a_permutation(length, batch_size, seed):
    epochs = 3
    flat = np.concatenate(batches(length, batch_size, -(-epochs * length // batch_size), seed=seed))
    for epoch in np.split(flat[: epochs * length], epochs):
        assert sorted(epoch) == list(range(length))


def test_epochs_and_seeds_differ_in_order():
    first, second = batches(40, 40, 2)
    assert first != second
    assert first != list(range(40))
    assert first != batches(40, 40, 1, seed=1)[0]
    assert batches(40, 40, 2) == [first, second]


@given(length=st.integers(1, 30), size=st.integers(1, 5), processes=st.integers(1, 4), start=st.integers(0, 9))
def test_the_shares_of_the_processes_are_the_global_batch(length, size, processes, start):
    whole = batches(length, size * processes, 4, start=start)
    shares = [
        batches(length, size * processes, 4, slice(rank * size, (rank + 1) * size), start=start)
        for rank in range(processes)
    ]
    assert [sum(parts, []) for parts in zip(*shares, strict=True)] == whole
    assert all(len(batch) == size for share in shares for batch in share)


@given(length=st.integers(1, 30), batch_size=st.integers(1, 40), start=st.integers(0, 20))
def test_starting_late_goes_on_exactly(length, batch_size, start):
    assert batches(length, batch_size, 3, seed=5, start=start) == batches(length, batch_size, start + 3, seed=5)[start:]


@given(strata=st.lists(st.integers(0, 3), min_size=1, max_size=30), run=st.integers(2, 4), seed=st.integers(0, 99))
def test_runs_are_of_one_stratum_and_an_epoch_leaves_nothing_out(strata, run, seed):
    stream = BatchStream(len(strata), run, slice(None), seed, strata=np.array(strata), run=run)
    epoch = stream.epoch_order(0)
    assert len(epoch) < len(strata) + 4 * run
    batches = list(islice(stream, len(epoch) // run))
    assert sum(batches, []) == epoch.tolist()
    assert set(epoch) == set(range(len(strata)))
    assert all(len({strata[item] for item in batch}) == 1 for batch in batches)
    late = BatchStream(len(strata), run, slice(None), seed, start=5, strata=np.array(strata), run=run)
    assert next(iter(late)) == list(islice(stream, 6))[5]


def test_latents_are_shared_out_among_processes():
    whole = latents(3, 7, 0, 8, 5, slice(None))
    shares = [latents(3, 7, 0, 8, 5, slice(rank * 4, rank * 4 + 4)) for rank in (0, 1)]
    assert whole.shape == (8, 5)
    assert torch.equal(torch.cat(shares), whole)
    assert not torch.equal(*shares)


def test_latents_depend_on_seed_step_and_phase_alone():
    wanted = latents(3, 7, 0, 8, 5, slice(None))
    for other in ((4, 7, 0), (3, 8, 0), (3, 7, 1)):
        assert not torch.equal(latents(*other, 8, 5, slice(None)), wanted)
    state = torch.get_rng_state()
    torch.rand(10)
    assert torch.equal(latents(3, 7, 0, 8, 5, slice(None)), wanted)
    torch.set_rng_state(state)
    latents(3, 7, 0, 8, 5, slice(None))
    assert torch.equal(torch.get_rng_state(), state)


def test_latents_are_normal():
    z = latents(0, 0, 0, 4000, 8, slice(None))
    assert z.mean().item() == pytest.approx(0, abs=0.02)
    assert z.std().item() == pytest.approx(1, abs=0.02)


def test_derived_seeds_are_distinct_and_fit_torch():
    # The very tuples of a training step: latents by phase, noise and augmentation by process.
    parts = [(seed, step, phase) for seed in range(3) for step in range(50) for phase in range(2)]
    parts += [(seed, step, rank, use) for seed in range(3) for step in range(50) for rank in range(4) for use in (1, 2)]
    seeds = [derived_seed(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(1, 2, 3) == derived_seed(1, 2, 3)
