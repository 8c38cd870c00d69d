"""Score synthetic volumes against real ones: features, distances, intervals, floors, and the card that holds them."""

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from splitshuffle_gan import __version__
from splitshuffle_gan.devices import use_all_cores, wants_cpu
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.catalogue import (
    Extractor,
    default_extractor,
    default_plane_extractor,
    open_extractor,
)
from splitshuffle_gan.metrics.card import FORMAT, VERSION, check_out
from splitshuffle_gan.metrics.features import DTYPES, cached_extract, default_cache, extract, shared_folder, store
from splitshuffle_gan.metrics.measures import SHARES, Draws, fid, infinity_row, kid, plane_fid, row, share, ssim_row
from splitshuffle_gan.metrics.notes import notes
from splitshuffle_gan.metrics.report import write_card
from splitshuffle_gan.metrics.source import check_same_grid, open_pair, open_volumes, part_of
from splitshuffle_gan.metrics.volume_set import IntensityRule, VolumeSet, hash_of
from splitshuffle_gan.volume import PLANES

METRICS = ("fid", "planes", "kid", "prdc", "ms-ssim")
LEAST = 4
MOST_SEED = 2**32 - 1  # torch-fidelity's subsets take no more


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure, and how; see `ScoreConfig`. Raises UserError naming a field that makes no sense."""

    metrics: tuple[str, ...] = METRICS
    n: int | None = None
    slices: int = 8
    batch_size: int = 16
    dtype: str = "float32"
    resamples: int = 200
    splits: int = 20
    seed: int = 0
    reference_split: float | None = None
    floor_from: str | None = None
    cache: Path | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise UserError(f"metrics: found {', '.join(unknown) or 'none'}, choose from {', '.join(METRICS)}")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype: found {self.dtype!r}, must be one of {', '.join(DTYPES)}")
        least = {"slices": 1, "batch_size": 1, "resamples": 20, "splits": 2, "seed": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise UserError(f"{name}: found {getattr(self, name)}, must be at least {lowest}")
        if self.seed > MOST_SEED:
            raise UserError(f"seed: found {self.seed}, must be at most {MOST_SEED}")
        if self.n is not None and self.n < LEAST:
            raise UserError(f"n: found {self.n}, at least {LEAST} volumes a side are wanted")
        if self.reference_split is not None and not 0 < self.reference_split < 1:
            raise UserError(f"reference_split: found {self.reference_split}, a share between 0 and 1 is wanted")
        if self.floor_from is not None and self.reference_split is not None:
            raise UserError("reference_split and floor_from: give one of the two, both are for a floor at the same n")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Settings):
    """Score synthetic volumes against real ones, every number with its n, interval and real-against-real floor.

    Attributes:
        generated: a folder of scans, a prepared dataset, a generator's folder, a training run or a hub id.
        real: a prepared dataset, or a folder of scans on the same grid.
        out: card to write, a .json; the same in words and as a picture beside it, as .md and .png.
        metrics: which of fid (3D), planes (FID of axial, coronal and sagittal slices), kid, prdc, ms-ssim.
        extractor: medicalnet-resnet10, medicalnet-resnet50, med3d-mini or random-0; default: the best at hand.
        weights: file of the extractor's weights, instead of the shipped or downloaded one.
        weights_sha256: what the file of weights must hash to.
        plane_extractor: network for slices: radimagenet-resnet50, inception or med2d-mini; default: the best at hand.
        plane_weights: file of its weights.
        n: volumes on each side; default as many as both sides have.
        reference_split: share of the real volumes to compare with (default all), picked by their content. With 0.5 the
            floor, taken between halves of the real volumes, has the same n.
        floor_from: other real volumes, such as those that were trained on, as `real`; the floor is then between n of
            them and the real ones, not between halves of the real ones.
        truncation_psi: for a generator; below 1 less variety.
        slices: per volume and plane.
        batch_size: volumes per batch.
        dtype: of the extraction, float32 or bf16.
        resamples: of the bootstrap intervals.
        splits: of the real volumes into two disjoint halves, for the floor.
        seed: of subsets, resamples and splits; a generator draws other volumes for another seed.
        cache: folder for the features of real volumes; default ~/.cache/splitshuffle_gan/features.
        no_cache: neither read nor write it.
        overwrite: replace the card in `out`.
    """

    generated: str
    real: str
    out: Path
    extractor: str | None = None
    weights: Path | None = None
    weights_sha256: str | None = None
    plane_extractor: str | None = None
    plane_weights: Path | None = None
    truncation_psi: float = 1.0
    no_cache: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for weights, extractor in (("weights", "extractor"), ("weights_sha256", "extractor"),
                                   ("plane_weights", "plane_extractor")):  # fmt: skip
            if getattr(self, weights) is not None and getattr(self, extractor) is None:
                option = extractor.replace("_", "-")
                raise UserError(f"{weights}: say which network these weights are of, with --{option}")


def score(config: ScoreConfig) -> dict:
    """Do all of it, on every process of a launcher, write the card and return it.

    Raises UserError for sets or weights that cannot be used; a number that n does not allow is left out of the card,
    with the reason.
    """
    state = PartialState(cpu=wants_cpu())
    use_all_cores(state)
    check_out(config.out, config.overwrite)
    extractor = _open(config.extractor, config.weights, config.weights_sha256, default_extractor)
    planes = None
    if "planes" in config.metrics:
        planes = _open(config.plane_extractor, config.plane_weights, None, default_plane_extractor)
    share = config.reference_split or 1.0
    generated, real = open_pair(config.generated, config.real, config.n, config.truncation_psi, config.seed, share)
    cache = None if config.no_cache else config.cache or default_cache()
    card = measure(generated, real, extractor, planes, replace(config, cache=cache))
    if state.is_main_process:
        write_card(card, config.out, config.overwrite)
    state.wait_for_everyone()
    return card


def measure(
    generated: VolumeSet,
    real: VolumeSet,
    extractor: Extractor | None = None,
    plane_extractor: Extractor | None = None,
    settings: Settings | None = None,
) -> dict:
    """The card of any two sets of volumes (see `source`), not written.

    `extractor` and `plane_extractor`: by default the best at hand. Under a launcher every process calls it and gets
    the card.
    """
    started = time.time()
    settings = settings or Settings()
    PartialState(cpu=wants_cpu())
    extractor = extractor or default_extractor()
    if "planes" in settings.metrics:
        plane_extractor = plane_extractor or default_plane_extractor()
    else:
        plane_extractor = None
    _check_rank("extractor", extractor, 3, "volumes, such as med3d-mini")
    _check_rank("plane_extractor", plane_extractor, 2, "slices, such as med2d-mini")
    check_same_grid(generated, real)
    references = part_of(len(real), settings.reference_split or 1.0)
    n = _common_n(settings.n, generated, real, references)
    others = _open_others(settings.floor_from, real)
    kept = np.sort(np.random.default_rng(settings.seed).permutation(len(generated))[:n])
    with shared_folder() as folder:
        made, made_hashes = store(generated.subset(kept), folder, "generated")
        truth, truth_hashes = store(real, folder, "real")
        # By content: the same volumes whatever the seed and the file names.
        reference = np.sort(np.argsort(truth_hashes, kind="stable")[:references][:n])
        sides = [(truth, hash_of(truth_hashes))]
        if others is not None:
            beside, beside_hashes = store(others, folder, "floor")
            _check_apart(beside, beside_hashes, truth, truth_hashes)
            sides.append((beside, hash_of(beside_hashes)))
        rows = _rows(made, sides, reference, extractor, plane_extractor, settings)
    rows = broadcast_object_list([rows])[0]
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "created_with": __version__,
        "ruler": {
            "extractor": extractor.describe(),
            "plane_extractor": plane_extractor.describe() if plane_extractor else None,
            "preprocessing": {
                "range": [-1.0, 1.0],
                "shape": list(real.shape),
                "spacing": list(real.spacing),
                "plane": real.plane,
                "intensity": asdict(real.rule or generated.rule) if real.rule or generated.rule else None,
            },
            "n": n,
            "dtype": settings.dtype,
            "seed": settings.seed,
            "settings": {
                "slices": settings.slices,
                "resamples": settings.resamples,
                "splits": settings.splits,
                **({} if others is None else {"floor_from": sides[1][1]}),
            },
        },
        "generated": _side(generated, n, hash_of(made_hashes)),
        "real": {
            **_side(real, n, sides[0][1]),
            "reference_split": settings.reference_split,
            "floor_from": None if others is None else _side(others, min(n, len(others)), sides[1][1]),
        },
        "metrics": rows,
        "notes": notes(extractor, plane_extractor, n, generated, real, others, settings.splits),
        "environment": _environment(),
        "seconds": round(time.time() - started, 2),
    }


def _open(name: str | None, weights: Path | None, sha256: str | None, default: Callable[[], Extractor]) -> Extractor:
    return open_extractor(name, weights, sha256) if name else default()


def _check_rank(option: str, extractor: Extractor | None, rank: int, wanted: str) -> None:
    if extractor is not None and extractor.rank != rank:
        sees = "volumes" if extractor.rank == 3 else "slices"
        raise UserError(f"{option}: {extractor.name} sees {sees}; choose a network for {wanted}")


def _open_others(path: str | None, real: VolumeSet) -> VolumeSet | None:
    """The real volumes at `path`, on the grid of `real`, for the floor."""
    if path is None:
        return None
    others = open_volumes(path, (real.plane, real.rule or IntensityRule()))
    if others.kind not in ("dataset", "scans"):
        raise UserError(f"floor_from: {path} holds no real volumes; a prepared dataset or scans are wanted")
    check_same_grid(others, real)
    if len(others) < LEAST:
        raise UserError(f"floor_from: {path} has {len(others)} volumes; at least {LEAST} are wanted")
    return others


def _check_apart(others: VolumeSet, hashes: list[str], real: VolumeSet, real_hashes: list[str]) -> None:
    """Raise UserError when a volume is in both sets: the floor would be lower than between sets that share nothing."""
    shared = len(set(hashes) & set(real_hashes))
    if shared:
        raise UserError(
            f"floor_from: {shared} of the {len(others)} volumes of {others.name} are among the real ones of {real.name}"
            "; give a set that shares none, as the other part that `splitshuffle split` wrote"
        )


def _common_n(wanted: int | None, generated: VolumeSet, real: VolumeSet, references: int) -> int:
    """Volumes to take on each side."""
    have = min(len(generated), references)
    found = (
        f"generated {generated.name} has {len(generated)} volumes, real {real.name} has {references} to compare with"
    )
    if wanted is not None and have < wanted:
        raise UserError(f"n: {wanted} on each side are wanted, but {found}; give a smaller n or more volumes")
    if have < LEAST:
        raise UserError(f"n: {found}; at least {LEAST} a side are wanted")
    return wanted or have


def _rows(
    made: VolumeSet,
    sides: list[tuple[VolumeSet, str]],
    reference: np.ndarray,
    extractor: Extractor,
    plane_extractor: Extractor | None,
    settings: Settings,
) -> list[dict]:
    """All rows of the card; on processes other than the main one only the features are computed, and none come back.

    `sides`: the real volumes with their hash, and the others for the floor where there are any.
    """
    truth = sides[0][0]
    draws = Draws(settings.resamples, settings.splits, settings.seed)
    options = {"batch_size": settings.batch_size, "dtype": settings.dtype}

    def jobs_of(network: Extractor, functions: list[Callable[..., dict]], **more) -> list[Callable[[], dict]]:
        here = extract(made, network, **options, **more)
        there = [cached_extract(*side, network, settings.cache, **options, **more) for side in sides]
        others = there[1] if len(there) > 1 else None
        return [partial(f, here, there[0], reference, draws=draws, others=others) for f in functions]

    chosen = set(settings.metrics)
    volumes = [fid(draws)] if "fid" in chosen else []
    volumes += [kid(draws)] if "kid" in chosen else []
    volumes += [share(name, draws) for name in SHARES] if "prdc" in chosen else []
    rows = [partial(row, number) for number in volumes]
    if "fid" in chosen:
        rows.insert(1, infinity_row)
    jobs = jobs_of(extractor, rows) if rows else []
    for plane in PLANES if "planes" in chosen else ():
        number = plane_fid(plane, plane_extractor.dimension, draws)
        jobs += jobs_of(plane_extractor, [partial(row, number)], plane=plane, slices=settings.slices)
    if "ms-ssim" in chosen:
        jobs.append(partial(ssim_row, made, truth, truth.shape, draws))
    if not PartialState().is_main_process:
        return []
    return [job() for job in tqdm(jobs, desc="measure", unit="number")]


def _side(volumes: VolumeSet, n: int, data_hash: str) -> dict:
    sides = {"name": volumes.name, "kind": volumes.kind, "n": n, "available": len(volumes), "data_hash": data_hash}
    return {**sides, **volumes.details}


def _environment() -> dict:
    state = PartialState()
    device = torch.cuda.get_device_name(state.device) if state.device.type == "cuda" else platform.machine() + " CPU"
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "monai", "numpy", "scipy")},
        "torch_fidelity": version("torch_fidelity"),
        "device": device,
        "threads": torch.get_num_threads(),
        "processes": state.num_processes,
    }
