"""Feature extractors: a network, the weights it was given, and what a score's card must say about them.

Names: `medicalnet-resnet10`, `medicalnet-resnet50`, `med3d-mini`, `cross_d-resnet18` and `random-<seed>` for volumes;
`inception`, `radimagenet-resnet50` and `med2d-mini` for slices. Only the `mini` weights ship; those of
`cross_d-resnet18` are made from slices of one's own. The others are looked for in the caches of Hugging Face and torch,
then downloaded, or come from a path. All are read without unpickling, and the sha256 of the file is always computed,
checked against all that is known of it, and kept.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.cross_d import CrossDEncoder
from splitshuffle_gan.extractors.encoder import Encoder, EncoderConfig
from splitshuffle_gan.extractors.medicalnet import load_medicalnet
from splitshuffle_gan.extractors.slice_networks import load_inception, load_radimagenet
from splitshuffle_gan.extractors.weights import (
    Published,
    cached_weights,
    check_stated,
    check_weights,
    file_sha256,
    find_weights,
    given_weights,
)


@dataclass(frozen=True)
class Extractor:
    """A network that turns images into features, and everything that its numbers depend on.

    Attributes:
        name: as `open_extractor` takes it.
        rank: 3 for volumes, 2 for slices.
        dimension: number of features.
        network: frozen, float32, in eval mode, on the CPU; maps `[N, 1, *S]` in [-1, 1] to `[N, dimension]`.
        topology: the network, in one sentence.
        preprocessing: what the network itself does to its input, in one sentence.
        spacing: of the data that it was trained on, in words.
        weights: name of the file, or the seed.
        weights_sha256: of the file; for a seed, of all names and values.
        note: how it came to be chosen, and what to know about it; may be empty.
        expected_range: of the input.
    """

    name: str
    rank: int
    dimension: int
    network: nn.Module
    topology: str
    preprocessing: str
    spacing: str
    weights: str
    weights_sha256: str
    note: str = ""
    expected_range: tuple[float, float] = (-1.0, 1.0)

    def describe(self) -> dict:
        """All but the network, as plain JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "network"}
        return values | {"expected_range": list(self.expected_range)}


@dataclass(frozen=True)
class Kind:
    """What is known of an extractor before its weights are; `build` makes the network from their path.

    `dimension` None: the network says. `published` None: the weights ship with the package, or `made_by` says, in
    words, how to make them.
    """

    rank: int
    dimension: int | None
    build: Callable[[Path], nn.Module]
    topology: str
    preprocessing: str
    spacing: str
    published: Published | None = None
    made_by: str = ""


def open_extractor(name: str, weights: str | Path | None = None, sha256: str | None = None) -> Extractor:
    """The extractor called `name`.

    Args:
        name: a key of `EXTRACTORS`, or `random-<seed>` with a non-negative whole number.
        weights: a file of weights, or for a mini network its folder, instead of the published or shipped ones.
        sha256: what the sha256 of that file must be, 64 hexadecimal digits.

    Raises:
        UserError: unknown name; weights missing, tampered with, unreadable or not fitting.
    """
    check_stated(sha256)
    if seed := re.fullmatch(r"random-(0|[1-9][0-9]*)", name):
        if weights is not None or sha256 is not None:
            raise UserError(f"weights: {name} draws its weights from its seed; leave out the path and the sha256.")
        return _random(name, int(seed[1]))
    if name not in EXTRACTORS:
        raise UserError(f"extractor: {name!r} is unknown; choose one of {', '.join(EXTRACTORS)}, {RANDOM}.")
    kind = EXTRACTORS[name]
    if weights is None and kind.made_by:
        raise UserError(
            f"weights: none ship for {name}. Make some, {kind.made_by}; then pass the folder with --weights."
        )
    if weights is None:
        path = find_weights(name, kind.published, MINI[kind.rank])
    else:
        path = given_weights(name, kind.published, Path(weights))
    digest = file_sha256(path)
    check_weights(path, digest, kind.published, sha256)
    network = kind.build(path).eval().requires_grad_(False)
    note = ""
    if kind.published and digest != kind.published.sha256:
        note = f"The weights are not those published as {kind.published.file}."
    elif kind.made_by:
        note = f"The weights were made {kind.made_by}."
    elif kind.published is None and weights is not None:
        note = "The weights are not those that ship with the package, but a checkpoint of the same kind."
    return Extractor(
        name=name,
        rank=kind.rank,
        dimension=kind.dimension or network.dimension,
        network=network,
        topology=kind.topology,
        preprocessing=kind.preprocessing,
        spacing=kind.spacing,
        weights=path.name,
        weights_sha256=digest,
        note=note,
    )


def default_extractor() -> Extractor:
    """For volumes: MedicalNet's 50 layers where its weights are at hand, else `med3d-mini`; the note says which."""
    return _default(("medicalnet-resnet50",), MINI[3])


def default_plane_extractor() -> Extractor:
    """For slices: RadImageNet's or Inception's weights where they are at hand, else `med2d-mini`."""
    return _default(("radimagenet-resnet50", "inception"), MINI[2])


def _default(wanted: tuple[str, ...], fallback: str) -> Extractor:
    """The first of `wanted` that is in a cache, else `fallback`. The network is not asked."""
    name = next((name for name in wanted if cached_weights(EXTRACTORS[name].published)), fallback)
    extractor = open_extractor(name)
    if name != fallback:
        chosen = f"Chosen by default, as the weights of {name} are at hand; elsewhere the default may be {fallback}."
    else:
        chosen = (
            f"{fallback}, the small network that ships, stands in by default because the weights of "
            f"{' and '.join(wanted)} are not at hand; scores by the two cannot be compared."
        )
    return replace(extractor, note=f"{chosen} {extractor.note}".strip())


def _load_encoder(path: Path, rank: int) -> nn.Module:
    encoder = Encoder.from_pretrained(path.parent)
    if encoder.config.rank != rank:
        raise UserError(f"{path.parent}: an encoder of rank {encoder.config.rank}, wanted rank {rank}.")
    return encoder


def _load_cross_d(path: Path) -> nn.Module:
    return CrossDEncoder.from_pretrained(path.parent)


def _random(name: str, seed: int) -> Extractor:
    network = draw_weights(Encoder(EncoderConfig(rank=3)), seed).eval().requires_grad_(False)
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(key.encode() + value.numpy().tobytes())
    return Extractor(
        name=name,
        rank=3,
        dimension=network.dimension,
        network=network,
        topology=ENCODER_TOPOLOGY,
        preprocessing=AS_IT_IS,
        spacing="none, untrained",
        weights=f"seed {seed}",
        weights_sha256=digest.hexdigest(),
        note="Untrained: it sees grey values and texture at four scales, and knows no anatomy.",
    )


def draw_weights(network: nn.Module, seed: int) -> nn.Module:
    """Draw all kernels of a fresh `network` from `seed`, in place: the same bits on every machine.

    Kaiming's uniform distribution, variance 2 / fan-in, in the order of `named_parameters`; what is no kernel (batch
    norm) stays at its identity. From the raw 64 bits of PCG64, whose stream numpy promises to keep, by exact
    arithmetic: numpy's and torch's own distributions may change with a version, and normal ones use logarithms.
    """
    bits = np.random.PCG64(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                unit = (bits.random_raw(parameter.numel()) >> np.uint64(11)) * 2.0**-53  # [0, 1)
                bound = np.sqrt(6 / parameter[0].numel())
                values = ((2 * unit - 1) * bound).astype(np.float32)
                parameter.copy_(torch.from_numpy(values).view(parameter.shape))
    return network


# --- the table -------------------------------------------------------------------------------------------------------

HUB = "https://huggingface.co/"
AS_IT_IS = "None: intensities in [-1, 1] enter as they are, at their own spacing."
ENCODER_TOPOLOGY = (
    "Residual encoder of four stages at strides 1, 2, 4 and 8; each stage's lateral is averaged over the grid."
)
MINI_TOPOLOGY = f"{ENCODER_TOPOLOGY} The averages are whitened by their covariance within the training sets, pooled."


def _medicalnet_kind(depth: int, dimension: int, megabytes: float, sha256: str) -> Kind:
    repository, file = f"TencentMedicalNet/MedicalNet-Resnet{depth}", f"resnet_{depth}_23dataset.pth"
    return Kind(
        rank=3,
        dimension=dimension,
        build=partial(load_medicalnet, depth=depth),
        topology=(
            f"3D ResNet-{depth} as in MedicalNet: conv1 and pooling of stride 2, layers 3 and 4 of stride 1 with "
            "dilation 2 and 4, shortcut B; no segmentation head; layer4 averaged over the grid."
        ),
        preprocessing=f"{AS_IT_IS} (MedicalNet standardised each training volume, which would hide gain and offset.)",
        spacing="that of 23 sets of CT and MR scans, various",
        published=Published(file, megabytes, sha256, f"{HUB}{repository}", repository),
    )


def _mini_kind(rank: int, spacing: str) -> Kind:
    return Kind(rank, None, partial(_load_encoder, rank=rank), MINI_TOPOLOGY, AS_IT_IS, spacing)


RANDOM = "random-<seed>"
MINI = {3: "med3d-mini", 2: "med2d-mini"}  # by rank
EXTRACTORS = {
    "medicalnet-resnet10": _medicalnet_kind(
        10, 512, 57.5, "afa8055f3e47f4a18239495d92a7abc587902c69c31c743de2b2784653b72605"
    ),
    "medicalnet-resnet50": _medicalnet_kind(
        50, 2048, 184.9, "ff48a62219073fb977fd3f4ddfb8dc1367f0ec156c8d6f6c37e205bd683a246e"
    ),
    "med3d-mini": _mini_kind(3, "phantoms at 3.5 and 4.7 mm, and the scans that its README names"),
    "cross_d-resnet18": Kind(
        rank=3,
        dimension=None,
        build=_load_cross_d,
        topology=(
            "ResNet-18 whose Cross-D kernels learnt from slices and are used whole in volumes; the last stage averaged "
            "over the grid."
        ),
        preprocessing=AS_IT_IS,
        spacing="that of the slices and volumes which training.json beside its weights names",
        made_by="by `splitshuffle probe` in 2D and `splitshuffle carry` to volumes",
    ),
    "radimagenet-resnet50": Kind(
        rank=2,
        dimension=2048,
        build=load_radimagenet,
        topology="ResNet-50 with the stride in the 3x3 convolutions, without classifier; averaged over the grid.",
        preprocessing=(
            "Bilinear to 224x224, three equal channels; intensities in [-1, 1] as they are, which is the mapping "
            "(x - 127.5) * 2 / 255 that RadImageNet's example gives."
        ),
        spacing="1.35 million slices of CT, MR and ultrasound, various",
        published=Published(
            "ResNet50.pt",
            94.3,
            "08629f7e7bd3e29b8ee9522ca3f65ce4d010a7ddf74f0ea3c7e3f3d0bbab0734",
            f"{HUB}Lab-Rasool/RadImageNet",
            repository="Lab-Rasool/RadImageNet",
        ),
    ),
    "inception": Kind(
        rank=2,
        dimension=2048,
        build=load_inception,
        topology="InceptionV3 as in torch-fidelity (TensorFlow's of 2015-12-05), last average pooling.",
        preprocessing=(
            "[-1, 1] rounded to whole numbers from 0 to 255, three equal channels, bilinear to 299x299 as TensorFlow 1."
        ),
        spacing="photographs (ImageNet), no medical image",
        published=Published(
            "weights-inception-2015-12-05-6726825d.pth",
            95.6,
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0",
            link=(
                "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                "weights-inception-2015-12-05-6726825d.pth"
            ),
            aliases=("pt_inception-2015-12-05-6726825d.pth",),
        ),
    ),
    "med2d-mini": _mini_kind(2, "slices of phantoms at 3.5 and 4.7 mm, and of the scans that its README names"),
}
