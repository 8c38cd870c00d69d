"""The linear probe on toys whose answer is known."""

import numpy as np
import pytest

from splitshuffle_gan.probe.linear import PENALTIES, class_weights, fit
from splitshuffle_gan.probe.measures import auroc, balanced_accuracy


def toy(count: int, seed: int, features: int = 6, shift: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes, each with its mean at another corner, in units that differ by a thousand; one feature constant."""
    rng = np.random.default_rng(seed)
    classes = np.arange(count) % 3
    values = rng.normal(size=(count, features))
    values[np.arange(count), classes] += shift
    return np.column_stack([values * np.logspace(-3, 3, features), np.full(count, 7.0)]), classes


def test_classes_apart_are_told_apart():
    probe = fit(*toy(90, 0, shift=8), 3, seed=0)
    features, classes = toy(60, 1, shift=8)
    assert balanced_accuracy(probe.logits(features), classes)[0] > 0.98
    assert auroc(probe.logits(features), classes)[0] > 0.99


def test_noise_is_at_chance_and_gets_the_largest_penalties():
    rng = np.random.default_rng(4)
    features, classes = rng.normal(size=(60, 200)), np.arange(60) % 2
    probe = fit(features, classes, 2, seed=0)
    assert probe.penalty >= 1
    found = auroc(probe.logits(rng.normal(size=(400, 200))), np.arange(400) % 2)[0]
    assert found == pytest.approx(0.5, abs=0.1)


def test_it_is_where_the_penalised_loss_is_least():
    features, classes = toy(60, 2, shift=1)
    probe = fit(features, classes, 3, seed=0)
    x = (features - probe.mean) / probe.deviation

    def loss(weight: np.ndarray) -> float:
        logits = x @ weight + probe.bias
        log_odds = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        return -log_odds[np.arange(60), classes].mean() + probe.penalty / 2 * np.square(weight).sum()

    rng = np.random.default_rng(0)
    assert all(loss(probe.weight) < loss(probe.weight + 0.02 * rng.normal(size=probe.weight.shape)) for _ in range(20))


def test_units_do_not_matter():
    features, classes = toy(60, 2, shift=1)
    units, zeros = np.logspace(4, -4, features.shape[1]), np.linspace(-50, 50, features.shape[1])
    one, other = fit(features, classes, 3, seed=0), fit(features * units + zeros, classes, 3, seed=0)
    assert other.penalty == one.penalty
    assert np.allclose(other.logits(features * units + zeros), one.logits(features), atol=1e-4)
    assert np.allclose(one.mean, features.mean(0))


def test_a_part_of_its_own_chooses_the_penalty():
    features, classes = toy(60, 3, shift=1)
    rng = np.random.default_rng(0)
    wrong = rng.normal(size=features.shape) * features.std(0), classes  # where certainty only hurts
    assert fit(features, classes, 3, 0, val=wrong).penalty == max(PENALTIES)
    assert fit(features, classes, 3, 0, val=(features, classes)).penalty == min(PENALTIES)


def test_rare_classes_count_as_much_as_others():
    weights = class_weights(np.array([0] * 8 + [1] * 2), 3)
    assert weights[:2].tolist() == [10 / 16, 10 / 4] and weights[2] == 0
    rng = np.random.default_rng(0)
    classes = (np.arange(200) % 10 == 0).astype(int)
    features = rng.normal(size=(200, 1)) + classes[:, None]
    predicted = fit(features, classes, 2, seed=0).logits(features).argmax(1)
    assert 0.2 < predicted.mean() < 0.5  # the midpoint between the means, not the prevalence of a tenth
