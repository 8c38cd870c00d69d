"""The schedule against hand-written grids and arithmetic; configs against their dictionaries and bad values."""

import json
import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from splitshuffle_gan.config import (
    DiscriminatorConfig,
    GeneratorConfig,
    NetworkConfig,
    Schedule,
    default_channels,
)
from splitshuffle_gan.errors import UserError

TINY = {"rank": 3, "shape": (8, 16, 8), "channels": (8, 8, 4)}


def reachable(size: int) -> bool:
    """4 to 15 times a power of two, by trying all of them."""
    return any(base << doublings == size for base in range(4, 16) for doublings in range(12))


sizes = st.builds(lambda base, doublings: base << doublings, st.integers(4, 15), st.integers(0, 6))


# Schedule -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grids",
    [
        [(4, 4, 4), (4, 8, 8), (4, 16, 16), (8, 32, 32), (16, 64, 64), (32, 128, 128), (64, 256, 256)],
        [(5, 6, 7), (10, 12, 14), (20, 24, 28), (40, 48, 56), (80, 96, 112)],
        [(4, 6, 4), (8, 12, 8), (16, 24, 16), (32, 48, 32)],
        [(15, 4, 9)],
        [(5, 4, 11), (5, 8, 22)],
    ],
    ids=lambda grids: "x".join(map(str, grids[-1])),
)
def test_grids_are_those_written_by_hand(grids):
    schedule = Schedule.for_shape(grids[-1])
    assert list(schedule.grids) == grids
    assert schedule.levels == len(grids)


@given(shape=st.tuples(sizes, sizes, sizes))
def test_every_reachable_shape_doubles_its_way_up(shape):
    schedule = Schedule.for_shape(shape)
    assert schedule.grids[-1] == shape
    factors = [schedule.factors(level) for level in range(1, schedule.levels)]
    for axis in range(3):
        growth = [factor[axis] for factor in factors]
        assert 4 <= schedule.grids[0][axis] <= 15
        assert set(growth) <= {1, 2} and growth == sorted(growth)  # the slow axes wait, then double to the end
        assert schedule.grids[0][axis] * math.prod(growth) == shape[axis]
        for level, factor in enumerate(growth, start=1):
            assert schedule.grids[level][axis] == schedule.grids[level - 1][axis] * factor
    assert all(2 in factor for factor in factors)  # no level without growth


@given(shape=st.tuples(*[st.integers(-20, 300)] * 3))
def test_an_unreachable_shape_proposes_the_nearest_one(shape):
    assume(not all(map(reachable, shape)))
    with pytest.raises(UserError, match="x".join(map(str, shape))) as caught:
        Schedule.for_shape(shape)
    proposed = tuple(int(size) for size in re.search(r"Use (\d+)x(\d+)x(\d+)", str(caught.value)).groups())
    assert Schedule.for_shape(proposed).grids[-1] == proposed
    for wanted, found in zip(shape, proposed, strict=True):
        closer = [n for n in range(601) if reachable(n) and abs(n - wanted) < abs(found - wanted)]
        assert not closer


@pytest.mark.parametrize("shape", [(), (8,), (16, 16), (8, 8, 8, 8)])
def test_a_shape_has_three_axes(shape):
    with pytest.raises(UserError, match="shape"):
        Schedule.for_shape(shape)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((8, 8, 8), (64, 32)),
        ((32, 48, 32), (128, 128, 64, 32)),
        ((64, 256, 256), (128, 128, 128, 128, 128, 64, 32)),
    ],
)
def test_default_channels(shape, channels):
    assert default_channels(shape) == channels
    assert NetworkConfig(rank=3, shape=shape).channels == channels


# Configs --------------------------------------------------------------------------------------------------------------


def test_rank_chooses_the_axes():
    config = NetworkConfig(**TINY)
    assert [config.spatial(level) for level in range(3)] == [(4, 4, 4), (4, 8, 4), (8, 16, 8)]
    assert [config.factors(level) for level in (1, 2)] == [(1, 2, 1), (2, 2, 2)]
    flat = config.at_rank(2)
    assert flat.rank == 2 and flat.shape == (8, 16, 8) and flat.at_rank(3) == config
    assert [flat.spatial(level) for level in range(3)] == [(4, 4), (8, 4), (16, 8)]
    assert [flat.factors(level) for level in (1, 2)] == [(2, 1), (2, 2)]


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(rank=2, shape=(32, 48, 32)),
        GeneratorConfig(
            **TINY,
            conv="separable",
            depth_aware=False,
            image_channels=2,
            z_dim=3,
            w_dim=5,
            mapping_layers=1,
            noise=False,
            depth_upsample="linear",
        ),
        DiscriminatorConfig(**TINY, conv="plain", group_size=2),
    ],
    ids=lambda config: type(config).__name__,
)
def test_json_round_trip(config):
    restored = type(config).from_dict(json.loads(json.dumps(config.to_dict())))
    assert restored == config
    assert isinstance(restored.shape, tuple) and isinstance(restored.channels, tuple)
    assert hash(restored) == hash(config)


def test_from_dict_names_what_it_does_not_know():
    with pytest.raises(UserError, match="GeneratorConfig: unknown field widht.*z_dim"):
        GeneratorConfig.from_dict({**TINY, "widht": 3})
    with pytest.raises(UserError, match="DiscriminatorConfig: unknown field z_dim"):
        DiscriminatorConfig.from_dict({**TINY, "z_dim": 3})


@pytest.mark.parametrize("name", ["rank", "shape"])
def test_from_dict_names_what_it_misses(name):
    values = {key: value for key, value in TINY.items() if key != name}
    with pytest.raises(UserError, match=f"field {name} is missing"):
        GeneratorConfig.from_dict(values)


@pytest.mark.parametrize(
    ("config_class", "field", "value"),
    [
        (NetworkConfig, "rank", 1),
        (NetworkConfig, "rank", 4),
        (NetworkConfig, "rank", "3"),
        (NetworkConfig, "shape", (8, 17, 8)),
        (NetworkConfig, "conv", "splitshuffle"),
        (NetworkConfig, "image_channels", 0),
        (NetworkConfig, "channels", (8, 8)),
        (NetworkConfig, "channels", (8, 8, 8, 8)),
        (NetworkConfig, "channels", (8, 7, 8)),
        (NetworkConfig, "channels", (8, 0, 8)),
        (NetworkConfig, "channels", (8, -2, 8)),
        (GeneratorConfig, "z_dim", 0),
        (GeneratorConfig, "w_dim", 0),
        (GeneratorConfig, "mapping_layers", 0),
        (GeneratorConfig, "depth_upsample", "cubic"),
        (DiscriminatorConfig, "group_size", 0),
    ],
)
def test_a_bad_value_is_refused_by_name(config_class, field, value):
    with pytest.raises(UserError, match=f"^{field}: found"):
        config_class(**{**TINY, field: value})
