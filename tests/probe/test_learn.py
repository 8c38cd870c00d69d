"""Trainings on tiny sets: they learn what can be learnt, and the same twice."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from splitshuffle_gan.devices import make_accelerator
from splitshuffle_gan.extractors.slice_resnet import Network, SliceResNetConfig
from splitshuffle_gan.probe.carry import carry
from splitshuffle_gan.probe.learn import BATCH, _shifted, features_of, finetune, measure_statistics, pretrain
from splitshuffle_gan.probe.measures import auroc
from splitshuffle_gan.probe.network import seeded_slices
from splitshuffle_gan.probe.plan import Arm, Source, Target, Training
from splitshuffle_gan.probe.slices import open_source
from splitshuffle_gan.probe.tasks import Part, Task, open_task

SMALL = Network(width=4)


@pytest.fixture
def accelerator(cpu):
    return make_accelerator("no")


def brightness(count: int, seed: int) -> Part:
    """Volumes of noise, brighter by one and a half standard deviations where the class is 1."""
    rng = np.random.default_rng(seed)
    classes = np.arange(count) % 2
    volumes = (rng.normal(size=(count, 16, 16, 16)) + 1.5 * classes[:, None, None, None]).astype(np.float32)
    return Part(lambda item: volumes[item], classes, str(seed))


def task_of(train: Part, test: Part) -> Task:
    """Two classes."""
    return Task(train, test, None, 2)


@pytest.mark.parametrize("conv", ["plain", "rotation"])
def test_slices_are_learnt_and_the_same_seed_gives_the_same(balls, accelerator, conv):
    source = {"balls": open_source(Source(dataset=balls.train), balls.root)}
    training = Training(steps=32, batch_size=8, learning_rate=1e-2)
    found = []
    for _ in range(2):
        network = seeded_slices(SliceResNetConfig(width=4, conv=conv), 0)
        found.append(pretrain(network, source, training, 5, accelerator)["loss"]["balls"])
        if conv == "rotation":
            break
    assert found[0] < 0.9  # of guessing
    assert len(set(found)) == 1


def test_statistics_are_those_of_the_volumes(accelerator):
    part = brightness(2 * BATCH, 0)
    network, _ = carry(Arm(way="scratch"), SMALL, None, 0)
    network.bn1.running_mean.fill_(100)
    measure_statistics(network, part, accelerator)
    inputs = F.conv3d(part.batch(list(range(len(part)))), network.conv1.weight, None, 2, 1)
    torch.testing.assert_close(network.bn1.running_mean, inputs.mean((0, 2, 3, 4)), rtol=1e-4, atol=1e-5)
    assert not network.training and network.bn1.momentum == 0.1
    before = copy.deepcopy(network.state_dict())
    features_of(network, part, accelerator)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_single_volume_too_many_breaks_no_batch_norm(accelerator):
    network, _ = carry(Arm(way="acs"), SMALL, seeded_slices(SliceResNetConfig(width=4), 0), 0)
    part = brightness(BATCH + 1, 0)  # on 16 voxels the last stage has one value a channel
    measure_statistics(network, part, accelerator)
    assert np.isfinite(features_of(network, part, accelerator)).all()


def test_fine_tuning_learns_and_nothing_of_the_test_part_is_seen(accelerator):
    task = task_of(brightness(16, 0), brightness(12, 1))
    network, _ = carry(Arm(way="scratch"), SMALL, None, 0)
    measure_statistics(network, task.train, accelerator)
    training = Training(steps=24, batch_size=8, learning_rate=1e-2, shift=1)
    logits = finetune(copy.deepcopy(network), 32, task, training, 3, accelerator)
    assert logits.shape == (12, 2) and auroc(logits, task.test.classes)[0] > 0.9
    fewer = Part(task.test.read, task.test.classes[:5] * 0, "fewer")
    again = finetune(copy.deepcopy(network), 32, task_of(task.train, fewer), training, 3, accelerator)
    np.testing.assert_allclose(again, logits[:5], rtol=1e-4, atol=1e-4)


def test_a_loss_that_diverges_ends_the_run(accelerator):
    volumes = np.full((8, 16, 16, 16), np.nan, np.float32)
    part = Part(lambda item: volumes[item], np.arange(8) % 2, "nan")
    network, _ = carry(Arm(way="scratch"), SMALL, None, 0)
    with pytest.raises(FloatingPointError, match="step 0: the loss is nan"):
        finetune(network, 32, task_of(part, part), Training(steps=2, batch_size=4), 0, accelerator)


def test_shifts_are_whole_pixels_and_repeat_the_edge():
    images = torch.arange(2 * 6 * 7.0).reshape(2, 1, 6, 7)
    assert _shifted(images, 0, 0) is images
    for image, moved in zip(images[:, 0], _shifted(images, 2, 1)[:, 0], strict=True):
        fits = [
            (down, right) for down in range(-2, 3) for right in range(-2, 3)
            if torch.equal(moved, image[(torch.arange(6) + down).clamp(0, 5)][:, (torch.arange(7) + right).clamp(0, 6)])
        ]  # fmt: skip
        assert len(fits) == 1
    moved = torch.cat([_shifted(images, 2, seed) for seed in range(20)])
    assert len({tuple(one.flatten().tolist()) for one in moved}) > 20  # each image by its own


def test_targets_and_arms_go_together(balls, accelerator):
    task = open_task(Target(train=balls.train, test=balls.test, labels=(2,)), balls.root)
    network, _ = carry(Arm(way="cross_d"), SMALL, seeded_slices(SliceResNetConfig(width=4, conv="published"), 0), 0)
    measure_statistics(network, task.train, accelerator)
    assert features_of(network, task.test, accelerator).shape == (10, 32)
