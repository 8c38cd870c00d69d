"""Damages of known strength, with which the validation asks whether an extractor's distance is a straight ruler.

Two kinds, nine in all, each with five strengths in physical numbers (`CORRUPTIONS`):

- `VolumeDamage` changes every volume by itself: noise, blur, gain, warp, shuffled slices, checkerboard.
- `SetDamage` changes the composition of a set and no voxel: some volumes are mirrored, are copies of others, or show
  another organ. It is an arrangement of what is there already, so features need not be computed again.

Volumes are float32 `[N, D, H, W]` in [-1, 1], and so is what comes back; the input is never changed. Strength 0 is the
identity. A damage is a function of its random draws and its strength, and the draws do not depend on the strength: with
an equally seeded generator a stronger damage is *more of the same*, the same noise louder, the same volumes and more.
On small volumes the weakest of the five is plain to the eye in a side-by-side view.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from splitshuffle_gan.volume import plane_axes

WARP_SMOOTHNESS = 4.0  # voxels, sigma of the Gaussian that smooths the displacements


def _as_it_is(strength: float) -> float:
    return strength


def _percent(share: float) -> float:
    return 100 * share


def _left(loss: float) -> float:
    return 1 - loss


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What both kinds share. `strengths` are five, rising; `shown` makes of one the number that people read."""

    name: str
    title: str
    quantity: str = ""
    unit: str = ""
    shown: Callable[[float], float] = _as_it_is
    strengths: tuple[float, ...]

    def label(self, strength: float) -> str:
        """A strength in words, as in "sigma 0.6 voxels"."""
        return " ".join(filter(None, (self.quantity, f"{self.shown(strength):g}", self.unit)))

    @property
    def heading(self) -> str:
        """The title to stand by itself, with a capital."""
        return self.title[0].upper() + self.title[1:]

    @property
    def axis(self) -> str:
        """What the numbers along an axis of strengths mean, as in "sigma (voxels)"."""
        return f"{self.quantity} ({self.unit})" if self.quantity and self.unit else self.quantity or self.unit


@dataclass(frozen=True, kw_only=True)
class VolumeDamage(Damage):
    """A damage of single volumes: `apply(volumes, strength, rng)` -> damaged volumes."""

    apply: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class SetDamage(Damage):
    """A damage of a set's composition: `arrange(n, strength, rng)` -> int64 `[n]`.

    An entry below n is an original volume, n + j is volume j of the pool. The pool is "mirror" (the originals, left and
    right swapped), "other" (another organ) or "none".
    """

    arrange: Callable[[int, float, np.random.Generator], np.ndarray]
    pool: str


def gaussian_noise(volumes: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """White Gaussian noise of standard deviation `sigma`, where the intensities span 2; clipped to [-1, 1]."""
    return _clip(volumes + np.float32(sigma) * rng.standard_normal(volumes.shape, dtype=np.float32))


def blur(volumes: np.ndarray, sigma: float, rng: np.random.Generator | None = None) -> np.ndarray:
    """Gaussian blur of `sigma` voxels along D, H and W, edges reflected, so that the mean stays."""
    return _clip(ndimage.gaussian_filter(volumes, (0, sigma, sigma, sigma), mode="reflect"))


def gain(volumes: np.ndarray, loss: float, rng: np.random.Generator | None = None) -> np.ndarray:
    """Intensities above black (-1) times `1 - loss`: darker, and all contrast smaller by the same factor.

    Down and not up, because brighter volumes would be clipped, which is another damage.
    """
    return _clip(volumes - np.float32(loss) * (volumes + 1))


def elastic_warp(volumes: np.ndarray, displacement: float, rng: np.random.Generator) -> np.ndarray:
    """Every volume bent by a smooth random field of its own, whose vectors' root mean square is `displacement` voxels.

    The values are interpolated by cubic splines: linear interpolation would blur, which is another damage.
    """
    if displacement == 0:  # splines through the voxels give their values back only to rounding
        return volumes.copy()
    shape = volumes.shape[1:]
    places = np.indices(shape, dtype=np.float32)
    warped = np.empty_like(volumes)
    for volume, result in zip(volumes, warped, strict=True):
        field = rng.standard_normal((3, *shape), dtype=np.float32)
        # Around the edges: the usual modes would make the displacements larger there than inside.
        field = ndimage.gaussian_filter(field, (0, *[WARP_SMOOTHNESS] * 3), mode="wrap")
        field *= displacement / np.sqrt(np.square(field).sum(0).mean())
        ndimage.map_coordinates(volume, places + field, result, order=3, mode="nearest")
    return _clip(warped)


def shuffle_slices(volumes: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """In every volume, `share` of the slices along D change places among themselves; none of these stays where it was.

    A share above zero moves at least two slices.
    """
    depth = volumes.shape[1]
    count = min(max(round(share * depth), 2), depth) if share > 0 else 0
    shuffled = volumes.copy()
    for volume, result in zip(volumes, shuffled, strict=True):
        moved = rng.permutation(depth)[:count]
        result[moved] = volume[np.roll(moved, 1)]
    return shuffled


def checkerboard(volumes: np.ndarray, amplitude: float, rng: np.random.Generator | None = None) -> np.ndarray:
    """`amplitude` added to and subtracted from neighbouring voxels in turn, along all three axes; clipped to [-1, 1].

    The pattern that transposed convolutions leave behind, at the highest frequency that the grid holds.
    """
    sign = 1 - 2 * (np.indices(volumes.shape[1:]).sum(0) % 2)
    return _clip(volumes + np.float32(amplitude) * sign.astype(np.float32))


def mirror(volumes: np.ndarray, plane: str = "axial") -> np.ndarray:
    """Left and right swapped: W reversed for axial and coronal volumes, D for sagittal ones.

    Raises UserError for an unknown plane.
    """
    return np.ascontiguousarray(np.flip(volumes, axis=1 + plane_axes(plane).index(0)))


def arrange_swaps(n: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """`share` of the volumes, at least one where it is above zero, replaced by their own mirror images."""
    arrangement = np.arange(n)
    chosen = rng.permutation(n)[: _count(n, share)]
    arrangement[chosen] = n + chosen
    return arrangement


def arrange_duplicates(n: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """`share` of the volumes replaced by copies of the rest, each of which is copied about equally often.

    `distinct_left` volumes are different from one another; those that survive a larger share survive a smaller one.
    """
    order = rng.permutation(n)
    left = distinct_left(n, share)
    arrangement = np.empty(n, dtype=np.int64)
    arrangement[order] = order[np.arange(n) % left]
    return arrangement


def arrange_mixture(n: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """`share` of the volumes, at least one where it is above zero, replaced by the first ones of the pool, in order."""
    arrangement = np.arange(n)
    chosen = rng.permutation(n)[: _count(n, share)]
    arrangement[chosen] = n + np.arange(len(chosen))
    return arrangement


def distinct_left(n: int, share: float) -> int:
    """How many of `n` volumes are different from one another when `share` of them are copies; at least one."""
    return n - min(round(share * n), n - 1)


def rearrange(
    damage: SetDamage, volumes: np.ndarray, pool: np.ndarray, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """A `SetDamage` applied to `volumes`, or to their features `[N, d]`: what `arrange` says, taken from both arrays.

    Raises ValueError when the pool is too small.
    """
    arrangement = damage.arrange(len(volumes), strength, rng)
    if arrangement.max(initial=0) >= len(volumes) + len(pool):
        wanted = arrangement.max() + 1 - len(volumes)
        raise ValueError(f"{damage.name}: the pool holds {len(pool)} volumes, {wanted} are needed")
    taken = volumes[np.minimum(arrangement, len(volumes) - 1)]
    from_pool = arrangement >= len(volumes)
    taken[from_pool] = pool[arrangement[from_pool] - len(volumes)]
    return taken


def _count(n: int, share: float) -> int:
    return max(round(share * n), 1) if share > 0 else 0


def _clip(volumes: np.ndarray) -> np.ndarray:
    return np.clip(volumes, -1, 1, dtype=np.float32)


CORRUPTIONS: tuple[Damage, ...] = (
    VolumeDamage(
        name="noise",
        title="Gaussian noise",
        quantity="sigma",
        strengths=(0.1, 0.15, 0.2, 0.3, 0.4),
        apply=gaussian_noise,
    ),
    VolumeDamage(
        name="blur",
        title="blur",
        quantity="sigma",
        unit="voxels",
        strengths=(0.6, 0.8, 1.0, 1.5, 2.0),
        apply=blur,
    ),
    VolumeDamage(
        name="gain",
        title="intensity gain",
        quantity="gain",
        shown=_left,
        strengths=(0.1, 0.2, 0.3, 0.4, 0.5),
        apply=gain,
    ),
    VolumeDamage(
        name="warp",
        title="elastic warp",
        quantity="displacement",
        unit="voxels",
        strengths=(1.5, 2.0, 3.0, 4.0, 5.0),
        apply=elastic_warp,
    ),
    VolumeDamage(
        name="slices",
        title="slice shuffling",
        unit="% of the slices",
        shown=_percent,
        strengths=(0.125, 0.25, 0.5, 0.75, 1.0),
        apply=shuffle_slices,
    ),
    VolumeDamage(
        name="checkerboard",
        title="checkerboard",
        quantity="amplitude",
        strengths=(0.1, 0.15, 0.2, 0.3, 0.4),
        apply=checkerboard,
    ),
    SetDamage(
        name="swap",
        title="left-right swap",
        unit="% mirrored",
        shown=_percent,
        strengths=(0.2, 0.4, 0.6, 0.8, 1.0),
        arrange=arrange_swaps,
        pool="mirror",
    ),
    SetDamage(
        name="duplicates",
        title="duplicates (collapse)",
        unit="% copies",
        shown=_percent,
        strengths=(0.5, 0.7, 0.8, 0.9, 0.95),
        arrange=arrange_duplicates,
        pool="none",
    ),
    SetDamage(
        name="mixture",
        title="another organ",
        unit="% replaced",
        shown=_percent,
        strengths=(0.05, 0.1, 0.2, 0.4, 0.8),
        arrange=arrange_mixture,
        pool="other",
    ),
)
