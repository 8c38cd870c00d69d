"""A sample put on a scan's grid lies voxel for voxel over it, and where it should in the world."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.data.place import place, read_target, write_placed
from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.errors import UserError

WINDOW = {"kind": "window", "low": -250.0, "high": 650.0}
CENTRE = np.array([12.0, -34.0, 56.0])  # of the scan, RAS mm
XYZ = {"axial": (2, 1, 0), "coronal": (2, 0, 1), "sagittal": (0, 2, 1)}  # where x, y, z are among D, H, W
ORDERS = [np.column_stack(pair) for pair in product(permutations(range(3)), product((1, -1), repeat=3))]


def geometry(plane: str = "axial", spacing=(2.0, 2.0, 2.0), intensity: dict = WINDOW) -> dict:
    """Of a training set whose world has nothing to do with the scan's."""
    affine = np.diag([*spacing, 1.0])[:, [2, 1, 0, 3]]
    affine[:3, 3] = (900, 900, 900)
    return {"spacing": list(spacing), "plane": plane, "affine": affine.tolist(), "intensity": dict(intensity)}


def make_scan(path, shape=(24, 30, 20), spacing=(1.5, 1.2, 2.0), turn=None, order=None, image=nib.Nifti1Image):
    """A scan of noise about CENTRE, turned by the rotation `turn`, its axes on disk reordered by `order`."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) * spacing
    affine[:3, 3] = CENTRE - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    values = np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)
    if order is not None:
        values, affine = apply_orientation(values, order), affine @ inv_ornt_aff(order, shape)
    scan = image(values, affine)
    scan.set_qform(affine, 1)
    scan.set_sform(affine, 2)
    nib.save(scan, path)
    return path


def ball(shape, spacing, away) -> np.ndarray:
    """A smooth ball `[D, H, W]` in [-1, 1], its middle `away` mm (D, H, W) from the grid's."""
    grid = np.meshgrid(
        *[(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True)], indexing="ij"
    )
    squared = sum(np.square(axis - mm) for axis, mm in zip(grid, away, strict=True))
    return (2 * np.exp(-squared / (2 * 4.0**2)) - 1).astype(np.float32)


def put(image, spacing, scan, out, plane="axial", dtype=np.float32):
    target = read_target(scan, geometry(plane, spacing))
    volume = place(image, spacing, target)
    return nib.load(write_placed(volume, target, out, dtype, "synthetic")), volume


def middle_of_mass(image) -> np.ndarray:
    weight = np.asanyarray(image.dataobj).astype(float) - WINDOW["low"]
    index = np.stack(np.meshgrid(*map(np.arange, weight.shape), indexing="ij"))
    middle = (index * weight).sum(axis=(1, 2, 3)) / weight.sum()
    return image.affine[:3, :3] @ middle + image.affine[:3, 3]


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "".join(f"{int(a)}{'+-'[int(s < 0)]}" for a, s in order))
def test_a_ball_stays_where_it_is_in_all_48_orders_on_disk(tmp_path, order, oblique):
    turn = Rotation.from_euler("xyz", (12, -20, 9), degrees=True).as_matrix() if oblique else np.eye(3)
    scan = make_scan(tmp_path / "scan.nii.gz", turn=turn, order=order)
    away = np.array([3.0, -2.0, 4.0])  # mm, right, anterior, superior in the scan's own axes
    placed, _ = put(ball((24, 24, 24), (2, 2, 2), away[::-1]), (2, 2, 2), scan, tmp_path / "out.nii.gz")
    source = nib.load(scan)
    assert placed.shape == source.shape
    np.testing.assert_allclose(placed.affine, source.affine, atol=1e-5)
    for form in ("get_sform", "get_qform"):
        (found, code), (wanted, wanted_code) = (getattr(image, form)(coded=True) for image in (placed, source))
        np.testing.assert_array_equal(found, wanted)
        assert code == wanted_code
    assert nib.aff2axcodes(placed.affine) == nib.aff2axcodes(source.affine)
    np.testing.assert_allclose(middle_of_mass(placed), CENTRE + turn @ away, atol=0.02)


@pytest.mark.parametrize("plane", XYZ)
def test_every_voxel_is_interpolated_at_its_world_position(tmp_path, plane):
    """Against map_coordinates at world positions, through an affine of the sample's own."""
    turn = Rotation.from_euler("zyx", (15, 5, -25), degrees=True).as_matrix()
    scan = make_scan(tmp_path / "scan.nii", turn=turn, order=ORDERS[29])
    # No axis more than 1.5 times finer than the scan's, or it would be blurred; no voxel right on the sample's face.
    spacing, image = (3.0, 1.4, 1.75), np.random.default_rng(1).uniform(-1, 1, (8, 16, 12)).astype(np.float32)
    placed, _ = put(image, spacing, scan, tmp_path / "out.nii.gz", plane)
    x_y_z = np.transpose(image, XYZ[plane])
    affine = np.eye(4)
    affine[:3, :3] = turn * np.array(spacing)[list(XYZ[plane])]
    affine[:3, 3] = CENTRE - affine[:3, :3] @ ((np.array(x_y_z.shape) - 1) / 2)
    index = np.stack([*np.meshgrid(*map(np.arange, placed.shape), indexing="ij"), np.ones(placed.shape)])
    there = np.einsum("ij,jxyz->ixyz", np.linalg.inv(affine) @ placed.affine, index)[:3]
    inside = np.all([(-0.5 < t) & (t < n - 0.5) for t, n in zip(there, x_y_z.shape, strict=True)], axis=0)
    wanted = map_coordinates(x_y_z, there, order=1, mode="nearest").astype(float)
    wanted = np.where(inside, (wanted + 1) / 2 * 900 - 250, -250)
    assert 0.05 < inside.mean() < 0.95
    np.testing.assert_allclose(np.asanyarray(placed.dataobj), wanted, atol=0.01)  # float32 headers


def test_what_prepare_cut_out_of_a_scan_goes_back_to_the_same_voxels(tmp_path):
    """Equal spacing, and sides whose halves do not meet: no blur, no shift."""
    (tmp_path / "scans").mkdir()
    turn = Rotation.from_euler("y", 10, degrees=True).as_matrix()
    scan = make_scan(tmp_path / "scans" / "scan.nii", (19, 20, 17), turn=turn, order=ORDERS[11])
    config = PrepareConfig(tmp_path / "scans", tmp_path / "set", (8, 16, 8), window=(0, 200), workers=1)
    dataset = open_dataset(prepare(config))
    target = read_target(scan, dataset.geometry())
    placed = place(dataset.volumes[0, 0], dataset.spacing, target)
    path = write_placed(placed, target, tmp_path / "back.nii", np.float32)
    back, source = (np.asanyarray(nib.load(p).dataobj) for p in (path, scan))
    inside = back > 0
    assert np.count_nonzero(inside) == 8 * 16 * 8
    np.testing.assert_allclose(back[inside], np.clip(source, 0, 200)[inside], atol=1e-4)


def test_outside_the_sample_lies_the_lower_bound_and_hu_stay_in_the_window(tmp_path):
    scan = make_scan(tmp_path / "scan.nii.gz", (40, 40, 40), (1, 1, 1))
    image = np.ones((8, 8, 8), np.float32)
    placed, volume = put(image, (2, 2, 2), scan, tmp_path / "out.nii.gz", dtype=np.int16)
    values = np.asanyarray(placed.dataobj)
    assert values.dtype == np.int16 and set(np.unique(values)) == {-250, 650}
    assert np.count_nonzero(values == 650) == 16**3
    assert volume.array.min() == -250 and volume.array.max() == 650


def test_a_much_coarser_scan_averages_and_does_not_alias(tmp_path):
    """A sample of stripes one voxel wide, on a grid three times as wide, is grey; unblurred it is stripes again."""
    scan = make_scan(tmp_path / "scan.nii", (8, 8, 8), (3, 3, 3))
    image = np.ones((25, 25, 25), np.float32)
    image[::2] = -1
    _, volume = put(image, (1, 1, 1), scan, tmp_path / "out.nii")
    assert np.ptp(volume.array[0, 1:-1, 1:-1, 1:-1]) < 0.2 * 900


def test_percentiles_become_the_scans_own(tmp_path):
    scan = make_scan(tmp_path / "scan.nii.gz")
    low, high = np.percentile(nib.load(scan).get_fdata(), (0.5, 99.5))
    target = read_target(scan, geometry(intensity={"kind": "percentiles", "low": 0.0, "high": 1e6}))
    assert target.geometry["intensity"]["kind"] == "percentiles"
    values = place(np.full((8, 8, 8), 0.5, np.float32), (2, 2, 2), target).array
    np.testing.assert_allclose([values.min(), values.max()], [low, low + 0.75 * (high - low)], rtol=1e-5)


@pytest.mark.parametrize("fill", [7.0, np.nan])
def test_a_scan_without_a_range_of_its_own_is_refused_for_percentiles_alone(tmp_path, fill):
    path = tmp_path / "flat.nii"
    nib.save(nib.Nifti1Image(np.full((8, 8, 8), fill, np.float32), np.eye(4)), path)
    with pytest.raises(UserError, match="flat.nii"):
        read_target(path, geometry(intensity={"kind": "percentiles", "low": 0.0, "high": 9.0}))
    assert read_target(path, geometry()).shape == (8, 8, 8)


def test_only_the_place_is_taken_from_the_scans_header(tmp_path):
    path = make_scan(tmp_path / "scan.nii")
    image = nib.load(path)
    image.header["descrip"], image.header["aux_file"], image.header["db_name"] = b"Jane Doe", b"doe.txt", b"doe"
    image.header["cal_max"], image.header["intent_name"] = 77, b"doe"
    nib.save(image, tmp_path / "named.nii")
    placed, _ = put(np.zeros((8, 8, 8), np.float32), (2, 2, 2), tmp_path / "named.nii", tmp_path / "out.nii")
    assert b"doe" not in (tmp_path / "out.nii").read_bytes().lower()
    assert placed.header["descrip"] == b"synthetic" and placed.header["cal_max"] == 0


def test_qform_and_sform_that_differ_stay_as_they_are(tmp_path):
    image = nib.load(make_scan(tmp_path / "scan.nii"))
    other = image.affine @ np.diag([-1.1, 1, 1, 1])  # of the other hand, and with another spacing
    image.set_qform(other, 1)
    nib.save(image, tmp_path / "two.nii")
    placed, _ = put(np.zeros((8, 8, 8), np.float32), (2, 2, 2), tmp_path / "two.nii", tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(placed.get_qform(), nib.load(tmp_path / "two.nii").get_qform())
    np.testing.assert_array_equal(placed.get_sform(), image.get_sform())


@pytest.mark.parametrize("forms", ["qform only", "none", "microns", "nifti2"])
def test_other_ways_to_say_where(tmp_path, forms):
    kind = nib.Nifti2Image if forms == "nifti2" else nib.Nifti1Image
    turn = Rotation.from_euler("z", 8, degrees=True).as_matrix()
    image = nib.load(make_scan(tmp_path / "scan.nii", turn=turn, image=kind))
    if forms == "microns":
        image = kind(np.asanyarray(image.dataobj), np.diag([1000, 1000, 1000, 1]) @ image.affine)
        image.header.set_xyzt_units("micron")
    if forms in ("qform only", "none"):
        image.header["sform_code"] = 0
    if forms == "none":
        image.header["qform_code"] = 0
    nib.save(image, tmp_path / "other.nii")
    away = np.array([3.0, -2.0, 4.0])
    placed, _ = put(ball((24, 24, 24), (2, 2, 2), away[::-1]), (2, 2, 2), tmp_path / "other.nii", tmp_path / "o.nii")
    scan = nib.load(tmp_path / "other.nii")
    assert type(placed) is kind
    for field in ("sform_code", "qform_code"):
        assert placed.header[field] == scan.header[field]
    assert placed.header.get_xyzt_units()[0] == scan.header.get_xyzt_units()[0]
    np.testing.assert_allclose(placed.affine, scan.affine, rtol=1e-6)
    if forms != "none":  # with neither form, the middle of the grid is at 0
        to_mm = 1e-3 if forms == "microns" else 1
        np.testing.assert_allclose(middle_of_mass(placed) * to_mm, CENTRE + turn @ away, atol=0.02)


@pytest.mark.parametrize("name", ["series", "IM000001.dcm"])
def test_dicom_is_told_from_a_damaged_file(tmp_path, name):
    path = tmp_path / name
    path.mkdir() if name == "series" else path.write_bytes(b"dicom")
    with pytest.raises(UserError, match="is a folder or DICOM; a NIfTI file is wanted"):
        read_target(path, {"plane": "axial", "intensity": {"kind": "window", "low": 0, "high": 1}})
