"""What a network is made of: frozen dataclasses, checked on construction, that go to JSON and back.

One config serves both ranks. `shape` is always the volume's `(D, H, W)`; a network of rank 2 works on its slices
`(H, W)` and keeps `D` because its depth tables and its 3D twin need it.
"""

from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from splitshuffle_gan.errors import UserError

ConvKind = Literal["split_shuffle", "plain", "separable", "cross_d", "split_pointwise"]
CONV_KINDS: tuple[str, ...] = get_args(ConvKind)
MIN_BASE, MAX_BASE = 4, 15


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What a network is made of, as its checkpoint's config.json holds it; each kind of network adds its fields."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` is the inverse."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CheckpointConfig":
        """The config of `values`; unknown or missing names raise `UserError`."""
        if not isinstance(values, dict):
            raise UserError(f"{cls.__name__}: found {values!r}, fields by name are wanted")
        own = {field.name: field for field in fields(cls)}
        if unknown := sorted(set(values) - set(own)):
            raise UserError(f"{cls.__name__}: unknown field {', '.join(unknown)}; known are {', '.join(sorted(own))}")
        wanted = {name for name, field in own.items() if field.default is field.default_factory is MISSING}
        if missing := sorted(wanted - set(values)):
            raise UserError(f"{cls.__name__}: field {', '.join(missing)} is missing")
        return cls(**values)


def _axis_doublings(size: int) -> tuple[int, int] | None:
    """`(base, doublings)` with `size = base * 2**doublings` and the smallest base in 4..15, or None."""
    doublings = 0
    while size % 2 == 0 and size // 2 >= MIN_BASE:
        size //= 2
        doublings += 1
    return (size, doublings) if MIN_BASE <= size <= MAX_BASE else None


def _nearest_reachable(size: int) -> int:
    return min(range(MIN_BASE, 2 * max(size, 0) + 9), key=lambda n: (_axis_doublings(n) is None, abs(n - size)))


@dataclass(frozen=True)
class Schedule:
    """The grid of every level, coarse to fine: `grids[0]` is the base, `grids[-1]` the volume's shape.

    Each axis is its base (4 to 15) doubled some number of times. The axis with the most doublings is doubled at
    every level; an axis with fewer is doubled at the *last* levels, so that thick-slice volumes (64x256x256) gain
    in-plane detail first and the early levels stay cheap.
    """

    grids: tuple[tuple[int, int, int], ...]

    @classmethod
    def for_shape(cls, shape: tuple[int, int, int]) -> "Schedule":
        """The schedule of a volume of `shape` (D, H, W).

        Raises:
            UserError: an axis is not 4..15 times a power of two; the message names a shape that is.
        """
        if len(shape) != 3:
            raise UserError(f"shape: found {shape}, three sizes D, H, W are wanted")
        axes = [_axis_doublings(size) for size in shape]
        if any(axis is None for axis in axes):
            nearest = "x".join(str(_nearest_reachable(size)) for size in shape)
            raise UserError(
                f"shape: found {'x'.join(map(str, shape))}, but every axis must be 4 to 15 times a power of two "
                f"(4x4x4 doubled level by level). Use {nearest}."
            )
        levels = max(doublings for _, doublings in axes)
        grids = [
            tuple(base << max(0, level - (levels - doublings)) for base, doublings in axes)
            for level in range(levels + 1)
        ]
        return cls(tuple(grids))

    @property
    def levels(self) -> int:
        """Number of levels, the base included."""
        return len(self.grids)

    def factors(self, level: int) -> tuple[int, int, int]:
        """Growth of each axis (1 or 2) from `level - 1` to `level`, level >= 1."""
        return tuple(fine // coarse for coarse, fine in zip(self.grids[level - 1], self.grids[level], strict=True))


def default_channels(shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Channels per level, coarse to fine: 32 at the finest, doubled towards the base, at most 128."""
    levels = Schedule.for_shape(shape).levels
    return tuple(min(128, 32 << (levels - 1 - level)) for level in range(levels))


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(CheckpointConfig):
    """What generator and discriminator share.

    Attributes:
        rank: 2 for slices, 3 for volumes.
        shape: the volume's (D, H, W), also at rank 2.
        channels: channels per level, coarse to fine, all even; empty: `default_channels(shape)`.
        conv: kind of the k x k (x k) convolutions, see `splitshuffle_gan.nn.conv`.
        depth_aware: the networks are told the depth of a slice. Generator: its constant and biases are tables over
            depth. Discriminator: a depth channel is added to its input.
        image_channels: channels of the image: 1 for a scan, and one more for each structure of a label map beside it.
    """

    rank: Literal[2, 3]
    shape: tuple[int, int, int]
    channels: tuple[int, ...] = ()
    conv: ConvKind = "split_shuffle"
    depth_aware: bool = True
    image_channels: int = 1

    def __post_init__(self) -> None:
        for name in ("shape", "channels"):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or not all(type(value) is int for value in values):
                raise UserError(f"{name}: found {values!r}, whole numbers are wanted")
            object.__setattr__(self, name, tuple(values))
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in (int, bool) and type(value) is not field.type:
                raise UserError(f"{field.name}: found {value!r}, a {field.type.__name__} is wanted")
        if type(self.rank) is not int or self.rank not in (2, 3):
            raise UserError(f"rank: found {self.rank!r}, must be 2 (slices) or 3 (volumes)")
        if self.conv not in CONV_KINDS:
            raise UserError(f"conv: found {self.conv!r}, must be one of {', '.join(CONV_KINDS)}")
        if self.image_channels < 1:
            raise UserError(f"image_channels: found {self.image_channels}, must be at least 1")
        levels = self.schedule.levels
        if not self.channels:
            object.__setattr__(self, "channels", default_channels(self.shape))
        if len(self.channels) != levels:
            raise UserError(
                f"channels: found {len(self.channels)} values {self.channels}, but shape "
                f"{'x'.join(map(str, self.shape))} has {levels} levels: give {levels}, coarse to fine"
            )
        if any(c < 2 or c % 2 for c in self.channels):
            raise UserError(f"channels: found {self.channels}, every value must be even and positive (two halves)")

    @property
    def schedule(self) -> Schedule:
        """The grids of all levels."""
        return Schedule.for_shape(self.shape)

    def spatial(self, level: int) -> tuple[int, ...]:
        """The grid of `level` in this rank: (D, H, W) or (H, W)."""
        return self.schedule.grids[level][3 - self.rank :]

    def factors(self, level: int) -> tuple[int, ...]:
        """Growth of each axis of this rank from `level - 1` to `level`."""
        return self.schedule.factors(level)[3 - self.rank :]

    def at_rank(self, rank: int) -> "NetworkConfig":
        """The same network at another rank."""
        return replace(self, rank=rank)


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(NetworkConfig):
    """The generator.

    Attributes:
        z_dim: size of the latent z.
        w_dim: size of the intermediate latent w.
        mapping_layers: layers of the mapping network z -> w. Few: its learning rate is a hundredth of the others', so
            in a short training it stays what it was at the start, and each layer narrows what w spans:
            its effective dimension, untrained, is 49 of 128 with two layers and 30 with four.
        noise: per-layer noise inputs.
        depth_knots: a depth-aware network's biases have so many values over depth, joined by straight lines; None: one
            for each slice.
        depth_upsample: how depth grows between levels at rank 3. `nearest` makes an inflated start exact, `linear` is
            smoother for training from scratch. In-plane axes are always (bi)linear.
    """

    z_dim: int = 128
    w_dim: int = 128
    mapping_layers: int = 2
    noise: bool = True
    depth_knots: int | None = None
    depth_upsample: Literal["nearest", "linear"] = "nearest"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("z_dim", "w_dim", "mapping_layers"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: found {getattr(self, name)}, must be at least 1")
        if self.depth_knots is not None and (type(self.depth_knots) is not int or self.depth_knots < 2):
            raise UserError(f"depth_knots: found {self.depth_knots!r}, a whole number of at least 2 is wanted")
        if self.depth_upsample not in ("nearest", "linear"):
            raise UserError(f"depth_upsample: found {self.depth_upsample!r}, must be 'nearest' or 'linear'")

    def knots(self, level: int) -> int:
        """Values that a bias has over depth at `level`."""
        if not self.depth_aware:
            return 1
        rows = self.schedule.grids[level][0]
        return rows if self.depth_knots is None else min(rows, self.depth_knots)


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(NetworkConfig):
    """The discriminator, the generator's mirror.

    Attributes:
        group_size: samples per group of the minibatch standard deviation; 1 switches the statistic off.
    """

    group_size: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size < 1:
            raise UserError(f"group_size: found {self.group_size}, must be at least 1")
