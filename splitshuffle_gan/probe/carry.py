"""The ways from a 2D network to a 3D one: I3D's inflation, ACS, Cross-D; or nothing carried at all."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.slice_resnet import Network, SliceResNet
from splitshuffle_gan.probe.network import seeded_volumes
from splitshuffle_gan.probe.plan import Arm
from splitshuffle_gan.transfer.cross_d import Layer, to_3d

PLANES = 3


class ACSConv(nn.Module):
    """A 2D convolution of volumes (ACS, arXiv 1911.10477): `[N, in, D, H, W]` to `[N, out, *]`.

    The output channels are split in three groups, as even as can be, the first ones larger. Kernels `[out, in, k, k]`
    stay what they are: those of the first group act in the (H, W) plane, of the second in (D, W), of the third in
    (D, H). No weight is added, and a trained network goes on with as many as it had in 2D.

    Raises UserError for groups, padding modes other than zeros, kernels that are not square, and a padding that does
    not centre the kernel: the three parts would not come out alike in shape.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        settings = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation")}
        for name, value in settings.items():
            if len(set(value)) > 1 or isinstance(value, str):
                raise UserError(f"{name}: found {value!r}; wanted one number for both axes, which depth gets too")
        self.size, self.stride, self.padding, self.dilation = (value[0] for value in settings.values())
        if conv.groups != 1 or conv.padding_mode != "zeros":
            raise UserError(f"groups {conv.groups}, padding_mode {conv.padding_mode}: wanted 1 and zeros")
        if 2 * self.padding != self.dilation * (self.size - 1):
            raise UserError(f"padding: found {self.padding}; wanted half of what a kernel of {self.size} reaches")
        self.weight = nn.Parameter(conv.weight.detach().clone())
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())
        # A 1 x 1 kernel is the same in every plane.
        parts = PLANES if self.size > 1 else 1
        self.sizes = [conv.out_channels // parts + (part < conv.out_channels % parts) for part in range(parts)]

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for across, kernel in enumerate(self.weight.split(self.sizes)):
            padding = [self.padding] * PLANES
            padding[across] = 0
            kernel = kernel.unsqueeze(2 + across)
            if len(kernel):
                outputs.append(F.conv3d(x, kernel, None, self.stride, tuple(padding), self.dilation))
        y = torch.cat(outputs, 1)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None, None]


def inflated(conv: nn.Conv2d) -> nn.Conv3d:
    """I3D's (arXiv 1705.07750): k x k to k x k x k, each slice a k-th of the kernel; nothing else changes.

    Raises UserError for kernels or settings that differ between the two axes.
    """
    names = ("kernel_size", "stride", "padding", "dilation")
    settings = {name: getattr(conv, name) for name in names}
    for name, value in settings.items():
        if len(set(value)) > 1 or isinstance(value, str):
            raise UserError(f"{name}: found {value!r}; wanted one number for both axes, which depth gets too")
    made = nn.utils.skip_init(
        nn.Conv3d,
        conv.in_channels,
        conv.out_channels,
        **{name: value[0] for name, value in settings.items()},
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )
    size = conv.kernel_size[0]
    state = {"weight": conv.weight.detach().unsqueeze(2).expand(-1, -1, size, -1, -1) / size}
    if conv.bias is not None:
        state["bias"] = conv.bias.detach()
    made.load_state_dict(state)
    return made


RULES = {"i3d": {nn.Conv2d: inflated}, "acs": {nn.Conv2d: ACSConv}, "cross_d": {}}


def carry(arm: Arm, network: Network, slices: SliceResNet | None, seed: int) -> tuple[nn.Module, tuple[Layer, ...]]:
    """The 3D network of an arm, `[N, 1, D, H, W]` to pooled features, and what became of each layer of the 2D one.

    `slices`: the 2D network that it starts from; None for scratch, whose weights `seed` gives.
    """
    if arm.way == "scratch":
        return seeded_volumes(network, seed), ()
    return to_3d(slices.body, arm.batch_norm, RULES[arm.way])
