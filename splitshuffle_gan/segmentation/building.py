"""The network that a training starts from: fresh, transferred from 2D, or one to go on with."""

from dataclasses import fields
from pathlib import Path

import torch

from splitshuffle_gan.data.dataset import PreparedDataset
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.segmentation.network2d import Network2DConfig, SliceSegmenter, load_resnet
from splitshuffle_gan.segmentation.network3d import Network3DConfig, VolumeSegmenter, most_psp_blocks
from splitshuffle_gan.segmentation.options import Segment2DConfig, Segment3DConfig
from splitshuffle_gan.segmentation.segmenter import Segmenter, class_of, labels_of, network_folder
from splitshuffle_gan.segmentation.transfer import Transfer, transfer

DEFAULT_LAYERS = (3, 4, 6, 3)


def build(config: Segment2DConfig | Segment3DConfig, dataset: PreparedDataset) -> tuple[Segmenter, Transfer | None]:
    """The network, the same in every process, and what was transferred into it.

    Raises UserError for sizes that do not fit, or an `init` that does not.
    """
    shape = config.window or dataset.shape
    if any(want > have for want, have in zip(shape, dataset.shape, strict=True)):
        raise UserError(f"window: found {shape}, larger than the volumes of {config.data}, {dataset.shape}")
    if config.detect is not None and config.sigma < max(dataset.spacing) / 2:
        found = f"found {config.sigma:g} mm, voxels are up to {max(dataset.spacing):g} mm long"
        raise UserError(f"sigma: {found}; at least half of that is wanted, or lesions fall between the voxels")
    labels, sigma = (labels_of(dataset), None) if config.detect is None else ((0, config.detect), config.sigma)
    shared = {"labels": labels, "sigma": sigma, "shape": tuple(shape), "percentiles": _percentiles(dataset)}
    if isinstance(config, Segment2DConfig):
        return _slices(config, shared, dataset.geometry()), None
    return _volumes(config, shared, dataset.geometry())


def _slices(config: Segment2DConfig, shared: dict, geometry: dict) -> SliceSegmenter:
    options = config.network
    network = Network2DConfig(
        **shared, layers=options.layers, slices=options.slices, width=options.width, scale=options.scale
    )
    segmenter = _fresh(SliceSegmenter, network, geometry, config.seed)
    if options.pretrained is not None:
        load_resnet(segmenter, options.pretrained)
    return segmenter


def _volumes(config: Segment3DConfig, shared: dict, geometry: dict) -> tuple[VolumeSegmenter, Transfer | None]:
    options, start = config.network, _open_init(config.init)
    if isinstance(start, VolumeSegmenter):
        return _go_on(start, config, shared, geometry), None
    in_plane = (1, 1) if start is None else start.config.scale
    scale = options.scale or (1, *in_plane)
    blocks = options.psp_blocks
    if blocks is None:
        blocks = most_psp_blocks(shared["shape"], scale, options.upsample)
    layers = options.layers or (DEFAULT_LAYERS if start is None else start.config.layers)
    network = Network3DConfig(
        **shared, layers=layers, psp_blocks=blocks, upsample=options.upsample, scale=scale, pad=options.pad
    )
    segmenter = _fresh(VolumeSegmenter, network, geometry, config.seed)
    if start is None:
        return segmenter, None
    if start.geometry["plane"] != geometry["plane"]:
        found = f"{config.init} was trained on {start.geometry['plane']} slices, {config.data} is {geometry['plane']}"
        raise UserError(f"init: {found}; prepare one of the two anew")
    moved = transfer(start.state_dict(), start.config, network, config.seed)
    segmenter.load_state_dict(moved.state)
    return segmenter, moved


def _open_init(init: Path | None) -> Segmenter | None:
    if init is None:
        return None
    folder = network_folder(init)
    for kind in (SliceSegmenter, VolumeSegmenter):
        if class_of(folder) == kind.__name__:
            return kind.from_pretrained(folder)
    raise UserError(f"init: {folder} holds a {class_of(folder)}, wanted a network of segment2d or segment3d")


def _go_on(start: VolumeSegmenter, config: Segment3DConfig, shared: dict, geometry: dict) -> VolumeSegmenter:
    """A trained 3D network, for this dataset. Options that are given must be those it was made with."""
    given = {field.name: getattr(config.network, field.name) for field in fields(config.network)}
    defaults = {field.name: field.default for field in fields(config.network)}
    wanted = {name: value for name, value in given.items() if value != defaults[name]}
    wanted |= {name: shared[name] for name in ("labels", "sigma")}
    for name, value in wanted.items():
        if getattr(start.config, name) != value:
            raise UserError(f"{name}: {config.init} has {getattr(start.config, name)!r}, this run wants {value!r}")
    segmenter = VolumeSegmenter(Network3DConfig(**vars(start.config) | shared), geometry)
    segmenter.load_state_dict(start.state_dict())
    return segmenter


def _fresh(kind: type[Segmenter], config: Network2DConfig | Network3DConfig, geometry: dict, seed: int) -> Segmenter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config, geometry)


def _percentiles(dataset: PreparedDataset) -> tuple[float, float] | None:
    """Those that the set was prepared with; None for a window."""
    found = dataset.manifest["intensity"].get("percentiles")
    return None if found is None else tuple(found)
