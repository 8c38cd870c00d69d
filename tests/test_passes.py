"""Every pass over the activations against a simple formulation of it: outputs, gradients, and gradients of those."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch.autograd import gradcheck, gradgradcheck

from splitshuffle_gan import native, nd, passes, resize
from splitshuffle_gan.config import DiscriminatorConfig, GeneratorConfig
from splitshuffle_gan.devices import start_compiler
from splitshuffle_gan.layout import as_channels_last, channels_last
from splitshuffle_gan.models.discriminator import Discriminator
from splitshuffle_gan.models.generator import Generator

CPU = torch.device("cpu")
LAYOUTS = ("channels_last", "contiguous")
GRIDS = ((4, 2, 6), (1, 4, 2), (4, 6))  # rank 3, rank 3 with one slice, rank 2


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lay(x: Tensor, layout: str) -> Tensor:
    return as_channels_last(x) if layout == "channels_last" else x.contiguous()


def over_grid(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(*values.shape, *[1] * (x.ndim - values.ndim))


# The simple formulations ----------------------------------------------------------------------------------------------


def simple_branches(x, scale, paddings):
    x = x if scale is None else x * over_grid(scale.to(x.dtype), x)
    parts = x.chunk(len(paddings), dim=1)
    if x.ndim == 4:
        return parts
    return tuple(F.pad(part, (0, 0, 0, 0, p, p), mode="replicate") for part, p in zip(parts, paddings, strict=True))


def simple_interleave(a, b):
    return F.channel_shuffle(torch.cat((a, b), dim=1), 2)


def simple_finish(parts, scale=None, rows=None, noise=None, strength=None, slope=0.2):
    y = parts[0] if len(parts) == 1 else simple_interleave(*parts)
    y = y if scale is None else y * over_grid(scale.to(y.dtype), y)
    y = y if rows is None else y + rows[..., None, None].to(y.dtype)
    y = y if noise is None else y + (noise * strength).to(y.dtype)
    return F.leaky_relu(y, slope)


def finish(x, *others):
    """Of one part."""
    return passes.finish((x,), *others)


def simple(x, *others):
    return simple_finish((x,), *others)


def simple_upsample(x, factors, depth_mode="linear"):
    if x.ndim == 5 and depth_mode == "nearest":
        x, factors = x.repeat_interleave(factors[0], dim=2), (1, *factors[1:])
    return F.interpolate(x, scale_factor=factors, mode="bilinear" if x.ndim == 4 else "trilinear")


def simple_average(x, factors):
    return (F.avg_pool2d if x.ndim == 4 else F.avg_pool3d)(x, factors)


# How they are compared ------------------------------------------------------------------------------------------------


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of the largest value."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    largest = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * largest)


def derivatives(function: Callable, inputs: list[Tensor], order: int) -> list[Tensor]:
    """Outputs; gradients of a random projection of them; at order 2 those of the gradients' squares, as in R1."""
    leaves = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    outputs = function(*[x.mul(1) for x in leaves])  # copies: they may be overwritten
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    probes = [normal(*y.shape, seed=9 + i).to(y.dtype) for i, y in enumerate(outputs)]
    first = torch.autograd.grad(outputs, leaves, probes, create_graph=order == 2)
    found = [y.detach() for y in outputs] + [g.detach() for g in first]
    if order == 2:
        squares = sum(g.square().sum() for g in first)
        if squares.requires_grad:
            found += torch.autograd.grad(squares, leaves, allow_unused=True, materialize_grads=True)
        else:
            found += [torch.zeros_like(x) for x in leaves]
    return found


def same(function: Callable, simple: Callable, *inputs: Tensor) -> None:
    """Up to gradients of gradients; the first derivative both as it is alone and as it is on the way to the second."""
    for order in (1, 2):
        expected = derivatives(simple, list(inputs), order)
        for a, b in zip(derivatives(function, list(inputs), order), expected, strict=True):
            close(a, b)


def fresh(y: Tensor) -> None:
    """Channels-last, and memory of its own as far as autograd knows: an in-place operation on it copies nothing."""
    assert y.is_contiguous(memory_format=channels_last(y.ndim)) and not y._is_view()


# Into a convolution ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("paddings", [(1, 0), (1,), (0,), (2, 0), (0, 0), (2, 1)])
@pytest.mark.parametrize("grid", GRIDS)
def test_branches_scale_cut_and_repeat_end_slices(grid, paddings, scaled, layout):
    paddings = paddings if len(grid) == 3 else (0,) * len(paddings)
    for samples in (1, 3):
        x = lay(normal(samples, 4, *grid), layout)
        if scaled:
            scale = 1 + normal(samples, 4, seed=1)
            same(lambda x, s: passes.branches(x, s, paddings), lambda x, s: simple_branches(x, s, paddings), x, scale)
        else:
            scale = None
            same(lambda x: passes.branches(x, None, paddings), lambda x: simple_branches(x, None, paddings), x)
        for part in passes.branches(x, scale, paddings):
            if scaled or paddings != (0,):
                fresh(part)
            else:
                assert part is x  # nothing to do


def test_a_branch_that_nobody_uses_has_no_gradient():
    x = normal(2, 4, 3, 2, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(passes.branches(x, None, (1, 0))[1].sum(), x)
    assert gradient[:, :2].eq(0).all() and gradient[:, 2:].eq(1).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("paddings", [(1, 0), (2, 1), (0,)])
def test_derivatives_of_branches_in_float64(paddings, layout):
    x = lay(normal(2, 2, 2, 1, 2, dtype=torch.float64), layout).requires_grad_()
    scale = normal(2, 2, seed=1, dtype=torch.float64).requires_grad_()
    for check in (gradcheck, gradgradcheck):
        assert check(lambda x, s: passes.branches(x, s, paddings), (x, scale))


# Out of a convolution -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grid", GRIDS)
def test_interleave_concatenates_and_shuffles_with_two_groups(grid, layout):
    for samples in (1, 3):
        a, b = (lay(normal(samples, 3, *grid, seed=i), layout) for i in range(2))
        same(passes.interleave, simple_interleave, a, b)
        assert torch.equal(passes.interleave(a, b), torch.stack((a, b), dim=2).flatten(1, 2))
        fresh(passes.interleave(a, b))
    a, b = (normal(1, 2, 2, 2, seed=i, dtype=torch.float64).requires_grad_() for i in range(2))
    assert gradcheck(passes.interleave, (a, b)) and gradgradcheck(passes.interleave, (a, b))


def finish_inputs(samples, grid, rows_of, scaled, noise_of, layout="channels_last", channels=4, dtype=torch.float32):
    """Arguments of `finish`: rows and noise of "each" sample or of "all", rows of "all depths" too, noise or None."""
    x, wide = lay(normal(samples, channels, *grid, dtype=dtype), layout), torch.promote_types(dtype, torch.float32)
    depth = [] if len(grid) == 2 else [1] if rows_of == "all depths" else [grid[0]]
    rows = normal(samples if rows_of == "each" else 1, channels, *depth, seed=1, dtype=wide)
    scale = 1 + normal(samples, channels, seed=2, dtype=wide).square() if scaled else None
    noise = strength = None
    if noise_of is not None:
        noise = normal(samples if noise_of == "each" else 1, 1, *grid, seed=3, dtype=wide)
        strength = torch.tensor(0.7, dtype=wide)
    return x, scale, rows, noise, strength


def without_constants(function: Callable, arguments: tuple) -> tuple[Callable, list[Tensor]]:
    """`finish` as a function of what has a gradient: all but the noise and what is not given."""
    places = [i for i, value in enumerate(arguments) if value is not None and i != 3]

    def call(*values):
        filled = list(arguments)
        for place, value in zip(places, values, strict=True):
            filled[place] = value
        return function(*filled)

    return call, [arguments[place] for place in places]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("noise_of", [None, "all", "each"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_finish_scales_adds_and_activates(grid, scaled, noise_of, layout):
    for samples, rows_of in itertools.product((1, 3), ("all", "all depths", "each")):
        arguments = finish_inputs(samples, grid, rows_of, scaled, noise_of, layout)
        found, inputs = without_constants(finish, arguments)
        same(found, without_constants(simple, arguments)[0], *inputs)
        fresh(found(*[x.clone() for x in inputs]))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("scaled", [False, True])
def test_finish_overwrites_only_what_it_does_not_need(grid, scaled):
    x, *others = finish_inputs(2, grid, "all", scaled, "each")
    before = x.clone()
    y = finish(x, *others)
    assert (y.data_ptr() == x.data_ptr()) != scaled
    assert torch.equal(x, before) == scaled
    later = torch.sigmoid(leaf := before.clone().requires_grad_())  # its own derivative needs what is overwritten
    if not scaled:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            finish(later, *others).sum().backward()
    else:
        finish(later, *others).sum().backward()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows_of", ["all", "all depths", "each"])
@pytest.mark.parametrize("grid", [(2, 1, 2), (2, 2)])
def test_derivatives_of_finish_in_float64(grid, rows_of, layout, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # its sums are float32 else
    arguments = finish_inputs(2, grid, rows_of, True, "each", layout, channels=2, dtype=torch.float64)
    function, inputs = without_constants(finish, arguments)
    assert simple(*arguments).abs().min() > 1e-3  # the kink is out of reach
    inputs = [x.requires_grad_() for x in inputs]
    for check in (gradcheck, gradgradcheck):
        assert check(function, inputs)


def test_noise_without_rows_or_strength_is_refused():
    x, _, rows, noise, strength = finish_inputs(2, (2, 2, 2), "all", False, "each")
    for wrong in ((None, noise, strength), (rows, noise, None)):
        with pytest.raises(ValueError, match="noise needs rows and strength"):
            finish(x, None, *wrong)


def test_activation_is_a_leaky_relu_of_slope_a_fifth_in_place():
    x = torch.tensor([-2.0, 0.0, 3.0])
    assert passes.activate(x) is x and x.tolist() == pytest.approx([-0.4, 0, 3])


# All ------------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 3),
    half=st.integers(1, 3),
    grid=st.tuples(st.integers(2, 3), st.integers(2, 3)) | st.tuples(st.integers(1, 3), *[st.integers(2, 3)] * 2),
    padding=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_shapes_dtypes_and_layout(samples, half, grid, padding, dtype):
    padding = padding if len(grid) == 3 else 0
    x = normal(samples, 2 * half, *grid).to(dtype)
    a, b = passes.branches(x, torch.ones(samples, 2 * half), (padding, 0))
    assert a.shape == (samples, half, grid[0] + 2 * padding, *grid[1:]) and b.shape == (samples, half, *grid)
    b, rows = x[:, half:].clone(), torch.zeros(1, 2 * half, *(grid[:1] if len(grid) == 3 else ()))
    y = passes.interleave(b, b)
    assert y.shape == x.shape
    z = finish(y, torch.ones(samples, 2 * half), rows, None, None)
    assert z.shape == x.shape
    for output in (a, y, z):
        fresh(output)
        assert output.dtype == dtype


@pytest.mark.parametrize("grid", [(4, 2, 6), (4, 6)])
def test_bfloat16_is_close_to_float32(grid):
    x = lay(normal(2, 4, *grid), "channels_last")
    finished, inputs = without_constants(finish, finish_inputs(2, grid, "all", True, "each"))
    cases = [(lambda x: passes.branches(x, None, (1, 0) if len(grid) == 3 else (0, 0)), [x]), (finished, inputs)]
    cases += [(lambda x, s: passes.branches(x, s, (0,)), [x, inputs[1]]), (passes.interleave, [x, x])]
    for function, values in cases:
        rounded = [v.bfloat16() if v.ndim == x.ndim else v for v in values]
        for a, b in zip(derivatives(function, rounded, 1), derivatives(function, values, 1), strict=True):
            close(a.to(b.dtype), b, 0.02)


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("rank", [2, 3])
def test_networks_are_those_of_the_simple_formulations(rank, samples, monkeypatch):
    """Images, logits, and all gradients of a loss with R1."""
    config = {"rank": rank, "shape": (8, 16, 8), "channels": (8, 6, 4)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        g = Generator(GeneratorConfig(**config, z_dim=6, w_dim=5, mapping_layers=2))
        d = Discriminator(DiscriminatorConfig(**config))
        for parameter in [*g.parameters(), *d.parameters()]:
            parameter.data += 0.1 * torch.randn_like(parameter)

    def everything():
        images = g(normal(samples, 6), noise_mode="const")
        logits = d(images)
        (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        loss = logits.square().sum() + slope.square().sum()
        return [images, logits, slope, *torch.autograd.grad(loss, [*g.parameters(), *d.parameters()])]

    found = everything()
    for name in ("branches", "interleave", "finish"):
        monkeypatch.setattr(passes, name, globals()[f"simple_{name}"])
    monkeypatch.setattr(resize, "average", simple_average)
    monkeypatch.setattr(nd, "upsample", simple_upsample)
    monkeypatch.setattr(passes, "activate", lambda x: F.leaky_relu(x, 0.2))
    for a, b in zip(found, everything(), strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-6  # some are sums that cancel


def test_levels_of_more_rows_or_columns_are_recomputed():
    assert [passes.recomputes((64, 32, 16), above) for above in (None, 0, 31, 32)] == [False, True, True, False]
    assert [passes.recomputes((16, 32), above) for above in (None, 0, 31, 32)] == [False, True, True, False]
    with torch.no_grad():
        assert not passes.recomputes((16, 32), 0)


# Compilation ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def restored():
    yield
    passes.compile_passes(CPU, enable=False)
    torch._dynamo.reset()


@pytest.fixture
def compiled(restored):
    """With `finish` compiled as on a GPU."""
    reason = passes._compile_finish(CPU)
    if reason is not None:
        pytest.skip(f"torch.compile needs a C++ compiler: {reason}")
    assert passes._compiled_finish is not None


@pytest.fixture
def counter(restored, monkeypatch):
    """A stand-in for the compiler, which counts what it would compile."""
    counter, compile = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend=counter, **options))
    counters.clear()
    assert passes._compile_finish(CPU) is None
    counter.clear()
    return counter


@pytest.mark.parametrize(("grid", "scaled", "noise_of"), [((4, 2, 6), True, "each"), ((4, 6), False, None)])
def test_compiled_finish_is_finish(compiled, grid, scaled, noise_of):
    arguments = finish_inputs(3, grid, "all", scaled, noise_of)
    found, inputs = without_constants(finish, arguments)
    same(found, without_constants(simple, arguments)[0], *inputs)
    fresh(found(*inputs))


def test_compiled_finish_refuses_noise_without_rows_too(counter):
    x, _, _, noise, strength = finish_inputs(2, (2, 2, 2), "all", False, "each")
    with pytest.raises(ValueError, match="noise needs rows and strength"):
        finish(x, None, None, noise, strength)


def test_compiled_finish_is_finish_in_bfloat16(compiled):
    arguments = finish_inputs(2, (4, 2, 6), "all", True, "all")
    exact, inputs = without_constants(simple, arguments)
    rounded, _ = without_constants(finish, arguments)
    inputs[0] = inputs[0].bfloat16()
    found = derivatives(rounded, inputs, 1)
    inputs[0] = inputs[0].float()
    assert found[0].dtype == torch.bfloat16
    for a, b in zip(found, derivatives(exact, inputs, 1), strict=True):
        close(a.to(b.dtype), b, 0.02)


def test_a_kind_of_input_is_compiled_once_for_all_shapes(counter):
    for count, (rank, noise_of, dtype) in enumerate(
        itertools.product((2, 3), (None, "each"), (torch.float32, torch.bfloat16)), start=1
    ):
        for samples, channels, *grid in ((2, 3, 5, 7, 11), (3, 5, 7, 2, 13), (11, 4, 2, 5, 3)):
            x, *others = finish_inputs(samples, grid[3 - rank :], "all", True, noise_of, channels=channels, dtype=dtype)
            finish(x, *others)
        assert counter.frame_count == count
    assert not counters["graph_break"]


def test_a_network_of_many_levels_is_compiled_as_few_kinds(counter):
    """Before growth, after it, and without it; and some again where lengths coincide, as they do at the base."""
    config = GeneratorConfig(rank=3, shape=(32, 32, 32), channels=(8, 8, 8, 8), z_dim=8, w_dim=8, mapping_layers=1)
    for samples in (2, 4):
        Generator(config)(normal(samples, 8)).sum().backward()
        assert counter.frame_count <= 5
    assert not counters["graph_break"]


@pytest.mark.parametrize(("message", "reason"), [("no compiler\n  at all", "no compiler"), ("", "RuntimeError")])
def test_without_a_compiler_all_stays_as_it_was(message, reason, restored, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError(message)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    assert passes._compile_finish(CPU) == reason
    arguments = finish_inputs(2, (4, 2, 6), "all", True, "each")
    close(finish(*arguments), simple(*arguments))
    monkeypatch.setattr(native, "load", lambda: reason)
    start_compiler(CPU)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and reason in err


def test_the_reason_names_the_compiler_that_is_missing(restored):
    with torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/c++")}):
        assert "compiler" in passes._compile_finish(CPU)
    assert passes._compiled_finish is None


def test_an_error_that_is_no_missing_compiler_is_raised(restored, monkeypatch):
    def fail(*_):
        raise TypeError("a mistake")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    with pytest.raises(TypeError, match="a mistake"):
        passes._compile_finish(CPU)
