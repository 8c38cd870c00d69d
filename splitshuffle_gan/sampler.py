"""From a generator and seeds to volumes, in memory and as NIfTI and DICOM files."""

import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from splitshuffle_gan import __version__
from splitshuffle_gan.checkpoint import find_checkpoint
from splitshuffle_gan.data.place import Target, read_target
from splitshuffle_gan.devices import start_compiler, use_all_cores, wants_cpu
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.label_channels import from_channels, structures_of
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json
from splitshuffle_gan.sample_files import DESCRIPTION, SampleFiles, stored_type

RECORD = "samples.json"


def latent_of_seed(seed: int, z_dim: int) -> Tensor:
    """The latent `[1, z_dim]` that a seed names, on the CPU, the same on every machine."""
    return torch.randn(1, z_dim, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def styles_of_seed(generator: Generator, seed: int, truncation_psi: float = 1.0) -> Tensor:
    """The styles `[1, num_ws, w_dim]` that a seed names, on the generator's device."""
    return generator.map(latent_of_seed(seed, generator.z_dim).to(generator.w_avg.device), truncation_psi)


def mix_styles(coarse: Tensor, fine: Tensor, layers: int) -> Tensor:
    """Styles `[1, num_ws, w_dim]` of `coarse` for the first `layers` layers and of `fine` for the rest."""
    if not 0 < layers < coarse.shape[1]:
        raise UserError(f"mix_layers: found {layers}, must be 1 to {coarse.shape[1] - 1}")
    return torch.cat((coarse[:, :layers], fine[:, layers:]), dim=1)


@torch.no_grad()
def draw_channels(generator: Generator, ws: Tensor, noise_mode: str = "const") -> np.ndarray:
    """All channels from one row of styles `[1, num_ws, w_dim]`: float32 `[C, D, H, W]`, the image, in [-1, 1], first.

    A depth-aware generator of rank 2 draws all its slices, one volume; a depth-blind one draws `[C, H, W]`.
    """
    config = generator.config
    if config.rank == 2 and config.depth_aware:
        depth = torch.arange(config.shape[0], device=ws.device)
        channels = generator.synthesize(ws.expand(len(depth), -1, -1), noise_mode, depth).transpose(0, 1)
    else:
        channels = generator.synthesize(ws, noise_mode)[0]
    channels = channels.float().cpu().numpy()
    # Not the channels of a label map: where two structures went beyond 1, the greater one counts.
    return np.concatenate((channels[:1].clip(-1, 1), channels[1:]))


def draw(generator: Generator, ws: Tensor, noise_mode: str = "const") -> np.ndarray:
    """The image alone, `[D, H, W]` in [-1, 1]; else as `draw_channels`."""
    return draw_channels(generator, ws, noise_mode)[0]


def sample(
    generator: Generator, seeds: Iterable[int], truncation_psi: float = 1.0, noise_mode: str = "const"
) -> Iterator[np.ndarray]:
    """One image per seed, float32 `[D, H, W]` in [-1, 1] (see `draw`).

    Every seed is drawn by itself, so that its voxels depend on nothing else: not on the other seeds, not on their
    order, not on the number of processes.
    """
    for seed in seeds:
        yield draw(generator, styles_of_seed(generator, seed, truncation_psi), noise_mode)


def sample_pairs(
    generator: Generator, seeds: Iterable[int], truncation_psi: float = 1.0, noise_mode: str = "const"
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """As `sample`, each image with its label map, uint8 `[D, H, W]`; None from a generator that draws images alone."""
    structures = structures_of(generator.geometry)
    for seed in seeds:
        channels = draw_channels(generator, styles_of_seed(generator, seed, truncation_psi), noise_mode)
        yield channels[0], from_channels(channels[1:], structures) if structures else None


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What to draw from a checkpoint, and where to write it; see `write_samples`.

    Attributes:
        checkpoint: a generator's folder, a pair of networks, a training run (its latest snapshot) or a hub id.
        out: folder to make.
        seeds: what to draw, one volume per seed.
        truncation_psi: below 1 less variety and fewer bad samples, 1 the whole distribution.
        style_mix: two seeds; the coarse styles of the first, the fine ones of the second.
        mix_layers: how many layers count as coarse; default half of them.
        interpolate: two seeds, to walk between in w.
        steps: volumes of that walk, both ends included.
        noise_mode: const repeats a volume exactly; none is smoother; random draws new fine detail (from the seed).
        like: a NIfTI scan on whose grid the volumes are put; see `splitshuffle_gan.data.place.place`.
        dicom: write each volume as a DICOM series too; see `splitshuffle_gan.data.dicom_out`.
        modality: of that series, "CT" or "MR"; default CT where intensities are a window that can be HU, else MR.
        compile: compile what lies between convolutions: in C++ on a CPU (needs a compiler, for seconds, once), by
            torch.compile on a GPU. The same volumes, but for rounding.
        overwrite: replace the samples in `out`.
    """

    checkpoint: str
    out: Path
    seeds: tuple[int, ...] = tuple(range(16))
    truncation_psi: float = 0.7
    style_mix: tuple[int, int] | None = None
    mix_layers: int | None = None
    interpolate: tuple[int, int] | None = None
    steps: int = 8
    noise_mode: str = "const"
    like: Path | None = None
    dicom: bool = False
    modality: str | None = None
    compile: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("seeds", "style_mix", "interpolate"):
            seeds = getattr(self, name)
            if seeds is not None and (not seeds or min(seeds) < 0 or max(seeds) >= 2**63):
                raise UserError(f"{name}: found {seeds}, give whole numbers from 0 to 2^63 - 1")
        if not abs(self.truncation_psi) <= 10:
            raise UserError(f"truncation_psi: found {self.truncation_psi}, must be within -10 to 10, as a rule 0 to 1")
        if self.steps < 2:
            raise UserError(f"steps: found {self.steps}, must be at least 2")
        if self.style_mix and self.interpolate:
            raise UserError("style_mix and interpolate: both given; choose one")
        if self.noise_mode not in ("random", "const", "none"):
            raise UserError(f"noise_mode: found {self.noise_mode!r}, must be 'random', 'const' or 'none'")
        if self.modality is not None and (self.modality not in ("CT", "MR") or not self.dicom):
            raise UserError(f"modality: found {self.modality!r}, must be 'CT' or 'MR', and goes with dicom")


def write_samples(config: SampleConfig) -> Path:
    """Draw volumes and write `*.nii.gz`, `montage.png` and `samples.json` into the folder `config.out`.

    Where the generator draws label maps as well, volumes are in `images/` and their label maps, uint8, under the same
    names in `labels/`, where `prepare --labels auto` finds them.
    Each file has the training set's spacing and an RAS affine, and intensities in its units, as `stored_type` says:
    int16 for HU, float32 for percentiles; with `like`, grid, place on disk and range of percentiles are that scan's.
    With `dicom`, the series of `seed0000.nii.gz` is in the folder `seed0000.dicom`, without label maps.
    Under a launcher the volumes are shared out among the processes.

    Raises:
        UserError: no such checkpoint, one without geometry or without volumes, an `out` that exists, a `like` that
            cannot be read, a series that cannot be written as DICOM.
    """
    state = PartialState(cpu=wants_cpu())
    use_all_cores(state)
    if config.compile:
        start_compiler(state.device)
    sources = (Path(config.checkpoint), *([config.like] if config.like else []))
    refuse_existing(config.out, config.overwrite, mark=RECORD, keep=sources)
    path = find_checkpoint(config.checkpoint, "generator")
    generator = Generator.from_pretrained(path).to(state.device)
    check_volumes(generator, path)
    target = read_target(config.like, generator.geometry) if config.like else None
    series = _series(config, generator, path, target) if config.dicom else None
    jobs = _jobs(generator, config)
    with ExitStack() as stack:
        building = [str(stack.enter_context(whole_folder(config.out))) if state.is_main_process else ""]
        files = SampleFiles(Path(broadcast_object_list(building)[0]), generator.geometry, target, series)
        mine = list(jobs.items())[state.process_index :: state.num_processes]
        for name, styles in tqdm(mine, desc="sample", unit="volume", disable=not state.is_main_process):
            # Only noise_mode "random" draws from this; the name decides, so that processes cannot change it.
            torch.manual_seed(int.from_bytes(name.encode()[-7:], "big"))
            channels = draw_channels(generator, styles(), config.noise_mode)
            if not np.isfinite(channels).all():
                raise UserError(f"{path}: {name} has voxels that are NaN; its weights are broken, take another")
            files.write(name, channels)
        state.wait_for_everyone()
        if state.is_main_process:
            files.picture(list(jobs), f"synthetic volumes, truncation_psi {config.truncation_psi:g}")
            record = _record(config, path, generator, list(jobs), files)
            write_json(files.folder / RECORD, record | _whereabouts(files, list(jobs)))
    state.wait_for_everyone()
    return config.out


def command_for_pairs(out: Path) -> str | None:
    """The `prepare` command that makes a dataset of pairs of the samples in `out`, as the generator drew them.

    None where there are no label maps, and where samples lie on the grid of a scan. A window gives back what was drawn
    from percentiles too: the range that these samples were written in.
    """
    record = json.loads((out / RECORD).read_text())
    geometry = record["geometry"]
    if not geometry.get("labels") or record["like"]:
        return None
    grid, bounds = record["generator"]["shape"], geometry["intensity"]
    words = [f"{out}/images", "--labels", "auto", "--shape", *grid, "--spacing", "native", "--window", bounds["low"],
             bounds["high"], "--plane", geometry["plane"], "--out", f"{out}_pairs"]  # fmt: skip
    return shlex.join(["splitshuffle", "prepare", *map(str, words)])


def check_volumes(generator: Generator, path: str) -> None:
    """Raise UserError, naming `path`, unless `generator` has volumes to draw and knows their geometry."""
    if generator.geometry is None:
        raise UserError(f"{path}: has no geometry, so its samples have no spacing and no units; train it on a dataset")
    if generator.config.rank == 2 and not generator.config.depth_aware:
        raise UserError(f"{path}: is a 2D generator that does not know depth, so it has no volumes; inflate it first")
    named, channels = structures_of(generator.geometry), generator.config.image_channels
    if channels != 1 + len(named):
        found = f"{channels} channels, but its geometry has the labels {', '.join(map(str, named)) or 'of none'}"
        raise UserError(f"{path}: draws {found}; one for the image and one for each label are wanted: train it again")


def _jobs(generator: Generator, config: SampleConfig) -> dict[str, Callable[[], Tensor]]:
    """File stem -> function that makes its styles."""

    def styles(seed: int) -> Tensor:
        return styles_of_seed(generator, seed, config.truncation_psi)

    if config.style_mix:
        a, b = config.style_mix
        layers = config.mix_layers if config.mix_layers is not None else generator.num_ws // 2
        mixed = mix_styles(styles(a), styles(b), layers)
        return {
            f"seed{a:04d}": lambda: styles(a),
            f"seed{b:04d}": lambda: styles(b),
            f"mix{a:04d}-{b:04d}": lambda: mixed,
        }
    if config.interpolate:
        a, b = config.interpolate
        weights = [i / (config.steps - 1) for i in range(config.steps)]
        return {
            f"step{i:04d}": lambda weight=weight: styles(a).lerp(styles(b), weight) for i, weight in enumerate(weights)
        }
    return {f"seed{seed:04d}": lambda seed=seed: styles(seed) for seed in config.seeds}


def _series(config: SampleConfig, generator: Generator, path: str, target: Target | None) -> dict:
    """What all DICOM series of these samples share: arguments of `write_dicom`."""
    from splitshuffle_gan.data.dicom_out import right_angled

    geometry = target.geometry if target else generator.geometry
    intensity = geometry["intensity"]
    hounsfield = stored_type(intensity) is np.int16
    if config.modality == "CT" and not hounsfield:
        found = f"{intensity['kind']} {intensity['low']:g}..{intensity['high']:g}"
        raise UserError(f"modality: CT needs a window in HU, but {path} has {found}; take MR")
    source, shape = (str(target.path), target.shape) if target else (path, generator.config.shape)
    right_angled(np.asarray(geometry["affine"]), shape, source)  # before an hour of sampling rather than after
    weights = hashlib.sha256()
    for key, value in sorted(generator.state_dict().items()):
        weights.update(key.encode() + value.cpu().numpy().tobytes())
    return {
        "modality": config.modality or ("CT" if hounsfield else "MR"),
        "description": DESCRIPTION,
        "uid_seed": weights.hexdigest(),
        "bounds": (intensity["low"], intensity["high"]),
        "derivation": "Drawn by a generative network; shows no patient. "
        f"splitshuffle_gan {__version__}, weights sha256 {weights.hexdigest()}.",
    }


def _record(config: SampleConfig, path: str, generator: Generator, names: list[str], files: SampleFiles) -> dict:
    return {
        "created_with": __version__,
        "torch": torch.__version__,
        "checkpoint": path,
        "generator": generator.config.to_dict(),
        "truncation_psi": config.truncation_psi,
        "noise_mode": config.noise_mode,
        "style_mix": config.style_mix,
        "mix_layers": config.mix_layers,
        "interpolate": config.interpolate,
        "files": [files.image(name).as_posix() for name in names],
        "labels": [files.label(name).as_posix() for name in names] if files.structures else None,
        "synthetic": True,
    }


def _whereabouts(files: SampleFiles, names: list[str]) -> dict:
    """Grid and units of the files, and where these come from."""
    target, series = files.target, files.series
    return {
        "geometry": files.written,
        "like": {"path": str(target.path), "sha256": target.sha256, "shape": target.shape} if target else None,
        "dicom": {**series, "folders": [f"{name}.dicom" for name in names]} if series else None,
    }
