"""The linear probe: multinomial logistic regression on frozen features, its penalty chosen on part of the training."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = tuple(10.0**power for power in range(-4, 3))
SHARE = 0.25  # of the training volumes, to choose the penalty by
ITERATIONS = 200


@dataclass(frozen=True)
class Probe:
    """A fitted probe: features are brought to mean 0 and deviation 1 as in training, then weighted.

    mean, deviation `[F]`, weight `[F, K]`, bias `[K]`; penalty: the chosen one.
    """

    mean: np.ndarray
    deviation: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    penalty: float

    def logits(self, features: np.ndarray) -> np.ndarray:
        """`[n, F] -> [n, K]`."""
        return (features - self.mean) / self.deviation @ self.weight + self.bias


def fit(
    features: np.ndarray,
    classes: np.ndarray,
    count: int,
    seed: int,
    val: tuple[np.ndarray, np.ndarray] | None = None,
) -> Probe:
    """A probe of `features` [n, F] for `classes` [n], 0 to count - 1, all of which count alike.

    The penalty, on the squared weights, is the one of `PENALTIES` with the least cross entropy on `val` (features and
    classes), after fitting to the rest; without `val`, on a quarter of each class, drawn by `seed`, whereupon all is
    fitted.
    """
    features, classes = np.asarray(features, np.float64), np.asarray(classes)
    if val is None:
        kept, tried = _divide(classes, seed)
        inner, outer = (features[kept], classes[kept]), (features[tried], classes[tried])
    else:
        inner, outer = (features, classes), val
    losses = [_loss(_fit(*inner, count, penalty), *outer, count) for penalty in PENALTIES]
    return _fit(features, classes, count, PENALTIES[int(np.argmin(losses))])


def class_weights(classes: np.ndarray, count: int) -> np.ndarray:
    """What a sample of each class counts, so that classes count alike and the mean over samples is 1; `[count]`."""
    found = np.bincount(classes, minlength=count)
    return np.divide(len(classes), found * (found > 0).sum(), where=found > 0, out=np.zeros(count))


def _divide(classes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit and rows to choose by: a quarter of each class, of a class of one nothing."""
    rng, tried = np.random.default_rng(seed), []
    for label in np.unique(classes):
        rows = rng.permutation(np.flatnonzero(classes == label))
        tried.extend(rows[: max(1, round(SHARE * len(rows)))] if len(rows) > 1 else [])
    return np.setdiff1d(np.arange(len(classes)), tried), np.sort(np.array(tried, int))


def _fit(features: np.ndarray, classes: np.ndarray, count: int, penalty: float) -> Probe:
    mean, deviation = features.mean(0), features.std(0)
    deviation = np.where(deviation > 1e-6 * (np.abs(mean) + 1e-6), deviation, 1.0)
    x, y = torch.from_numpy((features - mean) / deviation), torch.from_numpy(classes)
    counts = torch.from_numpy(class_weights(classes, count))
    weight = torch.zeros(x.shape[1], count, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, y, counts) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return Probe(mean, deviation, weight.detach().numpy(), bias.detach().numpy(), penalty)


def _loss(probe: Probe, features: np.ndarray, classes: np.ndarray, count: int) -> float:
    counts = torch.from_numpy(class_weights(classes, count))
    logits = torch.from_numpy(probe.logits(np.asarray(features, np.float64)))
    return float(F.cross_entropy(logits, torch.from_numpy(np.asarray(classes)), counts))
