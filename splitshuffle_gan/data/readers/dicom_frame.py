"""A DICOM header's frames: where each image lies in the patient, and what its stored values mean.

Lengths are in mm and directions in DICOM's own LPS frame (towards the patient's left, back and head).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from splitshuffle_gan.errors import UserError

# The tags that place a frame and scale its values: where a multi-frame file has them, how many numbers they hold, and
# what counts where they are missing (None: they may not be).
GEOMETRY = {
    "ImagePositionPatient": ("PlanePositionSequence", 3, None),
    "ImageOrientationPatient": ("PlaneOrientationSequence", 6, None),
    "PixelSpacing": ("PixelMeasuresSequence", 2, None),
    "SliceThickness": ("PixelMeasuresSequence", 1, (0.0,)),
    "RescaleSlope": ("PixelValueTransformationSequence", 1, (1.0,)),
    "RescaleIntercept": ("PixelValueTransformationSequence", 1, (0.0,)),
}
# The tags, beside those of pictures and their place, that tell apart frames at one position, and where a multi-frame
# file keeps the like: (sequence, keyword).
CONTEXT = {
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
    "TriggerTime": ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    "DiffusionBValue": ("MRDiffusionSequence", "DiffusionBValue"),
    "ImageType": ("MRImageFrameTypeSequence", "FrameType"),
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
    "AcquisitionTime": ("FrameContentSequence", "FrameAcquisitionDateTime"),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """What frames of one volume have in common.

    `pixel_spacing` is (between rows, between columns); `orientation` holds the direction of increasing column, then of
    increasing row; `thickness` is 0 and `frame_of_reference` "" where the file does not say.
    """

    rows: int
    columns: int
    orientation: tuple[float, ...]
    pixel_spacing: tuple[float, ...]
    photometric: str
    frame_of_reference: str
    dtype: str
    thickness: float


@dataclass(frozen=True, slots=True)
class Frame:
    """One image: the `index`-th of its file, its first pixel's centre at `position`."""

    path: Path
    index: int
    position: tuple[float, ...]
    slope: float
    intercept: float
    layout: Layout
    context: tuple[str, ...] = field(compare=False)


def frames_of(dataset: Dataset, path: Path, layouts: dict[Layout, Layout]) -> tuple[Frame, ...]:
    """Raises UserError naming the tag that is missing or makes no sense, but not the file."""
    count = int(dataset.get("NumberOfFrames") or 1)
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared = (dataset.get("SharedFunctionalGroupsSequence") or (Dataset(),))[0]
    if count > 1 and len(per_frame) != count:
        found = f"{count} frames, and PerFrameFunctionalGroupsSequence places {len(per_frame)} of them"
        raise UserError(f"{found}; a file that places each of its frames is wanted: convert or remove it")
    groups = per_frame or (Dataset(),)
    return tuple(_frame(dataset, (group, shared), path, index, layouts) for index, group in enumerate(groups))


def _frame(dataset: Dataset, groups: tuple, path: Path, index: int, layouts: dict[Layout, Layout]) -> Frame:
    def value(sequence: str, keyword: str):
        for group in groups:
            if items := group.get(sequence):
                if items[0].get(keyword) is not None:
                    return items[0].get(keyword)
        return dataset.get(keyword)

    context = tuple(
        str(value(*enhanced) if groups[0].get(enhanced[0]) else dataset.get(keyword, ""))
        for keyword, enhanced in CONTEXT.items()
    )
    kind = f"{context[list(CONTEXT).index('ImageType')]} {dataset.get('ImageType', '')}"
    if "LOCALIZER" in kind:
        raise UserError("a localizer (ImageType LOCALIZER), not part of a volume; leave it out")
    if "MOSAIC" in kind:
        raise UserError("a mosaic of slices in one image (ImageType MOSAIC); convert it to one image per slice")
    numbers = {
        keyword: _numbers(keyword, lambda: value(sequence, keyword), wanted, default)  # noqa: B023, it is called at once
        for keyword, (sequence, wanted, default) in GEOMETRY.items()
    }
    if min(numbers["PixelSpacing"]) <= 0:
        raise UserError(f"PixelSpacing is {numbers['PixelSpacing']}; positive lengths in mm are wanted; repair it")
    if not numbers["RescaleSlope"][0]:
        raise UserError("RescaleSlope is 0, which leaves one value; repair or remove the file")
    layout = Layout(
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        orientation=numbers["ImageOrientationPatient"],
        pixel_spacing=numbers["PixelSpacing"],
        photometric=str(dataset.PhotometricInterpretation),
        frame_of_reference=str(dataset.get("FrameOfReferenceUID") or ""),
        dtype=_dtype(dataset),
        thickness=numbers["SliceThickness"][0],
    )
    slope, intercept = numbers["RescaleSlope"][0], numbers["RescaleIntercept"][0]
    layout = layouts.setdefault(layout, layout)
    return Frame(path, index, numbers["ImagePositionPatient"], slope, intercept, layout, context)


def _numbers(
    keyword: str, value: Callable[[], object], wanted: int, default: tuple[float, ...] | None
) -> tuple[float, ...]:
    """The tag's numbers; `value` reads it, which is where pydicom finds out what is no number."""
    try:
        found = value()
        if found is None or found == "":
            if default is None:
                raise UserError(f"{keyword} is missing, so its place is unknown; repair or remove the file")
            return default
        numbers = tuple(float(number) for number in (found if wanted > 1 else (found,)))
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{keyword} is not {wanted} numbers; repair or remove the file") from error
    if len(numbers) != wanted or not np.isfinite(numbers).all():
        raise UserError(f"{keyword} is {numbers}; {wanted} finite numbers are wanted; repair or remove the file")
    return numbers


def _dtype(dataset: Dataset) -> str:
    bits = int(dataset.get("BitsAllocated") or 0)
    if bits in (32, 64) and "PixelRepresentation" not in dataset:
        return f"float{bits}"
    if bits not in (8, 16, 32):
        raise UserError(f"BitsAllocated is {bits}; 8, 16 or 32 is wanted: convert or remove the file")
    return f"{'int' if dataset.get('PixelRepresentation') == 1 else 'uint'}{bits}"
