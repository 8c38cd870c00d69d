"""How well classes are told apart: AUROC and balanced accuracy, each for many resamples of the volumes at once."""

import numpy as np

CHANCE_AUROC = 0.5


def auroc(logits: np.ndarray, classes: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The area under the ROC curve, each class against the others, the mean over classes: `[R]`.

    It is the share of pairs, one volume of the class and one of another, in which the former has the higher odds;
    equal odds count half. logits `[n, K]`, classes `[n]`; weights `[R, n]` say how often each volume is in each
    resample, default once: `[1]`. A class that a resample lacks is left out of the mean; NaN without any left.
    """
    logits, classes = np.asarray(logits, np.float64), np.asarray(classes)
    weights = np.ones((1, len(classes))) if weights is None else np.asarray(weights, np.float64)
    found = []
    for label in np.unique(classes) if logits.shape[1] > 2 else [1]:
        others = np.delete(logits, label, axis=1)
        odds = logits[:, label] - np.logaddexp.reduce(others, axis=1)
        inside, outside = classes == label, classes != label
        ahead = np.sign(odds[inside][:, None] - odds[outside]) / 2 + 0.5
        pairs = np.einsum("ri,ri->r", weights[:, inside] @ ahead, weights[:, outside])
        with np.errstate(invalid="ignore"):
            found.append(pairs / (weights[:, inside].sum(1) * weights[:, outside].sum(1)))
    return _mean(found)


def balanced_accuracy(logits: np.ndarray, classes: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The share of a class's volumes for which it has the highest logit, the mean over classes: `[R]`; see `auroc`."""
    classes = np.asarray(classes)
    weights = np.ones((1, len(classes))) if weights is None else np.asarray(weights, np.float64)
    right = np.asarray(logits).argmax(1) == classes
    found = []
    for label in np.unique(classes):
        inside = classes == label
        with np.errstate(invalid="ignore"):
            found.append(weights[:, inside] @ right[inside] / weights[:, inside].sum(1))
    return _mean(found)


MEASURES = {"auroc": auroc, "balanced_accuracy": balanced_accuracy}


def chance(measure: str, classes: int) -> float:
    """What guessing gives."""
    return CHANCE_AUROC if measure == "auroc" else 1 / classes


def _mean(found: list[np.ndarray]) -> np.ndarray:
    values = np.array(found)
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0).sum(0) / there.sum(0)
