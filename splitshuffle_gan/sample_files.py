"""The files of a set of samples: volumes, label maps, DICOM series, and a picture of them all."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitshuffle_gan.data.place import Target, place, place_labels, write_placed
from splitshuffle_gan.data.readers.nifti import read_nifti, write_nifti
from splitshuffle_gan.label_channels import from_channels, structures_of
from splitshuffle_gan.montage import save_montage
from splitshuffle_gan.volume import IntensityMap, Volume

MONTAGE_VOLUMES, MONTAGE_SIDE = 16, 256  # larger volumes are thinned out before they are drawn
MIN_WHOLE_RANGE = 256  # source units; below it rounding to whole numbers would show
DESCRIPTION, LABELS_DESCRIPTION = "synthetic volume, splitshuffle_gan", "synthetic labels, splitshuffle_gan"
IMAGES, LABELS = "images", "labels"  # beside each other, where `prepare --labels auto` looks for them


@dataclass(frozen=True)
class SampleFiles:
    """How the samples of one generator are written into `folder`.

    Attributes:
        folder: of all files.
        geometry: the generator's. With labels in it volumes go to images/ and label maps, under the same names, to
            labels/; else volumes go to the folder itself.
        target: the scan on whose grid they are put, or None.
        series: what all DICOM series share, arguments of `write_dicom`; None writes none.
    """

    folder: Path
    geometry: dict
    target: Target | None = None
    series: dict | None = None

    @property
    def written(self) -> dict:
        """Geometry of what is written: the target's, where there is one."""
        return self.target.geometry if self.target else self.geometry

    @property
    def structures(self) -> tuple[int, ...]:
        """The labels in the label maps; empty where there are none."""
        return structures_of(self.geometry)

    def image(self, name: str) -> Path:
        """Where the volume of this name is, relative to the folder."""
        return Path(IMAGES if self.structures else "", f"{name}.nii.gz")

    def label(self, name: str) -> Path:
        """Where the label map of this name is, relative to the folder."""
        return Path(LABELS, f"{name}.nii.gz")

    def write(self, name: str, channels: np.ndarray) -> None:
        """One sample, float32 `[C, D, H, W]`, as NIfTI and, where `series` is given, as DICOM."""
        kind, path = stored_type(self.written["intensity"]), self.folder / self.image(name)
        path.parent.mkdir(exist_ok=True)
        if self.target:
            volume = place(channels[0], self.geometry["spacing"], self.target)
            write_placed(volume, self.target, path, kind, DESCRIPTION)
        else:
            volume = to_volume(channels[0], self.geometry)
            write_nifti(volume, path, kind, DESCRIPTION)
        if self.structures:
            self._write_labels(name, from_channels(channels[1:], self.structures))
        if self.series:
            from splitshuffle_gan.data.dicom_out import write_dicom  # only where it is wanted

            write_dicom(volume, self.folder / f"{name}.dicom", name=name, **self.series)

    def _write_labels(self, name: str, labels: np.ndarray) -> None:
        path = self.folder / self.label(name)
        path.parent.mkdir(exist_ok=True)
        if self.target:
            volume = place_labels(labels, self.geometry["spacing"], self.target)
            write_placed(volume, self.target, path, np.uint8, LABELS_DESCRIPTION)
        else:
            volume = Volume(labels[None], np.asarray(self.geometry["affine"]))
            write_nifti(volume, path, np.uint8, LABELS_DESCRIPTION)

    def picture(self, names: list[str], caption: str) -> None:
        """`montage.png` of the first samples, as they were written."""
        names = names[:MONTAGE_VOLUMES]
        geometry = self.written
        low, high = geometry["intensity"]["low"], geometry["intensity"]["high"]
        volumes, steps = zip(*(self._thinned(self.image(name)) for name in names), strict=True)
        labels = [self._thinned(self.label(name))[0] for name in names] if self.structures else None
        save_montage(
            volumes,
            self.folder / "montage.png",
            spacing=[length * steps[0] for length in geometry["spacing"]],
            low=low,
            high=high,
            titles=names,
            plane=geometry["plane"],
            labels=labels,
            caption=caption,
        )

    def _thinned(self, path: Path) -> tuple[np.ndarray, int]:
        """The voxels of a file, every so many along each axis, and how many that is."""
        array = read_nifti(self.folder / path, self.written["plane"]).array[0]
        step = -(-max(array.shape) // MONTAGE_SIDE)
        return np.ascontiguousarray(array[::step, ::step, ::step]), step


def to_volume(image: np.ndarray, geometry: dict) -> Volume:
    """An image `[D, H, W]` in [-1, 1] in the place and the units of the training set."""
    values = IntensityMap(**geometry["intensity"]).from_unit(image)
    return Volume(values[None], np.asarray(geometry["affine"]))


def stored_type(intensity: dict) -> type:
    """int16 for a window as of CT, which whole numbers resolve and int16 holds; float32 for any other range."""
    low, high = intensity["low"], intensity["high"]
    whole = intensity["kind"] == "window" and high - low >= MIN_WHOLE_RANGE and -(2**15) <= low and high < 2**15
    return np.int16 if whole else np.float32
