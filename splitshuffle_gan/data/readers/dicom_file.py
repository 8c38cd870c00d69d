"""One DICOM file: what its header says, quickly and of any file, and its pixels."""

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from splitshuffle_gan.data.readers.dicom_frame import CONTEXT, GEOMETRY, Frame, Layout, frames_of
from splitshuffle_gan.errors import UserError

MAGIC_AT = 128  # the magic word follows a preamble of so many bytes
MAX_INFLATED = 2**31  # bytes that a deflated file may grow to
DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
NO_SCAN = ("Secondary Capture", "Segmentation", "RT ")  # have pixels, but are no scans, by their SOP class
PIXEL_TAGS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

PERSONAL = (
    "PatientName PatientID PatientBirthDate PatientBirthTime PatientAge PatientAddress PatientTelephoneNumbers "
    "OtherPatientIDs OtherPatientIDsSequence OtherPatientNames PatientMotherBirthName PatientComments EthnicGroup "
    "StudyDate SeriesDate AcquisitionDate ContentDate AcquisitionDateTime InstanceCreationDate StudyID AccessionNumber "
    "InstitutionName InstitutionAddress InstitutionalDepartmentName StationName DeviceSerialNumber "
    "ReferringPhysicianName PerformingPhysicianName NameOfPhysiciansReadingStudy RequestingPhysician OperatorsName"
).split()
HEADER = (
    "SOPClassUID StudyInstanceUID SeriesInstanceUID SeriesNumber Modality FrameOfReferenceUID Rows Columns "
    "SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit PixelRepresentation NumberOfFrames "
    "PlanarConfiguration ModalityLUTSequence PixelPaddingValue LossyImageCompression SharedFunctionalGroupsSequence "
    "PerFrameFunctionalGroupsSequence"
).split()
PERSONAL_TAGS = {keyword: Tag(keyword) for keyword in PERSONAL}
TAGS = [Tag(keyword) for keyword in (*HEADER, *GEOMETRY, *CONTEXT, *PERSONAL, "SyntheticData")]


@dataclass(frozen=True)
class DicomFile:
    """What one file says of itself, or, as `reason`, why it is no part of a scan.

    `series` is the study's and the series' UID, () where unknown; `number` the series' number or None; `syntax` the
    transfer syntax; `personal` names the tags with personal data, never their values.
    """

    path: Path
    series: tuple[str, ...] = ()
    number: int | None = None
    modality: str = ""
    syntax: str = ""
    remarks: tuple[str, ...] = ()
    personal: tuple[str, ...] = ()
    frames: tuple[Frame, ...] = ()
    reason: str = ""


def examine_files(paths: list[Path]) -> list[DicomFile]:
    """Headers of many files; nothing is raised. Layouts that are equal are one object, to save memory."""
    layouts: dict[Layout, Layout] = {}
    return [_examine(path, layouts) for path in paths]


def read_pixels(path: Path) -> tuple[tuple[Frame, ...], np.ndarray]:
    """The frames of a file as `examine_files` finds them, and stored pixels `[frames, rows, columns]`, not rescaled.

    Raises UserError naming the file.
    """
    compressed = False
    extra = [Tag(keyword) for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths", *PIXEL_TAGS)]
    try:
        with _lenient(), open(path, "rb") as file:
            _check_magic(file, path)
            dataset = pydicom.dcmread(file, force=True, specific_tags=[*TAGS, *extra])
            if not any(keyword in dataset for keyword in PIXEL_TAGS):
                raise UserError("has no pixel data, or is cut short; replace or remove the file")
            frames = frames_of(dataset, path, {})
            syntax = UID(_syntax(dataset))
            compressed = syntax.is_compressed
            if missing := decoder_missing(syntax):
                raise UserError(missing)
            pixels = dataset.pixel_array
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # what pydicom and its decoders raise on damaged bytes has no common base
        hint = f"; if other programs can read it, try {DECODERS}" if compressed else "; replace or remove the file"
        raise UserError(f"{path}: the pixels cannot be read ({_text(error)}){hint}") from error
    return frames, pixels.reshape(-1, *pixels.shape[-2:])


def decoder_missing(syntax: str) -> str:
    """What to do about a transfer syntax that nothing here can decode; "" for one that something can."""
    uid = UID(syntax)
    try:
        known = get_decoder(uid).is_available
    except NotImplementedError:
        known = False
    return "" if known else f"its pixels are compressed as {uid.name}, and no decoder for it is installed: {DECODERS}"


def _examine(path: Path, layouts: dict[Layout, Layout]) -> DicomFile:
    known = {"path": path}
    try:
        if not path.is_file():
            raise UserError("not a file that can be read, such as a link that leads nowhere; remove it")
        with _lenient(), open(path, "rb") as file:
            _check_magic(file, path)
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=TAGS)
            _check_kind(dataset)
            known |= _about(dataset)
            frames = frames_of(dataset, path, layouts)
            _check_length(file, dataset, len(frames))
        return DicomFile(frames=frames, **known)
    except UserError as error:
        return DicomFile(reason=str(error), **known)
    except Exception as error:  # as above
        # Without pydicom's text, which may quote a header that holds somebody's name.
        text = error.strerror if isinstance(error, OSError) and error.strerror else "its header cannot be parsed"
        return DicomFile(reason=f"a damaged DICOM file ({text}); replace or remove it", **known)


@contextmanager
def _lenient() -> Iterator[None]:
    """No word from pydicom about slips in a header that do not matter here."""
    with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def _check_magic(file, path: Path) -> None:
    """Raise UserError unless the file starts like DICOM; old files without a preamble must be named .dcm."""
    start = file.read(1024)
    bare = start[:2] in (b"\x02\x00", b"\x08\x00") and path.name.lower().endswith(".dcm")
    if start[MAGIC_AT : MAGIC_AT + 4] != b"DICM" and not bare:
        raise UserError("not a DICOM file" if start else "an empty file (0 bytes)")
    if DeflatedExplicitVRLittleEndian.encode() in start:
        _check_inflated(file, start)
    file.seek(0)


def _check_inflated(file, start: bytes) -> None:
    """Raise UserError for a file that would inflate beyond all bounds, before pydicom inflates it in memory."""
    length_at = MAGIC_AT + 12  # of the value of (0002,0000), how many bytes of file meta information follow
    file.seek(length_at + 4 + struct.unpack("<L", start[length_at : length_at + 4])[0])
    inflate, pending, size = zlib.decompressobj(-zlib.MAX_WBITS), b"", 0
    while (pending or (pending := file.read(1 << 16))) and not inflate.eof:
        size += len(inflate.decompress(pending, 1 << 20))
        pending = inflate.unconsumed_tail
        if size > MAX_INFLATED:
            raise UserError(f"inflates to more than {MAX_INFLATED >> 30} GiB; store it with another transfer syntax")


def _check_kind(dataset: Dataset) -> None:
    """Raise UserError for an object that is no greyscale image in a series, saying what it is."""
    kind = UID(str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or ""))
    if kind == MediaStorageDirectoryStorage:
        raise UserError("a DICOMDIR, the index of a medium, not an image; the files it lists are found without it")
    if not dataset.get("Rows") or not dataset.get("Columns"):
        known = kind.name if kind.name != kind else "an unknown SOPClassUID"
        raise UserError(f"holds no image ({known}): Rows or Columns are missing; leave it out, or replace a cut file")
    if any(word in kind.name for word in NO_SCAN):
        raise UserError(f"a {kind.name} object, not a scan; leave it out")
    samples, photometric = dataset.get("SamplesPerPixel") or 1, str(dataset.get("PhotometricInterpretation") or "")
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        found = f"{photometric[:16] or 'missing'} with {samples} samples per pixel"
        raise UserError(f"PhotometricInterpretation is {found}; a greyscale image (MONOCHROME1 or 2) is wanted")
    if dataset.get("ModalityLUTSequence"):
        raise UserError("has a ModalityLUTSequence; a linear RescaleSlope and RescaleIntercept are wanted: convert it")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        if not dataset.get(keyword):
            raise UserError(f"{keyword} is missing, so its series is unknown; repair or remove the file")


def _about(dataset: Dataset) -> dict:
    """The fields of a DicomFile that concern the file as a whole."""
    remarks, modality = [], str(dataset.get("Modality") or "")
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        remarks.append("MONOCHROME1: viewers show low values bright; the values are kept as stored, not inverted")
    if isinstance(padding := dataset.get("PixelPaddingValue"), int):
        remarks.append(f"stored value {padding} marks pixels outside the scan (PixelPaddingValue); they are kept")
    if str(dataset.get("LossyImageCompression") or "") == "01":
        remarks.append("was compressed with loss")
    if modality == "CT" and "RescaleIntercept" not in dataset and "SharedFunctionalGroupsSequence" not in dataset:
        remarks.append("a CT without RescaleIntercept: its values may not be HU")
    number = str(dataset.get("SeriesNumber") if dataset.get("SeriesNumber") is not None else "")
    return {
        "series": (str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID)),
        "number": int(number) if number.isdecimal() else None,
        "modality": modality,
        "syntax": _syntax(dataset),
        "remarks": tuple(remarks),
        # A series that says it is synthetic, as ours do, is of nobody.
        "personal": ()
        if str(dataset.get("SyntheticData", "")) == "YES"
        else tuple(keyword for keyword, tag in PERSONAL_TAGS.items() if _is_filled(dataset, tag)),
    }


def _is_filled(dataset: Dataset, tag: int) -> bool:
    """Whether the element is there and not empty; its value is not parsed."""
    value = dataset.get_item(tag).value if tag in dataset else None
    return bool(value.strip() if isinstance(value, bytes) else value)


def _syntax(dataset: Dataset) -> str:
    """The transfer syntax; without one, that of the bytes themselves, which then are not compressed."""
    given = str(dataset.file_meta.get("TransferSyntaxUID") or "")
    return given or ("1.2.840.10008.1.2" if dataset.original_encoding[0] else "1.2.840.10008.1.2.1")


def _check_length(file, dataset: Dataset, frames: int) -> None:
    """Raise UserError when the pixels, which `file` stands before, are not there or not all there."""
    syntax = UID(_syntax(dataset))
    if syntax.is_deflated:
        return  # pydicom has inflated it elsewhere
    little = syntax.is_little_endian
    element = file.read(12)
    if len(element) < 8 or struct.unpack("<HH" if little else ">HH", element[:4]) not in (
        *((Tag(keyword).group, Tag(keyword).element) for keyword in PIXEL_TAGS),
    ):
        raise UserError("has no pixel data; replace or remove the file")
    if syntax.is_compressed:
        if not _fragments_end(file):
            raise UserError("is cut short within its compressed pixels; replace or remove the file")
        return
    explicit = element[4:6].isalpha()
    at, before = (8, 12) if explicit else (4, 8)
    length = struct.unpack("<L" if little else ">L", element[at : at + 4])[0]
    start = file.tell() - len(element) + before
    there = min(length, file.seek(0, 2) - start)
    wanted = frames * dataset.Rows * dataset.Columns * (dataset.BitsAllocated // 8)
    if there < wanted:
        raise UserError(f"is cut short: {there} of {wanted} bytes of pixels are there; replace or remove the file")


def _fragments_end(file) -> bool:
    """Whether the fragments of compressed pixels, before which `file` stands, come to their end."""
    size = os.fstat(file.fileno()).st_size
    while len(item := file.read(8)) == 8:
        group, element, length = struct.unpack("<HHL", item)
        if (group, element) != (0xFFFE, 0xE000):
            return (group, element) == (0xFFFE, 0xE0DD)
        if file.tell() + length > size:
            return False
        file.seek(length, os.SEEK_CUR)
    return False


def _text(error: Exception) -> str:
    """What decoders say; other errors may quote bytes of the header, which may hold somebody's name."""
    said = isinstance(error, (OSError, RuntimeError, NotImplementedError)) or type(error) is ValueError
    return " ".join(str(error).split())[:200] if said and str(error) else type(error).__name__
