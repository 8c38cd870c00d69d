"""MedMNIST's files (https://medmnist.com): `train_images`, `train_labels` and so on, uint8, in one .npz."""

import zipfile
from pathlib import Path

import numpy as np

from splitshuffle_gan.errors import UserError

PARTS = ("train", "val", "test")
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def read_arrays(
    path: Path, wanted: tuple[str, ...], rank: int, optional: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """The arrays by name: images uint8 `[N, *S]` with `rank` sides, or `[N, *S, 3]`, labels `[N, tasks]`.

    Raises UserError that names the file, the array, what was found and what is wanted.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in wanted if name not in file]
            if missing:
                raise UserError(f"{path}: has no {missing[0]}, only {', '.join(file)}; a MedMNIST file is wanted")
            found = {name: file[name] for name in (*wanted, *optional) if name in file}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; a MedMNIST .npz is wanted") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not readable as .npz ({error}); download it again") from error
    for part in PARTS:
        if f"{part}_images" in found:
            _check(path, part, found, rank)
    return found


def grey(images: np.ndarray) -> np.ndarray:
    """uint8 images, with colours last or without, as float32 in [-1, 1] without."""
    values = images.astype(np.float32)
    values = values @ LUMINANCE if images.shape[-1] == 3 else values
    return values / 127.5 - 1


def whole_classes(labels: np.ndarray, where: str) -> np.ndarray:
    """`labels` `[N]` as int64. Raises UserError unless they are whole numbers from 0, of 2 kinds at least."""
    classes = labels.astype(np.int64)
    if not np.array_equal(classes, labels) or classes.min() < 0 or classes.max() < 1:
        raise UserError(f"{where}: found {np.unique(labels)[:5].tolist()}; classes 0, 1, ... are wanted, 2 at least")
    return classes


def _check(path: Path, part: str, found: dict[str, np.ndarray], rank: int) -> None:
    name = f"{part}_images"
    images, labels = found[name], found.get(f"{part}_labels")
    sides = images.shape[1:-1] if images.ndim == rank + 2 and images.shape[-1] == 3 else images.shape[1:]
    if images.dtype != np.uint8 or len(sides) != rank or not images.size:
        wanted = f"uint8 [N, {', '.join('DHW'[-rank:])}] is wanted"
        other = {2: " (a MedMNIST 3D file is a target)", 3: " (a MedMNIST 2D file is a source)"}[rank]
        raise UserError(f"{path}: {name} is {images.dtype} {list(images.shape)}; {wanted}{other}")
    if labels is None or len(labels) != len(images):
        found_labels = "missing" if labels is None else f"{len(labels)} long"
        raise UserError(f"{path}: {part}_labels is {found_labels}; one for each of the {len(images)} images is wanted")
