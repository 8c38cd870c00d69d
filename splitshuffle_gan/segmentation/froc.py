"""How well lesions are found: which finds hit which lesion, and the free-response curve (FROC) over volumes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from monai.metrics import compute_fp_tp_probs_nd
from scipy import ndimage

from splitshuffle_gan.metrics.resampling import interval

RATES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
"""False positives per volume at which sensitivity is read: those of LUNA16 (and, from 1/4 on, CAMELYON16)."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Hits:
    """What the finds of one volume are worth.

    Attributes:
        found: `[lesions]`, the highest confidence of the finds on each lesion, 0 where it was missed.
        false: the confidences of the finds on none.
    """

    found: np.ndarray
    false: np.ndarray


def match(
    voxels: np.ndarray, confidences: np.ndarray, lesions: np.ndarray, spacing: Sequence[float], reach: float
) -> Hits:
    """Finds, `[n, 3]` and above 0 `[n]`, against numbered lesions `[D, H, W]`.

    A find hits the lesion that is nearest, if its nearest voxel is within `reach` mm: 0 is within the lesion. A lesion
    is hit once; further finds on it are no false positives.
    """
    owner = lesions
    if lesions.any() and reach > 0:
        distance, nearest = ndimage.distance_transform_edt(lesions == 0, sampling=spacing, return_indices=True)
        owner = np.where(distance <= reach, lesions[tuple(nearest)], 0)
    false, found, _ = compute_fp_tp_probs_nd(np.asarray(confidences, np.float32), voxels, owner)
    return Hits(found, false)


def curve(cases: list[Hits]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The FROC curve: false positives per volume, sensitivity, and the confidence from which finds count.

    The first confidence is infinite: nothing counts. Raises ValueError where there is no lesion.
    """
    confidences, found, false, lesions = _counts(cases)
    rates, sensitivities = _curves(np.ones((1, len(cases))), found, false, lesions)
    return rates[0], sensitivities[0], confidences


def froc(cases: list[Hits], resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """The mean of the sensitivities at `RATES` ("froc"), each of them, and the number of lesions and volumes.

    Between the curve's points it is read linearly, as LUNA16 and CAMELYON16 do, and beyond its end it stays. "least" is
    the confidence from which finds count there, None for nothing. The intervals hold the middle 95 % over `resamples`
    draws of volumes with replacement; 0 spares them. Raises ValueError where there is no lesion.
    """
    rates, sensitivities, confidences = curve(cases)
    values = np.interp(RATES, rates, sensitivities)
    least = confidences[np.searchsorted(rates, RATES, side="right") - 1]
    at_rates = {
        f"{rate:g}": {"value": float(value), "least": float(bound) if np.isfinite(bound) else None}
        for rate, value, bound in zip(RATES, values, least, strict=True)
    }
    counts = {"lesions": sum(len(case.found) for case in cases), "volumes": len(cases)}
    result = {"froc": float(values.mean()), "sensitivity": at_rates, **counts}
    if resamples:
        drawn = _resampled(cases, resamples, seed)
        result["interval"] = interval(drawn.mean(1))
        for entry, column in zip(at_rates.values(), drawn.T, strict=True):
            entry["interval"] = interval(column)
    return result


def _resampled(cases: list[Hits], resamples: int, seed: int) -> np.ndarray:
    """Sensitivities `[resamples, rates]`. A draw of volumes without a lesion has none and is repeated."""
    _, found, false, lesions = _counts(cases)
    rng, shares = np.random.default_rng(seed), np.full(len(cases), 1 / len(cases))
    weights = rng.multinomial(len(cases), shares, resamples)
    while (empty := weights @ lesions == 0).any():
        weights[empty] = rng.multinomial(len(cases), shares, empty.sum())
    pairs = zip(*_curves(weights, found, false, lesions), strict=True)
    return np.array([np.interp(RATES, rates, sensitivities) for rates, sensitivities in pairs])


def _counts(cases: list[Hits]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Confidences `[T]`, falling from infinity; hits and false positives from each on, `[volumes, T]`; lesions."""
    lesions = np.array([len(case.found) for case in cases], float)
    if not lesions.any():
        raise ValueError(f"there is no lesion in {len(cases)} volumes, so no sensitivity")
    every = np.unique(np.concatenate([part for case in cases for part in (case.found, case.false)]))
    confidences = np.concatenate([[np.inf], every[every > 0][::-1]])

    def counts(parts: list[np.ndarray]) -> np.ndarray:
        return np.array([len(part) - np.searchsorted(np.sort(part), confidences) for part in parts], float)

    return confidences, counts([case.found for case in cases]), counts([case.false for case in cases]), lesions


def _curves(
    weights: np.ndarray, found: np.ndarray, false: np.ndarray, lesions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """False positives per volume and sensitivities, `[draws, T]`, with every volume as often as `[draws, volumes]`."""
    weights = np.asarray(weights, float)
    return weights @ false / weights.sum(1, keepdims=True), weights @ found / (weights @ lesions)[:, None]
