"""What a run begins with: its pair of networks, and the items that they learn from."""

import torch

from splitshuffle_gan.config import DiscriminatorConfig, GeneratorConfig
from splitshuffle_gan.data.dataset import PreparedDataset, SliceDataset, VolumeDataset
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.label_channels import structures_of
from splitshuffle_gan.models.discriminator import Discriminator
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.training.options import TrainConfig


def build_networks(
    config: TrainConfig, rank: int, dataset: PreparedDataset, state: dict | None = None
) -> tuple[Generator, Discriminator]:
    """The pair of a saved `state`, of `config.init`, or fresh ones of the dataset's shape; the same in every process.

    Those of a saved state have its configs only; `Trainer.load_state_dict` brings the weights.
    Raises UserError for an `init` that does not fit, and where label maps are wanted of a dataset without.
    """
    if config.labelled and not dataset.structures:
        found = "no label maps" if dataset.labels is None else "no label but 0"
        raise UserError(
            f"channels: {config.channels} is wanted, but {config.data} has {found}; prepare it with --labels DIR "
            "(or auto), or leave --channels out"
        )
    geometry = dataset.geometry(config.labelled)
    fixed = {"rank": rank, "shape": dataset.shape, "image_channels": 1 + len(structures_of(geometry))}
    pair = []
    for model_class, config_class in ((Generator, GeneratorConfig), (Discriminator, DiscriminatorConfig)):
        given = config.network.given(config_class)
        if state is not None:
            saved = config_class.from_dict(state[model_class.__name__.lower()])
            model = model_class(saved, geometry)
        elif config.init is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed + len(pair))
                model = model_class(config_class(**fixed, **given), geometry)
        else:
            model = model_class.from_pretrained(config.init)
            _check_structures(config, structures_of(model.geometry), structures_of(geometry))
            for name, value in (fixed | given).items():
                if getattr(model.config, name) != value:
                    raise UserError(
                        f"{name}: {config.init} has {getattr(model.config, name)!r}, this run wants {value!r}. "
                        "Use a matching checkpoint, dataset or option."
                    )
            model.geometry = geometry
        pair.append(model)
    return tuple(pair)


def items_of(config: TrainConfig, rank: int, dataset: PreparedDataset) -> SliceDataset | VolumeDataset:
    """What a run learns from: slices or volumes, with their label maps where it draws those."""
    kind = SliceDataset if rank == 2 else VolumeDataset
    return kind(dataset, labels=config.labelled)


def _check_structures(config: TrainConfig, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raise UserError unless `config.init` draws what the run wants: images alone, or with the same labels."""
    if found == wanted:
        return
    said = [f"images with the labels {', '.join(map(str, x))}" if x else "images alone" for x in (found, wanted)]
    remedy = "give a dataset with the same labels"
    if not wanted:
        remedy = "pass --channels image,label"
    elif not found:
        remedy = "start from a pair that was trained with it, or leave --channels out"
    raise UserError(f"channels: {config.init} draws {said[0]}, this run {said[1]}; {remedy}")
