"""The compiled passes against PyTorch's own operations: the same function, forward and backward."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitshuffle_gan import native, passes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The library, built once for this module; switched off again in the end."""
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        assert passes.compile_passes(CPU) is None
        yield
    passes.compile_passes(CPU, enable=False)


def normal(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def results(function, inputs: list, dtype: torch.dtype, gradients: bool = True) -> list[torch.Tensor]:
    """Outputs and gradients, float32; activations (4 or 5 axes, more than one channel) in `dtype`."""
    given = [None if x is None else x.clone().requires_grad_() for x in inputs]
    cast = [x.to(dtype) if x is not None and x.ndim >= 4 and x.shape[1] > 1 else x for x in given]
    outputs = function(*cast)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if not gradients:
        return [out.detach().float() for out in outputs]
    loss = sum((out * normal(out.shape, 90 + i)).sum() for i, out in enumerate(outputs))
    wanted = [x for x in given if x is not None]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [out.detach().float() for out in outputs] + [g for g in found if g is not None]


def assert_same(function, inputs: list, dtype: torch.dtype, gradients: bool = True) -> None:
    fast = results(function, inputs, dtype, gradients)
    library, native._library = native._library, None
    try:
        slow = results(function, inputs, dtype, gradients)
    finally:
        native._library = library
    assert len(fast) == len(slow)
    for a, b in zip(fast, slow, strict=True):
        if dtype == torch.float32:
            torch.testing.assert_close(a, b, atol=2e-5 * max(1, b.abs().max().item()), rtol=1e-5)
        else:  # PyTorch rounds after every operation, the library once; sums may cancel, roundings do not
            assert (a - b).norm() <= 0.02 * b.norm() + 0.01 * fast[0].numel() ** 0.5


kinds = st.fixed_dictionaries({
    "dtype": st.sampled_from([torch.float32, torch.bfloat16]),
    "rank": st.sampled_from([2, 3]),
    "samples": st.integers(1, 3),
    "width": st.sampled_from([1, 3, 5, 8, 16, 32]),
    "depth": st.sampled_from([1, 2, 5]),
    "parts": st.sampled_from([1, 2]),
    "scaled": st.booleans(),
})  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(kind=kinds, paddings=st.sampled_from([(1, 0), (0, 0), (2, 1), (1,), (3,)]))
def test_branches(compiled, kind, paddings):
    grid = (kind["depth"], 3, 4) if kind["rank"] == 3 else (3, 4)
    paddings = paddings if kind["rank"] == 3 else (0,) * len(paddings)
    channels = kind["width"] * len(paddings)
    x = normal((kind["samples"], channels, *grid), 0)
    scale = normal((kind["samples"], channels), 1) if kind["scaled"] else None
    assert_same(lambda x, scale: passes.branches(x, scale, paddings), [x, scale], kind["dtype"])


@settings(max_examples=100, deadline=None)
@given(
    kind=kinds,
    extras=st.sampled_from(["none", "rows", "rows and noise"]),
    alike=st.booleans(),
    slope=st.sampled_from([0.2, 1.0]),
)
def test_finish(compiled, kind, extras, alike, slope):
    n, width, depth, rank = kind["samples"], kind["width"], kind["depth"], kind["rank"]
    grid = (depth, 3, 4) if rank == 3 else (3, 4)
    parts = [normal((n, width, *grid), i) for i in range(kind["parts"])]
    channels = width * len(parts)
    scale = normal((n, channels), 3) if kind["scaled"] else None
    rows = noise = strength = None
    if extras != "none":
        rows = normal((1, channels, 1 if alike else depth) if rank == 3 else (1 if alike else n, channels), 4)
    if extras == "rows and noise":
        noise, strength = normal((1 if alike else n, 1, *grid), 5), torch.tensor(0.7)

    def function(scale, rows, strength, *parts):
        # A copy: a single part may be overwritten, and leaves may not.
        return passes.finish(tuple(part * 1 for part in parts), scale, rows, noise, strength, slope)

    # In bfloat16 a value near zero may be rounded to the other side of the kink, where the gradient is another.
    smooth = kind["dtype"] == torch.float32 or slope == 1
    assert_same(function, [scale, rows, strength, *parts], kind["dtype"], gradients=smooth)


def test_bfloat16_is_rounded_to_nearest_even(compiled):
    x = torch.cat((normal((4096,), 0), torch.tensor([0.0, -0.0, 3e38, -3e38, 1e-40, float("inf"), float("nan")])))
    x = x.bfloat16().repeat(2)[: 2 * 2048].reshape(1, 4, 32, 32).contiguous(memory_format=torch.channels_last)
    scale = normal((1, 4), 1)
    (y,) = passes.branches(x, scale, (0,))
    expected = (x.float() * scale[:, :, None, None]).bfloat16()
    assert torch.equal(y.view(torch.int16), expected.view(torch.int16))


def test_the_number_of_threads_changes_nothing(compiled):
    parts = tuple(normal((3, 16, 5, 7, 6), i) for i in range(2))
    scale, rows, noise = normal((3, 32), 3), normal((1, 32, 5), 4), normal((3, 1, 5, 7, 6), 5)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(
                results(
                    lambda s, r, k, *p: passes.finish(tuple(q * 1 for q in p), s, r, noise, k),
                    [scale, rows, torch.tensor(0.3), *parts],
                    torch.float32,
                )
            )
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_what_the_library_does_not_know_is_left_to_pytorch(compiled):
    assert not native.serves(torch.zeros(1, 2, 3, 3, dtype=torch.float64))
    assert not native.serves(torch.zeros(1, native.WIDEST + 1, 1, 1))
    assert native.serves(torch.zeros(1, 2, 3, 3))


def test_gradients_that_are_differentiated_again_are_left_to_pytorch(compiled):
    part, scale = normal((2, 2, 3, 3), 0).double(), normal((2, 4), 1).double()
    x = part.float().requires_grad_()
    y = passes.finish((x * 1, x * 1), scale.float(), slope=1.0)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    factor = (scale.reshape(2, 2, 2).square().sum(2) * 2)[:, :, None, None]
    torch.testing.assert_close(second, (2 * factor.square() * part).float(), rtol=1e-4, atol=1e-4)


# Building -------------------------------------------------------------------------------------------------------------


def test_it_is_built_once_and_leaves_nothing_else(tmp_path, monkeypatch):
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_library", None)
    assert native.load() is None
    (library,) = (tmp_path / "splitshuffle_gan").iterdir()
    built = library.stat().st_mtime_ns
    monkeypatch.setattr(native, "_library", None)
    assert native.load() is None and library.stat().st_mtime_ns == built
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-g0"))
    assert native.load() is None and len(list((tmp_path / "splitshuffle_gan").iterdir())) == 2


@pytest.mark.parametrize("compiler", ["no-such-compiler-at-all", "false"])
def test_without_a_compiler_it_says_so_and_pytorch_goes_on(tmp_path, monkeypatch, compiler):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(native, "_library", None)
    reason = passes.compile_passes(CPU)
    assert compiler in reason and "\n" not in reason
    assert not native.serves(torch.zeros(1, 2, 3, 3))
    assert not list(tmp_path.glob("**/*.so"))


def test_an_unwritable_cache_is_a_reason(tmp_path, monkeypatch):
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler here")
    (tmp_path / "splitshuffle_gan").write_text("a file, not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_library", None)
    assert "splitshuffle_gan" in passes.compile_passes(CPU)


def test_a_damaged_library_is_built_again(tmp_path, monkeypatch):
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_library", None)
    path = native._path(next(name for name in ("c++", "g++", "clang++") if shutil.which(name)))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    monkeypatch.delenv("CXX", raising=False)
    assert native.load() is None and path.stat().st_size > 1000


def test_a_user_without_a_home_gets_a_temporary_folder(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def home() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(native.Path, "home", home)
    assert str(native._cache()) == native.tempfile.gettempdir()


def test_the_line_that_says_error_is_the_reason(tmp_path, monkeypatch):
    compiler = tmp_path / "compiler"
    script = "[ $1 = --version ] && exit 0\necho included from x >&2\necho x: error: y >&2\nexit 1\n"
    compiler.write_text(f"#!/bin/sh\n{script}")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_library", None)
    assert native.load().endswith("x: error: y")
