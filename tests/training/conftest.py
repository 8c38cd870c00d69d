"""Fixtures of the tests of training."""

from collections.abc import Callable

import pytest
import torch

from splitshuffle_gan.training.step import Trainer


@pytest.fixture
def shown_in_a_step() -> Callable[[Trainer, dict[str, torch.Tensor]], list[torch.Tensor]]:
    """`shown_in_a_step(trainer, batch)`: all that the discriminator is given in one training step, in order."""

    def step(trainer: Trainer, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        seen = []
        trainer.D.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
        trainer.train_step(batch)
        return seen

    return step
