"""Label maps that ride along with scans: found by name, checked against the scan's grid, resampled without mixing."""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from splitshuffle_gan.data.readers.scan import Header, Scan
from splitshuffle_gan.data.readers.scans import find_scans
from splitshuffle_gan.data.recipe import AUTO
from splitshuffle_gan.data.resample import resample
from splitshuffle_gan.errors import UserError

SUFFIXES = (".nii.gz", ".nii", ".hdr", ".img", ".mgz", ".mgh", ".nrrd", ".nhdr", ".npy")
MOST = 255
# In voxels: how far a label map's corners may lie from its scan's. Headers are often rounded.
GRID_TOLERANCE = 0.05


class LabelMaps:
    """The label maps of a source, by the names of the scans that they belong to.

    `labels` is their folder, or "auto", and then `beside` are the folders of labels within the source, relative to it.
    Raises UserError when there are no label maps.
    """

    def __init__(self, source: Path, labels: Path, beside: tuple[str, ...] = ()):
        self._root = source if source.is_dir() else source.parent
        self._by_name: dict[str, Scan] = {}
        self._by_stem: dict[str, list[Scan]] = defaultdict(list)
        self._reasons: dict[str, str] = {}
        for start, folder in _folders(source, labels, beside).items():
            found = find_scans(folder)
            for label in found.scans:
                self._by_name[start + label.name] = label
                self._by_stem[_stem(start + label.name)].append(label)
            for rejected in found.rejected:
                self._reasons[_stem(start + rejected.name)] = rejected.reason

    def of(self, scan: Scan) -> Scan:
        """The one map of the scan's name, whatever the format. Raises UserError when there is none, or several."""
        file, names = scan.paths[0], [scan.name]
        if file.is_relative_to(self._root):  # the scan's name may say more than its file's: the volume of a 4D file
            names.append(file.relative_to(self._root).as_posix())
        for name in names:
            if name in self._by_name:
                return self._by_name[name]
        stems = [_stem(name) for name in names]
        # A scan may carry the number of its channel, as nnU-Net has it.
        for stem in [*stems, *(re.sub("_0000$", "", stem) for stem in stems)]:
            maps = self._by_stem.get(stem, [])
            if len(maps) > 1:
                both = ", ".join(label.name for label in maps)
                raise UserError(f"{scan.name}: there are several label maps for it, {both}; keep one")
            if maps:
                return maps[0]
            if stem in self._reasons:
                raise UserError(f"{scan.name}: its label map cannot be used: {self._reasons[stem]}")
        raise UserError(f"{scan.name}: there is no label map of this name; add it, or remove the scan")


def check_grid(name: str, header: Header, label: Header) -> None:
    """Raise UserError unless scan and label map have the same voxels in the same places."""
    if tuple(header.shape) != tuple(label.shape):
        found = f"{tuple(label.shape)} voxels (x, y, z), the scan {tuple(header.shape)}"
        raise UserError(f"{name}: its label map has {found}; bring it to the scan's grid, or remove the scan")
    corners = np.stack(np.meshgrid(*[(0, side - 1) for side in header.shape], [1], indexing="ij"), -1).reshape(-1, 4)
    apart = np.abs(np.linalg.inv(header.affine) @ np.asarray(label.affine) @ corners.T - corners.T).max()
    if apart > GRID_TOLERANCE:
        raise UserError(
            f"{name}: its label map lies {apart:.2g} voxels away from it; the same grid is wanted: repair the header "
            "of one of the two, or remove the scan"
        )


def read_labels(label: Scan, plane: str) -> np.ndarray:
    """uint8 `[D, H, W]`. Raises UserError naming the file when a value is not a whole number of 0 to 255."""
    array = label.read(plane).array[0]
    with np.errstate(invalid="ignore"):
        whole = array.astype(np.uint8)
    if not np.array_equal(array, whole):
        found = f"{array.min():g}..{array.max():g}"
        raise UserError(f"{label.name}: labels are {found}, not all whole numbers of 0 to {MOST}; repair or remove it")
    return whole


def resample_labels(
    array: np.ndarray, step: np.ndarray, offset: np.ndarray, shape: tuple[int, int, int], kind: str
) -> np.ndarray:
    """uint8 `[D, H, W]` on a new grid as `resample.resample` has it, 0 outside.

    "nearest" copies labels; "linear" gives each voxel the label that weighs most when each is resampled by itself, the
    lowest of equals.
    """
    if kind == "nearest":
        return resample(array, step, offset, shape, 0, "nearest").astype(np.uint8)
    best, winner = np.full(shape, -1, np.float32), np.zeros(shape, np.uint8)
    for value in np.unique(array):
        weight = resample(array == value, step, offset, shape, float(value == 0))
        ahead = weight > best
        best[ahead], winner[ahead] = weight[ahead], value
    return winner


def _folders(source: Path, labels: Path, beside: tuple[str, ...]) -> dict[str, Path]:
    """Folders of label maps, each by what comes before a label map's name in its scan's name."""
    if str(labels) != AUTO:
        if not labels.is_dir():
            raise UserError(f"labels: {labels} is no folder; give the folder of the label maps")
        return {"": labels}
    if beside:
        return {re.sub("labels([^/]*)$", r"images\1", name) + "/": source / name for name in beside}
    images = (source if source.is_dir() else source.parent).resolve()
    folder = images.with_name(re.sub("^images", "labels", images.name))
    if folder == images or not folder.is_dir():
        wanted = "labels/ beside images/, or labelsTr/ beside imagesTr/, is wanted"
        raise UserError(f"labels: auto found no folder of label maps for {source}; {wanted}; give --labels DIR")
    return {"": folder}


def _stem(name: str) -> str:
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]
