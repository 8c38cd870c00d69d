"""Volumes with their label maps: drawn, written, placed on a scan, prepared again, scored."""

import json
import shlex

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from splitshuffle_gan.checkpoint import find_checkpoint
from splitshuffle_gan.config import GeneratorConfig
from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.data.readers.nifti import read_nifti
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.metrics.source import open_volumes
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.sampler import (
    SampleConfig,
    command_for_pairs,
    latent_of_seed,
    sample,
    sample_pairs,
    write_samples,
)

SHAPE, SPACING, STRUCTURES = (8, 16, 8), (2.0, 1.0, 1.5), (2, 5)
HU = {"kind": "window", "low": -250.0, "high": 650.0}
PERCENTILES = {"kind": "percentiles", "low": 10.0, "high": 90.0}
AFFINE = np.array([[0, 0, 1.5, -7], [0, 1.0, 0, 20], [2.0, 0, 0, 40], [0, 0, 0, 1]])  # axial, D H W of SHAPE


def make_generator(rank: int = 3, intensity: dict = HU, structures: tuple = STRUCTURES) -> Generator:
    """Random weights; images well inside [-1, 1], label channels far beyond it."""
    sizes = {"channels": (8, 8, 8), "z_dim": 8, "w_dim": 8, "image_channels": 3}
    geometry = {"spacing": list(SPACING), "plane": "axial", "affine": AFFINE.tolist(), "intensity": intensity}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GeneratorConfig(rank=rank, shape=SHAPE, **sizes)
        generator = Generator(config, geometry | {"labels": list(structures)}).eval()
        for name, parameter in generator.named_parameters():
            if "to_image.kernel" in name:
                parameter.data *= torch.tensor([0.2, 3.0, 3.0]).reshape(-1, *[1] * (parameter.ndim - 1))
            if "bias" in name and "mapping" not in name:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    generator.update_w_avg()
    return generator


def save_generator(folder, **options):
    make_generator(**options).save_pretrained(folder)
    return folder


def written(checkpoint, out, **options) -> SampleConfig:
    config = SampleConfig(checkpoint=str(checkpoint), out=out, truncation_psi=1.0, **({"seeds": (0, 7)} | options))
    write_samples(config)
    return config


@pytest.mark.parametrize("rank", [2, 3])
def test_a_mask_has_the_structure_of_the_greatest_channel(rank):
    generator = make_generator(rank)
    ((image, mask),) = sample_pairs(generator, [3])
    (alone,) = sample(generator, [3])
    np.testing.assert_array_equal(image, alone)
    assert (mask.dtype, mask.shape) == (np.uint8, SHAPE)
    for depth in (0, 5):
        with torch.no_grad():
            drawn = generator(latent_of_seed(3, 8), noise_mode="const", depth=torch.tensor([depth]))[0]
        first, second = (drawn[:, depth] if rank == 3 else drawn)[1:].tolist()
        for h, w in np.ndindex(SHAPE[1:]):
            a, b = first[h][w], second[h][w]
            if min(abs(a - b), abs(max(a, b))) > 1e-3:
                assert mask[depth, h, w] == (0 if max(a, b) < 0 else 2 if a > b else 5)
    assert np.unique(mask).tolist() == [0, 2, 5]
    assert np.unique(image).size > 100


def test_a_generator_of_images_has_no_mask():
    config = GeneratorConfig(rank=3, shape=SHAPE, channels=(8, 8, 8))
    ((image, mask),) = sample_pairs(Generator(config).eval(), [0])
    assert image.shape == SHAPE and mask is None


@pytest.mark.parametrize("intensity", [HU, PERCENTILES])
def test_pairs_come_back_from_prepare_voxel_for_voxel(run, cpu, tmp_path, intensity):
    """Neither image nor mask is moved or resampled between what the generator drew and the dataset of pairs."""
    checkpoint, out = save_generator(tmp_path / "g", intensity=intensity), tmp_path / "out"
    done = run("sample", checkpoint, "--seeds", "0,7", "--truncation-psi", 1, "--out", out)
    assert done.code == 0, done.err
    names = ["seed0000.nii.gz", "seed0007.nii.gz"]
    assert sorted(path.name for path in out.iterdir()) == ["images", "labels", "montage.png", "samples.json"]
    for part in ("images", "labels"):
        assert sorted(path.name for path in (out / part).iterdir()) == names
    record = json.loads((out / "samples.json").read_text())
    assert record["files"] == [f"images/{name}" for name in names]
    assert record["labels"] == [f"labels/{name}" for name in names]
    assert record["geometry"]["labels"] == [2, 5]

    told = shlex.split(done.out.splitlines()[-1].partition("voxel for voxel: ")[2])
    assert told[:3] == ["splitshuffle", "prepare", f"{out}/images"] and told[-1] == f"{out}_pairs"
    window, grid = ("--window", intensity["low"], intensity["high"]), ("--shape", *SHAPE, "--spacing", *SPACING)
    other = tmp_path / "dataset"
    for words, dataset in (
        (told[1:], tmp_path / "out_pairs"),
        (["prepare", out, "--labels", "auto", "--out", other, *grid, *window], other),
    ):
        done = run(*words, "--workers", 1)
        assert done.code == 0, done.err
        prepared = open_dataset(dataset)
        assert (prepared.spacing, prepared.plane, prepared.structures) == (SPACING, "axial", STRUCTURES)
        half_a_unit = 1 / 900 + 1e-6 if intensity is HU else 1e-6
        for row, (image, mask) in enumerate(sample_pairs(make_generator(intensity=intensity), [0, 7])):
            np.testing.assert_array_equal(prepared.labels[row, 0], mask)
            np.testing.assert_allclose(prepared.volumes[row, 0], image, atol=half_a_unit)
            np.testing.assert_allclose(prepared.manifest["volumes"][row]["affine"], AFFINE, atol=1e-5)


def test_masks_are_whole_numbers_on_the_grid_of_their_volumes(cpu, tmp_path):
    written(save_generator(tmp_path / "g"), tmp_path / "out")
    image, label = (nib.load(tmp_path / "out" / part / "seed0007.nii.gz") for part in ("images", "labels"))
    assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
    np.testing.assert_array_equal(image.affine, label.affine)
    assert image.shape == label.shape == SHAPE[::-1]
    assert np.unique(label.get_fdata()).tolist() == [0, 2, 5]


def test_like_puts_the_mask_where_the_volume_is(cpu, tmp_path):
    """On a grid of the same voxels: moved alike, by whole voxels; on a finer one: the labels that were there."""
    checkpoint = save_generator(tmp_path / "g")
    ((drawn, mask),) = sample_pairs(make_generator(), [0])
    same = np.array([[0, 0, -1.5, 30], [1.0, 0, 0, -3], [0, -2.0, 0, 8], [0, 0, 0, 1]])  # axes on disk A, I, L
    nib.save(nib.Nifti1Image(np.ones((21, 13, 10), np.float32), same), tmp_path / "same.nii")
    written(checkpoint, tmp_path / "out", seeds=(0,), like=tmp_path / "same.nii")
    for part, array, around in (("images", drawn * 450 + 200, -250), ("labels", mask, 0)):
        found = nib.load(tmp_path / "out" / part / "seed0000.nii.gz")
        np.testing.assert_allclose(found.affine, same)
        turned = np.full((21, 13, 10), around)  # (S, A, R) in the middle of (A, I, L), half a voxel down, back
        turned[2:18, 3:11, 1:9] = np.rint(array).transpose(1, 0, 2)[:, ::-1, ::-1]
        np.testing.assert_allclose(found.get_fdata(), turned, atol=1 if part == "images" else 0)

    nib.save(nib.Nifti1Image(np.ones((16, 48, 32), np.float32), np.diag([0.75, 1 / 3, 0.5, 1])), tmp_path / "fine.nii")
    written(checkpoint, tmp_path / "fine", seeds=(0,), like=tmp_path / "fine.nii")
    fine = read_nifti(tmp_path / "fine" / "labels" / "seed0000.nii.gz").array[0]
    record = json.loads((tmp_path / "fine" / "samples.json").read_text())
    assert set(np.unique(fine)) <= {0, 2, 5} and record["geometry"]["labels"] == [2, 5]
    np.testing.assert_array_equal(fine[1::4, 1::3, 0::2].shape, mask.shape)
    assert np.mean(fine[1::4, 1::3, 0::2] == mask) > 0.8
    assert command_for_pairs(tmp_path / "fine") is None


def test_dicom_holds_the_volume_alone_and_out_of_the_way(cpu, tmp_path):
    written(save_generator(tmp_path / "g"), tmp_path / "out", dicom=True)
    folders = ["images", "labels", "montage.png", "samples.json", "seed0000.dicom", "seed0007.dicom"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == folders
    config = {"window": (-250, 650), "workers": 1, "labels": "auto", "spacing": SPACING}
    prepare(PrepareConfig(tmp_path / "out" / "images", tmp_path / "dataset", SHAPE, **config))
    assert len(open_dataset(tmp_path / "dataset")) == 2


def test_the_montage_is_tinted_where_labels_are(cpu, tmp_path):
    written(save_generator(tmp_path / "g"), tmp_path / "out", seeds=(0,))
    picture = np.asarray(Image.open(tmp_path / "out" / "montage.png").convert("RGB")).astype(int)
    assert (np.ptp(picture, axis=2) > 50).mean() > 0.005


def test_scores_see_the_images_alone(cpu, tmp_path):
    checkpoint, generator = save_generator(tmp_path / "g"), make_generator()
    written(checkpoint, tmp_path / "out", seeds=(0, 1))
    images = list(sample(generator, [0, 1]))
    drawn, samples = open_volumes(checkpoint, count=2), open_volumes(tmp_path / "out")
    assert (samples.kind, samples.names) == ("samples", ("images/seed0000.nii.gz", "images/seed0001.nii.gz"))
    assert drawn.shape == samples.shape == SHAPE
    for index, image in enumerate(images):
        np.testing.assert_array_equal(drawn[index], image)
        np.testing.assert_allclose(samples[index], image, atol=1 / 900 + 1e-6)


def test_channels_and_labels_that_do_not_fit_are_refused(cpu, tmp_path):
    for labels in ((2,), (2, 5, 6)):
        checkpoint = save_generator(tmp_path / f"g{len(labels)}", structures=labels)
        with pytest.raises(UserError, match="draws 3 channels, but its geometry has the labels 2"):
            written(checkpoint, tmp_path / "out")
    broken = make_generator()
    broken.blocks[-1].to_image.bias.data[2, 0] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(UserError, match="seed0000 has voxels that are NaN"):
        written(tmp_path / "broken", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_whole_way_on_pairs(run, cpu, tiny_pairs, tmp_path):
    """train2d, inflate, train3d, sample and prepare, by the command line alone."""
    network = "--network.channels 8 8 8 --network.z-dim 8 --network.w-dim 8 --network.group-size 2".split()
    length = "--channels image,label --kimg 0.032 --batch-size 8 --mixed-precision no".split()
    steps = (
        ("train2d", "--data", tiny_pairs, "--out", tmp_path / "run2d", *length, *network),
        ("inflate", tmp_path / "run2d", "--out", tmp_path / "inflated"),
        ("train3d", "--data", tiny_pairs, "--init", tmp_path / "inflated", "--out", tmp_path / "run3d", *length),
        ("sample", tmp_path / "run3d", "--seeds", "0-2", "--truncation-psi", 1, "--out", tmp_path / "samples"),
    )
    for command in steps:
        done = run(*command)
        assert done.code == 0, (command[0], done.err)
    report = json.loads((tmp_path / "inflated" / "inflation.json").read_text())
    assert max(report["generator_error_per_depth"]) < 1e-5 and report["discriminator_error"] < 1e-5
    generator = Generator.from_pretrained(find_checkpoint(tmp_path / "run3d", "generator"))
    assert (generator.config.rank, generator.config.image_channels) == (3, 3)
    assert generator.geometry["labels"] == [2, 5]
    for seed, (_, mask) in enumerate(sample_pairs(generator, range(3))):
        label = read_nifti(tmp_path / "samples" / "labels" / f"seed{seed:04d}.nii.gz").array[0]
        np.testing.assert_array_equal(label, mask)
