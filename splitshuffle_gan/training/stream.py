"""Randomness and data order as functions of (seed, step): resume and the number of processes cannot change them."""

from collections.abc import Iterator

import numpy as np
import torch


def derived_seed(*parts: int) -> int:
    """One well-mixed 63-bit seed from several integers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def latents(seed: int, step: int, phase: int, batch_size: int, z_dim: int, share: slice) -> torch.Tensor:
    """This process's rows of the global batch of latents, `[len(share), z_dim]`, on the CPU."""
    generator = torch.Generator().manual_seed(derived_seed(seed, step, phase))
    return torch.randn(batch_size, z_dim, generator=generator)[share]


class BatchStream:
    """A batch sampler without end: a new permutation every epoch, this process's share of each global batch.

    Args:
        length: size of the dataset.
        batch_size: global batch size.
        share: the rows of the global batch that this process takes.
        seed: of the permutations.
        start: the step to begin with.
    """

    def __init__(self, length: int, batch_size: int, share: slice, seed: int, start: int = 0) -> None:
        self.length, self.batch_size, self.share, self.seed, self.start = length, batch_size, share, seed, start

    def __iter__(self) -> Iterator[list[int]]:
        step, epoch, order = self.start, -1, None
        while True:
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
                batch.append(int(order[position % self.length]))
            yield batch[self.share]
            step += 1
