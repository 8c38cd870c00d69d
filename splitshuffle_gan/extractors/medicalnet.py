"""MedicalNet's own topology (Med3D, Chen et al., arXiv 1904.00625) on MONAI's residual networks, loaded strictly.

MedicalNet trained its encoders for segmentation, at an eighth of the resolution: its third and fourth stages keep the
stride at 1 and dilate instead. MONAI's `resnet10` and `resnet50` take the same weights without complaint and halve the
grid twice more, so they compute other features.

| stage | convolution | stride | dilation | grid |
|---|---|---|---|---|
| conv1 | 7x7x7, 64 | 2 | 1 | 1/2 |
| max pooling | 3x3x3 | 2 | 1 | 1/4 |
| layer1 | 3x3x3, 64 | 1 | 1 | 1/4 |
| layer2 | 3x3x3, 128 | 2 | 1 | 1/8 |
| layer3 | 3x3x3, 256 | 1 | 2 | 1/8 |
| layer4 | 3x3x3, 512 | 1 | 4 | 1/8 |

The stride is that of a stage's first block. Depth 10 has one basic block a stage, both convolutions dilated; depth 50
has 3, 4, 6, 3 bottlenecks with four times the channels, the middle convolution strided and dilated. Where the shape
changes the shortcut is a 1x1x1 convolution without bias and a batch norm (type B). The features are layer4's averages
over the grid.
"""

import pickle
import re
import warnings
from pathlib import Path

import torch
from monai.networks.nets.resnet import ResNet, ResNetBlock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from splitshuffle_gan.checkpoint import load_strictly
from splitshuffle_gan.errors import UserError

BLOCKS = {10: ("basic", [1, 1, 1, 1]), 50: ("bottleneck", [3, 4, 6, 3])}
DIMENSION = {10: 512, 50: 2048}
WIDTHS = [64, 128, 256, 512]
HEAD = "conv_seg."
COUNTER = ".num_batches_tracked"
REMEDY = "Save the network's state_dict() instead."


def medicalnet(depth: int) -> nn.Module:
    """MedicalNet's encoder of 10 or 50 layers, untrained, in eval mode: `[N, 1, D, H, W]` to `[N, 512 or 2048]`.

    Any size works; on a side of 8 voxels or less the dilated layers see one cell and padding.
    Raises ValueError for another depth.
    """
    if depth not in BLOCKS:
        raise ValueError(f"depth: found {depth!r}, wanted one of {sorted(BLOCKS)}")
    block, layers = BLOCKS[depth]
    network = ResNet(
        block,
        layers,
        WIDTHS,
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_stride=2,
        shortcut_type="B",
        bias_downsample=False,
        feed_forward=False,
    )
    _dilate(network.layer3, 2)
    _dilate(network.layer4, 4)
    return network.eval()


def _dilate(stage: nn.Sequential, dilation: int) -> None:
    """Give a stage of MONAI's network stride 1 and `dilation`, in place; the weights stay as they are."""
    for block in stage:
        spatial = (block.conv1, block.conv2) if isinstance(block, ResNetBlock) else (block.conv2,)
        for convolution in spatial:
            convolution.stride, convolution.dilation, convolution.padding = (1,) * 3, (dilation,) * 3, (dilation,) * 3
        block.stride = 1
        if block.downsample is not None:
            block.downsample[0].stride = (1,) * 3


def load_medicalnet(path: str | Path, depth: int) -> nn.Module:
    """MedicalNet's encoder with the weights of a `.pth` or `.safetensors` file, frozen, in eval mode, on the CPU.

    The file holds a state dict, bare or as the entry `state_dict`, with or without DataParallel's `module.` before
    every key. Two differences are allowed, as they cannot change a feature: the segmentation head, `conv_seg.`, which
    fine-tuned networks carry and the published encoders do not, is dropped; and batch norm's `num_batches_tracked`, a
    count that only training reads and that old files lack, may be absent.

    Raises:
        UserError: the file cannot be read, is no plain state dict, or has a key missing, left over or misshapen.
    """
    network = medicalnet(depth)
    state = {key: value for key, value in read_state(path).items() if not key.startswith(HEAD)}
    counters = {key: value for key, value in network.state_dict().items() if key.endswith(COUNTER)}
    remedy = f"Use weights of MedicalNet's resnet{depth}, such as resnet_{depth}_23dataset.pth."
    load_strictly(network, counters | state, f"{path}, read as MedicalNet's resnet{depth}", remedy)
    return network.requires_grad_(False)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a `.pth` or `.safetensors` file: names to tensors, on the CPU, and no code is run.

    Unwraps an entry `state_dict` (what stands beside it is a record of the training) and takes `module.` off the
    names when all have it.

    Raises:
        UserError: no such file, not readable, something in it that is not a tensor, or a value that is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"weights: {path} is not a file; wanted a .pth or .safetensors file.")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path}: holds {_what(state)}, wanted a plain state dict: names and tensors. {REMEDY}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: entry {key!r} is {_what(value)}, wanted names and tensors only. {REMEDY}")
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{path}: {key} has values that are not finite. Download the file again.")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)


def _what(value: object) -> str:
    return "an empty dict" if value == {} else f"a {type(value).__name__}"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}). Download it again.") from error


def _read_pickle(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, which a damaged file makes up
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        detail = f"it asks for {asked[1]}" if asked else "or it is damaged"
        raise UserError(
            f"{path}: refused: not a plain state dict ({detail}), and opening anything else could run code. {REMEDY}"
        ) from error
    except Exception as error:  # torch meets damaged files with assertions, key errors and much else
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not readable as weights ({reason[:120]}). Download the file again.") from error
