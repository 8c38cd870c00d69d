"""Phantoms: built-in head MR and heart CT volumes whose every factor of variation is known and written beside them.

`make_phantom` makes one in memory, `write_phantoms` a folder of NIfTI volumes and label maps. All shapes are laid out
in mm for an average adult. A field of view that is too small for the anatomy shrinks the anatomy until it fits (the
factor `scale`); a larger one shows it at its natural size. Structures thinner than a voxel (cortex, sulci, third
ventricle, coronary arteries, plaques) are widened to about one, so that they show on coarse grids too; calcium volume
and Agatston score grow with the voxel for that reason.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from splitshuffle_gan import __version__
from splitshuffle_gan.data.phantom import brain, heart
from splitshuffle_gan.data.phantom.factors import Value
from splitshuffle_gan.data.phantom.fields import array_affine
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json
from splitshuffle_gan.parallel import parallel_map

__all__ = ["FACTORS", "LABELS", "Phantom", "make_phantom", "write_phantoms"]

VERSION = 1
KINDS = {"brain": brain, "heart": heart}
SCALE = "size of the anatomy over its natural size: min(1, field of view / extent of an average adult)"

LABELS: dict[str, dict[int, str]] = {kind: dict(module.LABELS) for kind, module in KINDS.items()}
"""For every kind, the name of each label."""

FACTORS: dict[str, dict[str, str]] = {
    kind: {name: str(d) for name, d in module.DISTRIBUTIONS.items()} | {"scale": SCALE} | module.MEASURED
    for kind, module in KINDS.items()
}
"""For every kind, the distribution each factor is drawn from, in words."""


@dataclass(frozen=True)
class Phantom:
    """One volume, axial: the axes are (S, A, R) and the centre of the grid is at 0 mm.

    `image` is float32 `[D, H, W]` (brain: MR units; heart: HU), `label` uint8 `[D, H, W]` with the names of `LABELS`,
    `factors` has the keys of `FACTORS`, `affine` is the 4x4 map from array index (d, h, w, 1) to RAS mm.
    """

    image: np.ndarray
    label: np.ndarray
    factors: dict[str, Value]
    affine: np.ndarray


def make_phantom(kind: str, shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int) -> Phantom:
    """The phantom of `kind` ("brain" or "heart") with this seed, on a grid `shape` (D, H, W) of `spacing` (z, y, x) mm.

    The same arguments give the same bytes; the same seed on another grid gives the same subject with other noise.
    Raises UserError for an unknown kind, a shape below 8 voxels on an axis, a spacing that is not positive, or a
    negative seed.
    """
    _check(kind, shape, spacing, seed)
    shape, spacing = tuple(map(int, shape)), tuple(map(float, spacing))
    image, label, factors = KINDS[kind].render(shape, spacing, seed)
    return Phantom(image, label, factors, array_affine(shape, spacing))


def write_phantoms(
    kind: str,
    count: int,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    seed: int,
    out: Path | str,
    overwrite: bool = False,
) -> Path:
    """Write `count` phantoms to the folder `out` and return it; volume i does not depend on `count`.

    `images/brain0000.nii.gz` (float32; int16 HU for the heart), `labels/brain0000.nii.gz` (uint8) and `factors.json`:
    per volume its file name, seed (for `make_phantom`) and factors; for the set kind, shape, spacing, seed, label
    names, distributions and version. NIfTI arrays are (x, y, z) in RAS+. The folder appears whole or not at all.
    Raises UserError where `make_phantom` does, for a count below 1, and for an `out` that exists unless `overwrite`.
    """
    _check(kind, shape, spacing, seed)
    if count < 1:
        raise UserError(f"count is {count}, wanted at least 1")
    out = Path(out)
    refuse_existing(out, overwrite, mark="factors.json")
    with whole_folder(out) as building:
        volumes = _write_volumes(building, kind, count, shape, spacing, seed)
        record = {
            "version": VERSION,
            "created_with": __version__,
            "kind": kind,
            "shape": [int(n) for n in shape],
            "spacing": [float(s) for s in spacing],
            "seed": int(seed),
            "labels": {str(number): name for number, name in LABELS[kind].items()},
            "distributions": FACTORS[kind],
            "volumes": volumes,
        }
        write_json(building / "factors.json", record)
    return out


def _check(kind: str, shape: tuple, spacing: tuple, seed: int) -> None:
    if kind not in KINDS:
        raise UserError(f"kind is {kind!r}, wanted one of {', '.join(KINDS)}")
    if len(shape) != 3 or min(shape) < 8:
        raise UserError(f"shape is {tuple(shape)}, wanted three sizes (D, H, W) of at least 8 voxels")
    if len(spacing) != 3 or not all(np.isfinite(spacing)) or min(spacing) <= 0:
        raise UserError(f"spacing is {tuple(spacing)}, wanted three positive numbers (z, y, x) in mm")
    if seed < 0:
        raise UserError(f"seed is {seed}, wanted 0 or more")


def _volume_seed(seed: int, index: int) -> int:
    """The seed of volume `index`: 53 bits, so that JSON readers keep it exact."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 11)


def _write_volumes(folder: Path, kind: str, count: int, shape: tuple, spacing: tuple, seed: int) -> list[dict]:
    """Make and write the volumes in all cores; their records in order."""
    for name in ("images", "labels"):
        (folder / name).mkdir()
    job = partial(_write_one, folder, kind, tuple(shape), tuple(spacing), int(seed))
    return list(tqdm(parallel_map(job, range(count)), total=count, desc=f"{kind} phantoms", unit="volume"))


def _write_one(folder: Path, kind: str, shape: tuple, spacing: tuple, seed: int, index: int) -> dict:
    """Write volume `index` and return its record."""
    phantom = make_phantom(kind, shape, spacing, _volume_seed(seed, index))
    name = f"{kind}{index:04d}.nii.gz"
    image = np.round(phantom.image).astype(np.int16) if kind == "heart" else phantom.image
    for subfolder, array in (("images", image), ("labels", phantom.label)):
        affine = phantom.affine[:, [2, 1, 0, 3]]
        nifti = nib.Nifti1Image(np.ascontiguousarray(array.T), affine)
        nifti.set_sform(affine, code=1)
        nifti.set_qform(affine, code=1)
        nifti.header.set_xyzt_units("mm")
        nib.save(nifti, folder / subfolder / name)
    return {"file": name, "seed": _volume_seed(seed, index), "factors": phantom.factors}
