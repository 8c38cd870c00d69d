"""`native.cpp`, compiled on this machine and called through ctypes: the work of `passes` on a CPU, in one pass each.

The library is built once (seconds) and kept in the user's cache folder, under a name that says source, compiler and
processor.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
WIDEST = 2048  # channels of a part; as in the source
_SUFFIX = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

_library: ctypes.CDLL | None = None


def load() -> str | None:
    """Make the library ready, building it if need be; None, or in one line why it cannot be."""
    global _library
    compiler = os.environ.get("CXX") or next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if compiler is None:
        return "no C++ compiler found; install one, such as g++, or name it in CXX"
    try:
        path = _path(compiler)
        if not path.exists():
            _build(compiler, path)
        try:
            _library = ctypes.CDLL(str(path))
        except OSError:  # damaged, as by a full disk
            _build(compiler, path)
            _library = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines() or [str(error)]
        return f"{compiler}: {next((line for line in said if 'error' in line.lower()), said[0])}"
    return None


def unload() -> None:
    """Forget the library; it stays in the cache folder."""
    global _library
    _library = None


def _path(compiler: str) -> Path:
    version = subprocess.run([*compiler.split(), "--version"], capture_output=True, text=True, check=True).stdout
    cpuinfo = Path("/proc/cpuinfo")  # -march=native: a home folder may be shared by machines that differ
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    processor = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    parts = SOURCE.read_text(), compiler, version, platform.machine(), processor, *FLAGS
    return _cache() / "splitshuffle_gan" / f"native-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"


def _cache() -> Path:
    """The user's cache folder; where there is no such user, as in some containers, the folder for temporary files."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return Path(tempfile.gettempdir())


def _build(compiler: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # several processes may build at once
        built = Path(folder) / path.name
        command = [*compiler.split(), *FLAGS, str(SOURCE), "-o", str(built)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        os.replace(built, path)


def serves(x: Tensor) -> bool:
    """Whether the library is loaded and knows this kind of tensor."""
    return _library is not None and x.device.type == "cpu" and x.dtype in _SUFFIX and x.shape[1] <= WIDEST


def finish(
    parts: tuple[Tensor, ...],
    scale: Tensor | None,
    rows: Tensor | None,
    noise: Tensor | None,
    strength: float,
    slope: float,
    out: Tensor,
) -> None:
    """Write `leaky_relu(x * scale + rows + noise * strength)` to `out`, `x` being the shuffled parts.

    Activations channels-last; `scale` [N, C], `rows` [1 or N, 1 or D, C], `noise` [1 or N, D, P], float32, contiguous.
    """
    n, depth, plane = _extents(out)
    rows_n, rows_d = (0, 0) if rows is None else rows.shape[:2]
    _call(
        "finish", out, *_pair(parts), scale, rows, noise, ctypes.c_float(strength), ctypes.c_float(slope), out,
        n, depth, plane, parts[0].shape[1], rows_n, rows_d, 0 if noise is None else len(noise),
    )  # fmt: skip


def finish_gradient(
    grad: Tensor,
    y: Tensor,
    parts: tuple[Tensor, ...] | None,
    scale: Tensor | None,
    noise: Tensor | None,
    slope: float,
    out: tuple[Tensor, ...],
) -> Tensor:
    """Write the gradients of the parts to `out`; return sums over planes `[N, D, 3, C]`, float32.

    They are those of the gradient before the activation; of it times the noise; of it times `x` (with `scale`).
    """
    n, depth, plane = _extents(grad)
    sums = torch.empty(n, depth, 3, grad.shape[1])
    first, second = (None, None) if parts is None else _pair(parts)
    _call(
        "finish_gradient", grad, grad, y, first, second, scale, noise, ctypes.c_float(slope), *_pair(out), sums,
        n, depth, plane, out[0].shape[1], 0 if noise is None else len(noise),
    )  # fmt: skip
    return sums


def branches(x: Tensor, scale: Tensor | None, paddings: tuple[int, ...], out: tuple[Tensor, ...]) -> None:
    """Write `x` times `scale` [N, C], cut into parts with repeated end slices, to `out`."""
    n, depth, plane = _extents(x)
    _call("branch", x, x, scale, *_pair(out), *_pads(paddings), n, depth, plane, out[0].shape[1])


def branches_gradient(
    grads: tuple[Tensor, ...], x: Tensor | None, scale: Tensor | None, paddings: tuple[int, ...], out: Tensor
) -> Tensor | None:
    """Write the gradient of `x` to `out`; return that of `scale`, `[N, C]`."""
    n, depth, plane = _extents(out)
    sums = None if scale is None else torch.empty(n, depth, out.shape[1])
    _call(
        "branch_gradient", out, *_pair(grads), *_pads(paddings), x, scale, out, sums,
        n, depth, plane, grads[0].shape[1],
    )  # fmt: skip
    return None if sums is None else sums.sum(1)


def _extents(x: Tensor) -> tuple[int, int, int]:
    """N, D and H W of `[N, C, (D,) H, W]`."""
    n, _, *grid = x.shape
    return n, grid[0] if len(grid) == 3 else 1, grid[-2] * grid[-1]


def _pair(tensors: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None]:
    return tensors[0], tensors[1] if len(tensors) == 2 else None


def _pads(paddings: tuple[int, ...]) -> tuple[int, int]:
    return paddings[0], paddings[-1]


def _call(name: str, like: Tensor, *arguments: object) -> None:
    def plain(value: object) -> object:
        if value is None:
            return ctypes.c_void_p(None)
        if isinstance(value, Tensor):
            return ctypes.c_void_p(value.data_ptr())
        return ctypes.c_int64(value) if isinstance(value, int) else value

    getattr(_library, f"{name}_{_SUFFIX[like.dtype]}")(*map(plain, arguments))
