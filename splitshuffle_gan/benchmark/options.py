"""What the benchmark can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.presets import preset_names

Part = Literal["machine", "operator", "layer", "network", "cross_d", "sizes", "sampling", "processes", "memory"]
PARTS: tuple[str, ...] = get_args(Part)


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Measure parameters, speed and memory of the networks on this machine; leave it alone meanwhile.

    Attributes:
        out: JSON file to write, in a folder that exists; a picture goes beside it, the table is printed.
        preset: whose networks to measure.
        batch_size: of the preset's networks; raise it on a GPU until that is full.
        repetitions: of every timing, all that is compared taking turns; medians and quartiles are reported.
        parts: what to measure. machine: rates of matrix products and plain convolutions, which shares refer to;
            operator: convolutions; layer: the styled layer; network: generator and training step; cross_d: a kernel
            for each image; sizes: 32 to 128 voxels a side and 64x256x256; sampling: against a diffusion network;
            processes: two of them; memory: peaks.
        skip_large: leave out the training step at 64x256x256, which takes minutes on a CPU.
        seed: of weights and inputs.
        overwrite: replace the file `out`.
    """

    out: Path = Path("benchmark.json")
    preset: str = "hippocampus"
    batch_size: int = 8
    repetitions: int = 7
    parts: tuple[Part, ...] = PARTS
    skip_large: bool = False
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("repetitions", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: found {getattr(self, name)}, must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed: found {self.seed}, must be at least 0 and below 2^63")
        if self.preset not in preset_names():
            raise UserError(f"preset: found {self.preset!r}, must be one of {', '.join(preset_names())}")
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise UserError(f"parts: found {', '.join(unknown) or 'none'}, must be among {', '.join(PARTS)}")
        if not self.out.parent.is_dir():
            raise UserError(f"out: the folder {self.out.parent} does not exist; make it or choose another")
        if self.out.suffix == ".png":
            raise UserError(f"out: found {self.out}, a name for JSON is wanted: the picture takes it with .png")
        for path in (self.out, self.picture):
            if path.exists() and not self.overwrite:
                raise UserError(f"out: {path} exists already; choose another file, or pass --overwrite to replace it")

    @property
    def picture(self) -> Path:
        """Where the picture goes."""
        return self.out.with_suffix(".png")
