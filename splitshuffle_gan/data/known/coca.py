"""Stanford COCA's outlines of coronary calcium: from the property list that OsiriX wrote to a label volume.

A list holds `Images`, one per slice that has outlines: `ImageIndex`, `NumberOfROIs`, and `ROIs`, each with a vessel's
`Name`, `Point_px`, texts "(x, y)" in pixels of the slice, and `Point_mm`, texts "(x, y, z)" in DICOM's LPS mm.

- Pixels are counted from the outer corner of the first one: OsiriX (`DCMPix convertPixX:pixY:toDICOMCoords:` in Horos's
  source) takes half a pixel off before it computes mm, so pixel 0 reaches from 0 to 1 and its centre is at 0.5.
- `ImageIndex` counts from 0 at the lowest slice: public readers that sort by rising z use it as it is (PrediCT, through
  ITK's order), and those that sort by falling file number mean the same. It is a number in the viewer's list though,
  and shifts when a file is missing or doubled; neuro-ml/amid takes the slice from `Point_mm` instead. So do we, and use
  `ImageIndex` only where there is no `Point_mm`.
"""

import plistlib
import re
from dataclasses import dataclass
from pathlib import Path
from xml.parsers.expat import ExpatError

import numpy as np

from splitshuffle_gan.data.readers.scan import Header
from splitshuffle_gan.errors import UserError

# Label, by the name in full or short, in any case.
VESSELS = {"LAD": 1, "LCX": 2, "RCA": 3, "LCA": 4}
NAMES = {
    "left anterior descending artery": "LAD",
    "left circumflex artery": "LCX",
    "right coronary artery": "RCA",
    "left coronary artery": "LCA",
    **{short.lower(): short for short in VESSELS},
}
MAX_BYTES = 64 << 20
# How far, in slices, an outline may lie from the slice it is drawn on, and in pixels from its own other coordinates.
SLICE_TOLERANCE = 0.4
PIXEL_TOLERANCE = 1.0
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Outline:
    """A closed polygon on one slice: pixels `[n, 2]` (x, y), LPS mm `[n, 3]` or None, and the viewer's slice number."""

    vessel: str
    pixels: np.ndarray
    points: np.ndarray | None
    image_index: int


@dataclass(frozen=True)
class CalciumLabels:
    """Labels on a series' grid: uint8 (x, y, z) in the header's order, 0 background, else `VESSELS`.

    `voxels` counts them by vessel; `remarks` say what was odd, a sentence each.
    """

    array: np.ndarray
    voxels: dict[str, int]
    remarks: tuple[str, ...]


def read_outlines(path: Path) -> list[Outline]:
    """The outlines of one XML property list. Raises UserError naming the file and the field that makes no sense.

    An outline without a single point is passed over, as OsiriX leaves such behind.
    """
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: a property list of at most {MAX_BYTES >> 20} MB is wanted")
    try:
        with open(path, "rb") as file:
            images = plistlib.load(file, fmt=plistlib.FMT_XML)["Images"]
        drawn = [(image["ImageIndex"], roi) for image in images for roi in image["ROIs"]]
        return [_outline(path, index, roi) for index, roi in drawn if roi.get("Point_px") or roi.get("Point_mm")]
    except UserError:
        raise
    except (plistlib.InvalidFileException, ExpatError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not an XML property list ({error}); replace or remove it") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path}: a field is missing or of another kind ({error!r}); Images with ImageIndex and ROIs are wanted"
        ) from error


def draw_labels(outlines: list[Outline], header: Header, source: str) -> CalciumLabels:
    """Fill the outlines on a series' grid; a voxel is inside when its centre is, and each outline has at least one.

    Where outlines overlap the later one stays. `header` is the series' own; `source` names the list in messages.
    Raises UserError for an outline off the grid or between slices: the list then belongs to another series.
    """
    array = np.zeros(header.shape, dtype=np.uint8)
    from_world = np.linalg.inv(header.affine)
    remarks: set[str] = set()
    for number, outline in enumerate(outlines):
        what = f"{source}: outline {number + 1} of {len(outlines)} ({outline.vessel})"
        if outline.points is None:
            corners, level = _by_pixels(outline, header, what), float(outline.image_index)
            remarks.add("no Point_mm: the slice is ImageIndex, counted from the lowest")
        else:
            # LPS to RAS.
            world = np.column_stack([outline.points * (-1, -1, 1), np.ones(len(outline.points))])
            index = world @ from_world.T
            corners, level = index[:, :2], float(index[:, 2].mean())
            _check_flat(index[:, 2], what)
            _check_agreement(corners, outline.pixels, header.shape, what)
            if round(level) != outline.image_index:
                remarks.add("ImageIndex is not the slice that Point_mm lies on, counted from the lowest; Point_mm won")
        slice_index = round(level)
        least, most = corners.min(axis=0), corners.max(axis=0)
        inside = (least >= -0.5).all() and (most <= np.asarray(header.shape[:2]) - 0.5).all()
        if not inside or not 0 <= slice_index < header.shape[2]:
            raise UserError(
                f"{what} reaches over x {least[0]:.1f}..{most[0]:.1f}, y {least[1]:.1f}..{most[1]:.1f} on slice "
                f"{slice_index} of a grid of {header.shape}; the list belongs to another series"
            )
        fill(array[:, :, slice_index], corners, VESSELS[outline.vessel])
    voxels = {vessel: int((array == label).sum()) for vessel, label in VESSELS.items()}
    return CalciumLabels(array, voxels, tuple(sorted(remarks)))


def fill(plane: np.ndarray, corners: np.ndarray, label: int) -> None:
    """Set the pixels `[x, y]` of `plane` whose centres, at whole numbers, lie in the polygon `[n, 2]` (even-odd rule).

    A polygon between all centres sets the pixel that holds the mean of its corners. It lies within the plane.
    """
    low = np.maximum(np.ceil(corners.min(axis=0)).astype(int), 0)
    high = np.minimum(np.floor(corners.max(axis=0)).astype(int), np.asarray(plane.shape) - 1)
    x, y = np.meshgrid(*[np.arange(a, b + 1) for a, b in zip(low, high, strict=True)], indexing="ij")
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        # A ray towards +x; ends belong to the upper edge only, so that a corner is crossed once.
        crosses = (y0 > y) != (y1 > y)
        inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    if inside.any():
        plane[x[inside], y[inside]] = label
    else:
        centre = np.clip(np.rint(corners.mean(axis=0)).astype(int), 0, np.asarray(plane.shape) - 1)
        plane[tuple(centre)] = label


def _outline(path: Path, image_index: int, roi: dict) -> Outline:
    name = str(roi["Name"])
    vessel = NAMES.get(name.strip().lower())
    if vessel is None:
        raise UserError(f"{path}: vessel {name!r} is unknown; one of {', '.join(sorted(NAMES))} is wanted")
    if not isinstance(image_index, int) or image_index < 0:
        raise UserError(f"{path}: ImageIndex is {image_index!r}; a whole number from 0 is wanted")
    points = roi.get("Point_mm")
    pixels = _numbers(path, "Point_px", roi["Point_px"], 2)
    points = None if not points else _numbers(path, "Point_mm", points, 3)
    if points is not None and len(points) != len(pixels):
        raise UserError(f"{path}: an outline of {name} has {len(pixels)} Point_px but {len(points)} Point_mm")
    return Outline(vessel, pixels, points, image_index)


def _numbers(path: Path, field: str, texts: list[str], count: int) -> np.ndarray:
    """`["(1, 2)", ...]` -> float64 `[n, count]`."""
    rows = [[float(number) for number in _NUMBER.findall(text)] for text in texts]
    if any(len(row) != count for row in rows) or not np.isfinite(rows).all():
        odd = next((text for text, row in zip(texts, rows, strict=True) if len(row) != count), texts[0])
        raise UserError(f"{path}: {field} holds {odd!r}; {count} numbers in brackets are wanted")
    return np.array(rows)


def _check_flat(levels: np.ndarray, what: str) -> None:
    off = float(np.abs(levels - round(float(levels.mean()))).max())
    if off > SLICE_TOLERANCE:
        raise UserError(f"{what} lies {off:.2f} slices off the nearest slice; the list belongs to another series")


def _check_agreement(corners: np.ndarray, pixels: np.ndarray, shape: tuple[int, int, int], what: str) -> None:
    """Pixels and mm must name the same places, whichever way rows and columns ran before they were turned."""
    expected = pixels - 0.5
    for axis in (0, 1):
        as_is = np.abs(corners[:, axis] - expected[:, axis]).max()
        turned = np.abs(shape[axis] - 1 - corners[:, axis] - expected[:, axis]).max()
        if min(as_is, turned) > PIXEL_TOLERANCE:
            raise UserError(
                f"{what}: Point_px and Point_mm disagree by {min(as_is, turned):.1f} pixels on this series' grid; "
                "the list belongs to another series"
            )


def _by_pixels(outline: Outline, header: Header, what: str) -> np.ndarray:
    """Corners on the grid from pixels alone, for the plain axial orientation, in which all of COCA is said to be."""
    if header.orientation[:2] != "LP":
        raise UserError(
            f"{what} has no Point_mm, and the series is {header.orientation}, not axial LPS; it cannot be placed"
        )
    return np.asarray(header.shape[:2]) - 1 - (outline.pixels - 0.5)
