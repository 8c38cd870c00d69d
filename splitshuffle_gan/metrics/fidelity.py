"""The one place that touches torch-fidelity: its kernel distance, its precision and recall, its Inception, as they are.

Import this file only where a number of torch-fidelity's is wanted: it brings torchvision with it.
"""

import numpy as np
import torch

from splitshuffle_gan.metrics.resampling import TooFewSamples

OPERATORS = ("nms", "qnms")  # what torchvision registers fake kernels for on import
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
KID_SUBSET_SIZE = 1000


def _import_torchvision() -> torch.library.Library | None:
    """Import torchvision; returns declarations to be kept alive if it could only be imported with them.

    PyPI's torchvision is built for CUDA and cannot load its compiled operators beside a CPU build of torch. It then
    describes operators that do not exist and its import fails. Declaring them is enough: nothing here calls one.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        declarations = torch.library.Library("torchvision", "DEF")
        for operator in OPERATORS:
            declarations.define(f"{operator}{SIGNATURE}")
        import torchvision  # noqa: F401

        return declarations
    return None


_DECLARATIONS = _import_torchvision()

from torch_fidelity.defaults import DEFAULTS  # noqa: E402
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric  # noqa: E402
from torch_fidelity.metric_prc import (  # noqa: E402
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)

__all__ = ["KID_SUBSET_SIZE", "FeatureExtractorInceptionV3", "kid", "kid_subset_size", "precision_recall"]


def kid_subset_size(n: int) -> int:
    """The subset size for `kid` when the smaller side has `n` samples: half of them, at most 1000.

    1000 is torch-fidelity's default. The estimate is unbiased at any size, so sizes change its noise, not its place.
    A subset of all n would be the same one every time; halves differ, and their mean comes close to the estimate from
    all pairs. Raises TooFewSamples for n < 4: an estimate needs two samples a side.
    """
    if n < 4:
        raise TooFewSamples(f"halves of 2 samples for the kernel distance need 4 a side; the smaller side has {n}")
    return min(KID_SUBSET_SIZE, n // 2)


def kid(generated: np.ndarray, real: np.ndarray, subset_size: int, subsets: int, seed: int) -> float:
    """The kernel (inception) distance between features `[n, d]`: the mean over random subsets, as torch-fidelity's.

    Unbiased, so slightly negative for like distributions. Raises TooFewSamples when `subset_size` is above either n
    or below 2.
    """
    smaller = min(len(generated), len(real))
    if not 2 <= subset_size <= smaller:
        raise TooFewSamples(f"kernel distance on subsets of {subset_size}: 2 to {smaller}, the smaller side, will do")
    options = {"kid_subset_size": subset_size, "kid_subsets": subsets, "rng_seed": seed, "verbose": False}
    return kid_features_to_metric(*_tensors(generated, real), **_known(options))[KEY_METRIC_KID_MEAN]


def precision_recall(generated: np.ndarray, real: np.ndarray, neighbours: int = 3) -> tuple[float, float]:
    """(precision, recall) of features `[n, d]` by balls to the k-th neighbour, as torch-fidelity's.

    Raises TooFewSamples when a side has no more than `neighbours` samples.
    """
    smaller = min(len(generated), len(real))
    if smaller <= neighbours:
        wanted = f"balls to neighbour {neighbours} need {neighbours + 1} samples a side"
        raise TooFewSamples(f"{wanted}; the smaller side has {smaller}")
    options = {"prc_neighborhood": neighbours, "verbose": False}
    found = prc_features_to_metric(*_tensors(generated, real), **_known(options))
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]


def _tensors(*features: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float64)) for rows in features]


def _known(options: dict) -> dict:
    """`options`, if torch-fidelity has them all: one it does not know it would pass over in silence."""
    unknown = options.keys() - DEFAULTS.keys()
    if unknown:
        raise RuntimeError(f"torch-fidelity has no option {', '.join(sorted(unknown))}; install version 0.4.0")
    return options
