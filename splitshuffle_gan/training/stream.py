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
        strata: `[length]` integers. Given, batches are made of `run` consecutive items of one stratum; an epoch shows
            every item at least once (a stratum whose size is no multiple of `run` repeats some).
        run: length of those runs, 1 for none.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        share: slice,
        seed: int,
        start: int = 0,
        strata: np.ndarray | None = None,
        run: int = 1,
    ) -> None:
        self.batch_size, self.share, self.seed, self.start, self.run = batch_size, share, seed, start, run
        strata = np.zeros(length, int) if strata is None else np.asarray(strata)
        self.members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]

    def epoch_order(self, epoch: int) -> np.ndarray:
        """The items in the order in which epoch number `epoch` shows them."""
        random = np.random.default_rng([self.seed, epoch])
        shuffled = [random.permutation(members) for members in self.members]
        if self.run == 1:
            return random.permutation(np.concatenate(shuffled))
        runs = [np.resize(items, (-(-len(items) // self.run), self.run)) for items in shuffled]
        return random.permutation(np.concatenate(runs)).ravel()

    def __iter__(self) -> Iterator[list[int]]:
        length = len(self.epoch_order(0))
        step, epoch, order = self.start, -1, None
        while True:
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // length != epoch:
                    epoch = position // length
                    order = self.epoch_order(epoch)
                batch.append(int(order[position % length]))
            yield batch[self.share]
            step += 1
