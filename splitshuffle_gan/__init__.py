"""Synthetic 3D medical volumes from few scans: a 2D slice GAN, inflated into a Split&Shuffle 3D GAN.

`Generator`, `Discriminator` and the two configs are imported on first use, so that the version and the command line
come up without torch.
"""

from importlib import import_module

__version__ = "0.1.0"
_EXPORTS = {
    "Generator": "splitshuffle_gan.models.generator",
    "Discriminator": "splitshuffle_gan.models.discriminator",
    "GeneratorConfig": "splitshuffle_gan.config",
    "DiscriminatorConfig": "splitshuffle_gan.config",
}
__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
