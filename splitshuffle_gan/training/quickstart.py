"""The whole way on built-in brain phantoms, a few minutes on two cores: a demonstration, and a test of the install."""

import shutil
from dataclasses import replace
from pathlib import Path

from splitshuffle_gan.data.phantom import write_phantoms
from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.devices import make_accelerator
from splitshuffle_gan.output import refuse_existing, write_json
from splitshuffle_gan.presets import load_preset
from splitshuffle_gan.sampler import SampleConfig, write_samples
from splitshuffle_gan.training.loop import train
from splitshuffle_gan.training.options import NetworkOptions, TrainConfig
from splitshuffle_gan.transfer.apply import inflate_checkpoint


def quickstart(out: Path, seed: int = 0, overwrite: bool = False) -> str:
    """Phantoms, dataset, 2D GAN, inflation, 3D GAN and samples, each in a folder of `out`; returns what to open.

    Raises:
        UserError: `out` exists and `overwrite` is off.
    """
    preset = load_preset("quickstart")
    accelerator = make_accelerator()
    refuse_existing(out, overwrite, mark="quickstart.json")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        write_json(out / "quickstart.json", {"preset": preset, "seed": seed})
        write_phantoms(**{**preset["phantom"], "seed": seed}, out=out / "phantoms")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in preset["prepare"].items()}
        prepare(PrepareConfig(source=out / "phantoms" / "images", out=out / "dataset", **values))
    accelerator.wait_for_everyone()
    train(_config(preset["train2d"], out, "run2d", seed), rank=2)
    if accelerator.is_main_process:
        inflate_checkpoint(out / "run2d", out / "inflated", **preset["inflate"])
    accelerator.wait_for_everyone()
    config = _config(preset["train3d"], out, "run3d", seed)
    snapshot = train(replace(config, init=out / "inflated", network=NetworkOptions()), rank=3)
    samples = SampleConfig(checkpoint=str(snapshot), out=out / "samples", seeds=tuple(range(8)), truncation_psi=1.0)
    write_samples(samples)
    return (
        f"\nDone. Open these:\n"
        f"  {out}/samples/montage.png            synthetic volumes\n"
        f"  {out}/samples/seed0000.nii.gz        one of them, in any NIfTI viewer\n"
        f"  {snapshot}/montage.png   the 3D generator's snapshot\n"
        f"  {out}/run3d/log.jsonl                losses, speed, augmentation\n"
        f"  tensorboard --logdir {out}\n"
        f"Next, on your own scans: splitshuffle prepare --help"
    )


def _config(section: dict, out: Path, run: str, seed: int) -> TrainConfig:
    network = {key: tuple(value) if isinstance(value, list) else value for key, value in section["network"].items()}
    values = {**section, "network": NetworkOptions(**network)}
    return TrainConfig(data=out / "dataset", out=out / run, seed=seed, **values)
