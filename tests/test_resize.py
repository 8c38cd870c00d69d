"""Growth and averaging against a simple formulation of each: the maps, their transposes, and the maps again."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from splitshuffle_gan import resize
from splitshuffle_gan.layout import as_channels_last, channels_last


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def simple_grow_planes(x, factors):
    size = [x.shape[2], x.shape[3] * factors[0], x.shape[4] * factors[1]]
    return F.interpolate(x, size=size, mode="trilinear", align_corners=False)


def simple_repeat_depth(x):
    return x.repeat_interleave(2, dim=2)


def simple_blend_depth(x):
    return F.interpolate(x, size=[2 * x.shape[2], *x.shape[3:]], mode="trilinear", align_corners=False)


def simple_average(x, factors):
    return (F.avg_pool2d if x.ndim == 4 else F.avg_pool3d)(x, factors)


MAPS = {
    **{f"grow {f}": (resize.grow_planes, simple_grow_planes, (f,)) for f in ((2, 2), (1, 2), (2, 1))},
    "repeat": (resize.repeat_depth, simple_repeat_depth, ()),
    "blend": (resize.blend_depth, simple_blend_depth, ()),
    **{f"average {f}": (resize.average, simple_average, (f,)) for f in itertools.product((1, 2), repeat=3)},
    **{f"average {f}": (resize.average, simple_average, (f,)) for f in itertools.product((1, 2), repeat=2)},
}


def there_back_and_there(function, x: Tensor, arguments: tuple) -> list[Tensor]:
    """The map of `x`; its transpose, as autograd takes it; and the derivative of that, which is the map again."""
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(leaf, *arguments)
    probe = normal(*y.shape, seed=1).to(y.dtype).requires_grad_()
    (back,) = torch.autograd.grad(y, leaf, probe, create_graph=True)
    (again,) = torch.autograd.grad(back, probe, normal(*x.shape, seed=2).to(x.dtype))
    return [found.detach() for found in (y, back, again)]


def same(name: str, x: Tensor) -> None:
    function, simple, arguments = MAPS[name]
    found, expected = (there_back_and_there(f, x, arguments) for f in (function, simple))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1.0, b.abs().max().item()))


def rank_of(name: str) -> int:
    return len(MAPS[name][2][0]) if name.startswith("average") else 3


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("name", MAPS)
def test_growth_and_averaging(name, layout):
    function, _, arguments = MAPS[name]
    grids = ((4, 2, 6), (2, 4, 2)) if rank_of(name) == 3 else ((4, 6),)
    for samples, grid in itertools.product((1, 3), grids):
        x = normal(samples, 4, *grid)
        x = as_channels_last(x) if layout == "channels_last" else x
        same(name, x)
        y = function(as_channels_last(x), *arguments)
        # Memory of its own as far as autograd knows: an in-place operation on it copies nothing.
        assert y.is_contiguous(memory_format=channels_last(y.ndim)) and not y._is_view()
        assert y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("name", MAPS)
def test_derivatives_in_float64(name):
    function, _, arguments = MAPS[name]
    x = normal(1, 2, *[2] * rank_of(name), dtype=torch.float64).requires_grad_()
    for check in (gradcheck, gradgradcheck):
        assert check(lambda x: function(x, *arguments), (x,))


@pytest.mark.parametrize("name", ["grow (2, 2)", "repeat", "blend"])
def test_one_slice_grows_too(name):
    same(name, normal(2, 3, 1, 2, 4))


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 3),
    channels=st.integers(1, 6),
    grid=st.tuples(st.integers(2, 3), st.integers(2, 3)) | st.tuples(st.integers(1, 3), *[st.integers(2, 3)] * 2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_shapes_dtypes_and_layout(samples, channels, grid, dtype):
    x = as_channels_last(normal(samples, channels, *grid).to(dtype))
    double = as_channels_last(x.repeat(1, 1, *[2] * len(grid)))
    cases = [(resize.average(double, (2,) * len(grid)), grid)]
    if len(grid) == 3:
        cases += [(resize.grow_planes(x, (2, 2)), (grid[0], 2 * grid[1], 2 * grid[2]))]
        cases += [(function(x), (2 * grid[0], *grid[1:])) for function in (resize.blend_depth, resize.repeat_depth)]
    for y, size in cases:
        assert (y.shape, y.dtype) == ((samples, channels, *size), dtype)
        assert y.is_contiguous(memory_format=channels_last(y.ndim)) and not y._is_view()


@pytest.mark.parametrize("name", MAPS)
def test_bfloat16_is_close_to_float32(name):
    function, _, arguments = MAPS[name]
    x = as_channels_last(normal(2, 4, *(4, 2, 6)[3 - rank_of(name) :]))
    for a, b in zip(*(there_back_and_there(function, v, arguments) for v in (x.bfloat16(), x)), strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), b, rtol=0, atol=0.02 * max(1.0, b.abs().max().item()))
