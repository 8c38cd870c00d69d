"""How well a label map agrees with the truth: Dice and the 95th percentile of the Hausdorff distance, per structure."""

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from monai.metrics import compute_dice, compute_hausdorff_distance

PERCENTILE = 95


def measure(
    found: np.ndarray, truth: np.ndarray, labels: tuple[int, ...], spacing: tuple[float, float, float] | None
) -> dict[str, dict[str, float | None]]:
    """`{"dice": {label: value}, "hd95": {label: mm}}` of two maps of classes, `[D, H, W]`, below `len(labels)`.

    The background, class 0, is left out. `spacing` is mm (D, H, W); None spares the distances, which take longer.
    A value is None where the structure is in neither map; a distance also where it is in only one (its Dice is 0 then).
    """
    pair = [torch.from_numpy(np.ascontiguousarray(part)).long() for part in (found, truth)]
    found_masks, true_masks = (F.one_hot(part, len(labels)).movedim(-1, 0)[None].float() for part in pair)
    dice = compute_dice(found_masks, true_masks, include_background=False, ignore_empty=False)[0]
    result = {"dice": {}} if spacing is None else {"dice": {}, "hd95": {}}
    for number, label in enumerate(labels[1:], start=1):
        there = [bool(masks[0, number].any()) for masks in (found_masks, true_masks)]
        result["dice"][str(label)] = float(dice[number - 1]) if any(there) else None
        if spacing is not None:
            pair = [masks[:, number : number + 1] for masks in (found_masks, true_masks)]
            result["hd95"][str(label)] = _hd95(*pair, spacing) if all(there) else None
    return result


def summarise(cases: list[dict]) -> dict:
    """Means over the cases, what is None left out; "mean_dice" is the mean over the structures of their means.

    Each case is what `measure` returns, further fields are passed over.
    """
    kinds = [kind for kind in ("dice", "hd95") if kind in cases[0]]
    result = {kind: {label: _mean([case[kind][label] for case in cases]) for label in cases[0][kind]} for kind in kinds}
    return {"mean_dice": _mean(list(result["dice"].values())), **result}


def _hd95(found: torch.Tensor, truth: torch.Tensor, spacing: tuple[float, float, float]) -> float:
    with warnings.catch_warnings():
        # MONAI calls its own helper with an argument that it has deprecated.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        distance = compute_hausdorff_distance(
            found, truth, include_background=True, percentile=PERCENTILE, spacing=list(spacing)
        )
    return float(distance)


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None
