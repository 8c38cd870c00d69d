"""Options of the commands whose `--help` should need no torch; the others' live beside what they configure."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from splitshuffle_gan.errors import UserError

MAX_SEEDS = 1_000_000
Source = tyro.conf.Positional[Path]


@dataclass(frozen=True, kw_only=True)
class PhantomOptions:
    """Write phantom scans (NIfTI volumes and label maps) whose every factor is known and recorded.

    Attributes:
        out: folder to make: images/, labels/, factors.json.
        kind: brain (T1-like MR) or heart (CT in HU).
        count: number of volumes.
        shape: voxels, D H W.
        spacing: mm, Z Y X.
        seed: volume i depends on the seed and i alone.
        overwrite: replace the phantoms in `out`.
    """

    out: Path
    kind: Literal["brain", "heart"] = "brain"
    count: int = 64
    shape: tuple[int, int, int] = (64, 64, 64)
    spacing: tuple[float, float, float] = (3.5, 3.5, 3.5)
    seed: int = 0
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Scans to a dataset: reorient to RAS+, resample, crop or pad, map intensities to [-1, 1].

    Killed, the same command goes on where it was.

    Attributes:
        source: a NIfTI file, or a folder searched to any depth; MGH, NRRD, NumPy and DICOM as well.
        out: dataset folder to make: volumes.npy, manifest.json, with labels also labels.npy.
        shape: voxels of every prepared volume, D H W; each 4 to 15 times a power of two.
        spacing: mm, in the order of shape; native: each scan keeps its own; default: the set's median.
        percentiles: intensities of each scan that become -1 and 1 (MR); default 0.5 99.5.
        window: intensities that become -1 and 1, the same for all scans (CT, in HU).
        plane: the plane of the slices; its normal is the first axis, D; auto: the set's coarsest axis is the normal.
        skip_bad: leave out what cannot be used and list it in the manifest, instead of stopping.
        overwrite: replace the dataset in `out`.
        workers: processes; 0 is one per core.
        preset: take shape, spacing, intensities and plane from a preset; what is given beside it counts more.
        crop: centre on the scan's middle, on what is brighter than air, or on the box of its labels.
        resample: between voxels linear, cubic (bspline) or not at all (nearest).
        labels: folder of label maps with the scans' names; auto: labels*/ beside images*/.
        label_resample: nearest, or linear: the label that weighs most once each is interpolated by itself.
        structures: labels to be told apart: those of the first entry become 1, of the second 2, and so on, all others
            background; as in --structures 7,8,9 5,6,10-15. Default: the labels as they are.
        spacing_tolerance: with native spacing, how far a scan's may be from the median, as a share of it.
        volume: which volume of 4D files, from 0; all: each is a scan.
        correct_tilt: straighten CT series taken with a tilted gantry, instead of refusing them.
        shard_size: volumes per array file; default: one file.
    """

    source: Source
    out: Path
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | Literal["native"] | None = None
    percentiles: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    plane: Annotated[Literal["axial", "coronal", "sagittal", "auto"], tyro.conf.arg(aliases=["--orientation"])] = (
        "axial"
    )
    skip_bad: bool = False
    overwrite: bool = False
    workers: int = 0
    preset: str | None = None
    crop: Literal["center", "foreground", "label"] = "center"
    resample: Literal["linear", "bspline", "nearest"] = "linear"
    labels: Path | None = None
    label_resample: Literal["nearest", "linear"] = "nearest"
    structures: tuple[str, ...] | None = None
    spacing_tolerance: float = 0.05
    volume: int | Literal["all"] | None = None
    correct_tilt: bool = False
    shard_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class InflateOptions:
    """Inflate a 2D GAN into a 3D one and report every weight and the measured function-preservation error.

    Attributes:
        run2d: a 2D run (its latest snapshot) or a pair of 2D networks.
        out: folder to make: generator/, discriminator/, inflation.json.
        method: how a k x k kernel fills k slices: center (exact), mean (I3D), binomial, triaxial (ACS), random (not);
            or anisotropic (AH-Net), for thick slices: it stays in its slice, and a new kernel through the slices
            follows it. That takes plain or separable convolutions in 2D.
        shape: voxels of the 3D network, D H W, where D differs from the 2D network's.
        depth_upsample: growth over depth in the 3D generator: nearest starts exactly, in steps over depth; linear
            starts smooth between slices, not exactly.
        seed: of `random`.
        overwrite: replace the checkpoint in `out`.
    """

    run2d: Source
    out: Path
    method: Literal["center", "mean", "binomial", "triaxial", "random", "anisotropic"] = "center"
    shape: tuple[int, int, int] | None = None
    depth_upsample: Literal["nearest", "linear"] = "nearest"
    seed: int = 0
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Draw synthetic volumes: NIfTI (and DICOM) with true geometry and intensities, a montage, samples.json.

    A generator that was trained with --channels image,label draws pairs: volumes in images/, their masks in labels/.

    Attributes:
        checkpoint: a generator that ships (see `splitshuffle models`), its folder, a pair of networks, a training run
            (its latest snapshot) or a hub id.
        out: folder to make.
        seeds: one volume per seed, as 0-15 or 3,7,20-24.
        truncation_psi: below 1 less variety and fewer bad samples; 1 the whole distribution.
        style_mix: two seeds A B instead of `seeds`: the coarse styles of A with the fine ones of B.
        mix_layers: how many layers count as coarse; default half of them.
        interpolate: two seeds A B instead of `seeds`, to walk between.
        steps: volumes of that walk, both ends included.
        noise_mode: const repeats a volume exactly; none is smoother; random draws new fine detail.
        like: a NIfTI scan to put every volume onto: middle on middle, along its axes, in its voxels; percentiles become
            its own, a window stays.
        dicom: write each volume as a CT or MR series too, into seed0000.dicom/ beside seed0000.nii.gz.
        modality: of that series; default CT where the set's intensities are a window that can be HU, else MR.
        compile: compile what lies between convolutions: in C++ on a CPU (needs a compiler, for seconds, once), by
            torch.compile on a GPU. The same volumes, but for rounding.
        overwrite: replace the samples in `out`.
    """

    checkpoint: tyro.conf.Positional[str]
    out: Path
    seeds: str = "0-15"
    truncation_psi: float = 0.7
    style_mix: tuple[int, int] | None = None
    mix_layers: int | None = None
    interpolate: tuple[int, int] | None = None
    steps: int = 8
    noise_mode: Literal["const", "none", "random"] = "const"
    like: Path | None = None
    dicom: bool = False
    modality: Literal["CT", "MR"] | None = None
    compile: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelsOptions:
    """List the trained networks that come with the package: `splitshuffle sample NAME` draws from a generator."""


@dataclass(frozen=True, kw_only=True)
class QuickstartOptions:
    """The whole job on built-in brain phantoms: what `train3d` does when it is given no data.

    Attributes:
        out: folder to make; everything goes there.
        seed: of everything random.
        overwrite: replace an earlier quickstart in `out`.
    """

    out: Path = field(default_factory=lambda: Path("runs/quickstart"))
    seed: int = 0
    overwrite: bool = False


def parse_seeds(text: str) -> tuple[int, ...]:
    """`"3,7,20-24"` -> (3, 7, 20, 21, 22, 23, 24). Raises UserError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or dash and not last.isdecimal() or dash and int(last) < int(first):
            raise UserError(f"seeds: found {text!r}, wanted numbers and ranges such as 0-15 or 3,7,20-24")
        if len(first + last) > 36 or dash and int(last) - int(first) >= MAX_SEEDS:
            raise UserError(f"seeds: found {text!r}, at most {MAX_SEEDS} seeds, each below 10^18, are wanted")
        seeds += range(int(first), int(last if dash else first) + 1)
    if len(set(seeds)) != len(seeds):
        raise UserError(f"seeds: found {text!r}, in which a seed comes twice")
    return tuple(seeds)
