"""What to prepare and how: the options of `prepare`, checked."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.volume import plane_axes

DEFAULT_PERCENTILES = (0.5, 99.5)
AUTO, NATIVE, ALL = "auto", "native", "all"
CROPS = ("center", "foreground", "label")
RESAMPLINGS = ("linear", "bspline", "nearest")
LABEL_RESAMPLINGS = ("nearest", "linear")


@dataclass(frozen=True)
class PrepareConfig:
    """What to prepare and how. Raises UserError naming the field that makes no sense.

    source: a scan, or a folder searched to any depth (names that start with a dot are passed over).
    out: the dataset folder to make. shape: voxels (D, H, W) of every prepared volume.
    spacing: mm (D, H, W); None takes the set's median; "native" leaves every scan its own, so that it is only cut and
    padded. plane: the order of the axes, see `volume`; "auto" puts D along the axis with the largest median spacing.
    window: (low, high) in source units, the same for every volume. percentiles: (low, high) in percent, measured on
    each source volume; the default, 0.5 and 99.5. Give at most one of the two.
    skip_bad: list files that are no scans, and constant and non-finite scans, in the manifest instead of stopping.
    overwrite: replace an existing dataset. workers: processes, 0 for one per core.
    crop: what the prepared volume is centred on, as far as the scan reaches: the scan's middle ("center"), the box of
    what is brighter than Otsu's threshold ("foreground"), or the box of its labels ("label").
    resample: "linear", "bspline" (cubic, clipped to the scan's range) or "nearest"; the first two blur before reducing.
    labels: a folder of label maps with the scans' names; "auto": images*/ -> labels*/ beside it.
    label_resample: "nearest", or "linear": the label with the most weight once each is interpolated by itself.
    structures: what to make of the labels: those of the first entry, such as "7,8,9", become 1, those of the second,
    such as "5,6,10-15", 2, and so on; all others 0. None leaves them as they are.
    spacing_tolerance: how far, relatively, a scan's own spacing may be from the median when spacing is "native".
    volume: of 4D files, counted from 0, or "all". correct_tilt: straighten DICOM series with a tilted gantry.
    shard_size: volumes per array file; None writes one file.
    """

    source: Path
    out: Path
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | str | None = None
    percentiles: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    plane: str = "axial"
    skip_bad: bool = False
    overwrite: bool = False
    workers: int = 0
    crop: str = "center"
    resample: str = "linear"
    labels: Path | None = None
    label_resample: str = "nearest"
    structures: tuple[str, ...] | None = None
    spacing_tolerance: float = 0.05
    volume: int | str | None = None
    correct_tilt: bool = False
    shard_size: int | None = None

    def __post_init__(self):
        if self.window is not None and self.percentiles is not None:
            raise UserError(f"window {self.window} and percentiles {self.percentiles}: give one of the two, not both")
        if self.window is None and self.percentiles is None:
            object.__setattr__(self, "percentiles", DEFAULT_PERCENTILES)
        object.__setattr__(self, "source", Path(self.source))
        object.__setattr__(self, "out", Path(self.out))
        object.__setattr__(self, "labels", None if self.labels is None else Path(self.labels))
        self._check_grid()
        self._check_intensities()
        self._check_choices()
        if self.structures is not None:
            if self.labels is None:
                raise UserError("structures: say what to make of labels, and there are none; give --labels DIR")
            self.label_table()

    def _check_grid(self) -> None:
        if self.plane != AUTO:
            plane_axes(self.plane)
        if len(self.shape) != 3 or not all(side >= 1 and side % 1 == 0 for side in self.shape):
            raise UserError(f"shape: {self.shape}; three positive whole numbers D H W are wanted")
        if isinstance(self.spacing, str):
            good = self.spacing == NATIVE
        else:
            good = self.spacing is None or (len(self.spacing) == 3 and all(0 < mm < np.inf for mm in self.spacing))
        if not good:
            raise UserError(f"spacing: {self.spacing}; three positive lengths in mm, D H W, or native are wanted")
        if not 0 <= self.spacing_tolerance < np.inf:
            raise UserError(f"spacing_tolerance: {self.spacing_tolerance}; a share such as 0.05 is wanted")

    def _check_intensities(self) -> None:
        wanted = "two numbers are wanted, the first below the second"
        if self.window is not None:
            if len(self.window) != 2 or not -np.inf < self.window[0] < self.window[1] < np.inf:
                raise UserError(f"window: {self.window}; {wanted}")
        elif len(self.percentiles) != 2 or not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise UserError(f"percentiles: {self.percentiles}; {wanted}, within 0..100")

    def _check_choices(self) -> None:
        choices = {"crop": CROPS, "resample": RESAMPLINGS, "label_resample": LABEL_RESAMPLINGS}
        for field, known in choices.items():
            if getattr(self, field) not in known:
                raise UserError(f"{field}: {getattr(self, field)!r} is unknown; choose one of {', '.join(known)}")
        if self.crop == "label" and self.labels is None:
            raise UserError("crop: label needs label maps; give --labels DIR, or choose center or foreground")
        if self.volume not in (None, ALL) and (not isinstance(self.volume, int) or self.volume < 0):
            raise UserError(f"volume: {self.volume!r}; a whole number from 0, or all, is wanted")
        if self.workers < 0:
            raise UserError(f"workers: {self.workers}; a whole number is wanted, 0 for one process per core")
        if self.shard_size is not None and self.shard_size < 1:
            raise UserError(f"shard_size: {self.shard_size}; a positive whole number of volumes is wanted")

    def label_table(self) -> np.ndarray:
        """uint8 `[256]`: what each label becomes. Raises UserError for `structures` that cannot be read."""
        if self.structures is None:
            return np.arange(256, dtype=np.uint8)
        table = np.zeros(256, dtype=np.uint8)
        for number, group in enumerate(self.structures, start=1):
            for label in _labels_in(group):
                if table[label]:
                    raise UserError(f"structures: label {label} comes twice in {' '.join(self.structures)}")
                table[label] = number
        return table

    def to_dict(self) -> dict:
        """Every field, as plain JSON."""
        paths = {"source": str(self.source), "out": str(self.out), "labels": self.labels and str(self.labels)}
        return asdict(self) | paths


def _labels_in(group: str) -> list[int]:
    """`"5,6,10-12"` -> [5, 6, 10, 11, 12]."""
    labels: list[int] = []
    for part in group.split(","):
        first, dash, last = part.strip().partition("-")
        bounds = [first, last if dash else first]
        if not all(bound.isdecimal() and len(bound) <= 3 for bound in bounds):
            bounds = ["0", "0"]
        low, high = map(int, bounds)
        if not 1 <= low <= high <= 255:
            raise UserError(f"structures: found {group!r}, wanted labels from 1 to 255 such as 7,8,9 or 5,6,10-15")
        labels += range(low, high + 1)
    return labels
