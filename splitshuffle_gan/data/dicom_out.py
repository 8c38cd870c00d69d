"""A synthetic volume as a DICOM series: one CT or MR image per slice, that says of itself that it is synthetic.

What a reader should know:

- **Place.** Slices run along D, in the order of their normal, as radiologists look at them: axial rows run to the
  patient's left and columns to the back, coronal to the left and feet, sagittal to the back and feet. The array is
  flipped for that, never resampled.
- **Values.** CT: signed 16 bit, rescale slope 1 and intercept 0, so what is stored is HU, rounded. MR: 0 to 4095,
  spread over one range per series. MR units are arbitrary and the MR Image IOD has no rescale; slope and intercept (of
  type US, unspecified) are there all the same, as an extension that the standard allows and readers apply, and lead
  back to the volume's own units within half a step of range / 4095.
- **Identity.** Nobody's: patient's name and ID are the sample's; dates and other required fields are empty. UIDs are
  hashes of `uid_seed`, the name, the values and the place: the same volume gets the same ones wherever it is written,
  another volume others.
"""

import hashlib
import re
from itertools import product
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from splitshuffle_gan import __version__
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import refuse_existing, whole_folder
from splitshuffle_gan.volume import Volume, grid_centre, spacing_of

STORAGE = {"CT": CTImageStorage, "MR": MRImageStorage}
MR_STEPS = 4095  # 12 bit, which every viewer shows
WORST_MM = 0.01  # the farthest that right angles may move a voxel
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to DICOM's patient axes, and back
LONG_STRING, SHORT_TEXT = 64, 1024  # characters of VR LO and ST
DECIMALS = 12  # of directions and positions in mm; what comes after is rounding


def write_dicom(
    volume: Volume,
    folder: Path,
    *,
    modality: str,
    name: str,
    description: str,
    uid_seed: str,
    bounds: tuple[float, float] | None = None,
    derivation: str = "",
) -> Path:
    """Write a one-channel volume as `IM000001.dcm`, ... into `folder`, which appears complete or not at all.

    Args:
        volume: in HU for CT, in any unit for MR; slices are cut along its first axis.
        folder: to make.
        modality: "CT" or "MR".
        name: of the sample, letters, digits, `-`, `_` and `.`; patient's ID, and as SYNTHETIC^name the patient's name.
        description: of the series, cut at 64 characters.
        uid_seed: what to tell equal volumes of different origin apart by, such as a checkpoint's hash and a seed.
        bounds: the range that an MR series resolves, and the window to view either by; default: the volume's own.
        derivation: how the volume was made, cut at 1024 characters.

    Returns:
        The folder.

    Raises:
        UserError: `folder` exists, or the volume's axes are not at right angles.
        ValueError: another modality or name, several channels, values that are not finite or do not fit.
    """
    if modality not in STORAGE:
        raise ValueError(f"modality: found {modality!r}, wanted CT or MR")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,48}", name):
        raise ValueError(f"name: found {name!r}, wanted 1 to 48 letters, digits, '-', '_' or '.'")
    if volume.array.shape[0] != 1 or not np.isfinite(volume.array).all():
        raise ValueError(f"{name}: one channel of finite values is wanted; found {volume.array.shape[0]} channels")
    refuse_existing(folder, overwrite=False, mark="")
    array, affine = _as_viewed(volume.array[0], right_angled(volume.affine, volume.shape, name))
    low, high = bounds or (float(array.min()), float(array.max()))
    stored, values = _quantise(array, modality, low, high, name)
    # Were a UID to depend on the seed alone, another truncation or grid would put other voxels under the same name.
    content = hashlib.sha256(stored.tobytes() + affine.tobytes() + repr((modality, low, high)).encode()).hexdigest()

    def uid(*parts: object) -> str:
        return generate_uid(entropy_srcs=[uid_seed, name, content, *map(str, parts)])

    image = Dataset()
    image.update(_identity(modality, name, description, derivation))
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = map(uid, ("study", "series", "frame"))
    image.update(_modality_fields(modality))
    image.update(_plane(affine))
    image.update(values)
    image.Rows, image.Columns = stored.shape[1:]
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    normal = affine[:3, 0] / np.linalg.norm(affine[:3, 0])
    with whole_folder(folder) as building:
        for index, pixels in enumerate(stored):
            position = affine[:3, :3] @ [index, 0, 0] + affine[:3, 3]
            image.SOPInstanceUID = uid("image", index)
            image.InstanceNumber = index + 1
            image.ImagePositionPatient = _decimals(_rounded(position))
            (image.SliceLocation,) = _decimals(_rounded([normal @ position]))
            image.PixelData = pixels.tobytes()
            image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
            image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
            pydicom.dcmwrite(building / f"IM{index + 1:06d}.dcm", image, enforce_file_format=True)
    return folder


def right_angled(affine: np.ndarray, shape: tuple[int, int, int], name: str) -> np.ndarray:
    """The affine with exact right angles nearest to `affine`, about the same middle: DICOM has no other axes.

    Raises UserError, naming `name`, when that moves a voxel by more than 0.01 mm.
    """
    affine, spacing = np.asarray(affine, dtype=np.float64), spacing_of(affine)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    square = np.eye(4)
    square[:3, :3] = left @ right * spacing
    square[:3, 3] = grid_centre(affine, shape) - square[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    corners = np.array([[*corner, 1] for corner in product(*[(0, side - 1) for side in shape])])
    moved = np.linalg.norm(corners @ (square - affine).T, axis=1).max()
    if moved > WORST_MM:
        raise UserError(
            f"{name}: its axes are not at right angles, as DICOM's are; making them so would move voxels by "
            f"{moved:.2g} mm, at most {WORST_MM} mm is wanted: leave out --dicom, or resample the scan first"
        )
    return square


def _as_viewed(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """RAS+ `[D, H, W]` with H and W flipped, and D where it runs against their normal; affine to LPS mm."""
    affine = LPS @ affine
    normal = np.cross(affine[:3, 2], affine[:3, 1])
    axes = (1, 2) if affine[:3, 0] @ normal > 0 else (0, 1, 2)
    for axis in axes:
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
        affine[:3, axis] *= -1
    return np.flip(array, axes), affine


def _quantise(array: np.ndarray, modality: str, low: float, high: float, name: str) -> tuple[np.ndarray, Dataset]:
    """The integers to store, little endian, and the fields that say what they mean."""
    fields = Dataset()
    fields.SamplesPerPixel, fields.PhotometricInterpretation, fields.BitsAllocated = 1, "MONOCHROME2", 16
    if modality == "CT":
        stored, kind, slope, intercept = np.rint(array), np.dtype("<i2"), 1, 0
        limits = np.iinfo(kind)
        if stored.min() < limits.min or stored.max() > limits.max:
            raise ValueError(f"{name}: values {array.min():g}..{array.max():g} are no HU that 16 bit hold")
    else:
        kind = np.dtype("<u2")
        # The numbers as they will be read count, and a decimal string has 16 characters.
        slope, intercept = map(float, _decimals([(high - low) / MR_STEPS or 1, low]))
        stored = np.clip(np.rint((array.astype(np.float64) - intercept) / slope), 0, MR_STEPS)
    fields.BitsStored = 16 if modality == "CT" else 12
    fields.HighBit = fields.BitsStored - 1
    fields.PixelRepresentation = int(kind.kind == "i")
    fields.RescaleIntercept, fields.RescaleSlope = _decimals([intercept, slope])
    fields.RescaleType = "HU" if modality == "CT" else "US"
    if low < high:
        # The default function would want a width of at least 1.
        fields.WindowCenter, fields.WindowWidth = _decimals([(low + high) / 2, high - low])
        fields.VOILUTFunction = "LINEAR_EXACT"
    return stored.astype(kind), fields


def _plane(affine: np.ndarray) -> Dataset:
    """Directions and distances, the same for all slices, of an affine (slice, row, column) to LPS mm."""
    fields = Dataset()
    between, down, across = spacing_of(affine)
    fields.ImageOrientationPatient = _decimals(_rounded([*affine[:3, 2] / across, *affine[:3, 1] / down]))
    fields.PixelSpacing = _decimals([down, across])
    (fields.SliceThickness,) = (fields.SpacingBetweenSlices,) = _decimals([between])
    return fields


def _identity(modality: str, name: str, description: str, derivation: str) -> Dataset:
    """Who and what this is: nobody, synthetic, for research; fields of type 2 that have no true value are empty."""
    fields = Dataset()
    fields.SOPClassUID, fields.Modality = STORAGE[modality], modality
    fields.SyntheticData = "YES"
    fields.ContentQualification = "RESEARCH"
    fields.BurnedInAnnotation, fields.LossyImageCompression = "NO", "00"
    fields.PatientName, fields.PatientID = f"SYNTHETIC^{name}", f"SYNTHETIC^{name}"
    fields.PatientBirthDate = fields.PatientSex = ""
    fields.StudyDate = fields.StudyTime = fields.StudyID = fields.AccessionNumber = fields.ReferringPhysicianName = ""
    fields.StudyDescription = fields.SeriesDescription = description[:LONG_STRING]
    fields.DerivationDescription = (derivation or description)[:SHORT_TEXT]
    fields.SeriesNumber = 1
    fields.PatientPosition = "HFS"
    fields.PositionReferenceIndicator = ""
    fields.Manufacturer, fields.SoftwareVersions = "splitshuffle_gan", __version__
    return fields


def _modality_fields(modality: str) -> Dataset:
    """What the CT Image and MR Image modules require; of an acquisition there was none."""
    fields = Dataset()
    if modality == "CT":
        # The third value may be AXIAL or LOCALIZER only, whatever the plane.
        fields.ImageType = ["DERIVED", "SECONDARY", "AXIAL", "SYNTHETIC"]
        fields.KVP = fields.AcquisitionNumber = None
        return fields
    fields.ImageType = ["DERIVED", "SECONDARY", "OTHER", "SYNTHETIC"]
    fields.ScanningSequence, fields.SequenceVariant = "RM", "NONE"  # research mode: no sequence was run
    fields.ScanOptions = fields.MRAcquisitionType = ""
    fields.RepetitionTime = fields.EchoTime = fields.EchoTrainLength = None
    return fields


def _decimals(numbers: object) -> list[DSfloat]:
    """Decimal strings of at most 16 characters."""
    return [DSfloat(float(number), auto_format=True) for number in numbers]


def _rounded(numbers: object) -> np.ndarray:
    return np.round(np.asarray(numbers, dtype=np.float64), DECIMALS) + 0.0  # and no -0
