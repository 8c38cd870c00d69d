"""Train an `Encoder` in the manner of Med3D (Chen et al., arXiv 1904.00625): one encoder, a light decoder per set.

Every set is a folder with `images/` and `labels/` (the layout that `splitshuffle phantom` writes), in any format that
`splitshuffle prepare` reads. The decoders segment all labels of their own set; only the encoder is kept.
"""

import hashlib
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import Tensor, nn
from tqdm import tqdm

from splitshuffle_gan import __version__, nd
from splitshuffle_gan.data.labels import LabelMaps, check_grid, read_labels
from splitshuffle_gan.data.phantom import LABELS, make_phantom
from splitshuffle_gan.data.readers.scan import Scan
from splitshuffle_gan.data.readers.scans import all_scans
from splitshuffle_gan.data.recipe import DEFAULT_PERCENTILES
from splitshuffle_gan.devices import make_accelerator
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.encoder import Encoder, EncoderConfig
from splitshuffle_gan.extractors.weights import write_checksum
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json
from splitshuffle_gan.parallel import parallel_map
from splitshuffle_gan.presets import load_preset
from splitshuffle_gan.volume import PLANES, IntensityMap, plane_slices

PHANTOM_SIDES = (64, 48)  # two finenesses: crops show the parts of one, the whole of the other
PHANTOM_FIELD = 224.0  # mm
SLICES_PER_PATCH = 12
SLICES_PER_PLANE = 8
AIR = -1.0
SHOW_EVERY = 20  # steps


@dataclass(frozen=True, kw_only=True)
class ExtractorConfig:
    """Train the feature extractor for scores by segmenting several labelled sets at once.

    Attributes:
        out: folder to make: config.json, model.safetensors, weights.sha256, training.json.
        rank: 3 for volumes (med3d-mini), 2 for slices of all planes (med2d-mini).
        labelled: folders with images/ and labels/, scans and label maps of the same names, as `splitshuffle phantom`
            writes them.
        phantoms: built-in phantoms of each kind, brain and heart, that are segmented too.
        held_out: share of each set that is only used for the Dice scores, chosen by a hash of the file name.
        steps: of one batch each; every batch holds patches of every set, so that the statistics by which the encoder
            normalises are those of all of them.
        batch_size: patches per set and step.
        patch: voxels of the random crops, D H W; multiples of 8.
        learning_rate: highest, of AdamW on a one-cycle schedule.
        precision: auto, bf16 or no.
        seed: of phantoms, weights and crops.
        overwrite: replace the extractor in `out`.
    """

    out: Path
    rank: int = 3
    labelled: tuple[Path, ...] = ()
    phantoms: int = 200
    held_out: float = 0.2
    steps: int = 1500
    batch_size: int = 2
    patch: tuple[int, int, int] = (48, 48, 48)
    learning_rate: float = 2e-3
    precision: str = "auto"
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        EncoderConfig(rank=self.rank)
        if not self.labelled and not self.phantoms:
            raise UserError("labelled: no folder given and phantoms is 0; there is nothing to learn from")
        if any(side % 8 or side < 8 for side in self.patch):
            raise UserError(f"patch: found {self.patch}, three multiples of 8 are wanted")
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out: found {self.held_out}, a share between 0 and 1 is wanted")
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: found {getattr(self, name)}, must be at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"learning_rate: found {self.learning_rate}, a number above 0 is wanted")
        if self.precision not in ("auto", "bf16", "no"):
            raise UserError(f"precision: found {self.precision!r}, must be one of auto, bf16, no")


@dataclass(frozen=True)
class LabelledSet:
    """Pairs of images, float32 `[D, H, W]` in [-1, 1], and labels, uint8, of which the last `held` are held out."""

    name: str
    images: list[np.ndarray]
    labels: list[np.ndarray]
    classes: int
    held: int
    data_hash: str


class Decoder(nn.Module):
    """Laterals to logits: 1x1 convolutions from coarse to fine, the sum so far brought to each finer grid; one more."""

    def __init__(self, rank: int, levels: int, lateral: int, classes: int, width: int = 32):
        super().__init__()
        convolution = nn.Conv2d if rank == 2 else nn.Conv3d
        self.inputs = nn.ModuleList(convolution(lateral, width, 1) for _ in range(levels))
        self.output = nn.Sequential(nn.ReLU(), convolution(width, classes, 1))
        self.mode = "bilinear" if rank == 2 else "trilinear"

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits `[N, classes, *S]` of the laterals `[N, lateral, *S / stride]`, fine to coarse."""
        x = self.inputs[-1](maps[-1])
        for layer, level in zip(self.inputs[-2::-1], maps[-2::-1], strict=True):
            # Inside autocast, growing would be done in float32.
            with nd.explicit_dtypes(x.device):
                x = F.interpolate(x, size=level.shape[2:], mode=self.mode, align_corners=False)
            x = x + layer(level)
        return self.output(x)


class Segmenter(nn.Module):
    """An encoder, and a decoder for every set."""

    def __init__(self, encoder: Encoder, classes: dict[str, int]):
        super().__init__()
        self.encoder = encoder
        rank, levels, lateral = encoder.config.rank, len(encoder.laterals), encoder.config.lateral
        # By number: a folder may have a name that a ModuleDict cannot take, such as "train" or "a.b".
        self.number = {name: index for index, name in enumerate(classes)}
        self.decoders = nn.ModuleList(Decoder(rank, levels, lateral, count) for count in classes.values())

    def forward(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """Logits `[N, classes, *S]` per set, of images `[N, 1, *S]` per set; one batch to the encoder."""
        maps = self.encoder.pyramid(torch.cat(list(images.values())))
        parts = zip(*(level.split([len(part) for part in images.values()]) for level in maps), strict=True)
        return {name: self.decoders[self.number[name]](list(part)) for name, part in zip(images, parts, strict=True)}


def train_extractor(config: ExtractorConfig) -> Path:
    """Train and write the encoder; returns its folder. Raises UserError for sets that cannot be read."""
    refuse_existing(config.out, config.overwrite, mark="training.json")
    accelerator = make_accelerator(config.precision)
    torch.manual_seed(config.seed)
    sets = _open_sets(config)
    encoder = Encoder(EncoderConfig(rank=config.rank))
    segmenter = Segmenter(encoder, {entry.name: entry.classes for entry in sets})
    layout = nd.channels_last(config.rank)
    segmenter = segmenter.to(accelerator.device, memory_format=layout).train()
    optimizer = torch.optim.AdamW(segmenter.parameters(), config.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, config.steps)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    rng = np.random.default_rng(config.seed)
    started = time.time()
    losses: dict[str, Tensor] = {}
    progress = tqdm(range(config.steps), desc="extractor", unit="step")
    for step in progress:
        batches = {entry.name: _batch(entry, config, rng) for entry in sets}
        images = {name: part.to(accelerator.device, memory_format=layout) for name, (part, _) in batches.items()}
        with accelerator.autocast():
            logits = segmenter(images)
        losses = {
            name: loss_of(logits[name].float(), labels.to(accelerator.device)) for name, (_, labels) in batches.items()
        }
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(segmenter.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % SHOW_EVERY == 0 or step == config.steps - 1:
            shown = {name: loss.item() for name, loss in losses.items()}
            if not np.isfinite(list(shown.values())).all():
                raise FloatingPointError(f"step {step}: the losses {shown} are not finite; lower learning_rate")
            progress.set_postfix({name: f"{value:.2f}" for name, value in shown.items()})
    dice = {entry.name: held_out_dice(segmenter, entry, accelerator) for entry in sets}
    calibrate(encoder, sets, config.patch, rng)
    with whole_folder(config.out) as folder:
        encoder.eval().save_pretrained(folder)
        write_checksum(folder)
        write_json(folder / "training.json", _record(config, sets, dice, shown, time.time() - started))
    return config.out


@torch.no_grad()
def held_out_dice(segmenter: Segmenter, entry: LabelledSet, accelerator) -> float:
    """Mean Dice over the labels (without background) that occur, on the set's held-out volumes, taken whole."""
    segmenter.eval()
    hits, sizes = np.zeros(entry.classes), np.zeros(entry.classes)
    for image, label in zip(entry.images[-entry.held :], entry.labels[-entry.held :], strict=True):
        batch = torch.from_numpy(image)[None, None].to(accelerator.device)
        batch = batch if segmenter.encoder.config.rank == 3 else batch[0].transpose(0, 1)
        with accelerator.autocast():
            found = segmenter({entry.name: batch})[entry.name].argmax(1).cpu().numpy().reshape(label.shape)
        for index in range(entry.classes):
            hits[index] += 2 * np.sum((found == index) & (label == index))
            sizes[index] += np.sum(found == index) + np.sum(label == index)
    segmenter.train()
    present = sizes[1:] > 0
    # Where there is nothing to find and nothing was found, nothing is wrong.
    return float(np.mean(hits[1:][present] / sizes[1:][present])) if present.any() else 1.0


@torch.no_grad()
def calibrate(encoder: Encoder, sets: list[LabelledSet], patch: tuple[int, int, int], rng: np.random.Generator) -> None:
    """Whiten the features by those of the training volumes, whole and as random patches, cropped and padded.

    Padding belongs in: datasets on one grid have it, and how much of it a volume has would else be the largest
    difference between volumes. At rank 2, of eight slices in each plane.
    """
    encoder.eval()
    device = encoder.centre.device
    features = []
    for entry in sets:
        rows = []
        train = zip(entry.images[: -entry.held], entry.labels[: -entry.held], strict=True)
        for image, label in tqdm(list(train), desc=f"whiten: {entry.name}", unit="volume"):
            for view in (image, _crop(image, label, patch, rng)[0]):
                if encoder.config.rank == 3:
                    stacks = [view[None]]
                else:
                    stacks = [plane_slices(view, "axial", plane, SLICES_PER_PLANE) for plane in PLANES]
                rows += [encoder(torch.from_numpy(stack)[:, None].to(device)) for stack in stacks]
        features.append(torch.cat(rows).cpu())
    encoder.whiten(features)


def order_by_hash(names: list[str]) -> list[str]:
    """`names` in an order that depends on each name alone, so that a set that grows keeps most of its split."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def _open_sets(config: ExtractorConfig) -> list[LabelledSet]:
    for folder in config.labelled:  # before a minute of phantoms
        _check_labelled(Path(folder))
    sets = [_phantom_set(kind, config) for kind in LABELS if config.phantoms]
    sets += [_folder_set(Path(folder), config) for folder in config.labelled]
    names = [entry.name for entry in sets]
    if len(set(names)) != len(names):
        raise UserError(f"labelled: two sets have the same name ({', '.join(names)}); rename a folder")
    return sets


def _phantom_set(kind: str, config: ExtractorConfig) -> LabelledSet:
    window = {"brain": None, "heart": load_preset("heart-ct")["prepare"]["window"]}[kind]
    tasks = [(kind, PHANTOM_SIDES[i % 2], config.seed * 1_000_003 + i, window) for i in range(config.phantoms)]
    pairs = list(tqdm(parallel_map(_one_phantom, tasks), total=len(tasks), desc=f"{kind} phantoms"))
    images, labels = map(list, zip(*pairs, strict=True))
    return _labelled(kind, images, labels, config, len(LABELS[kind]))


def _one_phantom(task: tuple[str, int, int, list | None]) -> tuple[np.ndarray, np.ndarray]:
    kind, side, seed, window = task
    phantom = make_phantom(kind, (side,) * 3, (PHANTOM_FIELD / side,) * 3, seed)
    return _to_unit(phantom.image, window, f"{kind} phantom {seed}"), phantom.label


def _check_labelled(folder: Path) -> None:
    for part in ("images", "labels"):
        if not (folder / part).is_dir():
            raise UserError(f"{folder}: has no {part}/; a labelled set is a folder with images/ and labels/")


def _folder_set(folder: Path, config: ExtractorConfig) -> LabelledSet:
    scans = {scan.name: scan for scan in all_scans(folder / "images")}
    maps = LabelMaps(folder / "images", folder / "labels")
    images, labels = [], []
    for name in tqdm(order_by_hash(list(scans)), desc=folder.name, unit="scan"):
        images.append(_to_unit(scans[name].read().array[0], None, f"{folder}/images/{name}"))
        labels.append(_labels_of(scans[name], maps, folder))
    return _labelled(folder.name, images, labels, config, int(max(label.max() for label in labels)) + 1)


def _labels_of(scan: Scan, maps: LabelMaps, folder: Path) -> np.ndarray:
    try:
        label = maps.of(scan)
        check_grid(scan.name, scan.header(), label.header())
        return read_labels(label, "axial")
    except UserError as error:
        raise UserError(f"{folder}/labels: {error}") from error


def _labelled(name: str, images: list, labels: list, config: ExtractorConfig, classes: int) -> LabelledSet:
    if classes < 2:
        raise UserError(f"{name}: no voxel has a label, there is background only; nothing can be learnt from it")
    held = max(1, round(config.held_out * len(images)))
    if len(images) - held < 2:
        found = f"{name}: {len(images)} labelled volumes, of which {held} are held out"
        raise UserError(f"{found}; at least 2 to learn from and 1 to check by are wanted")
    digest = hashlib.sha256()
    for image, label in zip(images, labels, strict=True):
        digest.update(image.tobytes() + label.tobytes())
    return LabelledSet(name, images, labels, classes, held, digest.hexdigest())


def _to_unit(image: np.ndarray, window: list | None, source: str) -> np.ndarray:
    low, high = window or np.percentile(image, DEFAULT_PERCENTILES)
    if not low < high:
        raise UserError(f"{source}: constant or not finite; replace or remove it")
    return IntensityMap("window" if window else "percentiles", float(low), float(high)).to_unit(image)


def _batch(entry: LabelledSet, config: ExtractorConfig, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Random crops: images `[N, 1, *S]`, labels `[N, 1, *S]`; at rank 2 slices of them, all in one random plane."""
    chosen = rng.integers(len(entry.images) - entry.held, size=config.batch_size)
    crops = [_crop(entry.images[i], entry.labels[i], config.patch, rng) for i in chosen]
    images = torch.from_numpy(np.stack([image for image, _ in crops])[:, None])
    labels = torch.from_numpy(np.stack([label for _, label in crops])[:, None]).float()
    if config.rank == 3:
        return images, labels
    axis = int(rng.integers(2, 5))
    picked = torch.from_numpy(rng.choice(images.shape[axis], min(SLICES_PER_PATCH, images.shape[axis]), replace=False))
    return tuple(part.index_select(axis, picked).movedim(axis, 1).flatten(0, 1) for part in (images, labels))


def _crop(image: np.ndarray, label: np.ndarray, patch: tuple[int, int, int], rng: np.random.Generator):
    starts = [int(rng.integers(max(0, have - want) + 1)) for have, want in zip(image.shape, patch, strict=True)]
    window = tuple(slice(start, start + want) for start, want in zip(starts, patch, strict=True))
    image, label = image[window], label[window]
    pads = []
    for have, want in zip(image.shape, patch, strict=True):
        before = int(rng.integers(want - have + 1))
        pads.append((before, want - have - before))
    return np.pad(image, pads, constant_values=AIR), np.pad(label, pads)


def _record(config: ExtractorConfig, sets: list[LabelledSet], dice: dict, losses: dict, seconds: float) -> dict:
    settings = {name: value for name, value in vars(config).items() if name not in ("out", "labelled", "overwrite")}
    return {
        "created_with": __version__,
        "torch": torch.__version__,
        "config": settings,
        "sets": {
            entry.name: {
                "train": len(entry.images) - entry.held,
                "held_out": entry.held,
                "labels": entry.classes,
                "data_hash": entry.data_hash,
                "held_out_dice": dice[entry.name],
                "last_loss": losses[entry.name],
            }
            for entry in sets
        },
        "seconds": seconds,
    }
