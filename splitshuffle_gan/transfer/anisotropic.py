"""AH-Net's transfer (arXiv 1711.08580) for the GAN: in-plane kernels stay 1 x k x k, and a new k x 1 x 1 follows each.

For volumes of thick slices, where a cube of kernel taps reaches much farther through the slices than along them. The
3D network is the `separable` one: 12 C^2 weights where inflating a plain kernel to a cube takes 27 C^2. It starts as
the 2D network, the new kernels being the identity, and learns through-plane context from there.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from splitshuffle_gan.config import NetworkConfig
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.nn.conv import PlainConv


def as_separable(
    model_class: type[nn.Module], state2d: dict[str, Tensor], config2d: NetworkConfig
) -> tuple[dict[str, Tensor], NetworkConfig]:
    """The same 2D network in its `separable` form, whose 3D twin has the kernels above: a state dict and its config.

    At rank 2 the two kinds are one function; only the kernels' names differ.
    Raises UserError where the convolutions are neither plain nor separable: the halves of a Split&Shuffle convolution
    stay halves.
    """
    if config2d.conv == "separable":
        return state2d, config2d
    if config2d.conv != "plain":
        raise UserError(
            f"conv: the 2D network has {config2d.conv!r}; the anisotropic transfer wants 'plain' or 'separable' "
            "convolutions: train in 2D with --network.conv separable, or choose another method"
        )
    with torch.device("meta"):
        network = model_class(config2d)
    names = {f"{name}.weight": f"{name}.planar.weight" for name, m in network.named_modules() if type(m) is PlainConv}
    return {names.get(key, key): value for key, value in state2d.items()}, replace(config2d, conv="separable")
