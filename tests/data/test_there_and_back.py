"""Whatever the shape, spacing, orientation and type of a scan: prepared and restored, every voxel is where it was."""

import tempfile
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.spatial.transform import Rotation

from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.data.prepare import PrepareConfig, prepare, restore, to_source_units
from splitshuffle_gan.volume import plane_axes

ORIENTATIONS = ["".join(codes) for axes in permutations(("RL", "AP", "SI")) for codes in product(*axes)]
LENGTHS = st.floats(0.3, 6.0).map(lambda mm: round(mm, 3))
SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def scans(draw) -> nib.Nifti1Image:
    """Any shape, spacing, orientation (of 48, tilted by up to 40 degrees), place and type."""
    shape = tuple(draw(st.tuples(*[st.integers(2, 14)] * 3)))
    dtype = np.dtype(draw(st.sampled_from(["u1", "i1", "i2", "u2", "i4", ">i2", ">f4", "f4", "f8"])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if dtype.kind == "f":
        array = rng.normal(50, 400, shape).astype(dtype)
    else:
        low, high = max(np.iinfo(dtype).min, -1000), min(np.iinfo(dtype).max, 3000)
        array = rng.integers(low, high, shape, endpoint=True).astype(dtype)
    array.flat[0] = array.flat[1] + 1 if array.flat[1] < 100 else array.flat[1] - 1  # never constant
    tilt = draw(st.tuples(*[st.sampled_from([0.0, 0.0, 7.0, -23.0, 40.0])] * 3))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix() * draw(st.tuples(*[LENGTHS] * 3))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    image = nib.Nifti1Image(array, affine)
    image.header.set_data_dtype(dtype)
    codes = draw(st.sampled_from(ORIENTATIONS))
    return image.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes)))


def there_and_back(image: nib.Nifti1Image, shape, spacing, plane, **choices):
    """The dataset of one scan, its volume on the scan's grid again, and the scan as nibabel has it (D, H, W)."""
    with tempfile.TemporaryDirectory() as folder:
        nib.save(image, Path(folder, "scan.nii"))
        config = PrepareConfig(
            Path(folder, "scan.nii"), Path(folder, "out"), shape, spacing, (0, 100), plane=plane, workers=1, **choices
        )
        dataset = open_dataset(prepare(config))
        entry, array = dataset.manifest["volumes"][0], np.array(dataset.volumes[0])
        truth = nib.load(Path(folder, "scan.nii"))
        values = np.asarray(truth.get_fdata())
    return array, entry, restore(array, entry, plane), values, truth.affine


def places(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """RAS mm of every voxel."""
    return np.moveaxis(np.indices(shape), 0, -1) @ np.asarray(affine)[:3, :3].T + np.asarray(affine)[:3, 3]


def as_stored(array: np.ndarray, affine: np.ndarray, plane: str) -> np.ndarray:
    """An array (D, H, W, ...) brought to the axes of a file with this affine, by nibabel's own rules."""
    xyz = np.moveaxis(array, (0, 1, 2), plane_axes(plane))
    return nib.orientations.apply_orientation(xyz, ornt_transform(axcodes2ornt("RAS"), io_orientation(affine)))


@SETTINGS
@given(
    image=scans(),
    plane=st.sampled_from(["axial", "coronal", "sagittal"]),
    spacing=st.sampled_from([None, "native"]),
    margin=st.tuples(*[st.integers(0, 5)] * 3),
    resample=st.sampled_from(["linear", "bspline", "nearest"]),
)
def test_nothing_is_lost_where_nothing_is_interpolated(image, plane, spacing, margin, resample):
    stored = nib.as_closest_canonical(image).shape
    shape = tuple(stored[axis] + more for axis, more in zip(plane_axes(plane), margin, strict=True))
    array, entry, again, values, affine = there_and_back(image, shape, spacing, plane, resample=resample)
    there = as_stored(places(again.affine, again.shape), affine, plane)
    np.testing.assert_allclose(there, places(affine, values.shape), atol=0.01)
    # float32 holds 24 bits; the way to [-1, 1] and back rounds twice.
    rounding = 4 * 2.0**-24 * max(np.ptp(values), np.abs(values).max())
    np.testing.assert_allclose(as_stored(again.array[0], affine, plane), values, rtol=0, atol=rounding)


@SETTINGS
@given(
    image=scans(),
    plane=st.sampled_from(["axial", "coronal", "sagittal"]),
    spacing=st.tuples(*[LENGTHS] * 3),
    shape=st.tuples(*[st.integers(3, 16)] * 3),
    crop=st.sampled_from(["center", "foreground"]),
)
def test_every_grid_holds_what_is_at_its_place_in_the_patient(image, plane, spacing, shape, crop):
    # A function that is linear in the place is not changed by linear interpolation: what is left is geometry.
    weights = np.array([3.0, -2.0, 1.5])
    place = places(image.affine, image.shape)
    image = nib.Nifti1Image((place @ weights).astype(np.float64), image.affine)
    step = np.asarray(nib.as_closest_canonical(image).header.get_zooms())[list(plane_axes(plane))]
    spacing = tuple(float(mm) for mm in np.minimum(spacing, 1.45 * step))  # larger ones are blurred first
    array, entry, again, values, affine = there_and_back(image, shape, spacing, plane, crop=crop)
    index = (np.linalg.inv(entry["source_affine"]) @ entry["affine"])[:3, :3]
    assert np.abs(index - np.diag(np.diag(index))).max() < 1e-9  # along the scan's own axes
    lengths = np.linalg.norm(np.asarray(entry["affine"])[:3, :3], axis=0)
    np.testing.assert_allclose(lengths, spacing, rtol=1.01e-3)
    points = places(entry["affine"], shape)
    inside = np.linalg.inv(entry["source_affine"]) @ np.append(points, np.ones((*shape, 1)), -1)[..., None]
    side = np.array(entry["source_shape"])
    inside = ((inside[..., :3, 0] >= 0) & (inside[..., :3, 0] <= side - 1)).all(-1)
    found, expected = to_source_units(array[0], entry), points @ weights
    tolerance = 0.01 * np.linalg.norm(weights) + 1e-6 * np.abs(values).max()
    np.testing.assert_allclose(found[inside], expected[inside], rtol=0, atol=tolerance)
    there = as_stored(places(again.affine, again.shape), affine, plane)
    np.testing.assert_allclose(there, place, atol=0.01)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_all_orientations_of_one_scan_prepare_to_the_same_bits(tmp_path, codes):
    rng = np.random.default_rng(0)
    affine = np.diag([0.5, 0.75, 2.0, 1.0])
    affine[:3, 3] = (-16, 24, 8)
    image = nib.Nifti1Image(rng.normal(size=(9, 12, 7)).astype(np.float32), affine)
    turned = image.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes)))
    for name, scan in (("plain", image), ("turned", turned)):
        nib.save(scan, tmp_path / f"{name}.nii.gz")
        prepare(PrepareConfig(tmp_path / f"{name}.nii.gz", tmp_path / name, (8, 10, 8), workers=1))
    plain, turned = (open_dataset(tmp_path / name) for name in ("plain", "turned"))
    np.testing.assert_array_equal(plain.volumes, turned.volumes)
    entries = [dataset.manifest["volumes"][0] for dataset in (plain, turned)]
    assert entries[0]["affine"] == entries[1]["affine"]
    assert plain.data_hash == turned.data_hash
