"""Inflate a pair of networks on disk, measure how well the function is preserved, and report every key."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from splitshuffle_gan import __version__
from splitshuffle_gan.checkpoint import load_strictly
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.models.discriminator import Discriminator
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.output import refuse_existing, whole_folder, write_json
from splitshuffle_gan.transfer.anisotropic import as_separable
from splitshuffle_gan.transfer.inflate import METHODS, inflate, inflate_config

ANISOTROPIC = "anisotropic"


@torch.no_grad()
def generator_error(g2: Generator, g3: Generator, samples: int = 2, seed: int = 0) -> list[float]:
    """For every depth, max |slice - 2D image| over max |2D image|, noise off, float32; list of length D."""
    z = torch.randn(samples, g2.z_dim, generator=torch.Generator().manual_seed(seed))
    volumes = g3(z, noise_mode="none")
    depths, errors = volumes.shape[2], []
    for depth in range(depths):
        source = int((depth + 0.5) * g2.config.shape[0] / depths)
        image = g2(z, noise_mode="none", depth=torch.full((samples,), source))
        errors.append(float((volumes[:, :, depth] - image).abs().max() / image.abs().max()))
    return errors


@torch.no_grad()
def discriminator_error(d2: Discriminator, d3: Discriminator, samples: int = 4, seed: int = 0) -> float:
    """Max |3D logit of depth-constant volumes - 2D logit| over max |2D logit|, float32.

    Both see the same depth channel: that of the 2D network's middle slice.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, d2.config.image_channels, *d2.config.spatial(-1), generator=generator)
    depth2, depth3 = d2.config.shape[0], d3.config.shape[0]
    middle = torch.full((samples,), depth2 // 2)
    logits2 = d2(images, depth=middle)
    # The same relative depth among depth3 slices, in general between two of them.
    logits3 = d3(images[:, :, None].expand(-1, -1, depth3, -1, -1), depth=((2 * middle + 1) * depth3 / depth2 - 1) / 2)
    return float((logits3 - logits2).abs().max() / logits2.abs().max())


def inflate_checkpoint(
    run2d: Path,
    out: Path,
    method: str = "center",
    shape: tuple[int, int, int] | None = None,
    depth_upsample: str = "nearest",
    seed: int = 0,
    overwrite: bool = False,
) -> dict:
    """Inflate the generator and discriminator of `run2d` (a run or a pair of networks) into the folder `out`.

    Optimiser state stays behind: its moments belong to other shapes. Writes `generator/`, `discriminator/` and
    `inflation.json`, and returns the content of the last: the method, for every key where it came from, and the
    measured function-preservation errors (None for `random` and for Cross-D networks, which preserve nothing).

    `method` is one of `inflate.METHODS`, or "anisotropic": `transfer.anisotropic`.
    """
    if method not in (*METHODS, ANISOTROPIC):
        raise UserError(f"method: found {method!r}, must be one of {', '.join(METHODS)}, {ANISOTROPIC}")
    refuse_existing(out, overwrite, mark="inflation.json", keep=(Path(run2d),))
    report = {"created_with": __version__, "source": str(run2d), "method": method, "seed": seed, "networks": {}}
    pairs = {}
    for model_class in (Generator, Discriminator):
        name = model_class.__name__.lower()
        source = model_class.from_pretrained(run2d)
        state2d, config2d = source.state_dict(), source.config
        if method == ANISOTROPIC:
            state2d, config2d = as_separable(model_class, state2d, config2d)
        config = inflate_config(config2d, shape)
        if name == "generator":
            config = replace(config, depth_upsample=depth_upsample)
        spread = "center" if method == ANISOTROPIC else method
        inflation = inflate(model_class, state2d, config2d, config, spread, seed)
        target = model_class(config, source.geometry).eval()
        load_strictly(target, inflation.state, f"inflated {name}")
        pairs[name] = (source, target)
        report["networks"][name] = {"keys": inflation.origin, "counts": dict(Counter(inflation.origin.values()))}
    preserves = method != "random" and config.conv != "cross_d"
    report["generator_error_per_depth"] = generator_error(*pairs["generator"]) if preserves else None
    report["discriminator_error"] = discriminator_error(*pairs["discriminator"]) if preserves else None

    with whole_folder(out) as folder:
        for name, (_, target) in pairs.items():
            target.save_pretrained(folder / name)
        write_json(folder / "inflation.json", report)
    return report
