"""AH-Net's second stage: the 2D network's encoder becomes the 3D network's (arXiv 1711.08580), a pure function.

| 3D key | rule |
|---|---|
| 7x7 stem over three neighbouring slices | 7x7x3: the slice channels become the kernel's depth |
| k x k kernel | k x k x 1 |
| batch norm: weight, bias *and running mean, variance, count* | copied |
| decoder | new |

The published code and MONAI's `copy_from` carry a batch norm's weight and bias only. In evaluation mode the running
statistics are half of what it does; with them, and with MONAI's depth border replaced (`network3d`), the 3D encoder
gives on a stack of equal slices what the 2D encoder gives on the slice.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.segmentation.network2d import Network2DConfig, SliceSegmenter
from splitshuffle_gan.segmentation.network3d import Network3DConfig, VolumeSegmenter

ENCODER_2D = "encoder."
STEM_SLICES = 3


@dataclass(frozen=True)
class Transfer:
    """A 3D state dict; where each key of it came from, "copied", "transferred" or "new"; and what stays behind.

    `left` are the keys of the 2D decoder, which has no counterpart.
    """

    state: dict[str, Tensor]
    origin: dict[str, str]
    left: tuple[str, ...]


def transfer(
    state2d: dict[str, Tensor], config2d: Network2DConfig, config3d: Network3DConfig, seed: int = 0
) -> Transfer:
    """The state of a `VolumeSegmenter` from that of a `SliceSegmenter`; the decoder is that of a fresh one of `seed`.

    Raises:
        UserError: configs that do not correspond, a 2D key that is missing, left over or of another shape.
    """
    _check_pair(config2d, config3d)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        target, source = VolumeSegmenter(config3d), SliceSegmenter(config2d)
    _check_keys(source, state2d)
    fresh = {key: value.clone() for key, value in target.state_dict().items()}
    sources = _sources(target)
    state, origin = {}, {}
    for key, value in fresh.items():
        if key not in sources:
            state[key], origin[key] = value, "new"
            continue
        name, rule = sources[key]
        if name not in state2d:
            raise UserError(f"transfer: no 2D key {name} for the 3D key {key}")
        state[key] = rule(state2d[name])
        origin[key] = "copied" if rule is torch.clone else "transferred"
        if state[key].shape != value.shape:
            raise UserError(f"transfer: key {key} became {tuple(state[key].shape)}, wanted {tuple(value.shape)}")
    used = {name for name, _ in sources.values()}
    left = tuple(key for key in state2d if key not in used)
    if lost := [key for key in left if key.startswith(ENCODER_2D)]:
        raise UserError(f"transfer: {len(lost)} key(s) of the 2D encoder have no place, first {lost[0]}")
    return Transfer(state, origin, left)


def inflate_stem(kernel: Tensor) -> Tensor:
    """`[out, slices, kH, kW] -> [out, 1, kH, kW, slices]`: slice i of the input becomes the kernel's depth i."""
    return kernel.permute(0, 2, 3, 1)[:, None].clone()


def inflate_in_plane(kernel: Tensor) -> Tensor:
    """`[out, in, kH, kW] -> [out, in, kH, kW, 1]`, in MONAI's order of axes; no rescaling."""
    return kernel[..., None].clone()


def _sources(target: VolumeSegmenter) -> dict[str, tuple[str, Callable[[Tensor], Tensor]]]:
    """For every key of the 3D encoder the 2D key and what becomes of it."""
    sources = {}
    parts = {"body.conv1": "conv1", "body.bn0": "bn1", **{f"body.layer{n}": f"layer{n}" for n in range(1, 5)}}
    for name, module in target.named_modules():
        part = next((part for part in parts if name == part or name.startswith(f"{part}.")), None)
        if part is None or not isinstance(module, (nn.Conv3d, nn.BatchNorm3d)):
            continue
        # MONAI's 3D shortcut is convolution, pooling over depth, norm; the 2D one lacks the pooling.
        name2d = ENCODER_2D + parts[part] + name[len(part) :].replace("downsample.2", "downsample.1")
        rule = torch.clone
        if isinstance(module, nn.Conv3d):
            rule = inflate_stem if name == "body.conv1" else inflate_in_plane
        for key in module.state_dict():
            sources[f"{name}.{key}"] = (f"{name2d}.{key}", rule)
    return sources


def _check_pair(config2d: Network2DConfig, config3d: Network3DConfig) -> None:
    if config2d.slices != STEM_SLICES:
        raise UserError(f"slices: the 2D network has {config2d.slices}; only {STEM_SLICES} become a 7x7x3 stem")
    if config2d.layers != config3d.layers:
        raise UserError(f"layers: the 3D config has {config3d.layers}, the 2D network implies {config2d.layers}")
    if config2d.scale != config3d.scale[1:]:
        raise UserError(f"scale: the 3D config has {config3d.scale}, the 2D network implies {config2d.scale} in-plane")


def _check_keys(source: nn.Module, state2d: dict[str, Tensor]) -> None:
    own = source.state_dict()
    if missing := [key for key in own if key not in state2d]:
        raise UserError(f"transfer: the 2D state misses {len(missing)} key(s), first {missing[0]}")
    if extra := [key for key in state2d if key not in own]:
        raise UserError(f"transfer: the 2D state has {len(extra)} key(s) too many, first {extra[0]}")
