"""Samples are named by their seeds alone."""

import json

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch

from splitshuffle_gan.config import GeneratorConfig
from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.data.readers.nifti import read_nifti
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.sampler import (
    SampleConfig,
    draw,
    latent_of_seed,
    mix_styles,
    sample,
    stored_type,
    write_samples,
)

SHAPE = (8, 16, 8)


def make_generator(rank: int = 3, **options) -> Generator:
    """Random weights, noise that shows, images well inside [-1, 1]."""
    sizes = {"channels": (8, 8, 8), "z_dim": 8, "w_dim": 8, "mapping_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(GeneratorConfig(rank=rank, shape=SHAPE, **sizes, **options)).eval()
        for name, parameter in generator.named_parameters():
            if name.endswith("noise_strength"):
                parameter.data.fill_(0.5)
            if "bias" in name and "mapping" not in name:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
            if "to_image.kernel" in name:
                parameter.data.mul_(0.2)
    generator.update_w_avg()
    return generator


def test_a_seed_gives_the_same_volume_in_any_company():
    generator = make_generator()
    together = list(sample(generator, [3, 1, 4, 1]))
    torch.rand(7)
    for seed, image in zip([3, 1, 4, 1], together, strict=True):
        (alone,) = sample(generator, [seed])
        np.testing.assert_array_equal(alone, image)
    assert np.abs(together[0] - together[1]).max() > 0.01


def test_samples_are_clipped_float32_volumes():
    generator = make_generator()
    (image,) = sample(generator, [0])
    assert (image.dtype, image.shape) == (np.float32, SHAPE)
    with torch.no_grad():
        np.testing.assert_array_equal(image, generator(latent_of_seed(0, 8), noise_mode="const")[0, 0].clamp(-1, 1))
        for block in generator.blocks:
            block.to_image.kernel.weight.mul_(100)
    (image,) = sample(generator, [0])
    assert (image.min(), image.max()) == (-1, 1)


def test_the_latent_of_a_seed_is_fixed_for_good():
    """Changing it would change every volume that anyone has named by its seed."""
    assert latent_of_seed(0, 3)[0].tolist() == pytest.approx([1.5409961, -0.2934289, -2.1787894])
    state = torch.get_rng_state()
    latent_of_seed(5, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_depth_aware_slice_generator_draws_volumes_of_one_subject():
    generator = make_generator(rank=2)
    (volume,) = sample(generator, [2])
    assert volume.shape == SHAPE
    z = latent_of_seed(2, 8)
    for depth in range(SHAPE[0]):
        with torch.no_grad():
            image = generator(z, noise_mode="const", depth=torch.tensor([depth]))[0, 0].clamp(-1, 1)
        np.testing.assert_allclose(volume[depth], image, atol=1e-6)
    assert np.abs(volume[0] - volume[-1]).max() > 0.01


def test_a_depth_blind_slice_generator_draws_slices():
    (image,) = sample(make_generator(rank=2, depth_aware=False), [0])
    assert image.shape == SHAPE[1:]


def test_truncation_pulls_towards_the_mean_volume():
    generator = make_generator()
    mean_ws = generator.w_avg.expand(1, generator.num_ws, -1)
    collapsed = list(sample(generator, [0, 1], truncation_psi=0))
    for image in collapsed:
        np.testing.assert_allclose(image, draw(generator, mean_ws), atol=1e-6)
    distances = []
    for psi in (0.25, 0.5, 1.0):
        (image,) = sample(generator, [0], truncation_psi=psi)
        with torch.no_grad():
            w = generator.mapping(latent_of_seed(0, 8))
        styles = (mean_ws + psi * (w - generator.w_avg)).detach()
        np.testing.assert_allclose(image, draw(generator, styles), atol=1e-5)
        distances.append(np.abs(image - collapsed[0]).mean())
    assert 0 < distances[0] < distances[1] < distances[2]


def test_noise_modes():
    generator = make_generator()
    const, again = (next(sample(generator, [0], noise_mode="const")) for _ in range(2))
    none, random, other = (next(sample(generator, [0], noise_mode=m)) for m in ("none", "random", "random"))
    np.testing.assert_array_equal(const, again)
    for a, b in ((const, none), (const, random), (none, random), (random, other)):
        assert np.abs(a - b).max() > 0.01
    with pytest.raises(UserError, match="noise_mode: found 'loud'"):
        next(sample(generator, [0], noise_mode="loud"))


def test_mixed_styles_are_coarse_first():
    generator = make_generator()
    with torch.no_grad():
        coarse, fine = (generator.map(latent_of_seed(seed, 8)) for seed in (0, 1))
    mixed = mix_styles(coarse, fine, 2)
    assert torch.equal(mixed[:, :2], coarse[:, :2])
    assert torch.equal(mixed[:, 2:], fine[:, 2:])
    assert mixed.shape == coarse.shape
    near_coarse = draw(generator, mix_styles(coarse, fine, generator.num_ws - 1))
    near_fine = draw(generator, mix_styles(coarse, fine, 1))
    ends = [draw(generator, ws) for ws in (coarse, fine)]
    for image in (near_coarse, near_fine):
        assert all(np.abs(image - end).max() > 1e-4 for end in ends)
    assert np.abs(near_coarse - ends[0]).mean() < np.abs(near_fine - ends[0]).mean()


def test_mixing_needs_layers_of_both():
    styles = torch.zeros(1, 5, 8)
    for layers in (-1, 0, 5, 6):
        with pytest.raises(UserError, match=f"mix_layers: found {layers}, must be 1 to 4"):
            mix_styles(styles, styles, layers)


@pytest.mark.parametrize(
    ("kind", "low", "high", "expected"),
    [
        ("window", -250, 650, np.int16),
        ("window", 0, 1, np.float32),  # normalised scans: whole numbers would leave two values
        ("window", 0, 40000, np.float32),  # 16 bit MR does not fit
        ("percentiles", 0, 900, np.float32),
    ],
)
def test_whole_numbers_only_where_they_serve(kind, low, high, expected):
    assert stored_type({"kind": kind, "low": low, "high": high}) is expected


def test_broken_weights_are_no_samples(tiny_config, tmp_path):
    network = Generator(GeneratorConfig(rank=3, shape=(8, 16, 8), channels=(8, 8, 8)))
    dataset = open_dataset(tiny_config().data)
    network.geometry = dataset.geometry()
    network.constant.data.fill_(float("nan"))
    network.save_pretrained(tmp_path / "g")
    with pytest.raises(UserError, match="seed0000 has voxels that are NaN"):
        write_samples(SampleConfig(checkpoint=str(tmp_path / "g"), out=tmp_path / "out", seeds=(0,)))
    assert not (tmp_path / "out").exists()


HU = {"kind": "window", "low": -250.0, "high": 650.0}
PERCENTILES = {"kind": "percentiles", "low": 10.0, "high": 90.0}
AFFINE = np.array([[0, 0, 1.5, -7], [0, 1.0, 0, 20], [2.0, 0, 0, 40], [0, 0, 0, 1]])  # axial, D H W of SHAPE


def save_generator(folder, intensity: dict = HU, affine=AFFINE):
    generator = make_generator()
    generator.geometry = {
        "spacing": np.linalg.norm(affine[:3, :3], axis=0).tolist(),
        "plane": "axial",
        "affine": affine.tolist(),
        "intensity": intensity,
    }
    generator.save_pretrained(folder)
    return folder


def save_scan(path, shear: float = 0.0):
    """Axes on disk A, I, L, its middle at (3, -4, 5) mm; noise from 1000 to 3000."""
    affine = np.array([[0, 0, -1.2, 0], [1.4, 0, 0, 0], [shear, -2.2, 0, 0], [0, 0, 0, 1.0]])
    shape = (20, 16, 18)
    affine[:3, 3] = np.array([3, -4, 5]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    values = np.random.default_rng(0).uniform(1000, 3000, shape).astype(np.float32)
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def series(folder) -> tuple[np.ndarray, np.ndarray]:
    """World positions of the first voxels (RAS mm), and the values `[slice, row, column]`."""
    images = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    values = [i.pixel_array * float(i.RescaleSlope) + float(i.RescaleIntercept) for i in images]
    return np.array([i.ImagePositionPatient for i in images], float) * (-1, -1, 1), np.array(values)


def test_dicom_beside_nifti_says_the_same(run, cpu, tmp_path):
    checkpoint = save_generator(tmp_path / "g")
    for name in ("out", "again"):
        done = run("sample", checkpoint, "--seeds", "0,7", "--dicom", "--out", tmp_path / name)
        assert done.code == 0, done.err
    files = ["montage.png", "samples.json", "seed0000.dicom", "seed0000.nii.gz", "seed0007.dicom", "seed0007.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    for seed in ("seed0000", "seed0007"):
        volume = read_nifti(tmp_path / "out" / f"{seed}.nii.gz")
        positions, values = series(tmp_path / "out" / f"{seed}.dicom")
        np.testing.assert_array_equal(values, volume.array[0, :, ::-1, ::-1])
        assert len(np.unique(values)) > 20
        corners = [(d, SHAPE[1] - 1, SHAPE[2] - 1, 1) for d in range(SHAPE[0])]
        np.testing.assert_allclose(positions, np.array(corners) @ AFFINE[:3].T, atol=0.01)
        for path in (tmp_path / "out" / f"{seed}.dicom").iterdir():
            assert path.read_bytes() == (tmp_path / "again" / f"{seed}.dicom" / path.name).read_bytes()
            assert pydicom.dcmread(path).PatientName == f"SYNTHETIC^{seed}"
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert record["dicom"]["folders"] == ["seed0000.dicom", "seed0007.dicom"]
    assert (record["dicom"]["modality"], record["like"]) == ("CT", None)
    assert record["files"] == ["seed0000.nii.gz", "seed0007.nii.gz"]


def test_no_two_samples_share_a_uid(cpu, tmp_path):
    checkpoint, seen = str(save_generator(tmp_path / "g")), []
    for name, options in {"a": {}, "b": {"truncation_psi": 0.5}, "c": {"noise_mode": "none"}}.items():
        write_samples(SampleConfig(checkpoint=checkpoint, out=tmp_path / name, seeds=(0, 1), dicom=True, **options))
        seen += [pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / name).glob("*/*.dcm")]
    assert len(set(seen)) == len(seen) == 3 * 2 * SHAPE[0]


@pytest.mark.parametrize(
    ("intensity", "wanted", "modality"),
    [
        (HU, None, "CT"),
        (HU, "MR", "MR"),
        (PERCENTILES, None, "MR"),
        ({"kind": "window", "low": 0.0, "high": 1.0}, None, "MR"),  # a window, of scans that are normalised
    ],
)
def test_the_modality_follows_the_units(cpu, tmp_path, intensity, wanted, modality):
    checkpoint = save_generator(tmp_path / "g", intensity)
    config = SampleConfig(checkpoint=str(checkpoint), out=tmp_path / "out", seeds=(3,), dicom=True, modality=wanted)
    write_samples(config)
    first = pydicom.dcmread(tmp_path / "out" / "seed0003.dicom" / "IM000001.dcm")
    width = intensity["high"] - intensity["low"]
    assert (first.Modality, first.WindowWidth) == (modality, width)
    assert first.RescaleSlope == pytest.approx(width / 4095 if modality == "MR" else 1)  # the set's, not the sample's
    volume = read_nifti(tmp_path / "out" / "seed0003.nii.gz")
    _, values = series(tmp_path / "out" / "seed0003.dicom")
    off = width / 4095 / 2 if modality == "MR" else 0
    off += 0.5 if modality == "MR" and intensity is HU else 0  # which NIfTI has as whole numbers
    np.testing.assert_allclose(values, volume.array[0, :, ::-1, ::-1], atol=1.01 * off + 1e-9)


def test_like_a_scan(run, cpu, tmp_path):
    """The scan's grid and the record of it; `tests/data/test_place.py` has the geometry."""
    checkpoint, scan = save_generator(tmp_path / "g"), save_scan(tmp_path / "scan.nii.gz")
    done = run("sample", checkpoint, "--seeds", "0", "--like", scan, "--dicom", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    placed, source = (nib.load(path) for path in (tmp_path / "out" / "seed0000.nii.gz", scan))
    assert (placed.shape, placed.get_data_dtype()) == (source.shape, np.int16)
    np.testing.assert_allclose(placed.affine, source.affine, atol=1e-5)
    volume = read_nifti(tmp_path / "out" / "seed0000.nii.gz")
    positions, values = series(tmp_path / "out" / "seed0000.dicom")
    np.testing.assert_array_equal(values, volume.array[0, :, ::-1, ::-1])
    depth, height, width = volume.shape
    corners = [(d, height - 1, width - 1, 1) for d in range(depth)]
    np.testing.assert_allclose(positions, np.array(corners) @ volume.affine[:3].T, atol=0.01)
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert record["like"]["path"] == str(scan) and len(record["like"]["sha256"]) == 64
    assert record["geometry"]["intensity"] == HU
    np.testing.assert_allclose(record["geometry"]["affine"], volume.affine)
    np.testing.assert_allclose(record["geometry"]["spacing"], volume.spacing)


def test_like_takes_the_range_of_percentiles_from_the_scan(cpu, tmp_path):
    checkpoint, scan = save_generator(tmp_path / "g", PERCENTILES), save_scan(tmp_path / "scan.nii.gz")
    write_samples(SampleConfig(checkpoint=str(checkpoint), out=tmp_path / "out", seeds=(0,), like=scan, dicom=True))
    low, high = np.percentile(nib.load(scan).get_fdata(), (0.5, 99.5))
    values = nib.load(tmp_path / "out" / "seed0000.nii.gz").get_fdata()
    assert values.min() == pytest.approx(low) and low + 100 < values.max() <= high
    record = json.loads((tmp_path / "out" / "samples.json").read_text())["geometry"]["intensity"]
    assert (record["kind"], record["low"], record["high"]) == ("percentiles", pytest.approx(low), pytest.approx(high))


def test_what_cannot_be_placed_or_written_is_said_before_anything_is_drawn(cpu, tmp_path):
    checkpoint, percentiles = (save_generator(tmp_path / n, i) for n, i in (("g", HU), ("p", PERCENTILES)))
    sheared, four = save_scan(tmp_path / "sheared.nii", shear=0.4), tmp_path / "four.nii"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.float32), np.eye(4)), four)
    for source, options, told in (
        (checkpoint, {"like": tmp_path / "no.nii"}, "no.nii: no such file"),
        (checkpoint, {"like": four}, "four.nii"),
        (checkpoint, {"like": sheared, "dicom": True}, "sheared.nii: its axes are not at right angles"),
        (percentiles, {"dicom": True, "modality": "CT"}, "modality: CT needs a window in HU"),
        (checkpoint, {"modality": "MR"}, "modality: found 'MR'"),
        (checkpoint, {"dicom": True, "modality": "PT"}, "modality: found 'PT'"),
    ):
        with pytest.raises(UserError, match=told):
            write_samples(SampleConfig(checkpoint=str(source), out=tmp_path / "out", seeds=(0,), **options))
        assert not (tmp_path / "out").exists()
    write_samples(SampleConfig(checkpoint=str(checkpoint), out=tmp_path / "out", seeds=(0,), like=sheared))
    assert nib.load(tmp_path / "out" / "seed0000.nii.gz").shape == nib.load(sheared).shape


def test_overwriting_never_takes_the_scan_along(cpu, tmp_path):
    checkpoint = save_generator(tmp_path / "g")
    write_samples(SampleConfig(checkpoint=str(checkpoint), out=tmp_path / "out", seeds=(0,)))
    scan = save_scan(tmp_path / "out" / "scan.nii")
    with pytest.raises(UserError, match="holds the source"):
        write_samples(SampleConfig(checkpoint=str(checkpoint), out=tmp_path / "out", like=scan, overwrite=True))
    assert scan.is_file()
