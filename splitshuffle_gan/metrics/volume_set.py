"""What is scored: a set of volumes on one grid and one scale, read one at a time, checked as they are read."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from splitshuffle_gan.data.recipe import DEFAULT_PERCENTILES
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.volume import IntensityMap

OUTERMOST = 1 + 1e-3  # of the range [-1, 1], for rounding


@dataclass(frozen=True)
class IntensityRule:
    """How intensities become -1 and 1: a fixed `window` (low, high), or `percentiles` (in percent) of each volume."""

    kind: str = "percentiles"
    low: float = DEFAULT_PERCENTILES[0]
    high: float = DEFAULT_PERCENTILES[1]

    def to_unit(self, array: np.ndarray, source: str) -> np.ndarray:
        """Source units to [-1, 1]. Raises UserError naming `source` when its percentiles are equal or not finite."""
        if self.kind == "window":
            return IntensityMap("window", self.low, self.high).to_unit(array)
        low, high = np.percentile(array, (self.low, self.high))
        if not low < high:
            raise UserError(f"{source}: its percentiles {self.low:g} and {self.high:g} are {low:g} and {high:g}; "
                            "repair or remove the file")  # fmt: skip
        return IntensityMap("percentiles", float(low), float(high)).to_unit(array)


@dataclass(frozen=True)
class VolumeSet:
    """Volumes of one shape, read one at a time: `volumes[i]` is float32 `[D, H, W]` in [-1, 1].

    Attributes:
        name: what the user called it.
        kind: dataset, samples (what `splitshuffle sample` wrote), scans (any others), checkpoint or arrays.
        shape: voxels (D, H, W). spacing: mm (D, H, W). plane: the order of the axes, see `volume`.
        rule: how the intensities were mapped; None when that is not known (arrays).
        names: of the volumes, for messages: file names or seeds.
        read: index -> volume.
        details: more for the card, JSON.
    """

    name: str
    kind: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    plane: str
    rule: IntensityRule | None
    names: tuple[str, ...]
    read: Callable[[int], np.ndarray]
    details: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        volume = self.read(index)
        if not np.isfinite(volume).all():
            bad = np.count_nonzero(~np.isfinite(volume))
            raise UserError(f"{self.name}: {self.names[index]} has {bad} voxels that are NaN or infinite; remove it")
        low, high = volume.min(), volume.max()
        if low == high:
            raise UserError(f"{self.name}: {self.names[index]} is {low:g} everywhere; remove it")
        if max(-low, high) > OUTERMOST:
            reach = f"{self.name}: {self.names[index]} reaches {max(-low, high):g}; values in [-1, 1] are wanted"
            raise UserError(f"{reach}: prepare the set again, or remove it")
        return volume

    def subset(self, indices: Iterable[int]) -> "VolumeSet":
        """The volumes at `indices`, in that order."""
        chosen = [int(index) for index in indices]
        return VolumeSet(
            self.name, self.kind, self.shape, self.spacing, self.plane, self.rule,
            tuple(self.names[index] for index in chosen), lambda i: self.read(chosen[i]), self.details,
        )  # fmt: skip

    def array(self) -> np.ndarray:
        """All of them, `[N, D, H, W]`, in memory."""
        return np.stack([self[i] for i in range(len(self))])

    @property
    def data_hash(self) -> str:
        """sha256 over the volumes' voxels as they are scored; changes with any of them and with their order."""
        return hash_of([volume_hash(self[i]) for i in range(len(self))])


def volume_hash(volume: np.ndarray) -> str:
    """sha256 of one volume's float32 bytes."""
    return hashlib.sha256(np.ascontiguousarray(volume, dtype=np.float32)).hexdigest()


def hash_of(hashes: list[str]) -> str:
    """sha256 of the volumes' hashes, in order."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
