"""A prepared dataset, opened: its array, its geometry, and torch datasets of its volumes or of their slices."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from splitshuffle_gan.data.manifest import FORMAT, VERSION
from splitshuffle_gan.data.store import REMEDY, Rows, Shards, open_rows
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.label_channels import to_channels
from splitshuffle_gan.volume import PLANES, check_geometry, grid_affine, grid_centre

FIELDS = {
    "shape": list,
    "spacing": list,
    "plane": str,
    "intensity": dict,
    "count": int,
    "data_hash": str,
    "volumes": list,
    "skipped": list,
}


@dataclass(frozen=True)
class PreparedDataset:
    """What `prepare` wrote: the manifest, and the volumes, memory-mapped, float32 `[N, 1, D, H, W]` in [-1, 1].

    `labels`, of the same shape, are uint8; None where no label maps were given.
    """

    folder: Path
    manifest: dict
    volumes: np.memmap | Shards
    labels: np.memmap | Shards | None = None

    def __reduce__(self):
        # A memory map pickles as a copy of the whole array; a data-loading process opens the folder again instead.
        return open_dataset, (self.folder,)

    def __len__(self) -> int:
        return len(self.volumes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W) in voxels."""
        return tuple(self.manifest["shape"])

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(D, H, W) in mm."""
        return tuple(self.manifest["spacing"])

    @property
    def plane(self) -> str:
        """The plane of the slices along D: axial, coronal or sagittal."""
        return self.manifest["plane"]

    @property
    def data_hash(self) -> str:
        """Changes with any prepared voxel."""
        return self.manifest["data_hash"]

    @property
    def structures(self) -> tuple[int, ...]:
        """The labels but 0, ascending; empty where no label maps were given."""
        return tuple(sorted(set(self.manifest.get("labels", {}).get("values", ())) - {0}))

    @property
    def labels_hash(self) -> str | None:
        """Changes with any label of any voxel; None where no label maps were given."""
        return self.manifest.get("labels", {}).get("data_hash")

    def shared_with(self, other: "PreparedDataset") -> list[str]:
        """Names of its volumes that `other` holds too: of the same scan, however prepared, or of equal voxels."""
        there = set().union(*(_identities(entry) for entry in other.manifest["volumes"]))
        return [entry["source"] for entry in self.manifest["volumes"] if _identities(entry) & there]

    def geometry(self, labels: bool = False) -> dict:
        """What must travel with a generator so that its samples can be written truly; plain JSON.

        spacing: mm, (D, H, W). plane. affine: 4x4 nested lists, array index -> RAS mm, axis-aligned, its middle the
        median of the volumes' own. intensity: the fields of an `IntensityMap`; for percentiles, the medians of the
        volumes' bounds. With `labels`, for a generator that draws label maps as well, labels: the structures, in the
        order of their channels.
        """
        centres = [grid_centre(entry["affine"], self.shape) for entry in self.manifest["volumes"]]
        affine = grid_affine(self.shape, self.spacing, self.plane, np.median(centres, axis=0))
        intensity = self.manifest["intensity"]
        prefix = "" if intensity["mode"] == "window" else "source_"
        low, high = intensity[f"{prefix}low"], intensity[f"{prefix}high"]
        return {
            "spacing": list(self.spacing),
            "plane": self.plane,
            "affine": affine.tolist(),
            "intensity": {"kind": intensity["mode"], "low": low, "high": high},
            **({"labels": list(self.structures)} if labels else {}),
        }


class VolumeDataset(Dataset):
    """Whole volumes: item i is {"image": float32 tensor `[1, D, H, W]` in [-1, 1]}.

    With `labels` the channels of the label map come behind that of the image, see `label_channels`.
    """

    def __init__(self, prepared: PreparedDataset, labels: bool = False):
        self.prepared, self.labels = prepared, labels

    def __len__(self) -> int:
        return len(self.prepared)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": _channels(self.prepared, (index, slice(None)), self.labels)}


class SliceDataset(Dataset):
    """Slices along D: item i is {"image": float32 `[1, H, W]` in [-1, 1], "depth": int64 scalar, its index along D}.

    Near-empty slices are passed over: those whose standard deviation is below `min_contrast` times that of the same
    volume's most contrasted slice. Padding, air and faint noise are; a slice with a few bright per cent is not.
    `index` is int64 `[items, 2]`: volume and depth. Raises UserError when `min_contrast` is outside 0..1.
    With `labels` the channels of the label map come behind that of the image, see `label_channels`.
    """

    def __init__(self, prepared: PreparedDataset, min_contrast: float = 0.1, labels: bool = False):
        if not 0 <= min_contrast <= 1:
            raise UserError(f"min_contrast: {min_contrast}; a number from 0 (every slice) to 1 is wanted")
        self.prepared, self.labels = prepared, labels
        contrast = np.array([entry["slice_std"] for entry in prepared.manifest["volumes"]])
        self.index = np.argwhere(contrast >= min_contrast * contrast.max(axis=1, keepdims=True))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        volume, depth = self.index[index]
        image = _channels(self.prepared, (volume, slice(None), depth), self.labels)
        return {"image": image, "depth": torch.tensor(depth, dtype=torch.int64)}


def _channels(prepared: PreparedDataset, place: tuple, labels: bool) -> torch.Tensor:
    """What lies at `place` in the arrays, the image's channel and, if asked for, those of the label map."""
    image = np.array(prepared.volumes[place])
    if labels:
        image = np.concatenate((image, to_channels(prepared.labels[place][0], prepared.structures)))
    return torch.from_numpy(image)


def _identities(entry: dict) -> set[str]:
    """What tells a volume of the manifest from others: its scan, maybe one of many in a 4D file, and its voxels."""
    part = re.search(r"#\d+$", entry["source"])
    return {entry["sha256"] + (part[0] if part else ""), entry["prepared_sha256"]}


def open_dataset(folder: Path) -> PreparedDataset:
    """Open a prepared dataset, checking the manifest and the array's header against each other; voxels are not read.

    Raises UserError naming the file and the field when something is missing or does not fit.
    """
    folder = Path(folder)
    for path in (folder, folder / "manifest.json"):
        if not path.exists():
            raise UserError(f"{path} does not exist; make the dataset with `splitshuffle prepare`")
    manifest = _read_manifest(folder / "manifest.json")
    sharded = "shards" in manifest
    counts = tuple(manifest["shards"]) if sharded else (manifest["count"],)
    files = Rows(folder, "volumes", "float32", tuple(manifest["shape"]), counts, sharded)
    volumes = open_rows(files)
    labels = open_rows(replace(files, name="labels", dtype="uint8")) if "labels" in manifest else None
    dataset = PreparedDataset(folder, manifest, volumes, labels)
    try:
        check_geometry(dataset.geometry(), str(folder / "manifest.json"))
        depths = {len(entry["slice_std"]) for entry in manifest["volumes"]}
    except (KeyError, TypeError, IndexError) as error:
        found = f"{folder / 'manifest.json'}: a field of the set or of a volume is missing or of another kind"
        raise UserError(f"{found} ({error!r}); {REMEDY}") from error
    if depths != {manifest["shape"][0]}:
        raise UserError(f"{folder / 'manifest.json'}: slice_std has {depths} values, wanted {manifest['shape'][0]}")
    return dataset


def _read_manifest(path: Path) -> dict:
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); {REMEDY}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: format is not {FORMAT!r}; give a folder that `splitshuffle prepare` made")
    if manifest.get("version") != VERSION:
        raise UserError(f"{path}: version {manifest.get('version')!r}; this release reads version {VERSION}; {REMEDY}")
    for field, kind in FIELDS.items():
        if not isinstance(manifest.get(field), kind):
            found = repr(manifest[field])[:40] if field in manifest else "missing"
            raise UserError(f"{path}: {field} is {found}; a {kind.__name__} is wanted; {REMEDY}")
    if manifest["plane"] not in PLANES:
        raise UserError(f"{path}: plane is {manifest['plane']!r}; one of {', '.join(PLANES)} is wanted; {REMEDY}")
    if not manifest["count"] == len(manifest["volumes"]) > 0:
        raise UserError(f"{path}: count is {manifest['count']}, volumes lists {len(manifest['volumes'])}; {REMEDY}")
    shards = manifest.get("shards", [manifest["count"]])
    if not (isinstance(shards, list) and all(isinstance(n, int) for n in shards) and sum(shards) == manifest["count"]):
        raise UserError(f"{path}: shards is {repr(shards)[:40]}, wanted counts that add up to count; {REMEDY}")
    return manifest
