"""One PNG of many volumes, each by its three central orthogonal planes, for the eye."""

import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.output import whole_file
from splitshuffle_gan.volume import plane_axes

# Over labels: Okabe and Ito's colours, told apart by the colour-blind.
TINTS = ((213, 94, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (230, 159, 0), (0, 114, 178))
TINT_SHARE = 0.4
BACKGROUND, TEXT, DIM_TEXT = (18, 18, 20), (225, 225, 225), (150, 150, 155)
GAP, MARGIN, GUTTER, HEADING = 4, 16, 24, 32
TARGET_WIDTH, MAX_WIDTH = 1600, 4000
LANDSCAPE = 1.6
TILE_HEIGHT = (64, 224)


def save_montage(
    volumes: Sequence[np.ndarray],
    path: str | os.PathLike,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    low: float = -1.0,
    high: float = 1.0,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    caption: str | None = None,
    plane: str = "axial",
    labels: Sequence[np.ndarray] | None = None,
) -> Path:
    """Write a dark grey-scale PNG with one tile per volume (or image) and return its path.

    volumes: arrays `[D, H, W]` or `[H, W]`, all of one rank; a stack `[N, D, H, W]` or `[N, H, W]` is iterated.
        A volume becomes its central axial, coronal and sagittal plane, side by side: in axial data, `[D // 2]`,
        `[:, H // 2]` and `[:, :, W // 2]`. Indices increase along RAS+ (see `splitshuffle_gan.volume`), and every view
        has superior, or in the axial one anterior, at the top, and right (sagittal: anterior) at its right.
    spacing: voxel size in mm in array order, (D, H, W); the last two hold for an image. Views are true to scale.
    low, high: values shown black and white, in the units of `volumes`; values outside are clipped, NaN is black.
    titles: one line above each tile, cut to its width. caption: text under the whole picture, wrapped.
    columns: tiles per row; by default as many as make a landscape picture that fits a screen's width.
    plane: the one along which the volumes' D axis runs: "axial", "coronal" or "sagittal"; no matter for images.
    labels: a label map for each volume, whole numbers of the same shape: what is not 0 is tinted, a colour a label.
    The file is written beside `path` under a temporary name and then moved; missing folders are made.
    Raises `UserError` for no volumes, another rank, spacing that is not positive, high <= low, a wrong title count or
    an unknown plane.
    """
    volumes = [np.asarray(volume) for volume in volumes]
    spacing = tuple(float(s) for s in spacing)
    _check(volumes, spacing, low, high, titles, columns)
    if labels is not None:
        labels = _checked_labels([np.asarray(part) for part in labels], volumes)
        labels = _upright(labels, spacing, plane)[0]
    tiles = _tiles(*_upright(volumes, spacing, plane), low, high, MAX_WIDTH, labels)
    columns = min(columns or _columns(len(tiles), *tiles[0].size), len(tiles))
    sheet = _sheet(tiles, columns, titles)
    return _write(_captioned(sheet, caption) if caption else sheet, Path(path))


def save_beside(
    left: Sequence[np.ndarray],
    right: Sequence[np.ndarray],
    path: str | os.PathLike,
    headings: tuple[str, str],
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    low: float = -1.0,
    high: float = 1.0,
    columns: int = 2,
    caption: str | None = None,
    plane: str = "axial",
) -> Path:
    """Write two sets of volumes (or images) side by side, a block of `columns` each under its heading; return the path.

    Both are shown alike: same planes, same scale, same window, narrow enough for a page. Else as `save_montage`.
    """
    if not (len(left) and len(right)):
        raise UserError(f"montage of {len(left)} beside {len(right)} volumes: give at least one on each side")
    volumes = [np.asarray(volume) for volume in (*left, *right)]
    spacing = tuple(float(s) for s in spacing)
    _check(volumes, spacing, low, high, None, columns)
    tiles = _tiles(*_upright(volumes, spacing, plane), low, high, TARGET_WIDTH // (2 * columns))
    blocks = [_sheet(part, min(columns, len(part))) for part in (tiles[: len(left)], tiles[len(left) :])]
    size = sum(block.width for block in blocks) + GUTTER, HEADING + max(block.height for block in blocks)
    sheet, start = Image.new("RGB", size, BACKGROUND), 0
    for block, heading in zip(blocks, headings, strict=True):
        font = ImageFont.load_default(16)
        text = _fit(heading, font, block.width - 2 * MARGIN)
        ImageDraw.Draw(sheet).text((start + MARGIN, HEADING - 18), text, fill=TEXT, font=font)
        sheet.paste(block, (start, HEADING))
        start += block.width + GUTTER
    return _write(_captioned(sheet, caption) if caption else sheet, Path(path))


def _upright(
    volumes: list[np.ndarray], spacing: tuple[float, ...], plane: str
) -> tuple[list[np.ndarray], tuple[float, ...]]:
    """Through (x, y, z) to (S, A, R), the axial order, so that one set of views serves every plane; images as is."""
    if volumes[0].ndim == 2:
        return volumes, spacing
    order = np.argsort(plane_axes(plane))[::-1]
    return [volume.transpose(order) for volume in volumes], tuple(spacing[axis] for axis in order)


def _check(
    volumes: list[np.ndarray],
    spacing: tuple[float, ...],
    low: float,
    high: float,
    titles: Sequence[str] | None,
    columns: int | None,
) -> None:
    if not volumes:
        raise UserError("montage of 0 volumes: give at least one")
    shapes = sorted({volume.shape for volume in volumes})
    if {len(shape) for shape in shapes} not in ({2}, {3}) or any(0 in shape for shape in shapes):
        raise UserError(f"montage of arrays of shape {shapes}: give [D, H, W] or [H, W], all of one rank and not empty")
    if len(spacing) not in (2, 3) or len(spacing) < len(shapes[0]) or not all(0 < s < math.inf for s in spacing):
        raise UserError(f"montage spacing is {spacing}: give positive mm, one for each axis of {list(shapes[0])}")
    if not low < high:
        raise UserError(f"montage window is {low} to {high}: give low < high")
    if titles is not None and len(titles) != len(volumes):
        raise UserError(f"montage has {len(titles)} titles for {len(volumes)} volumes: give one each")
    if columns is not None and columns < 1:
        raise UserError(f"montage columns is {columns}: give 1 or more")


def _checked_labels(labels: list[np.ndarray], volumes: list[np.ndarray]) -> list[np.ndarray]:
    shapes = [[part.shape for part in parts] for parts in (labels, volumes)]
    if shapes[0] != shapes[1]:
        raise UserError(f"montage has labels of shape {shapes[0]} for volumes of {shapes[1]}: give one of each shape")
    return labels


def _views(volume: np.ndarray, spacing: tuple[float, ...]) -> list[tuple[np.ndarray, float, float]]:
    """Each plane, its last row on top, with its height and width in mm; a volume is in axial order (S, A, R)."""
    if volume.ndim == 2:
        planes = [(volume, spacing[-2:])]
    else:
        d, h, w = spacing
        centre = [size // 2 for size in volume.shape]
        planes = [
            (volume[centre[0]], (h, w)),
            (volume[:, centre[1]], (d, w)),
            (volume[:, :, centre[2]], (d, h)),
        ]
    return [(plane[::-1], plane.shape[0] * tall, plane.shape[1] * wide) for plane, (tall, wide) in planes]


def _tiles(
    volumes: list[np.ndarray],
    spacing: tuple[float, ...],
    low: float,
    high: float,
    widest_tile: int,
    labels: list[np.ndarray] | None = None,
) -> list[Image.Image]:
    """All tiles at one scale (pixels per mm), at most about `widest_tile` pixels wide, padded to the largest's size."""
    views = [_views(volume, spacing) for volume in volumes]
    tallest = max(tall for tile in views for _, tall, _ in tile)
    widest = max(sum(wide for _, _, wide in tile) for tile in views)
    finest = min(spacing[-volumes[0].ndim :])
    # Four pixels a voxel are readable; the limits keep tiny grids visible and large ones on the screen.
    height = min(max(4 * tallest / finest, TILE_HEIGHT[0]), TILE_HEIGHT[1])
    scale = min(height / tallest, widest_tile / widest)
    tiles = [
        [_grey(view, low, high, round(tall * scale), round(wide * scale)) for view, tall, wide in tile]
        for tile in views
    ]
    if labels is not None:
        maps = [[view for view, _, _ in _views(part, spacing)] for part in labels]
        tiles = [list(map(_tinted, *parts)) for parts in zip(tiles, maps, strict=True)]
    size = (
        max(sum(image.width + GAP for image in images) - GAP for images in tiles),
        max(image.height for images in tiles for image in images),
    )
    return [_beside(images, size) for images in tiles]


def _grey(plane: np.ndarray, low: float, high: float, height: int, width: int) -> Image.Image:
    unit = np.nan_to_num((plane.astype(np.float64) - low) / (high - low), nan=0.0).clip(0, 1)
    image = Image.fromarray(np.rint(unit * 255).astype(np.uint8))
    return image.resize((max(width, 1), max(height, 1)), Image.Resampling.BICUBIC)


def _tinted(image: Image.Image, labels: np.ndarray) -> Image.Image:
    """The picture with a colour over each label but 0."""
    colours = np.array([(0, 0, 0), *TINTS], np.uint8)
    numbers = labels.astype(int)
    paint = colours[np.where(numbers > 0, (numbers - 1) % len(TINTS) + 1, 0)]
    paint, where = (
        Image.fromarray(part).resize(image.size, Image.Resampling.NEAREST)
        for part in (paint, np.where(numbers > 0, np.uint8(round(255 * TINT_SHARE)), np.uint8(0)))
    )
    return Image.composite(paint, image.convert("RGB"), where)


def _beside(images: list[Image.Image], size: tuple[int, int]) -> Image.Image:
    tile = Image.new("RGB", size, BACKGROUND)
    left = (size[0] - sum(image.width + GAP for image in images) + GAP) // 2
    for image in images:
        tile.paste(image.convert("RGB"), (left, (size[1] - image.height) // 2))
        left += image.width + GAP
    return tile


def _columns(count: int, width: int, height: int) -> int:
    """For a landscape picture that is not wider than the target."""
    landscape = round(math.sqrt(LANDSCAPE * count * height / width))
    return max(min(landscape, TARGET_WIDTH // width), 1)


def _sheet(tiles: list[Image.Image], columns: int, titles: Sequence[str] | None = None) -> Image.Image:
    font = ImageFont.load_default(14)
    width, height = tiles[0].size
    strip = 22 if titles else 0
    rows = math.ceil(len(tiles) / columns)
    size = MARGIN + columns * (width + MARGIN), MARGIN + rows * (strip + height + MARGIN)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        left, top = MARGIN + column * (width + MARGIN), MARGIN + row * (strip + height + MARGIN)
        if titles:
            draw.text((left, top), _fit(str(titles[index]), font, width), fill=TEXT, font=font)
        sheet.paste(tile, (left, top + strip))
    return sheet


def _captioned(sheet: Image.Image, caption: str) -> Image.Image:
    """The sheet with `caption` below, wrapped; wide enough to read."""
    width = max(sheet.width, 320)
    lines = textwrap.wrap(caption, max((width - 2 * MARGIN) // 7, 20))
    whole = Image.new("RGB", (width, sheet.height + len(lines) * 17 + MARGIN), BACKGROUND)
    whole.paste(sheet)
    draw = ImageDraw.Draw(whole)
    for number, line in enumerate(lines):
        draw.text((MARGIN, sheet.height + number * 17), line, fill=DIM_TEXT, font=ImageFont.load_default(12))
    return whole


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _write(sheet: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return path
