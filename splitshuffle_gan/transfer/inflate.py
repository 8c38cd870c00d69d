"""Inflation: a pure function from a 2D state dict to a 3D one, for generator and discriminator.

Every key is accounted for, or it raises. What preserves the function (noise off): slice z of the inflated generator's
volume is the 2D generator's image at depth z; the inflated discriminator's logit of a depth-constant volume is the
2D logit. `center` does so for every network; `mean` and `binomial` where nothing varies over depth. Cross-D kernels are
3D at both ranks and are copied whatever the method; the function is then another one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from splitshuffle_gan.config import NetworkConfig
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.models.discriminator import SpatialReadout
from splitshuffle_gan.nn.conv import CrossDKernel, Kernel, PlainConv, SeparableConv, SplitShuffleConv
from splitshuffle_gan.nn.styled import StyledConv


def center(kernel: Tensor, depth: int) -> Tensor:
    """`[out, in, k, k] -> [out, in, depth, k, k]` with the kernel in the middle slice."""
    inflated = kernel.new_zeros(*kernel.shape[:2], depth, *kernel.shape[2:])
    inflated[:, :, depth // 2] = kernel
    return inflated


def mean(kernel: Tensor, depth: int) -> Tensor:
    """The kernel in every slice, divided by their number (I3D, arXiv 1705.07750)."""
    return kernel[:, :, None].expand(-1, -1, depth, -1, -1) / depth


def binomial(kernel: Tensor, depth: int) -> Tensor:
    """The kernel times binomial weights over depth: [1 2 1] / 4 for three slices."""
    weights = kernel.new_tensor([math.comb(depth - 1, i) for i in range(depth)]) / 2 ** (depth - 1)
    return kernel[:, :, None] * weights[:, None, None]


def triaxial(kernel: Tensor, depth: int) -> Tensor:
    """A third of the output channels in each orthogonal plane (ACS, arXiv 1911.10477); needs depth = k.

    Not function-preserving: two thirds of the channels look along depth from the start.
    """
    in_plane = center(kernel, depth)
    views = (in_plane, in_plane.transpose(2, 3), in_plane.transpose(2, 4))
    owner = torch.arange(kernel.shape[0]) * 3 // kernel.shape[0]
    return torch.stack(views)[owner, torch.arange(kernel.shape[0])]


METHODS: dict[str, Callable[[Tensor, int], Tensor] | None] = {
    "center": center,
    "mean": mean,
    "binomial": binomial,
    "triaxial": triaxial,
    "random": None,
}


@dataclass(frozen=True)
class Inflation:
    """A 3D state dict and, for every key of it, where it came from: "copied", "inflated" or "new"."""

    state: dict[str, Tensor]
    origin: dict[str, str]


def inflate_config(config: NetworkConfig, shape: tuple[int, int, int] | None = None) -> NetworkConfig:
    """The 3D config that `config` (rank 2) inflates to; `shape` may change the depth D.

    Raises:
        UserError: `config` is not of rank 2, or `shape` changes the in-plane grid or the number of levels.
    """
    if config.rank != 2:
        raise UserError(f"rank: found {config.rank}, only a network of rank 2 can be inflated")
    inflated = replace(config, rank=3, shape=tuple(shape or config.shape), channels=())
    grids = [[grid[1:] for grid in c.schedule.grids] for c in (config, inflated)]
    if grids[0] != grids[1]:
        raise UserError(
            f"shape: found {'x'.join(map(str, inflated.shape))}, but the 2D network was trained for "
            f"{'x'.join(map(str, config.shape))}: only the depth may change, within the same in-plane levels"
        )
    return replace(inflated, channels=config.channels)


def inflate(
    model_class: type[nn.Module],
    state2d: dict[str, Tensor],
    config2d: NetworkConfig,
    config3d: NetworkConfig,
    method: str = "center",
    seed: int = 0,
) -> Inflation:
    """The 3D state of `model_class` (`Generator` or `Discriminator`) from its 2D state.

    Equalised learning rate scales a kernel by its fan-in, which grows with rank, so stored weights are divided by the
    ratio of the gains. Demodulation divides by a kernel's norm, which `mean` and `binomial` lower, so `demod_gain`
    carries the ratio of the norms. `random` transfers nothing: the fresh network of `seed`, the baseline.

    Raises:
        UserError: unknown method, configs that do not correspond, a 2D key that is missing or left over.
    """
    if method not in METHODS:
        raise UserError(f"method: found {method!r}, must be one of {', '.join(METHODS)}")
    _check_pair(config2d, config3d)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        source, target = model_class(config2d), model_class(config3d)
    _check_keys(source, state2d)
    fresh = {key: value.clone() for key, value in target.state_dict().items()}
    if method == "random":
        return Inflation(fresh, dict.fromkeys(fresh, "new"))
    state, origin, rules = {}, {}, _rules(source, target, METHODS[method])
    for key, value in fresh.items():
        if key in rules:
            state[key], origin[key] = rules[key](state2d)
        elif key in state2d and state2d[key].shape == value.shape:
            state[key], origin[key] = state2d[key].clone(), "copied"
        else:
            found = tuple(state2d[key].shape) if key in state2d else "nothing"
            raise UserError(f"inflate: no rule for key {key}: 2D has {found}, 3D wants {tuple(value.shape)}")
        if state[key].shape != value.shape:
            raise UserError(f"inflate: key {key} became {tuple(state[key].shape)}, 3D wants {tuple(value.shape)}")
    return Inflation(state, origin)


def _check_pair(config2d: NetworkConfig, config3d: NetworkConfig) -> None:
    expected = inflate_config(config2d, config3d.shape).to_dict()
    found = config3d.to_dict()
    free = {"depth_upsample"}
    for name, value in expected.items():
        if name not in free and found.get(name) != value:
            raise UserError(f"{name}: the 3D config has {found.get(name)!r}, the 2D network implies {value!r}")


def _check_keys(source: nn.Module, state2d: dict[str, Tensor]) -> None:
    own = set(source.state_dict())
    if missing := sorted(own - set(state2d)):
        raise UserError(f"inflate: the 2D state misses {len(missing)} key(s), first {missing[0]}")
    if extra := sorted(set(state2d) - own):
        raise UserError(f"inflate: the 2D state has {len(extra)} key(s) too many, first {extra[0]}")


Rule = Callable[[dict[str, Tensor]], tuple[Tensor, str]]


def _rules(source: nn.Module, target: nn.Module, spread: Callable[[Tensor, int], Tensor]) -> dict[str, Rule]:
    """What to do with each key that does not simply copy."""
    modules2d, rules = dict(source.named_modules()), {}
    for name, module in target.named_modules():
        if isinstance(module, SeparableConv):
            # Through-plane kernels exist in 3D only and begin as the identity.
            rules[f"{name}.axial.weight"] = lambda _, axial=module.axial: (_identity(axial), "new")
        elif isinstance(module, CrossDKernel):
            continue  # the same kernel at both ranks
        elif isinstance(module, Kernel) and name in modules2d:
            rules[f"{name}.weight"] = _kernel_rule(f"{name}.weight", modules2d[name], module, spread)
        elif isinstance(module, SpatialReadout):
            rules[f"{name}.weight"] = _readout_rule(f"{name}.weight", modules2d[name], module)
        elif isinstance(module, StyledConv):
            rules[f"{name}.demod_gain"] = _demodulation_rule(f"{name}.demod_gain", module, spread)
            rules[f"{name}.bias"] = _table_rule(f"{name}.bias", module.bias.shape[1])
        elif hasattr(module, "to_image"):
            key = f"{name}.to_image.bias"
            rules[key] = _table_rule(key, module.to_image.bias.shape[1])
    if hasattr(target, "constant"):
        rules["constant"] = _table_rule("constant", target.constant.shape[1])
    return rules


def _kernel_rule(key: str, source: Kernel, target: Kernel, spread: Callable[[Tensor, int], Tensor]) -> Rule:
    depth = target.weight.shape[2]

    def rule(state2d: dict[str, Tensor]) -> tuple[Tensor, str]:
        kernel = state2d[key]
        if depth == 1:
            return kernel[:, :, None] * (source.gain / target.gain), "copied"
        return spread(kernel, depth) * (source.gain / target.gain), "inflated"

    return rule


def _readout_rule(key: str, source: SpatialReadout, target: SpatialReadout) -> Rule:
    depth = target.weight.shape[1]

    def rule(state2d: dict[str, Tensor]) -> tuple[Tensor, str]:
        share = source.gain / target.gain / depth
        return (state2d[key][:, None] * share).expand(-1, depth, -1, -1).clone(), "inflated"

    return rule


def _demodulation_rule(key: str, module: StyledConv, spread: Callable[[Tensor, int], Tensor]) -> Rule:
    def rule(state2d: dict[str, Tensor]) -> tuple[Tensor, str]:
        gain = state2d[key].clone()
        if isinstance(module.conv, SplitShuffleConv):
            gain[0::2] *= _norm_ratio(module.conv.volumetric, spread)
        elif isinstance(module.conv, PlainConv):
            gain *= _norm_ratio(module.conv, spread)
        return gain, "inflated"

    return rule


def _table_rule(key: str, depth: int) -> Rule:
    """A table over depth `[C, T, ...]` read at `depth` rows, each from the row at the same relative depth."""

    def rule(state2d: dict[str, Tensor]) -> tuple[Tensor, str]:
        rows = ((torch.arange(depth) + 0.5) * state2d[key].shape[1] / depth).long()
        return state2d[key][:, rows].clone(), "copied" if state2d[key].shape[1] == depth else "inflated"

    return rule


def _norm_ratio(kernel: Kernel, spread: Callable[[Tensor, int], Tensor]) -> float:
    """Norm of the spread kernel over the norm of the kernel; the same for all kernels of a method."""
    probe = torch.ones(3, 1, *kernel.weight.shape[3:], dtype=torch.float64)
    return float(spread(probe, kernel.weight.shape[2]).norm() / probe.norm())


def _identity(kernel: Kernel) -> Tensor:
    """Stored weights whose effective kernel passes every channel on unchanged."""
    weight = torch.zeros_like(kernel.weight)
    channels = torch.arange(weight.shape[0])
    weight[channels, channels, weight.shape[2] // 2] = 1 / kernel.gain
    return weight.detach()
