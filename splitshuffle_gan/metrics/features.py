"""Volumes to features: in batches, on every process of a launcher, read ahead, and cached for real sets.

The batches, not the volumes, are shared out among the processes, so that every volume meets the same company and gets
the same features however many processes there are; and none is computed twice.
"""

import hashlib
import json
import os
import tempfile
import tokenize
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from tqdm import tqdm

from splitshuffle_gan import nd
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.catalogue import Extractor
from splitshuffle_gan.metrics.volume_set import VolumeSet, volume_hash
from splitshuffle_gan.output import whole_file
from splitshuffle_gan.volume import plane_slices

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
CHEAP = ("dataset", "arrays")


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A temporary folder that all processes see, gone afterwards."""
    state = PartialState()
    holder = tempfile.TemporaryDirectory(prefix="splitshuffle-") if state.is_main_process else None
    try:
        yield Path(broadcast_object_list([holder.name if holder else ""])[0])
    finally:
        if holder:
            holder.cleanup()


def store(volumes: VolumeSet, folder: Path, label: str) -> tuple[VolumeSet, list[str]]:
    """`volumes` in a form that is cheap to read again, and the hash of each.

    Every volume is read once: checked, hashed and, unless it is cheap to read already, written to an array in `folder`
    (the same on all processes). Raises UserError, on every process, naming the first bad volume.
    """
    state = PartialState()
    path = folder / f"{label}.npy"
    keep = volumes.kind not in CHEAP
    if keep and state.is_main_process:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(volumes), *volumes.shape)).flush()
    state.wait_for_everyone()
    array = np.load(path, mmap_mode="r+") if keep else None
    hashes: list[tuple[int, str]] = []
    fault = None
    mine = range(state.process_index, len(volumes), state.num_processes)
    for index in tqdm(mine, desc=f"read {label}", unit="volume", disable=not state.is_main_process):
        try:
            volume = volumes[index]
        except UserError as error:
            fault = (index, str(error))
            break
        hashes.append((index, volume_hash(volume)))
        if array is not None:
            array[index] = volume
    if array is not None:
        array.flush()
    faults = sorted(found for found in gather_object([fault]) if found)
    if faults:
        raise UserError(faults[0][1])
    hashes = [found for _, found in sorted(gather_object(hashes))]
    state.wait_for_everyone()
    if array is None:
        return volumes, hashes
    stored = np.load(path, mmap_mode="r")
    fields = (volumes.shape, volumes.spacing, volumes.plane, volumes.rule, volumes.names)
    return VolumeSet(volumes.name, volumes.kind, *fields, lambda i: np.array(stored[i]), volumes.details), hashes


def extract(
    volumes: VolumeSet,
    extractor: Extractor,
    batch_size: int = 16,
    dtype: str = "float32",
    plane: str | None = None,
    slices: int = 8,
    progress: bool = True,
) -> np.ndarray:
    """Features, float64: `[N, dimension]` of an extractor of rank 3, `[N, slices, dimension]` of one of rank 2.

    `batch_size` counts volumes. `dtype`: float32, or bf16 by autocast. `plane`, for rank 2: the plane of the slices,
    which are `slices` evenly spaced ones between a tenth from either end. All processes get all features.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype: found {dtype!r}, must be one of {', '.join(DTYPES)}")
    state = PartialState()
    starts = range(0, len(volumes), batch_size)
    mine = list(starts)[state.process_index :: state.num_processes]
    network = nd.place(extractor.network, extractor.rank, state.device).eval()

    def load(start: int) -> Tensor:
        batch = np.stack([volumes[i] for i in range(start, min(start + batch_size, len(volumes)))])
        if extractor.rank == 2:
            batch = np.concatenate([plane_slices(volume, volumes.plane, plane, slices) for volume in batch])
        return torch.from_numpy(batch)[:, None]

    title = f"{extractor.name}{f' {plane}' if plane else ''}: {volumes.name}"
    bar = tqdm(total=len(mine), desc=title, unit="batch", disable=not (progress and state.is_main_process))
    found = []
    with torch.inference_mode(), bar:
        for start, batch in zip(mine, _read_ahead(load, mine), strict=True):
            batch = batch.to(state.device, memory_format=nd.channels_last(extractor.rank))
            with torch.autocast(state.device.type, DTYPES["bf16"], enabled=dtype == "bf16"):
                rows = network(batch)
            found.append((start, rows.double().cpu().numpy()))
            bar.update()
    rows = np.concatenate([rows for _, rows in sorted(gather_object(found), key=lambda item: item[0])])
    if not np.isfinite(rows).all():
        raise UserError(f"{extractor.name}: features of {volumes.name} are not finite; its weights are broken")
    return rows if extractor.rank == 3 else rows.reshape(len(volumes), -1, rows.shape[1])


def cached_extract(
    volumes: VolumeSet, data_hash: str, extractor: Extractor, cache: Path | None, **settings
) -> np.ndarray:
    """`extract`, read from the folder `cache` where it has been done before (None: no cache).

    The key holds the voxels' hash and number, the extractor with its weights, the settings, and the versions and the
    device that compute; what is stored is a plain array that opening cannot turn into code.
    """
    if cache is None:
        return extract(volumes, extractor, **settings)
    state = PartialState()
    key = {
        "data_hash": data_hash,
        "n": len(volumes),
        "shape": list(volumes.shape),
        "plane_of_volumes": volumes.plane,
        "extractor": extractor.describe(),
        "settings": settings,
        "torch": torch.__version__,
        "device": state.device.type,
    }
    path = cache / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()}.npy"
    known = [_read_cached(path, len(volumes), extractor) if state.is_main_process else None]
    features = broadcast_object_list(known)[0]
    if features is not None:
        return features
    features = extract(volumes, extractor, **settings)
    if state.is_main_process:
        _write_cached(path, features)
    return features


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/splitshuffle_gan/features`, as a rule `~/.cache/splitshuffle_gan/features`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "splitshuffle_gan" / "features"


def _read_cached(path: Path, count: int, extractor: Extractor) -> np.ndarray | None:
    """The stored features; None where there are none or they are not what they should be."""
    try:
        # Mapped, so that a damaged header cannot ask for more memory than the file has; objects are refused.
        features = np.array(np.lib.format.open_memmap(path, mode="r"))
    except (OSError, ValueError, SyntaxError, tokenize.TokenError):
        return None
    fits = features.ndim in (2, 3) and len(features) == count and features.shape[-1] == extractor.dimension
    return features if fits and features.dtype == np.float64 and np.isfinite(features).all() else None


def _write_cached(path: Path, features: np.ndarray) -> None:
    """Store the features; where that cannot be, warn: they are there all the same."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            np.save(temporary, features, allow_pickle=False)
    except OSError as error:
        warnings.warn(f"cache: {path.parent} cannot be written ({error}); choose another folder", stacklevel=2)


def _read_ahead(load, starts: list[int]) -> Iterator[Tensor]:
    """The batches, each read while the one before is being used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(load, start) for start in starts[:1]]
        for following in range(1, len(starts) + 1):
            batch = waiting.pop().result()
            waiting += [pool.submit(load, start) for start in starts[following : following + 1]]
            yield batch
