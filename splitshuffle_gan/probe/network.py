"""Fresh networks and heads from seeds: the same seed gives the same weights."""

import torch
from torch import nn

from splitshuffle_gan.extractors.slice_resnet import Network, SliceResNet, SliceResNetConfig, resnet18


def seeded_slices(config: SliceResNetConfig, seed: int) -> SliceResNet:
    """A fresh 2D network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SliceResNet(config)


def seeded_volumes(network: Network, seed: int) -> nn.Module:
    """A fresh 3D network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return resnet18(network, 3)


def seeded_head(features: int, outputs: int, seed: int) -> nn.Linear:
    """A fresh classifier of pooled features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(features, outputs)
