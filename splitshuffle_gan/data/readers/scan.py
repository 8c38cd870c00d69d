"""What every reader returns: one scan, whose header is cheap and whose voxels are read on demand."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitshuffle_gan.volume import Volume, plane_axes, spacing_of


@dataclass(frozen=True)
class Header:
    """What is known of a scan without its voxels, after it was brought to RAS+ by flips and swaps of axes.

    Attributes:
        shape: voxels (x, y, z).
        affine: 4x4, index (x, y, z, 1) to RAS mm.
        dtype: of the voxels on disk, before any rescaling, as NumPy names it.
        modality: "CT", "MR", ...; "" where the format does not say.
        orientation: of the axes on disk before that, such as "LPS".
        remarks: what was odd or corrected, a sentence each.
        personal: names of header fields that hold personal data; never their values.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    dtype: str
    modality: str = ""
    orientation: str = "RAS"
    remarks: tuple[str, ...] = ()
    personal: tuple[str, ...] = ()

    def spacing(self, plane: str = "axial") -> tuple[float, float, float]:
        """(D, H, W) in mm."""
        return spacing_of(np.asarray(self.affine)[:, [*plane_axes(plane), 3]])


@dataclass(frozen=True)
class Rejected:
    """A file, or a series of files, that cannot be a scan: its name relative to the source, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """One volume on disk. `name` is unique in its source and stable; `paths` are all of its files."""

    name: str
    paths: tuple[Path, ...]

    def header(self) -> Header:
        """Read the header alone. Raises UserError naming the file."""
        raise NotImplementedError

    def read(self, plane: str = "axial") -> Volume:
        """The voxels in source units, float32 `[1, D, H, W]`, in `plane`'s RAS+ order, flipped and swapped only.

        Raises UserError naming the file and the reason. The values themselves are not judged.
        """
        raise NotImplementedError
