"""Which factors are looked at: volumes of structures, and how bright they are, in terms of labels."""

from dataclasses import dataclass

import numpy as np

from splitshuffle_gan.data.phantom import LABELS
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.volume import IntensityMap

MM3 = {"ml": 1000.0, "mm3": 1.0}
BRIGHTNESS = "HU"
UNITS = (*MM3, BRIGHTNESS)


@dataclass(frozen=True)
class Factor:
    """A number that a volume with `labels` has.

    In "ml" or "mm3" it is the volume of the voxels that bear one of the labels; in "HU" the mean value of these voxels,
    NaN where there are none. Both count what lies on the grid: what is cropped away does not exist.
    Raises UserError for another unit, and for labels that are none of 1 to 255.
    """

    labels: tuple[int, ...]
    unit: str = "ml"

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.unit not in UNITS:
            raise UserError(f"factor: unit is {self.unit!r}; one of {', '.join(UNITS)} is wanted")
        if not self.labels or not all(isinstance(label, int) and 0 < label < 256 for label in self.labels):
            raise UserError(f"factor: labels are {self.labels}; whole numbers from 1 to 255 are wanted")


def _of_phantom(kind: str, table: dict[str, tuple[str, str]]) -> dict[str, Factor]:
    numbers = {name: number for number, name in LABELS[kind].items()}
    return {name: Factor(tuple(numbers[label] for label in labels.split()), unit)
            for name, (labels, unit) in table.items()}  # fmt: skip


ANATOMY: dict[str, dict[str, Factor]] = {
    "heart": _of_phantom("heart", {
        "heart": ("lv_myocardium lv_cavity rv_cavity left_atrium right_atrium", "ml"),
        "left ventricle": ("lv_cavity", "ml"),
        "its wall": ("lv_myocardium", "ml"),
        "right ventricle": ("rv_cavity", "ml"),
        "left atrium": ("left_atrium", "ml"),
        "right atrium": ("right_atrium", "ml"),
        "pericardial fat": ("pericardial_fat", "ml"),
        "coronary calcium": ("coronary_calcium", "mm3"),
        "blood of the left heart": ("lv_cavity left_atrium", "HU"),
    }),
    "brain": _of_phantom("brain", {
        "head": (" ".join(name for number, name in LABELS["brain"].items() if number), "ml"),
        "ventricles": ("lateral_ventricle third_ventricle fourth_ventricle", "ml"),
        "fluid outside them": ("csf", "ml"),
        "grey matter": ("grey_matter", "ml"),
        "white matter": ("white_matter", "ml"),
        "deep nuclei": ("thalamus caudate putamen pallidum", "ml"),
        "cerebellum": ("cerebellum", "ml"),
    }),
}  # fmt: skip
"""For each kind of phantom its factors, by name."""


def has_anatomy(kind: str, values: list[int]) -> bool:
    """Whether a dataset with the labels `values` can be one of phantoms of `kind`: every factor, and nothing else."""
    factors = ANATOMY[kind].values()
    return set(values) <= set(LABELS[kind]) and all(set(factor.labels) & set(values) for factor in factors)


def factors_of_labels(values: list[int]) -> dict[str, Factor]:
    """The volume of each label that a dataset holds, in ml, as "label 1" and so on.

    Raises UserError when there is background only.
    """
    if not any(values):
        raise UserError(f"labels: {values}; background only, so there is nothing to measure")
    return {f"label {value}": Factor((value,)) for value in values if value}


def classes_of(factors: dict[str, Factor]) -> tuple[np.ndarray, np.ndarray]:
    """The fewest classes that tell all factors apart: of each label 0 to 255 the class, and who belongs to what.

    uint8 `[256]`, 0 for labels that no factor wants; bool `[classes, factors]`.
    """
    member = np.zeros((256, len(factors)), bool)
    for column, factor in enumerate(factors.values()):
        member[list(factor.labels), column] = True
    rows, classes = np.unique(member, axis=0, return_inverse=True)  # sorted, so that belonging to nothing is first
    return classes.reshape(-1).astype(np.uint8), rows


def measure(
    factors: dict[str, Factor], counts: np.ndarray, sums: np.ndarray, spacing: tuple[float, ...], intensity: dict
) -> np.ndarray:
    """The factors `[N, factors]`, float64, from what each class of `classes_of` holds.

    counts: voxels, or expected voxels, `[N, classes]`. sums: of their values in [-1, 1]. spacing: mm. intensity: the
    fields of an `IntensityMap`.
    """
    members = classes_of(factors)[1].astype(np.float64)
    voxels, totals = np.asarray(counts, np.float64) @ members, np.asarray(sums, np.float64) @ members
    with np.errstate(invalid="ignore", divide="ignore"):
        means = IntensityMap(**intensity).from_unit(totals / voxels)
    voxel = float(np.prod(spacing))
    columns = [
        means[:, column] if factor.unit == BRIGHTNESS else voxels[:, column] * voxel / MM3[factor.unit]
        for column, factor in enumerate(factors.values())
    ]
    return np.stack(columns, axis=1).astype(np.float64)
