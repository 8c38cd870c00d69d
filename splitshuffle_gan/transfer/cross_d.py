"""Whole networks to Cross-D (arXiv 2411.02441): 2D convolutions to Cross-D ones, then the same weights at rank 3.

`convert` swaps every `Conv2d` of a 2D network, 1 x 1 too, for a `CrossDConv`. Train the result on images; `to_3d` then
makes the volumetric network. Both return a new network and say layer by layer what became of every value; the network
they were given stays as it is.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.nn.cross_d import CrossDConv, Phase

Rules = Mapping[type[nn.Module], Callable[[nn.Module], nn.Module]]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
WINDOW = ("kernel_size", "stride", "padding")

# 2D layers, their volumetric counterparts, and the settings that both have.
COUNTERPARTS: dict[type[nn.Module], tuple[type[nn.Module], tuple[str, ...]]] = {
    nn.MaxPool2d: (nn.MaxPool3d, (*WINDOW, "dilation", "return_indices", "ceil_mode")),
    nn.AvgPool2d: (nn.AvgPool3d, (*WINDOW, "ceil_mode", "count_include_pad", "divisor_override")),
    nn.LPPool2d: (nn.LPPool3d, ("norm_type", "kernel_size", "stride", "ceil_mode")),
    nn.AdaptiveAvgPool2d: (nn.AdaptiveAvgPool3d, ("output_size",)),
    nn.AdaptiveMaxPool2d: (nn.AdaptiveMaxPool3d, ("output_size", "return_indices")),
    nn.Dropout2d: (nn.Dropout3d, ("p", "inplace")),
    nn.ZeroPad2d: (nn.ZeroPad3d, ("padding",)),
    nn.ConstantPad2d: (nn.ConstantPad3d, ("padding", "value")),
    nn.ReflectionPad2d: (nn.ReflectionPad3d, ("padding",)),
    nn.ReplicationPad2d: (nn.ReplicationPad3d, ("padding",)),
    nn.CircularPad2d: (nn.CircularPad3d, ("padding",)),
}
UPSAMPLING_MODES = {"nearest": "nearest", "nearest-exact": "nearest-exact", "bilinear": "trilinear"}
# Layers that mean the same in 2D and 3D; activations are known by torch's own file of them.
RANK_FREE = (nn.Linear, nn.Identity, nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.GroupNorm)
RANK_FREE += (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Layer:
    """What became of one layer. Values are parameters and buffers, counted one by one.

    Attributes:
        name: its dotted name in the network, "" for the network itself.
        kind: its class.
        becomes: the class of what stands in its place.
        what: what happened, in words.
        carried: values that are in both networks; for a kernel, each at its new place.
        new: values that only the result has.
        dropped: values that only the given network has.
    """

    name: str
    kind: str
    becomes: str
    what: str
    carried: int
    new: int
    dropped: int


@dataclass(frozen=True)
class _Made:
    """A layer's replacement, how many of the layer's values it carries, and what happened."""

    module: nn.Module
    carried: int
    what: str


def convert(
    model: nn.Module, phase: Phase = "published", keep_weights: bool = True
) -> tuple[nn.Module, tuple[Layer, ...]]:
    """A copy of `model` in which every `Conv2d` is a `CrossDConv` of rank 2, and what became of each layer.

    Stride, padding, dilation, groups, bias and padding mode stay.

    With `keep_weights` the result computes at first what `model` does: `raw_kernel` puts each 2D kernel where the slice
    is taken at angle 0, the other slices are 0, and each head starts at angle 0. Zero, because nothing is known of them
    and anything else would be noise in 3D; they learn as soon as the angle leaves 0. With `phase="rotation"` the 3D
    kernel is then the 2D one in its middle slice. With "published" it is rolled: meant as a start for training in 2D,
    not to be used in 3D as it is.

    Without, every convolution starts afresh, as in the paper, which trains in 2D from scratch.

    Raises:
        UserError: there is no Conv2d; or one is a subclass, of unknown behaviour, or has hooks or values of its own
            (spectral norm, pruning); or its kernel is not square; or two layers share a parameter.
    """

    def replace(module: nn.Module) -> _Made | None:
        if type(module) is nn.Conv2d:
            _refuse_more(module)
            return _swap(module, phase, keep_weights)
        if isinstance(module, nn.Conv2d):
            raise UserError("a subclass of Conv2d may do more than convolve; replace it by a plain Conv2d first")
        return None

    result, layers = _replace(model, replace, whole={CrossDConv})
    if not any(layer.becomes != layer.kind for layer in layers):
        raise UserError(f"{type(model).__name__}: found no Conv2d in it, so there is nothing to convert")
    return result, layers


def raw_kernel(kernel: Tensor, phase: Phase = "published") -> Tensor:
    """`[O, I, K, K] -> [O, I, K, K, K]`, of which `slice_kernels` at angle 0 is `kernel`; zero elsewhere.

    "rotation": in the middle slice. "published": one slice before it and rolled back by one voxel along both in-plane
    axes, which undoes the shift of the published phase.
    """
    size = kernel.shape[-1]
    raw = kernel.new_zeros(*kernel.shape, size)
    if phase == "published":
        raw[:, :, (size // 2 - 1) % size] = kernel.roll((-1, -1), dims=(-2, -1))
    else:
        raw[:, :, size // 2] = kernel
    return raw


def to_3d(
    model: nn.Module, batch_norm: Literal["fresh", "carry"] = "fresh", rules: Rules | None = None
) -> tuple[nn.Module, tuple[Layer, ...]]:
    """The volumetric network of a converted `model` with the same weights, and what became of each layer.

    Every setting that 2D layers have for two axes must be the same for both, and depth gets it too: strides, pools and
    an `AdaptiveAvgPool2d(7)` become cubes. Kernels are used raw; the heads are kept, unused. Bilinear upsampling
    becomes trilinear. `batch_norm="fresh"`, as published, starts 3D batch norms anew; "carry" takes scale, shift and
    running statistics along.

    `rules` maps classes that are not known here, or should be treated otherwise, to functions from such a layer to its
    volumetric replacement, which may be the layer itself.

    What a network's own `forward` does between layers cannot be seen: a call such as `F.interpolate(mode="bilinear")`
    fails in 3D at the first volume, but `x.mean((2, 3))` or `x.flatten(2)` may not; look at it.

    Raises:
        UserError: a layer, named, is unknown and may mean something in 2D only (`Conv2d` among them: `convert` comes
            first); or its settings differ between the two axes; or it has hooks; or two layers share a parameter.
    """
    if batch_norm not in ("fresh", "carry"):
        raise UserError(f"batch_norm: found {batch_norm!r}, wanted 'fresh' or 'carry'")
    rules = rules or {}

    def replace(module: nn.Module) -> _Made | None:
        if type(module) in rules:
            return _by_rule(module, rules[type(module)])
        if _is_rank_free(module):
            return None
        _refuse_more(module)
        return _counterpart(module, batch_norm == "carry")

    return _replace(model, replace, whole={CrossDConv, *rules})


def _replace(
    model: nn.Module, replace: Callable[[nn.Module], _Made | None], whole: set[type[nn.Module]]
) -> tuple[nn.Module, tuple[Layer, ...]]:
    """A copy of `model` with those layers replaced for which `replace` returns something."""
    copies, layers, owners = {}, [], {}
    for name, module, values in _walk(model, whole):
        for key, value in values.items():
            if id(value) in owners:
                raise UserError(
                    f"{name}.{key}: shared with {owners[id(value)]}, and converting would part them; untie them first"
                )
            owners[id(value)] = f"{name}.{key}"
        kind = type(module).__name__
        try:
            made = replace(module)
        except UserError as error:
            raise UserError(f"{name or 'the network'} ({kind}): {error}") from None
        old = sum(value.numel() for value in values.values())
        if made is None:
            layers.append(Layer(name, kind, kind, "kept", old, 0, 0))
            continue
        copies[id(module)] = made.module.train(module.training)
        new, becomes = _count(made.module), type(made.module).__name__
        layers.append(Layer(name, kind, becomes, made.what, made.carried, new - made.carried, old - made.carried))
    # Wherever the copying meets a replaced layer, it finds the replacement as if it had been copied before.
    return copy.deepcopy(model, copies), tuple(layers)


def _walk(model: nn.Module, whole: set[type[nn.Module]]) -> Iterator[tuple[str, nn.Module, dict[str, Tensor]]]:
    """Layers, each once, with their values: those of a class in `whole`, without children, or with own values."""
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside:
            continue
        if type(module) in whole:
            inside.update(module.modules())
            yield name, module, dict(_values(module))
        elif (values := dict(_values(module, recurse=False))) or not _has_children(module):
            yield name, module, values


def _swap(conv: nn.Conv2d, phase: Phase, keep: bool) -> _Made:
    geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.bias is not None)
    place = {"device": conv.weight.device, "dtype": conv.weight.dtype}
    made = CrossDConv(conv.in_channels, conv.out_channels, *geometry, conv.padding_mode, **place, phase=phase)
    if not keep:
        return _Made(made, 0, "kernel, bias and head fresh")
    state = {"weight": raw_kernel(conv.weight.detach(), phase)}
    if conv.bias is not None:
        state["bias"] = conv.bias.detach()
    if made.head is not None:
        state |= {f"head.{key}": value for key, value in made.head.state_dict().items()}
        for key in ("head.choose.weight", "head.choose.bias"):
            state[key][3] = 0
    made.load_state_dict(state)
    made.weight.requires_grad_(conv.weight.requires_grad)
    if conv.bias is not None:
        made.bias.requires_grad_(conv.bias.requires_grad)
    what = "kernel in one slice, the others 0; head fresh, at angle 0" if made.head else "kernel and bias carried"
    return _Made(made, _count(conv), what)


def _volumetric(conv: CrossDConv) -> _Made:
    if conv.rank == 3:
        raise UserError("volumetric already")
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "phase")
    settings = {name: _shared(name, getattr(conv, name)) for name in names}
    place = {"device": conv.weight.device, "dtype": conv.weight.dtype, "bias": conv.bias is not None}
    made = nn.utils.skip_init(CrossDConv, conv.in_channels, conv.out_channels, **settings, **place, rank=3)
    what = "kernel used raw" + ("" if conv.head is None else f"; head kept, unused ({_count(conv.head)} values)")
    return _Made(_load(made, conv), _count(conv), what)


def _counterpart(module: nn.Module, carry: bool) -> _Made:
    kind = type(module)
    if kind is CrossDConv:
        return _volumetric(module)
    if kind is nn.BatchNorm2d:
        return _batch_norm(module, carry)
    if kind is nn.InstanceNorm2d:
        made = nn.InstanceNorm3d(**_norm_settings(module))
        return _Made(_load(made, module), _count(module), "made volumetric, its values carried")
    if kind in COUNTERPARTS:
        volumetric, fields = COUNTERPARTS[kind]
        made = volumetric(**{field: _shared(field, getattr(module, field)) for field in fields})
        return _Made(made, 0, "made volumetric")
    if kind in (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d):
        return _Made(_upsample(module), 0, "made volumetric")
    raise UserError(_why_unknown(module))


def _batch_norm(norm: nn.BatchNorm2d, carry: bool) -> _Made:
    made = nn.BatchNorm3d(**_norm_settings(norm))
    if carry:
        return _Made(_load(made, norm), _count(norm), "made volumetric, its values carried")
    return _Made(made, 0, "made volumetric, fresh")


def _norm_settings(norm: nn.BatchNorm2d | nn.InstanceNorm2d) -> dict[str, Any]:
    values = next((value for _, value in _values(norm)), torch.empty(0))
    fields = ("num_features", "eps", "momentum", "affine", "track_running_stats")
    return {field: getattr(norm, field) for field in fields} | {"device": values.device, "dtype": values.dtype}


def _upsample(module: nn.Upsample) -> nn.Upsample:
    if module.mode not in UPSAMPLING_MODES:
        raise UserError(f"mode: found {module.mode!r}, which has no 3D form; wanted {', '.join(UPSAMPLING_MODES)}")
    size, factor = _shared("size", module.size), _shared("scale_factor", module.scale_factor)
    mode = UPSAMPLING_MODES[module.mode]
    return nn.Upsample(size, factor, mode, module.align_corners, module.recompute_scale_factor)


def _by_rule(module: nn.Module, rule: Callable[[nn.Module], nn.Module]) -> _Made:
    made = copy.deepcopy(rule(module))  # which may share values with the layer, or be the layer
    new = dict(_values(made))
    same = [
        value.numel()
        for key, value in _values(module)
        if key in new and new[key].shape == value.shape and torch.equal(new[key], value)
    ]
    return _Made(made, sum(same), "by the caller's rule")


def _load(made: nn.Module, source: nn.Module) -> nn.Module:
    """`made` with the values of `source`, and frozen where `source` was."""
    made.load_state_dict(source.state_dict())
    for (_, parameter), (_, original) in zip(made.named_parameters(), source.named_parameters(), strict=True):
        parameter.requires_grad_(parameter.requires_grad and original.requires_grad)
    return made


def _is_rank_free(module: nn.Module) -> bool:
    kind = type(module)
    if kind is nn.Flatten:
        return 0 <= module.start_dim <= 2 and module.end_dim == -1
    if kind is nn.LayerNorm:
        return len(module.normalized_shape) == 1
    if kind.__module__ == nn.ReLU.__module__ and kind not in (nn.Softmax2d, nn.MultiheadAttention):
        return getattr(module, "dim", None) in (
            None,
            -1,
            0,
            1,
        )  # GLU and the softmaxes; -3 would be depth, not channels
    return kind in RANK_FREE


def _why_unknown(module: nn.Module) -> str:
    kind = type(module).__name__
    rule = f"pass `rules={{{kind}: function}}` with a function from it to its volumetric replacement"
    if isinstance(module, nn.Conv2d):
        return "a 2D convolution; `convert` the network first"
    if _has_children(module):
        own = ", ".join(key for key, _ in _values(module, recurse=False))
        return f"holds {own} itself, of unknown meaning in 3D; {rule}"
    return f"not known to mean the same in 3D; {rule}"


def _refuse_more(module: nn.Module) -> None:
    """Raise UserError for what a replacement would lose without a word: hooks, and what a method hung on a Conv2d."""
    more = [kind.strip("_").replace("_", " ") for kind in HOOKS if getattr(module, kind)]
    if type(module) is nn.Conv2d:
        more += [key for key, _ in _values(module) if key not in ("weight", "bias")]
    if more:
        raise UserError(f"found {', '.join(more)}, which the new layer would lose; remove that first")


def _shared(field: str, value: Any) -> Any:
    """The value of a setting for one axis; depth gets it too."""
    if not isinstance(value, tuple | list):
        return value
    if len(set(value)) > 1:
        raise UserError(f"{field}: found {tuple(value)}; wanted one value, which depth gets too")
    return value[0]


def _has_children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _values(module: nn.Module, recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(recurse=recurse), module.named_buffers(recurse=recurse))


def _count(module: nn.Module) -> int:
    return sum(value.numel() for _, value in _values(module))
