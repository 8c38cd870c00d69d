"""The numbers of a card: what each is, its interval, and the floor that real volumes give.

Generated comes first and real second, everywhere. A row compares n generated volumes with n real ones, the `reference`
rows of all the real features there are; its floor compares disjoint halves of all of those, or, where there are
`others` (real volumes as well, such as those that were trained on), n of them with the reference.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np

from splitshuffle_gan.metrics import fidelity, ssim
from splitshuffle_gan.metrics.frechet import frechet_bootstrap, frechet_infinity, frechet_of
from splitshuffle_gan.metrics.neighbours import BALL_NEIGHBOURS, DENSITY_NEIGHBOURS, neighbour_intervals, neighbours
from splitshuffle_gan.metrics.resampling import TooFewSamples, bootstrap, interval, kid_bootstrap, split_pairs

KID_SUBSETS = 100
SHARES = ("precision", "recall", "density", "coverage")
WIDE = 512  # features; above, a resampled distance of slices takes about a second, so fewer are drawn
FEW_RESAMPLES = 25


@dataclass(frozen=True)
class Draws:
    """How often to resample for an interval, how often to halve the real volumes for a floor, and the seed of both."""

    resamples: int = 200
    splits: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Measure:
    """One number of a card.

    `value(generated, real)` computes it from features; `spread(generated, real, value)` is its interval [low, high].
    `better`: lower or higher.
    """

    name: str
    title: str
    better: str
    value: Callable[[np.ndarray, np.ndarray], float]
    spread: Callable[[np.ndarray, np.ndarray, float], list[float]]
    settings: dict = field(default_factory=dict)


def fid(draws: Draws) -> Measure:
    """The Fréchet distance between features `[n, d]` of volumes."""
    return Measure(
        "fid_3d",
        "3D FID",
        "lower",
        frechet_of,
        lambda generated, real, value: frechet_bootstrap(generated, real, draws.resamples, draws.seed, value),
    )


def plane_fid(plane: str, dimension: int, draws: Draws) -> Measure:
    """The Fréchet distance between features `[n, slices, d]` of slices, pooled; volumes, not slices, are resampled."""
    resamples = min(draws.resamples, FEW_RESAMPLES) if dimension > WIDE else draws.resamples
    return Measure(
        f"fid_{plane}",
        f"{plane.capitalize()} FID",
        "lower",
        _pooled_frechet,
        lambda generated, real, value: bootstrap(_pooled_frechet, (generated, real), resamples, draws.seed, value),
        {"resamples": resamples},
    )


def kid(draws: Draws) -> Measure:
    """The kernel distance between features `[n, d]`, torch-fidelity's."""
    return Measure(
        "kid_3d",
        "3D KID",
        "lower",
        partial(_kid, draws.seed),
        lambda generated, real, value: kid_bootstrap(generated, real, draws.resamples, draws.seed, value),
        {"subsets": KID_SUBSETS, "subset_size": "half of n, at most 1000"},
    )


def share(name: str, draws: Draws) -> Measure:
    """Precision and recall (torch-fidelity's), density or coverage between features `[n, d]`."""

    def spread(generated: np.ndarray, real: np.ndarray, value: float) -> list[float]:
        return neighbour_intervals(generated, real, draws.resamples, draws.seed)[name]

    k = BALL_NEIGHBOURS if name in ("precision", "recall") else DENSITY_NEIGHBOURS
    return Measure(name, name.capitalize(), "higher", partial(_share, name), spread, {"neighbours": k})


def floor_pairs(
    real: np.ndarray, reference: np.ndarray, others: np.ndarray | None, count: int, draws: Draws
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of real sets for the floor of a score of `count` volumes a side, equally large within and among pairs.

    Without `others` disjoint halves of `real`, at most `count` each. With them random choices of `count` of the others,
    or all if there are fewer, each against the reference, or as many of it.
    """
    if others is None:
        size = min(count, len(real) // 2)
        return [(real[a], real[b]) for a, b in split_pairs(len(real), size, draws.splits, draws.seed)]
    size, there, rng = min(count, len(others)), real[reference], np.random.default_rng(draws.seed)
    pick = partial(rng.choice, size=size, replace=False)
    return [(others[np.sort(pick(len(others)))], there[np.sort(pick(len(there)))]) for _ in range(draws.splits)]


def row(
    measure: Measure,
    generated: np.ndarray,
    real: np.ndarray,
    reference: np.ndarray,
    draws: Draws,
    others: np.ndarray | None = None,
) -> dict:
    """The card's row: value, interval, floor, and the value at the floor's n, so that the two can be divided.

    `others`: features of real volumes that are not among `real`, for the floor; see `floor_pairs`.
    Where n does not allow the number, {"metric", "title", "omitted": reason}.
    """
    there, count = real[reference], len(generated)
    head = {"metric": measure.name, "title": measure.title}
    try:
        value = float(measure.value(generated, there))
        spread = measure.spread(generated, there, value)
        pairs = floor_pairs(real, reference, others, count, draws)
        floors = [measure.value(a, b) for a, b in pairs]
    except TooFewSamples as reason:
        return {**head, "omitted": str(reason)}
    at_floor, size = value, len(pairs[0][0])
    if size < count:
        rng = np.random.default_rng(draws.seed)
        pick = partial(rng.choice, count, size, replace=False)
        at_floor = float(np.median([measure.value(generated[pick()], there[pick()]) for _ in pairs]))
    return {
        **head,
        "better": measure.better,
        "value": value,
        "n": count,
        "interval": spread,
        "floor": _floor(floors, size),
        "value_at_floor_n": at_floor,
        "settings": measure.settings,
    }


def infinity_row(
    generated: np.ndarray, real: np.ndarray, reference: np.ndarray, draws: Draws, others: np.ndarray | None = None
) -> dict:
    """The row of the 3D FID extrapolated to infinite n; its floor lies around 0, whatever the n of its pairs."""
    head = {"metric": "fid_3d_infinity", "title": "3D FID, infinite n"}
    try:
        line = frechet_infinity(generated, real[reference], draws.seed)
    except TooFewSamples as reason:
        return {**head, "omitted": str(reason)}
    floor = None
    try:
        pairs = floor_pairs(real, reference, others, len(generated), draws)
        values = [frechet_infinity(a, b, draws.seed, resamples=1).value for a, b in pairs]
        floor = _floor(values, len(pairs[0][0]))
    except TooFewSamples:
        pass  # sets too small for a line; all n are enough for the value
    return {
        **head,
        "better": "lower",
        "value": line.value,
        "n": len(generated),
        "interval": line.interval,
        "floor": floor,
        "value_at_floor_n": None if floor is None else line.value,
        "slope": line.slope,
        "settings": {"sizes": line.sizes},
    }


def ssim_row(generated: ssim.Volumes, real: ssim.Volumes, shape: tuple[int, int, int], draws: Draws) -> dict:
    """How alike disjoint pairs of generated volumes are, beside as many pairs of real ones: alone it means nothing."""
    head = {"metric": "ms_ssim", "title": "MS-SSIM of pairs"}
    count = min(len(generated), len(real))
    try:
        sides = [ssim.diversity(side, ssim.disjoint_pairs(count, draws.seed)) for side in (generated, real)]
        settings = asdict(ssim.settings_for(shape))
    except TooFewSamples as reason:
        return {**head, "omitted": str(reason)}
    (value, spread), (real_value, real_spread) = (_mean_and_interval(pairs, draws) for pairs in sides)
    return {
        **head,
        "better": "like real",
        "value": value,
        "n": count,
        "interval": spread,
        "floor": None,
        "value_at_floor_n": None,
        "real": {"value": real_value, "interval": real_spread, "pairs": len(sides[1])},
        "settings": {"pairs": len(sides[0]), **settings},
    }


def _pooled_frechet(generated: np.ndarray, real: np.ndarray) -> float:
    return frechet_of(generated.reshape(-1, generated.shape[-1]), real.reshape(-1, real.shape[-1]))


def _kid(seed: int, generated: np.ndarray, real: np.ndarray) -> float:
    size = fidelity.kid_subset_size(min(len(generated), len(real)))
    return fidelity.kid(generated, real, size, KID_SUBSETS, seed)


def _share(name: str, generated: np.ndarray, real: np.ndarray) -> float:
    if name in ("precision", "recall"):
        return fidelity.precision_recall(generated, real, BALL_NEIGHBOURS)[("precision", "recall").index(name)]
    return float(getattr(neighbours(generated, real), name).mean())


def _mean_and_interval(values: np.ndarray, draws: Draws) -> tuple[float, list[float]]:
    mean = float(values.mean())
    return mean, bootstrap(np.mean, [values], draws.resamples, draws.seed, mean)


def _floor(values: Sequence[float], size: int) -> dict:
    return {
        "value": float(np.median(values)),
        "interval": interval(np.asarray(values)),
        "n": size,
        "splits": len(values),
    }
