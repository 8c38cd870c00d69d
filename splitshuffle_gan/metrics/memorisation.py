"""The statistics of the memorisation audit: tendency and copies.

Three sets are compared: generated volumes, the volumes the generator was trained on, and real volumes it never saw.
Two spaces: voxels (reduced, standardised, in all eight flips, so that noise, contrast and mirroring hide nothing) and
an extractor's features (as they are and mirrored left to right). Distances are in units of the median distance between
a held-out and a training volume. Two questions, each asked in each space:

- **tendency**: are the generated volumes as a whole nearer to the training volumes than to as many held-out ones? The
  mean log ratio of the two nearest distances, tested by exchanging which real volumes are called training volumes.
- **copies**: is one generated volume nearer to a training volume than a new subject would be? Its *score* is the
  distance to the nearest training volume over the median distance to its ten nearest held-out ones, so it does not
  matter whether all its distances are small (a smooth volume) or large (a noisy one), nor whether the training set
  repeats itself. Real volumes have scores by the same rule, of which a clean sample's is just one more. How far below
  them the lowest of all samples can fall by chance is read from their lower tail (see `Tail`). A copy must also be
  nearer to the training volume than any two real volumes are: an odd volume far from all others but one is not a copy.

The level of 5 % is shared out by Bonferroni, 1 % to each tendency and 1.5 % to each set of copies, so that a clean set
is accused of anything at all in at most 5 % of audits.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool3d
from tqdm import tqdm

from splitshuffle_gan.errors import UserError

ALPHA = {"tendency": 0.01, "copies": 0.015}  # of each space; twice their sum is 5 %
MIN_REAL = 20
SIGNATURE_VOXELS = 2048
NEIGHBOURS = 10
COMPONENTS, DRAWS = 10, 1000  # of the linear model
SMALLEST = 1e-3  # what rounding leaves of a distance of 0, in units of a typical one
FLIPS = tuple(axes for count in range(4) for axes in itertools.combinations(range(3), count))  # () comes first


@dataclass(frozen=True)
class Space:
    """Distances in one space, in units of the median of `held_train`; a volume is infinitely far from itself.

    to_train `[n, t]`, to_held `[n, h]`, held_train `[h, t]`, held_held `[h, h]`, train_train `[t, t]`: each the
    smallest over the orientations of its first argument. flip `[n, t]`: the number of the orientation that gave
    `to_train`. unit: one of these units in the space's own.
    """

    to_train: np.ndarray
    to_held: np.ndarray
    held_train: np.ndarray
    held_held: np.ndarray
    train_train: np.ndarray
    flip: np.ndarray
    unit: float


@dataclass(frozen=True)
class Tail:
    """The lower tail of reference scores: their lower half, taken as exponential in the logarithm.

    That is how nearest distances behave (within a distance x there are x^D neighbours in D dimensions), and a lighter
    tail, such as a normal distribution's, gives p-values that are too large, never too small. The lowest quarter of
    the half counts by rank only, as if censored: near-duplicates among the real volumes must not stretch the tail.
    The scale is the maximum-likelihood one; its uncertainty enters the p-value through `degrees`.
    """

    reference: np.ndarray
    start: float
    scale: float
    degrees: int

    @classmethod
    def fit(cls, reference: np.ndarray) -> "Tail":
        """From at least MIN_REAL positive scores."""
        logs = np.sort(np.log(reference))
        half = len(logs) // 2
        censored = half // 4
        excess = logs[half] - np.maximum(logs[:half], logs[censored])
        return cls(logs, logs[half], max(excess.sum() / (half - censored), SMALLEST), half - censored)

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """For each score, the chance that a new one is as low: by the tail, above its start by rank."""
        logs = np.log(scores)
        beyond = np.maximum(self.start - logs, 0) / self.scale
        tail = 0.5 * (1 + beyond / self.degrees) ** -self.degrees
        rank = (1 + np.searchsorted(self.reference, logs, side="right")) / (1 + len(self.reference))
        return np.where(logs < self.start, tail, rank)

    def threshold(self, p: float) -> float:
        """The score whose p-value is `p`, below one half."""
        beyond = self.degrees * ((0.5 / p) ** (1 / self.degrees) - 1)
        return float(np.exp(self.start - self.scale * beyond))


def signatures(volumes: Sequence[np.ndarray], name: str = "volumes", progress: bool = False) -> np.ndarray:
    """Each volume averaged to half its sides or less and at most SIGNATURE_VOXELS, mean 0, norm 1: `[n, d, h, w]`.

    Raises UserError naming `name` and the volume when one has another shape than the first, NaN or no contrast.
    """
    shape = np.shape(volumes[0])
    if len(shape) != 3:
        raise UserError(f"{name}: volume 0 has shape {list(shape)}; volumes [D, H, W] are wanted")
    grid = [max(side // 2, 1) for side in shape]
    while np.prod(grid) > SIGNATURE_VOXELS:
        longest = int(np.argmax(grid))
        grid[longest] = (grid[longest] + 1) // 2
    rows = np.empty((len(volumes), *grid), np.float32)
    for index in tqdm(range(len(volumes)), f"{name}: voxels", disable=not progress, leave=False):
        volume = np.asarray(volumes[index], np.float32)
        if volume.shape != shape:
            raise UserError(f"{name}: volume {index} has shape {list(volume.shape)}, volume 0 {list(shape)}")
        small = adaptive_avg_pool3d(torch.from_numpy(np.array(volume))[None, None], grid)[0, 0].numpy()
        small = small - small.mean(dtype=np.float64)
        norm = np.linalg.norm(small)
        if not np.isfinite(norm) or norm < 1e-4 * np.sqrt(small.size):
            fault = "is constant" if np.isfinite(norm) else "holds NaN or infinite values"
            raise UserError(f"{name}: volume {index} {fault}; leave it out, it cannot be compared with anything")
        rows[index] = small / norm
    return rows


def compare(generated: list[np.ndarray], train: list[np.ndarray], held_out: list[np.ndarray]) -> Space:
    """Euclidean distances between three sets. Each is a list of orientations `[n, ...]`, the first the set as it is."""
    to_train, flip = _distances(generated, train[0])
    to_held, _ = _distances(generated, held_out[0])
    held_train, _ = _distances(held_out, train[0])
    held_held, _ = _distances(held_out, held_out[0])
    train_train, _ = _distances(train, train[0])
    unit = float(np.median(held_train)) or 1.0
    to_train, to_held, held_train, held_held, train_train = (
        np.maximum(distances / unit, SMALLEST) for distances in (to_train, to_held, held_train, held_held, train_train)
    )
    np.fill_diagonal(held_held, np.inf)
    np.fill_diagonal(train_train, np.inf)
    return Space(to_train, to_held, held_train, held_held, train_train, flip, unit)


def _distances(views: list[np.ndarray], others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest Euclidean distance `[n, m]` over the views of n items, and the number of the view that gave it."""
    others = others.reshape(len(others), -1)
    best, flip = None, None
    for number, view in enumerate(views):
        rows = view.reshape(len(view), -1)
        squares = np.square(rows).sum(1)[:, None] + np.square(others).sum(1) - 2 * (rows @ others.T)
        if best is None:
            best, flip = squares, np.zeros(squares.shape, np.int8)
        flip[squares < best] = number
        best = np.minimum(best, squares)
    return np.sqrt(np.maximum(best, 0).astype(np.float64)), flip


def tendency(space: Space, permutations: int, rng: np.random.Generator) -> dict:
    """Are generated volumes nearer to the training set than to as much of the held-out set?

    "ratio": geometric mean over the samples of (distance to the nearest training volume) / (to the nearest held-out
    one), both sets at the size of the smaller: for the larger, the mean log over all its subsets of that size, in
    closed form. "p": one-sided (ratio too small), from random exchanges of real volumes between the sets.
    "by_chance": what 95 % of those exchanges give.
    """
    sizes = space.to_train.shape[1], space.to_held.shape[1]
    weights = [_subset_weights(size, min(sizes)) for size in sizes]
    logs = np.log(np.concatenate([space.to_train, space.to_held], axis=1))
    order = np.argsort(logs, axis=1)
    logs = np.take_along_axis(logs, order, axis=1)
    in_train = np.arange(sum(sizes)) < sizes[0]

    def mean_log_ratio(in_train: np.ndarray, nearest: int) -> float:
        member, near = in_train[order[:, :nearest]], logs[:, :nearest]
        sides = [
            (near * side * weight[np.maximum(np.cumsum(side, axis=1) - 1, 0)]).sum() / len(near)
            for side, weight in zip((member, ~member), weights, strict=True)
        ]
        return sides[0] - sides[1]

    observed = mean_log_ratio(in_train, sum(sizes))
    # After an exchange, a share e^-15 of the nearest neighbours lies farther away than this.
    nearest = min(sum(sizes), int(np.ceil(15 * sum(sizes) / min(sizes))))
    exchanged = np.array([mean_log_ratio(rng.permutation(in_train), nearest) for _ in range(permutations)])
    return {
        "ratio": float(np.exp(observed)),
        "p": float((1 + (exchanged <= observed).sum()) / (1 + permutations)),
        "by_chance": np.exp(np.quantile(exchanged, [0.025, 0.975])).tolist(),
        "volumes_compared": min(sizes),
        "permutations": permutations,
    }


def linear_model_ratio(train: list[np.ndarray], held_out: list[np.ndarray], rng: np.random.Generator) -> float:
    """The `tendency` ratio of a model too small to remember anything, from orientations as in `compare`.

    The model is the Gaussian of the training set's mean and first COMPONENTS principal components. Whatever is fitted
    to few volumes leans towards them, since their mean and spread are not quite those of others: this says how far
    fitting alone goes. All orientations of a drawn volume are drawn together.
    """
    rows = np.concatenate([view.reshape(len(view), -1) for view in train], axis=1).astype(np.float64)
    mean = rows.mean(0)
    _, scales, directions = np.linalg.svd(rows - mean, full_matrices=False)
    spread = scales[:COMPONENTS, None] * directions[:COMPONENTS] / np.sqrt(len(rows) - 1)
    drawn = np.split(mean + rng.standard_normal((DRAWS, len(spread))) @ spread, len(train), axis=1)
    space = compare([view.reshape(DRAWS, *train[0].shape[1:]) for view in drawn], train, held_out)
    return tendency(space, permutations=1, rng=rng)["ratio"]


def _subset_weights(size: int, subset: int) -> np.ndarray:
    """For each rank, the chance that the neighbour of that rank is the nearest in a random subset."""
    ranks = np.arange(1, size)
    return np.cumprod(np.concatenate([[subset / size], np.maximum(size - subset - ranks + 1, 0) / (size - ranks)]))


def scores(to_train: np.ndarray, to_held: np.ndarray) -> np.ndarray:
    """Distance to the nearest training volume over the median distance to the NEIGHBOURS nearest held-out ones."""
    neighbours = min(NEIGHBOURS, to_held.shape[1] // 2)
    return to_train.min(1) / np.median(np.partition(to_held, neighbours - 1, axis=1)[:, :neighbours], axis=1)


def copies(space: Space) -> dict:
    """Which generated volumes are nearer to a training volume than chance allows, and which real ones are.

    Arrays over the samples: "distance" to the nearest training volume and its "train_index", "score", "p" of the score
    (adjusted for the number of samples), "flagged": p at most ALPHA["copies"] and distance below "nearest_real_pair",
    that of the two nearest real volumes. "threshold": the score with that p. "share_nearer": the share of the samples
    below "nearest_real_pair". "train_duplicates", "held_out_duplicates": pairs (training or held-out volume, training
    volume) that the same rule would call copies; they do not count as real pairs.
    """
    real = {
        "held_out": (space.held_train, scores(space.held_train, space.held_held)),
        "train": (space.train_train, scores(space.train_train, space.held_train.T)),
    }
    # Held-out volumes alone, as the training set may be full of repetitions, and all of them, as more are surer.
    references = real["held_out"][1], np.concatenate([score for _, score in real.values()])
    tails = [Tail.fit(reference) for reference in references]

    def adjusted(score: np.ndarray) -> np.ndarray:
        return np.minimum(len(tails) * len(score) * np.min([tail.p_values(score) for tail in tails], axis=0), 1)

    suspect = {name: adjusted(score) <= ALPHA["copies"] for name, (_, score) in real.items()}
    apart = [distances.min(1)[~suspect[name]] for name, (distances, _) in real.items()]
    nearest_real_pair = np.concatenate(apart).min()
    duplicates = {}
    for name, (distances, _) in real.items():
        double = np.flatnonzero(suspect[name] & (distances.min(1) < nearest_real_pair))
        pairs = {(int(index), int(distances[index].argmin())) for index in double}
        pairs = {tuple(sorted(pair)) for pair in pairs} if name == "train" else pairs
        duplicates[f"{name}_duplicates"] = [list(pair) for pair in sorted(pairs)]
    distance, score = space.to_train.min(1), scores(space.to_train, space.to_held)
    p, nearer = adjusted(score), distance < nearest_real_pair
    return {
        "distance": distance,
        "train_index": space.to_train.argmin(1),
        "score": score,
        "p": p,
        "flagged": (p <= ALPHA["copies"]) & nearer,
        "threshold": max(tail.threshold(ALPHA["copies"] / len(tails) / len(score)) for tail in tails),
        "nearest_real_pair": float(nearest_real_pair),
        "share_nearer": float(nearer.mean()),
        **duplicates,
    }
