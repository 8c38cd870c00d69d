"""Montages, read back pixel by pixel."""

import numpy as np
import pytest
from PIL import Image

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.montage import BACKGROUND, GUTTER, HEADING, MARGIN, save_beside, save_montage
from splitshuffle_gan.volume import PLANES


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def boxes(path) -> list[np.ndarray]:
    """The views of a montage without text, left to right: the runs of columns that are not all background."""
    picture = pixels(path)
    inside = (picture != BACKGROUND).any(2)
    edges = np.flatnonzero(np.diff(np.pad(inside.any(0).astype(int), 1)))
    views = []
    for left, right in edges.reshape(-1, 2):
        rows = np.flatnonzero(inside[:, left:right].any(1))
        views.append(picture[rows[0] : rows[-1] + 1, left:right, 0] / 255)
    return views


def quadrant(view: np.ndarray) -> tuple[str, str]:
    """Where the bright spot of a view lies."""
    row, column = np.unravel_index(view.argmax(), view.shape)
    return "top" if row < view.shape[0] / 2 else "bottom", "right" if column > view.shape[1] / 2 else "left"


def test_views_are_true_to_scale_in_mm(tmp_path):
    volume = np.full((10, 40, 30), 0.5, dtype=np.float32)
    axial, coronal, sagittal = boxes(save_montage([volume], tmp_path / "m.png", spacing=(6, 1, 2), low=0))
    for view, height, width in ((axial, 40, 60), (coronal, 60, 60), (sagittal, 60, 40)):
        assert view.shape[0] / view.shape[1] == pytest.approx(height / width, rel=0.02)
    assert axial.shape[1] == coronal.shape[1] and coronal.shape[0] == sagittal.shape[0]


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ((24, 17, 17), ("right", "right", None)),  # towards R
        ((17, 24, 17), ("top", None, "right")),  # towards A
        ((17, 17, 24), (None, "top", "top")),  # towards S
    ],
)
def test_a_person_finds_superior_anterior_and_right_where_expected(tmp_path, plane, axis, expected):
    volume = np.full((32, 32, 32), 0.2)  # (x, y, z)
    volume[tuple(slice(16 if index == 17 else index, index + 2) for index in axis)] = 1.0
    views = boxes(save_montage([volume.transpose(PLANES[plane])], tmp_path / "m.png", low=0, plane=plane))
    assert len(views) == 3
    for view, side in zip(views, expected, strict=True):
        assert side is None or side in quadrant(view)


def test_planes_are_the_central_ones_and_windowed(tmp_path):
    rng = np.random.default_rng(0)
    volume = rng.uniform(-150, 450, (9, 11, 13))
    views = boxes(save_montage([volume], tmp_path / "m.png", low=-200, high=500))
    for view, plane in zip(views, (volume[4], volume[:, 5], volume[:, :, 6]), strict=True):
        centres = [((np.arange(n) + 0.5) * s / n).astype(int) for n, s in zip(plane.shape, view.shape, strict=True)]
        shown = view[np.ix_(*centres)][::-1]
        assert np.corrcoef(shown.ravel(), ((plane + 200) / 700).ravel())[0, 1] > 0.98


def test_values_outside_the_window_and_nan(tmp_path):
    flat = [np.full((8, 8), value) for value in (-5.0, 0.0, 5.0, np.nan)]
    picture = pixels(save_montage(flat, tmp_path / "m.png", columns=4))
    assert list(picture[picture.shape[0] // 2, np.arange(4) * (picture.shape[1] // 4) + 40, 0]) == [0, 128, 255, 0]


def test_stack_columns_titles_and_caption(tmp_path):
    stack = np.zeros((6, 16, 12), dtype=np.float32)
    plain = pixels(save_montage(stack, tmp_path / "plain.png", columns=3)).shape
    two = pixels(save_montage(stack, tmp_path / "two.png", columns=2)).shape
    titled = pixels(save_montage(stack, tmp_path / "t.png", columns=3, titles=["a long title " * 9] * 6)).shape
    captioned = pixels(save_montage(stack, tmp_path / "c.png", columns=3, caption="many words " * 30)).shape
    assert two[0] > plain[0] and two[1] < plain[1]
    assert titled[0] > plain[0] and titled[1] == plain[1]
    assert captioned[0] > plain[0]


def test_volumes_of_different_sizes_and_a_large_one(tmp_path):
    save_montage([np.zeros((4, 8, 6)), np.zeros((12, 5, 9))], tmp_path / "mixed.png")
    large = save_montage([np.zeros((64, 256, 256))] * 2, tmp_path / "large.png", spacing=(2, 0.7, 0.7))
    assert pixels(large).shape[1] <= 1700
    save_montage([np.zeros((1, 1, 1))], tmp_path / "tiny.png")


def test_folder_is_made_old_picture_replaced_and_nothing_left_behind(tmp_path):
    path = tmp_path / "new" / "m.png"
    for shape in ((4, 4), (8, 8)):
        assert save_montage([np.zeros(shape)], path) == path
    assert [p.name for p in path.parent.iterdir()] == ["m.png"]


def test_failed_write_keeps_the_old_picture(tmp_path, monkeypatch):
    path = save_montage([np.zeros((4, 4))], tmp_path / "m.png")
    before = path.read_bytes()

    def full_disk(self, file, **_options):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_montage([np.ones((4, 4))], path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("volumes", "options", "message"),
    [
        ([], {}, "montage of 0 volumes"),
        ([np.zeros((2, 2)), np.zeros((2, 2, 2))], {}, "all of one rank"),
        ([np.zeros((1, 2, 2, 2))], {}, "all of one rank"),
        ([np.zeros((0, 2))], {}, "not empty"),
        ([np.zeros((2, 2, 2))], {"spacing": (1, 1)}, "montage spacing"),
        ([np.zeros((2, 2))], {"spacing": (1, -1)}, "montage spacing"),
        ([np.zeros((2, 2))], {"low": 1, "high": 1}, "montage window"),
        ([np.zeros((2, 2))], {"titles": ["a", "b"]}, "2 titles for 1 volumes"),
        ([np.zeros((2, 2))], {"columns": 0}, "montage columns"),
        ([np.zeros((2, 2, 2))], {"plane": "oblique"}, "plane"),
    ],
)
def test_bad_input_is_named(tmp_path, volumes, options, message):
    with pytest.raises(UserError, match=message):
        save_montage(volumes, tmp_path / "m.png", **options)
    assert not list(tmp_path.iterdir())


def test_two_sets_stand_side_by_side_and_alike(tmp_path):
    dark, bright = np.full((3, 8, 12, 8), -0.5), np.full((4, 8, 12, 8), 0.5)
    picture = pixels(save_beside(dark, bright, tmp_path / "m.png", ("made", "real")))
    half = (picture.shape[1] - GUTTER) // 2
    left, right = picture[HEADING:, :half], picture[HEADING:, half + GUTTER :]
    assert left.shape == right.shape and picture.shape[1] < 1600 + 8 * MARGIN
    grey = [round((value + 1) / 2 * 255) for value in (-0.5, 0.5)]
    counts = [[np.count_nonzero((side == value).all(2)) for value in grey] for side in (left, right)]
    (few, none), (nothing, many) = counts
    assert none == nothing == 0 and 3 * many == 4 * few > 0
    tops = [np.flatnonzero((side == value).all(2).any(1))[0] for side, value in ((left, grey[0]), (right, grey[1]))]
    assert tops[0] == tops[1]
    headings = picture[:HEADING]
    assert (headings[:, :half] != BACKGROUND).any() and (headings[:, half:] != BACKGROUND).any()


@pytest.mark.parametrize("plane", PLANES)
def test_beside_each_other_volumes_are_seen_from_where_a_montage_sees_them(tmp_path, plane):
    volume = np.random.default_rng(0).uniform(-1, 1, (16, 20, 24)).transpose(PLANES[plane])
    alone = boxes(save_montage([volume], tmp_path / "a.png", plane=plane))
    headless = pixels(save_beside([volume], [volume], tmp_path / "b.png", ("", ""), plane=plane, columns=1))
    shown = Image.fromarray(headless[:, : headless.shape[1] // 2])
    shown.save(tmp_path / "c.png")
    assert [view.shape for view in boxes(tmp_path / "c.png")] == [view.shape for view in alone]
    assert all(np.array_equal(a, b) for a, b in zip(boxes(tmp_path / "c.png"), alone, strict=True))


def test_one_side_alone_is_no_comparison(tmp_path):
    with pytest.raises(UserError, match="montage of 0 beside 2 volumes: give at least one on each side"):
        save_beside([], np.zeros((2, 4, 4, 4)), tmp_path / "m.png", ("made", "real"))


def test_labels_are_tinted_where_they_are(tmp_path):
    image, labels = np.full((16, 16), 0.5), np.zeros((16, 16), np.uint8)
    labels[12:, 12:], labels[:4, :8] = 1, 5  # top right; left half of the bottom
    picture = pixels(save_montage([image], tmp_path / "m.png", low=0, labels=[labels])).astype(int)
    rows, columns = (np.flatnonzero((picture != BACKGROUND).any(2).any(axis)) for axis in (1, 0))
    tile = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    tile = tile[2 :: len(tile) // 16, 2 :: len(tile[0]) // 16][:16, :16][::-1]  # a pixel a voxel, upright
    tinted = np.ptp(tile, axis=2) > 20
    np.testing.assert_array_equal(tinted, labels > 0)
    assert (tile[labels == 0] == 128).all()
    colours = [np.unique(tile[labels == label], axis=0) for label in (1, 5)]
    assert [len(colour) for colour in colours] == [1, 1] and np.abs(colours[0] - colours[1]).max() > 20


def test_labels_of_volumes_follow_the_views(tmp_path):
    volume, labels = np.full((8, 16, 12), 0.2), np.zeros((8, 16, 12), np.uint8)
    labels[6:, 8:, 6:] = 3  # superior, anterior, right: the half that each central plane goes through
    plain = pixels(save_montage([volume], tmp_path / "plain.png", low=0))
    tinted = pixels(save_montage([volume], tmp_path / "m.png", low=0, labels=[labels]))
    changed = (plain != tinted).any(2)
    edges = np.flatnonzero(np.diff(np.pad((plain != BACKGROUND).any(2).any(0).astype(int), 1))).reshape(-1, 2)
    found = []
    for left, right in edges:
        rows = np.flatnonzero((plain[:, left:right] != BACKGROUND).any(2).any(1))
        view = changed[rows[0] : rows[-1] + 1, left:right]
        found.append(view.mean())
        if view.any():
            at = np.argwhere(view).mean(0) / view.shape
            assert at[0] < 0.5 < at[1]
    assert found == pytest.approx([0, 2 / 8 / 2, 2 / 8 / 2], abs=0.03)  # the axial one lies below


def test_labels_of_another_shape_are_refused(tmp_path):
    with pytest.raises(UserError, match="montage has labels of shape"):
        save_montage([np.zeros((4, 4))], tmp_path / "m.png", labels=[np.zeros((4, 5))])
    with pytest.raises(UserError, match="montage has labels of shape"):
        save_montage([np.zeros((4, 4))] * 2, tmp_path / "m.png", labels=[np.zeros((4, 4))])
