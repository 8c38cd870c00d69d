"""The probe's Cross-D network as an extractor: it learnt from slices, and sees volumes with the same kernels, whole."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from splitshuffle_gan import __version__
from splitshuffle_gan.checkpoint import Pretrained
from splitshuffle_gan.data.dataset import PreparedDataset, open_dataset
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.slice_resnet import SliceResNet, SliceResNetConfig
from splitshuffle_gan.extractors.weights import file_sha256, write_checksum
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json
from splitshuffle_gan.transfer.cross_d import to_3d

RECORD = "training.json"
BATCH = 8


@dataclass(frozen=True, kw_only=True)
class CarryConfig:
    """Make an extractor for volumes of a Cross-D network that `splitshuffle probe` trained on slices.

    Its kernels are taken as they are. Only its batch norms' means and variances are measured anew, on volumes, without
    any label: those of slices do not hold in volumes. Score with --extractor cross_d-resnet18 --weights OUT; try it
    with `splitshuffle validate-extractor` first.

    Attributes:
        network: the 2D network's folder, such as probe/pretrained/rotation-0123456789ab-seed0/network.
        data: prepared datasets whose volumes give the statistics, each with the same weight; best such that will
            neither be scored nor scored against.
        out: folder to make: config.json, model.safetensors, weights.sha256, training.json.
        volumes: of each dataset at most, evenly spaced.
        overwrite: replace the extractor in `out`.
    """

    network: Annotated[Path, tyro.conf.Positional]
    data: tuple[Path, ...]
    out: Path
    volumes: int = 64
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.data:
            raise UserError("data: found none, wanted at least one prepared dataset")
        if self.volumes < 2:
            raise UserError(f"volumes: found {self.volumes}, must be at least 2")


class CrossDEncoder(nn.Module, Pretrained):
    """Volumes `[N, 1, D, H, W]` in [-1, 1] to pooled features `[N, dimension]`, by a `SliceResNet` taken to 3D.

    Raises UserError for one of plain convolutions, which have no depth to use.
    """

    config_class = SliceResNetConfig

    def __init__(self, config: SliceResNetConfig, geometry: dict | None = None):
        super().__init__()
        if config.conv == "plain":
            raise UserError("conv: found 'plain', wanted Cross-D convolutions: 'published' or 'rotation'")
        self.config, self.geometry = config, geometry
        self.body = _volumetric(SliceResNet(config))

    @classmethod
    def of(cls, slices: SliceResNet) -> "CrossDEncoder":
        """The volumetric network of a 2D one: the same kernels, and its statistics of slices for the time being."""
        encoder = cls(slices.config)
        encoder.body = _volumetric(slices)
        return encoder

    @property
    def dimension(self) -> int:
        """Number of features."""
        return self.config.features

    def forward(self, volumes: Tensor) -> Tensor:
        """The features, float32."""
        return self.body(volumes).float()


def carry_to_volumes(config: CarryConfig) -> Path:
    """Make and write the extractor; returns its folder.

    Raises UserError: no such network or dataset, or the network has plain convolutions.
    """
    refuse_existing(config.out, config.overwrite, mark=RECORD)
    try:
        slices = SliceResNet.from_pretrained(config.network)
    except UserError as error:
        raise UserError(
            f"network: {config.network} is not the 2D network of an arm of `splitshuffle probe`, such as "
            f"probe/pretrained/rotation-0123456789ab-seed0/network: {error}"
        ) from error
    if slices.config.conv == "plain":
        raise UserError(
            f"network: {config.network} has plain convolutions, wanted Cross-D ones; take that of an arm of the probe "
            "whose way is cross_d, pretrained/published-... or pretrained/rotation-..."
        )
    encoder = CrossDEncoder.of(slices)
    datasets = [open_dataset(folder) for folder in config.data]
    chosen = [
        np.linspace(0, len(dataset) - 1, min(len(dataset), config.volumes)).round().astype(int) for dataset in datasets
    ]
    measure_statistics(encoder, datasets, chosen)
    with whole_folder(config.out) as folder:
        encoder.save_pretrained(folder)
        write_checksum(folder)
        write_json(folder / RECORD, {
            "created_with": __version__,
            "torch": torch.__version__,
            "network": {"path": str(config.network), "sha256": file_sha256(config.network / "model.safetensors"),
                        "trained": _beside(config.network)},
            "statistics": [{"data": str(path), "data_hash": dataset.data_hash, "volumes": len(rows),
                            "spacing": list(dataset.spacing)}
                           for path, dataset, rows in zip(config.data, datasets, chosen, strict=True)],
        })  # fmt: skip
    return config.out


@torch.no_grad()
def measure_statistics(encoder: CrossDEncoder, datasets: list[PreparedDataset], chosen: list[np.ndarray]) -> None:
    """Set all batch norms' means and variances, in place, to those of the datasets together, each of the same weight.

    `chosen`: rows of each dataset. The encoder is in eval mode afterwards.
    """
    found = []
    for dataset, rows in zip(datasets, chosen, strict=True):
        update_bn(_batches(dataset, rows), encoder.train())
        found.append([(norm.running_mean.clone(), norm.running_var.clone()) for norm in _norms(encoder)])
    for norm, moments in zip(_norms(encoder), zip(*found, strict=True), strict=True):
        means, variances = (torch.stack(part) for part in zip(*moments, strict=True))
        norm.running_mean.copy_(means.mean(0))
        norm.running_var.copy_(variances.mean(0) + means.var(0, correction=0))
    encoder.eval()


def _norms(encoder: CrossDEncoder) -> list[nn.BatchNorm3d]:
    return [module for module in encoder.modules() if isinstance(module, nn.BatchNorm3d)]


def _batches(dataset: PreparedDataset, rows: np.ndarray) -> Iterator[Tensor]:
    for items in np.array_split(rows, -(-len(rows) // BATCH)):
        yield torch.from_numpy(np.stack([dataset.volumes[item] for item in items])).float()


def _volumetric(slices: SliceResNet) -> nn.Module:
    return to_3d(slices.body, "carry")[0]


def _beside(network: Path) -> dict | None:
    """What `splitshuffle probe` wrote about the training in 2D, where it is still there."""
    record = network.parent / "pretrained.json"
    return json.loads(record.read_text()) if record.is_file() else None
