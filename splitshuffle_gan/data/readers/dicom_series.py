"""From the frames of one DICOM series to the stacks they form: split, order, and check that each is a regular grid.

No file is read here. Lengths are in mm, directions in DICOM's LPS frame, as in `dicom_frame`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from splitshuffle_gan.data.readers.dicom_frame import CONTEXT, Frame
from splitshuffle_gan.errors import UserError

# Frames whose direction cosines differ less belong together: 0.02 mm at the far corner of a slice of 200 mm.
SAME_DIRECTION = 1e-4
SAME_SPACING = 1e-4  # of the pixel spacing
SAME_POSITION = 1e-3  # mm
# A slice may be off its place in the regular grid by 5 % of the slice spacing, and by what rounding to a tenth of a
# millimetre does, but never by a fifth of the spacing: one missing slice moves its neighbours by a quarter or more.
JITTER, ROUNDING, MOST_JITTER = 0.05, 0.06, 0.2
PARALLEL_DEGREES = 1.0
MOSTLY = 0.75  # of a series' frames must be parallel; the others are then left out one by one
# The line through the slices may lean from their normal by so much, or by what rounding does; the affine follows it.
UPRIGHT_DEGREES, UPRIGHT_ROUNDING = 0.1, 0.1
MOST_TILT_DEGREES = 45.0
NOT_SQUARE = 5e-3  # cosine between the rows' and the columns' direction
MOST_PARTS = 50  # that a series is split into
LISTED = 6  # positions that a message names


@dataclass(frozen=True)
class Stack:
    """Frames in order along their normal, evenly spaced by `step` (a vector, LPS mm) from `origin` (LPS mm).

    `axes` are the unit directions of increasing column and row. `shifts`, for a tilted gantry that is corrected, are
    each frame's (row, column) offsets in pixels from the upright grid of `rows` x `columns`; else ().
    """

    frames: tuple[Frame, ...]
    origin: tuple[float, ...]
    axes: tuple[tuple[float, ...], tuple[float, ...]]
    step: tuple[float, ...]
    rows: int
    columns: int
    shifts: tuple[tuple[float, float], ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def affine(self) -> np.ndarray:
        """4x4, (column, row, frame, 1) to LPS mm."""
        between_rows, between_columns = self.frames[0].layout.pixel_spacing
        affine = np.eye(4)
        affine[:3, 0] = np.multiply(self.axes[0], between_columns)
        affine[:3, 1] = np.multiply(self.axes[1], between_rows)
        affine[:3, 2], affine[:3, 3] = self.step, self.origin
        return affine


def split_parts(frames: list[Frame]) -> list[list[Frame]]:
    """Groups of frames that agree in everything that one volume must share; the same for any order of `frames`.

    Raises UserError when there are more than 50, which are no stacks.
    """
    parts: list[list[Frame]] = []
    order = sorted(frames, key=lambda frame: (_exact(frame), frame.layout.orientation, frame.layout.pixel_spacing))
    for frame in order:
        fitting = (part for part in parts if _alike(part[0], frame))
        if part := next(fitting, None):
            part.append(frame)
        elif len(parts) < MOST_PARTS:
            parts.append([frame])
        else:
            raise UserError(
                f"slices of more than {MOST_PARTS} different sizes or directions, as in a radial series; "
                "one stack of parallel slices is wanted: leave the series out or split it"
            )
    return parts


def describe(part: list[Frame]) -> str:
    """What tells a part of a series from another, such as "22 of 256x256"."""
    layout = part[0].layout
    return f"{len(part)} of {layout.columns}x{layout.rows}"


def check_parallel(parts: list[list[Frame]]) -> tuple[list[list[Frame]], list[list[Frame]]]:
    """(parallel parts, others). Raises UserError when no direction has most of the frames, as in a localizer."""
    normals = [_axes(part[0])[2] for part in parts]
    least = np.cos(np.radians(PARALLEL_DEGREES))
    beside = [sum(len(p) for p, n in zip(parts, normals, strict=True) if abs(n @ normal) > least) for normal in normals]
    best = int(np.argmax(beside))
    parallel = [abs(normal @ normals[best]) > least for normal in normals]
    inside = [part for part, fits in zip(parts, parallel, strict=True) if fits]
    outside = [part for part, fits in zip(parts, parallel, strict=True) if not fits]
    if sum(map(len, inside)) < MOSTLY * sum(map(len, parts)):
        angle = np.degrees(np.arccos(min(1.0, min(abs(normal @ normals[best]) for normal in normals))))
        raise UserError(
            f"slices are not parallel (up to {angle:.0f} degrees apart), as in a localizer or a radial series; "
            "one stack of parallel slices is wanted: leave the series out or split it"
        )
    return inside, outside


def build_stack(part: list[Frame], same_pixels: Callable[[Frame, Frame], bool], correct_tilt: bool) -> Stack:
    """Order the frames of a part along their normal and check that they form a regular grid.

    Duplicates of the same content are dropped, with a remark. Raises UserError with the reason when the part is no
    volume: one slice, different slices at one position, uneven spacing, or a tilt that is not to be corrected.
    """
    row_axis, column_axis, normal, remarks = _axes(part[0])
    along = {id(frame): float(np.dot(frame.position, normal)) for frame in part}
    part = sorted(part, key=lambda frame: (along[id(frame)], frame.path, frame.index))
    frames, dropped = _without_duplicates(part, normal, same_pixels)
    if dropped:
        remarks += (f"{dropped} duplicate slices of the same content were dropped",)
    if len(frames) < 2:
        raise UserError("one slice only, which is not a volume; at least two slices are wanted: leave it out")
    positions = np.array([frame.position for frame in frames])
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    spacing = float(step @ normal)
    remarks += _check_even(positions @ normal, spacing)
    lateral = positions - positions[0] - np.outer((positions - positions[0]) @ normal, normal)
    angle = float(np.degrees(np.arctan2(np.linalg.norm(step - spacing * normal), spacing)))
    layout = frames[0].layout
    axes = tuple(row_axis), tuple(column_axis)
    stack = Stack(tuple(frames), frames[0].position, axes, tuple(step), layout.rows, layout.columns)
    upright = angle <= UPRIGHT_DEGREES or np.linalg.norm(lateral[-1]) <= UPRIGHT_ROUNDING
    if not upright and (angle > MOST_TILT_DEGREES or not correct_tilt):
        advice = "correct it with --correct-tilt, which interpolates within the slices, or leave the series out"
        raise UserError(
            f"the line through the slices leans {angle:.2f} degrees from their normal (gantry tilt or a slanted "
            f"stack), at most {UPRIGHT_DEGREES} is wanted; "
            + (advice if angle <= MOST_TILT_DEGREES else "that is too much to correct: leave the series out")
        )
    line = np.outer(np.arange(len(frames)), step - spacing * normal)
    off = float(np.linalg.norm(lateral - line, axis=1).max())
    if off > max(ROUNDING, JITTER * max(layout.pixel_spacing)):
        raise UserError(
            f"slices are shifted against each other within their plane, by up to {off:.2f} mm; "
            "slices on a straight line are wanted: leave the series out"
        )
    if not upright:
        stack = _straightened(stack, lateral, spacing * normal)
        remarks += (f"a tilt of {angle:.2f} degrees was corrected by shifting each slice (linear interpolation)",)
    return replace(stack, remarks=remarks + _odd_fields(frames, spacing))


def _exact(frame: Frame) -> tuple:
    layout = frame.layout
    return layout.rows, layout.columns, layout.photometric, layout.frame_of_reference


def _alike(a: Frame, b: Frame) -> bool:
    if a.layout == b.layout:
        return True
    turned = np.subtract(a.layout.orientation, b.layout.orientation)
    scaled = np.divide(a.layout.pixel_spacing, b.layout.pixel_spacing) - 1
    return _exact(a) == _exact(b) and bool((abs(turned) < SAME_DIRECTION).all() and (abs(scaled) < SAME_SPACING).all())


def _axes(frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Unit directions of increasing column and row, their normal, and what was odd about them."""
    cosines = np.reshape(frame.layout.orientation, (2, 3))
    lengths, across = np.linalg.norm(cosines, axis=1), float(cosines[0] @ cosines[1])
    if (abs(lengths - 1) > 0.01).any() or abs(across) > NOT_SQUARE:
        raise UserError(
            f"{frame.path.name}: ImageOrientationPatient is {frame.layout.orientation}; two unit vectors at right "
            "angles are wanted: repair or remove the series"
        )
    row_axis = cosines[0] / lengths[0]
    column_axis = cosines[1] - (cosines[1] @ row_axis) * row_axis
    column_axis /= np.linalg.norm(column_axis)
    rounded = abs(across) > SAME_DIRECTION or (abs(lengths - 1) > SAME_DIRECTION).any()
    remarks = ("ImageOrientationPatient is coarsely rounded; its directions were made orthonormal",) if rounded else ()
    return row_axis, column_axis, np.cross(row_axis, column_axis), remarks


def _without_duplicates(
    part: list[Frame], normal: np.ndarray, same_pixels: Callable[[Frame, Frame], bool]
) -> tuple[list[Frame], int]:
    """One frame of each position, in order, and how many were left out."""
    frames: list[Frame] = []
    for frame in part:
        if not frames or (np.subtract(frame.position, frames[-1].position) @ normal) > SAME_POSITION:
            frames.append(frame)
            continue
        first = frames[-1]
        where = f"{first.path.name} and {frame.path.name}"
        if frame.path == first.path:
            where = f"frames {first.index + 1} and {frame.index + 1} of {frame.path.name}"
        if np.linalg.norm(np.subtract(frame.position, first.position)) > ROUNDING:
            raise UserError(
                f"{where} lie side by side in one plane; one slice per position is wanted: split the series"
            )
        if (first.slope, first.intercept) != (frame.slope, frame.intercept) or not same_pixels(first, frame):
            pairs = zip(CONTEXT, first.context, frame.context, strict=True)
            differing = ", ".join(keyword for keyword, a, b in pairs if a != b)
            raise UserError(
                f"{where} are different slices at one position ({len(part)} slices in all), as in a series of several "
                f"echoes, time points or b-values (4D){f': they differ in {differing}' if differing else ''}; "
                "one slice per position is wanted: split the series"
            )
    return frames, len(part) - len(frames)


def _check_even(along: np.ndarray, spacing: float) -> tuple[str, ...]:
    """A remark about small jitter; raises UserError naming the positions when the slices are not evenly spaced."""
    gaps = np.diff(along)
    typical = float(np.median(gaps))
    off = float(abs(along - along[0] - spacing * np.arange(len(along))).max())
    if off > min(max(JITTER * typical, ROUNDING), MOST_JITTER * typical):
        odd = [i for i, gap in enumerate(gaps) if abs(gap - typical) > JITTER * typical]
        named = ", ".join(f"{along[i]:.2f} to {along[i + 1]:.2f} mm" for i in odd[:LISTED])
        missing = sum(round(gaps[i] / typical) - 1 for i in odd)
        whole = odd and all(abs(gaps[i] / typical - round(gaps[i] / typical)) < MOST_JITTER for i in odd)
        cause = f"slices that seem to be missing: {missing}" if whole and missing > 0 else "the spacing varies"
        more = f" and {len(odd) - LISTED} more" if len(odd) > LISTED else ""
        between = f"between {named}{more}" if odd else f"by up to {off:.2f} mm over the stack"
        raise UserError(
            f"slices are unevenly spaced: {typical:.2f} mm as a rule, but not {between} along their normal; {cause}: "
            "complete the series or leave it out"
        )
    if off > max(SAME_POSITION, 1e-3 * typical):
        return (f"slices are up to {off:.3f} mm off an even spacing of {spacing:.3f} mm, which was taken",)
    return ()


def _straightened(stack: Stack, lateral: np.ndarray, step: np.ndarray) -> Stack:
    """The same frames on an upright grid that holds all of them; the first keeps its pixels."""
    between_rows, between_columns = stack.frames[0].layout.pixel_spacing
    shifts = np.stack([lateral @ stack.axes[1] / between_rows, lateral @ stack.axes[0] / between_columns], axis=1)
    low, high = np.floor(shifts.min(axis=0) + 1e-6), np.ceil(shifts.max(axis=0) - 1e-6)
    origin = stack.origin + low[0] * between_rows * np.array(stack.axes[1])
    origin = origin + low[1] * between_columns * np.array(stack.axes[0])
    more_rows, more_columns = (high - low).astype(int)
    return replace(
        stack,
        origin=tuple(origin),
        step=tuple(step),
        rows=stack.rows + int(more_rows),
        columns=stack.columns + int(more_columns),
        shifts=tuple((float(row), float(column)) for row, column in shifts - low),
    )


def _odd_fields(frames: list[Frame], spacing: float) -> tuple[str, ...]:
    remarks, thickness = [], frames[0].layout.thickness
    if thickness > 0 and abs(thickness - spacing) > 0.01 * spacing:
        how = "gaps between them" if thickness < spacing else "they overlap"
        remarks.append(f"slices are {thickness:g} mm thick and {spacing:.3g} mm apart ({how}); the distance counts")
    if len({(frame.slope, frame.intercept) for frame in frames}) > 1:
        remarks.append("RescaleSlope or RescaleIntercept differ between slices; each slice has its own applied")
    return tuple(remarks)
