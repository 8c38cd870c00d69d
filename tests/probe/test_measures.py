"""AUROC and balanced accuracy against counting pairs and volumes by hand."""

import numpy as np
import pytest

from splitshuffle_gan.probe.measures import auroc, balanced_accuracy, chance


def by_hand(odds: np.ndarray, positive: np.ndarray) -> float:
    """Every pair, one by one."""
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in odds[positive] for b in odds[~positive]]
    return sum(wins) / len(wins)


def test_two_classes_pair_by_pair():
    rng = np.random.default_rng(0)
    logits, classes = rng.integers(0, 4, (30, 2)).astype(float), rng.integers(0, 2, 30)  # many ties
    assert auroc(logits, classes) == pytest.approx([by_hand(logits[:, 1] - logits[:, 0], classes == 1)])


def test_each_class_against_the_others():
    rng = np.random.default_rng(1)
    logits, classes = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)  # ranks as the odds do
    wanted = np.mean([by_hand(probability[:, label], classes == label) for label in range(3)])
    assert auroc(logits, classes) == pytest.approx([wanted])


def test_certain_networks_are_still_ranked():
    logits = np.array([[0, 800.0], [0, 900.0], [0, 700.0], [0, 850.0]])  # probabilities would all be 1
    assert auroc(logits, np.array([0, 1, 0, 1])) == [1.0]


@pytest.mark.parametrize("measure", [auroc, balanced_accuracy])
def test_weights_are_repetitions(measure):
    rng = np.random.default_rng(2)
    logits, classes = rng.normal(size=(20, 3)), np.arange(20) % 3
    weights = rng.integers(0, 3, (5, 20))
    wanted = [measure(np.repeat(logits, row, axis=0), np.repeat(classes, row))[0] for row in weights]
    assert measure(logits, classes, weights) == pytest.approx(wanted)


def test_balanced_accuracy_counts_classes_alike():
    logits = np.array([[1.0, 0]] * 9 + [[1.0, 0], [0, 1.0]])  # all 9 of class 0 right, one of two of class 1
    assert balanced_accuracy(logits, np.array([0] * 9 + [1, 1])) == pytest.approx([0.75])


def test_a_resample_without_a_class():
    logits, classes = np.array([[0, 1.0], [0, 2.0], [1.0, 0]]), np.array([1, 1, 0])
    weights = np.array([[1, 1, 0], [1, 1, 1]])
    assert np.isnan(auroc(logits, classes, weights)[0]) and auroc(logits, classes, weights)[1] == 1
    assert balanced_accuracy(logits, classes, weights).tolist() == [1, 1]


def test_chance():
    assert chance("auroc", 5) == 0.5 and chance("balanced_accuracy", 5) == 0.2
    rng = np.random.default_rng(3)
    logits, classes = rng.normal(size=(4000, 4)), rng.integers(0, 4, 4000)
    assert auroc(logits, classes)[0] == pytest.approx(0.5, abs=0.02)
    assert balanced_accuracy(logits, classes)[0] == pytest.approx(0.25, abs=0.03)
