"""Volumes from wherever they lie, on one scale; and two sides that do not fit, with a command that makes them."""

import json
import re
import shlex
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from splitshuffle_gan.config import GeneratorConfig
from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.data.dicom_out import write_dicom
from splitshuffle_gan.data.phantom import make_phantom, write_phantoms
from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.data.readers.nifti import read_nifti
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.metrics.source import from_arrays, open_pair, open_volumes
from splitshuffle_gan.metrics.volume_set import IntensityRule
from splitshuffle_gan.models.generator import Generator
from splitshuffle_gan.sampler import SampleConfig, sample, write_samples

pytestmark = pytest.mark.usefixtures("cpu")
SHAPE, SPACING = (8, 16, 8), (2.0, 1.0, 1.5)  # of tiny_dataset
WINDOW = IntensityRule("window", 0.0, 1000.0)


@pytest.fixture
def scans(tiny_dataset) -> Path:
    """The folder that tiny_dataset was prepared from, by a window of 0 to 1000; its scans have the dataset's grid."""
    return tiny_dataset.parent / "scans"


@pytest.fixture
def generator(tiny_dataset, tmp_path):
    """`generator(plane="axial", ...)`: the folder of one whose images stay well inside [-1, 1]."""

    def make(name: str = "generator", **geometry) -> Path:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            sizes = {"channels": (8, 8, 8), "z_dim": 8, "w_dim": 8, "mapping_layers": 2}
            made = Generator(GeneratorConfig(rank=3, shape=SHAPE, **sizes), open_dataset(tiny_dataset).geometry())
            for key, parameter in made.named_parameters():
                if "to_image.kernel" in key:
                    parameter.data.mul_(0.2)
        made.geometry = {**made.geometry, **geometry}
        made.update_w_avg()
        made.eval().save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def samples_of(folder: Path, out: Path, count: int = 3) -> Path:
    return write_samples(SampleConfig(checkpoint=str(folder), out=out, seeds=tuple(range(count)), truncation_psi=1.0))


def drawn(folder: Path, seeds, truncation_psi: float = 1.0) -> np.ndarray:
    return np.stack(list(sample(Generator.from_pretrained(folder), seeds, truncation_psi)))


def copy_of(scans: Path, out: Path) -> list[Path]:
    return sorted(Path(shutil.copytree(scans, out)).iterdir())


def save(array: np.ndarray, path: Path, spacing=(1.5, 1.0, 2.0)) -> None:
    """An array (x, y, z) as a scan."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([*spacing, 1.0])), path)


def replace_voxels(path: Path, value: float, where=...) -> None:
    image = nib.load(path)
    array = image.get_fdata(dtype=np.float32).copy()
    array[where] = value
    nib.save(nib.Nifti1Image(array, image.affine), path)


# --- what there is to read -------------------------------------------------------------------------------------------


def test_a_prepared_dataset_is_read_as_it_is(tiny_dataset):
    volumes = open_volumes(tiny_dataset)
    np.testing.assert_array_equal(volumes.array(), np.load(tiny_dataset / "volumes.npy")[:, 0])
    assert (volumes.kind, volumes.shape, volumes.spacing, volumes.plane) == ("dataset", SHAPE, SPACING, "axial")
    assert volumes.rule == WINDOW and volumes.names == tuple(f"{index}.nii.gz" for index in range(6))
    assert volumes[0].dtype == np.float32 and volumes[0].flags.writeable


def test_scans_take_plane_and_intensities_from_the_other_side(tiny_dataset, scans):
    """On the dataset's own grid they are the prepared volumes; by themselves they are not."""
    made, real = open_pair(scans, tiny_dataset)
    assert (made.kind, made.rule, made.plane, made.spacing) == ("scans", WINDOW, "axial", SPACING)
    np.testing.assert_array_equal(made.array(), real.array())
    assert made.data_hash == real.data_hash
    swapped, same = open_pair(tiny_dataset, scans)
    np.testing.assert_array_equal(same.array(), swapped.array())
    alone = open_volumes(scans)
    assert alone.rule == IntensityRule("percentiles", 0.5, 99.5)
    assert np.abs(alone.array() - real.array()).max() > 0.05


@pytest.mark.parametrize("plane", ["coronal", "sagittal"])
def test_scans_take_another_plane(scans, tmp_path, plane):
    turned = {"coronal": (16, 8, 8), "sagittal": (8, 8, 16)}[plane]
    dataset = prepare(PrepareConfig(scans, tmp_path / "d", turned, percentiles=(1, 98), plane=plane, workers=1))
    made, real = open_pair(scans, dataset)
    assert made.plane == plane and made.rule == IntensityRule("percentiles", 1.0, 98.0)
    np.testing.assert_array_equal(made.array(), real.array())


def test_two_folders_of_scans_are_axial_and_mapped_by_their_percentiles(scans, tmp_path):
    made, real = open_pair(scans, scans)
    assert made.plane == real.plane == "axial"
    for volume, path in zip(made.array(), sorted(scans.iterdir()), strict=True):
        array = nib.load(path).get_fdata().T
        low, high = np.percentile(array, (0.5, 99.5))
        np.testing.assert_allclose(volume, np.clip((array - low) / (high - low) * 2 - 1, -1, 1), atol=1e-5)


def in_another_format(path: Path, out: Path, format: str) -> None:
    """The scan at `path` once more, below the folder `out`."""
    image, stem = nib.load(path), path.name.split(".")[0]
    out.mkdir(exist_ok=True)
    if format == "MGH":
        nib.save(nib.MGHImage(image.get_fdata(dtype=np.float32), image.affine), out / f"{stem}.mgz")
    elif format == "NumPy":
        np.save(out / f"{stem}.npy", image.get_fdata(dtype=np.float32))
        (out / f"{stem}.json").write_text(json.dumps({"affine": image.affine.tolist(), "axes": "xyz"}))
    elif format == "NRRD":
        header = {"space": "RAS", "space directions": image.affine[:3, :3].T, "space origin": image.affine[:3, 3]}
        pytest.importorskip("nrrd").write(str(out / f"{stem}.nrrd"), image.get_fdata(dtype=np.float32), header)
    else:
        series = {"modality": "MR", "description": "a test", "uid_seed": "", "bounds": (0, 1000)}
        write_dicom(read_nifti(path), out / f"{stem}.dicom", name=stem, **series)


@pytest.mark.parametrize("format", ["MGH", "NumPy", "NRRD", "DICOM", "one of each"])
def test_whatever_is_prepared_is_read(tiny_dataset, scans, tmp_path, format):
    formats = ["MGH", "NumPy", "NRRD", "DICOM", "MGH", "DICOM"] if format == "one of each" else [format] * 6
    for path, kind in zip(sorted(scans.iterdir()), formats, strict=True):
        in_another_format(path, tmp_path / "scans", kind)
    made, real = open_pair(tmp_path / "scans", tiny_dataset)
    assert (made.kind, made.shape, len(set(made.names))) == ("scans", SHAPE, 6)
    np.testing.assert_allclose(made.spacing, SPACING, rtol=1e-6)
    np.testing.assert_allclose(made.array(), real.array(), atol=2.5e-4)  # this DICOM holds 12 bits


def test_samples_count_once_where_they_are_dicom_too(generator, tmp_path):
    samples = tmp_path / "samples"
    write_samples(SampleConfig(checkpoint=str(generator()), out=samples, seeds=(0, 1), truncation_psi=1.0, dicom=True))
    assert sum(path.suffix == ".dcm" for path in samples.rglob("*")) == 2 * SHAPE[0]
    assert open_volumes(samples).names == ("seed0000.nii.gz", "seed0001.nii.gz")


def test_one_file_is_a_set_of_one(scans):
    volumes = open_volumes(scans / "3.nii.gz")
    assert volumes.names == ("3.nii.gz",)
    np.testing.assert_array_equal(volumes[0], open_volumes(scans)[3])


def test_phantoms_count_as_their_images(tmp_path):
    folder = write_phantoms("heart", 2, (8, 8, 8), (25.0, 25.0, 25.0), 0, tmp_path / "phantoms")
    volumes = open_volumes(folder, ("axial", IntensityRule("window", -250, 650)))
    assert volumes.names == ("heart0000.nii.gz", "heart0001.nii.gz") and volumes.shape == (8, 8, 8)
    seeds = [entry["seed"] for entry in json.loads((folder / "factors.json").read_text())["volumes"]]
    for volume, seed in zip(volumes.array(), seeds, strict=True):
        image = np.round(make_phantom("heart", (8, 8, 8), (25.0, 25.0, 25.0), seed).image)
        np.testing.assert_allclose(volume, np.clip((image + 250) / 450 - 1, -1, 1), atol=1e-6)


@pytest.mark.parametrize(
    "name, geometry, precision",
    [
        ("whole numbers", {}, 1 / 1000),  # half a unit of a window of 1000, in a range of 2
        ("floats", {"intensity": {"kind": "percentiles", "low": 3.0, "high": 77.5}}, 1e-6),
        ("coronal", {"plane": "coronal", "intensity": {"kind": "window", "low": -1.0, "high": 3.0}}, 1e-6),
    ],
)
def test_samples_are_mapped_back_to_what_was_drawn(generator, tmp_path, name, geometry, precision):
    if name == "coronal":  # columns of (D, H, W) = (A, S, R)
        geometry["affine"] = [[0, 0, 1.5, 7], [2.0, 0, 0, 8], [0, 1.0, 0, 9], [0, 0, 0, 1]]
    folder = generator(**geometry)
    volumes = open_volumes(samples_of(folder, tmp_path / "samples"))
    assert (volumes.kind, volumes.shape, volumes.spacing) == ("samples", SHAPE, SPACING)
    assert volumes.plane == geometry.get("plane", "axial")
    truth = drawn(folder, range(3))
    np.testing.assert_allclose(volumes.array(), truth, rtol=0, atol=1.0001 * precision)
    assert np.abs(truth).max() < 1 and np.abs(truth[0] - truth[1]).max() > 10 * precision


def test_a_record_of_samples_counts_more_than_the_other_side(generator, tmp_path, tiny_dataset, scans):
    samples = samples_of(generator(), tmp_path / "samples")
    frame = ("axial", IntensityRule("window", 0.0, 10.0))
    np.testing.assert_array_equal(open_volumes(samples, frame).array(), open_volumes(samples).array())
    made, real = open_pair(samples, scans)  # and gives plane and intensities to scans without one
    assert made.rule == real.rule == WINDOW
    np.testing.assert_array_equal(real.array(), open_volumes(tiny_dataset).array())


def test_a_checkpoint_draws_what_sampling_draws(generator, tiny_dataset):
    folder = generator()
    made, real = open_pair(str(folder), tiny_dataset)
    assert len(made) == len(real) == 6
    np.testing.assert_array_equal(made.array(), drawn(folder, range(6)))
    some, _ = open_pair(str(folder), tiny_dataset, share=0.5)
    np.testing.assert_array_equal(some.array(), drawn(folder, range(3)))
    few, _ = open_pair(str(folder), tiny_dataset, count=2, truncation_psi=0.5, seed=3)
    np.testing.assert_array_equal(few.array(), drawn(folder, (3_000_000, 3_000_001), 0.5))
    assert few.kind == "checkpoint" and few.names == ("seed 3000000", "seed 3000001")
    assert few.details == {"checkpoint": str(folder), "truncation_psi": 0.5, "seeds": [3_000_000, 3_000_001]}


def test_a_generator_that_ships_is_opened_by_its_name(generator, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("splitshuffle_gan.checkpoint.__file__", str(tmp_path / "package" / "checkpoint.py"))
    monkeypatch.chdir(tmp_path)
    folder = generator("checkpoints/tiny-mr")
    made, real = open_pair("tiny-mr", tiny_dataset)
    assert (made.name, made.kind, len(made)) == ("tiny-mr", "checkpoint", 6)
    np.testing.assert_array_equal(made.array(), drawn(folder, range(6)))
    with pytest.raises(UserError, match="tiny: no such file or folder; .* a name that `splitshuffle models` lists"):
        open_pair("tiny", tiny_dataset)
    with pytest.raises(UserError, match="tiny-mr: no such file or folder"):
        open_volumes(Path("tiny-mr"))


@pytest.mark.parametrize("truncation_psi", [np.nan, np.inf])
def test_a_truncation_that_is_not_finite_is_refused(generator, tiny_dataset, truncation_psi):
    with pytest.raises(UserError, match="truncation_psi: found .*, a finite number is wanted"):
        open_pair(str(generator()), tiny_dataset, truncation_psi=truncation_psi)


def test_arrays_are_taken_as_they_are():
    array = np.random.default_rng(0).uniform(-1, 1, (3, 4, 5, 6)).astype(np.float32)
    volumes = from_arrays(array, (3.0, 2.0, 1.0), "sagittal", "mine")
    assert (volumes.name, volumes.kind, volumes.shape, volumes.plane) == ("mine", "arrays", (4, 5, 6), "sagittal")
    assert volumes.spacing == (3.0, 2.0, 1.0) and volumes.rule is None
    np.testing.assert_array_equal(volumes.array(), array)
    np.testing.assert_array_equal(from_arrays(torch.from_numpy(array)).array(), array)
    np.testing.assert_array_equal(from_arrays(volume for volume in array).array(), array)


def test_a_subset_keeps_the_order_asked_for():
    volumes = from_arrays(np.random.default_rng(0).uniform(-1, 1, (5, 4, 4, 4)).astype(np.float32))
    part = volumes.subset([4, 0, 2]).subset(np.array([2, 0]))
    assert part.names == ("volume 2", "volume 4")
    np.testing.assert_array_equal(part.array(), volumes.array()[[2, 4]])


def test_the_hash_is_of_voxels_and_order_and_nothing_else(tmp_path, scans):
    volumes = from_arrays(np.random.default_rng(0).uniform(-1, 1, (3, 4, 4, 4)).astype(np.float32))
    changed = volumes.array()
    changed[1, 2, 3, 0] += 1e-3
    hashes = {volumes.data_hash, volumes.subset([1, 0, 2]).data_hash, from_arrays(changed).data_hash}
    assert len(hashes) == 3
    assert from_arrays(volumes.array(), name="other").data_hash == volumes.data_hash
    for path in copy_of(scans, tmp_path / "copy"):
        path.rename(path.with_name(f"new{path.name}"))
    assert open_volumes(tmp_path / "copy").data_hash == open_volumes(scans).data_hash


# --- what cannot be scored -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scans_with_voxels_that_are_not_finite_are_named(scans, tiny_dataset, tmp_path, bad):
    replace_voxels(copy_of(scans, tmp_path / "bad")[4], bad, (0, 0, 0))
    made, _ = open_pair(tmp_path / "bad", tiny_dataset)
    made[3]
    with pytest.raises(UserError, match=r"bad/4.nii.gz: .*NaN or infinite"):
        made[4]


@pytest.mark.parametrize("against", ["dataset", "scans"])
def test_constant_scans_are_named(scans, tiny_dataset, tmp_path, against):
    replace_voxels(copy_of(scans, tmp_path / "bad")[2], 7.0)
    made, _ = open_pair(tmp_path / "bad", tiny_dataset if against == "dataset" else scans)
    with pytest.raises(UserError, match=r"bad.*2.nii.gz.*(everywhere|percentiles .* are 7 and 7).*remove"):
        made[2]


@pytest.mark.parametrize(
    "value, message",
    [
        (np.nan, "1 voxels that are NaN or infinite"),
        (0.5, "is 0.5 everywhere"),
        (-3.0, "reaches 3; values in .* are wanted: prepare the set again, or"),
    ],
)
def test_bad_volumes_of_a_dataset_are_named(tiny_dataset, tmp_path, value, message):
    shutil.copytree(tiny_dataset, tmp_path / "bad")
    array = np.load(tmp_path / "bad" / "volumes.npy")
    array[5 if value == 0.5 else (5, 0, 0, 0, 0)] = value
    np.save(tmp_path / "bad" / "volumes.npy", array)
    with pytest.raises(UserError, match=f"bad: 5.nii.gz.*{message}[;,]? remove it"):
        open_volumes(tmp_path / "bad")[5]


@pytest.mark.parametrize(
    "shape, spacing, found",
    [((8, 16, 9), (1.5, 1.0, 2.0), "9 x 16 x 8 voxels"), ((8, 16, 8), (1.5, 1.0, 2.5), "2.5 x 1 x 1.5 mm")],
)
def test_a_folder_of_mixed_grids_is_refused(scans, tmp_path, shape, spacing, found):
    copy_of(scans, tmp_path / "bad")
    save(np.random.default_rng(0).uniform(0, 900, shape), tmp_path / "bad" / "odd.nii", spacing)
    volumes = open_volumes(tmp_path / "bad")
    volumes[5]
    with pytest.raises(UserError, match=rf"odd.nii: .*{found}.*0.nii.gz has 8 x 16 x 8 voxels of 2 x 1 x 1.5 mm"):
        volumes[6]


def test_a_file_that_cannot_be_a_scan_is_named(scans, tiny_dataset, tmp_path):
    copy_of(scans, tmp_path / "bad")
    (tmp_path / "bad" / "notes.txt").write_text("no scan")  # as its name says
    open_pair(tmp_path / "bad", tiny_dataset)
    (tmp_path / "bad" / "more.mha").touch()
    with pytest.raises(UserError, match=r"bad/more.mha: .mha is not a format that is read"):
        open_pair(tmp_path / "bad", tiny_dataset)
    save(np.ones((8, 16, 8, 3)), tmp_path / "bad" / "four.nii", (1.5, 1.0, 2.0))
    with pytest.raises(UserError, match=r"bad/four.nii: holds 3 volumes.*1 more cannot be read"):
        open_pair(tmp_path / "bad", tiny_dataset)


def test_a_damaged_scan_is_named(scans, tiny_dataset, tmp_path):
    bad = copy_of(scans, tmp_path / "bad")
    bad[2].write_bytes(bad[2].read_bytes()[:-200])
    with pytest.raises(UserError, match=r"bad/2.nii.gz: "):
        open_pair(tmp_path / "bad", tiny_dataset)[0].array()


def test_samples_without_files_are_refused(generator, tmp_path):
    samples = samples_of(generator(), tmp_path / "samples", 1)
    (samples / "seed0000.nii.gz").unlink()
    with pytest.raises(UserError, match="samples.json, but no .nii.gz file; sample again"):
        open_volumes(samples)


def test_what_holds_no_volumes_is_refused(tmp_path, tiny_dataset):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no scan")
    for bad in (tmp_path / "empty", tmp_path / "missing", str(tmp_path / "missing"), tmp_path / "notes.txt"):
        for pair in ((bad, tiny_dataset), (tiny_dataset, bad)):
            with pytest.raises(UserError, match=Path(bad).name):
                open_pair(*pair)
    with pytest.raises(UserError, match="no volumes; at least one is wanted"):
        from_arrays([])


def test_a_damaged_record_of_samples_is_refused(generator, tmp_path):
    samples = samples_of(generator(), tmp_path / "samples", 1)
    record = json.loads((samples / "samples.json").read_text())
    del record["geometry"]["intensity"]
    for text in (json.dumps(record), "[]", '{"geometry": ', '{"geometry": 3}'):
        (samples / "samples.json").write_text(text)
        for call in (lambda: open_volumes(samples), lambda: open_pair(samples, samples)):
            with pytest.raises(UserError, match="samples.json"):
                call()


@pytest.mark.parametrize(
    "arrays, message",
    [
        ([np.zeros((4, 4, 4)), np.zeros((4, 4, 5))], r"shapes \[\(4, 4, 4\), \(4, 4, 5\)\]"),
        (np.zeros((2, 2, 4, 4, 4)), r"shapes \[\(2, 4, 4, 4\)\]"),
        ([np.full((4, 4, 4), 0.5), np.full((4, 4, 4), 255.0)], "volume 1 reaches 255"),
    ],
)
def test_arrays_of_another_kind_are_refused(arrays, message):
    with pytest.raises(UserError, match=message):
        from_arrays(arrays)
    with pytest.raises(UserError, match="plane: 'oblique' is unknown"):
        from_arrays(np.zeros((1, 4, 4, 4)), plane="oblique")


# --- two sides that do not fit ---------------------------------------------------------------------------------------


def refused(generated, real, run, monkeypatch, folder: Path) -> str:
    """The message; its command has been run in `folder`, and what it made fits."""
    with pytest.raises(UserError) as caught:
        open_pair(generated, real)
    words = shlex.split(re.search(r"`splitshuffle (prepare .*?)`", str(caught.value))[1])
    monkeypatch.chdir(folder)
    done = run(*words)
    assert done.code == 0, done.err
    made, truth = open_pair(folder / "PREPARED", real)
    assert (made.shape, made.plane) == (truth.shape, truth.plane)
    assert made.array().shape[0] == len(made) > 0
    return str(caught.value)


@pytest.fixture
def finer(tmp_path) -> Path:
    """Scans of 10 x 20 x 10 voxels of 1.6 x 0.8 x 1.2 mm (D, H, W), in a folder whose name needs quotes."""
    for index in range(3):
        array = np.random.default_rng(index).uniform(0, 900, (10, 20, 10))
        save(array, tmp_path / "my scans" / f"{index}.nii.gz", (1.2, 0.8, 1.6))
    return tmp_path / "my scans"


def test_another_shape_is_refused_with_the_command_that_helps(finer, tiny_dataset, run, monkeypatch, tmp_path):
    message = refused(finer, tiny_dataset, run, monkeypatch, tmp_path)
    assert f"shape: generated {finer} has 10 x 20 x 10, real {tiny_dataset} has 8 x 16 x 8" in message
    assert "--window 0 1000" in message


def test_another_spacing_is_refused_with_the_command_that_helps(scans, tiny_dataset, run, monkeypatch, tmp_path):
    for path in sorted(scans.iterdir()):
        save(nib.load(path).get_fdata(), tmp_path / "scans" / path.name, (1.5, 1.0, 2.1))
    message = refused(tmp_path / "scans", tiny_dataset, run, monkeypatch, tmp_path)
    assert "spacing: generated" in message and "has 2.1 x 1 x 1.5, real" in message and "has 2 x 1 x 1.5;" in message
    for path in sorted((tmp_path / "scans").iterdir()):  # a difference that rounding may leave
        save(nib.load(path).get_fdata(), path, (1.5, 1.0, 2.00001))
    open_pair(tmp_path / "scans", tiny_dataset)


def test_another_plane_is_refused_with_the_command_that_helps(generator, tiny_dataset, run, monkeypatch, tmp_path):
    affine = [[0, 0, 1.5, 0], [2.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]]
    samples = samples_of(generator(plane="coronal", affine=affine), tmp_path / "samples")
    message = refused(samples, tiny_dataset, run, monkeypatch, tmp_path)
    assert f"plane: generated {samples} has coronal, real {tiny_dataset} has axial" in message


def test_another_window_is_refused_with_the_command_that_helps(generator, tiny_dataset, run, monkeypatch, tmp_path):
    intensity = {"kind": "window", "low": -500.0, "high": 1500.0}
    samples = samples_of(generator(intensity=intensity), tmp_path / "samples")
    message = refused(samples, tiny_dataset, run, monkeypatch, tmp_path)
    assert "intensity: generated" in message and "-500" in message and "1500" in message
    made, _ = open_pair(tmp_path / "PREPARED", tiny_dataset)
    hounsfield = read_nifti(samples / "seed0001.nii.gz").array[0]
    np.testing.assert_allclose(made[1], np.clip(hounsfield / 500 - 1, -1, 1), atol=1e-6)


@pytest.mark.parametrize("change", [{"window": (0, 800)}, {"percentiles": (1, 99)}, {"shape": (8, 12, 8)}])
def test_a_dataset_is_prepared_again_from_its_scans(tiny_dataset, scans, run, monkeypatch, tmp_path, change):
    options = {"shape": SHAPE, "workers": 1} | ({} if "percentiles" in change else {"window": (0, 1000)}) | change
    other = prepare(PrepareConfig(scans, tmp_path / "other", **options))
    message = refused(other, tiny_dataset, run, monkeypatch, tmp_path)
    assert str(other) in message and str(tiny_dataset) in message
    np.testing.assert_array_equal(open_volumes(tmp_path / "PREPARED").array(), open_volumes(tiny_dataset).array())


def test_a_window_below_zero_is_a_window_to_the_command(tiny_dataset, scans, run, monkeypatch, tmp_path):
    real = prepare(PrepareConfig(scans, tmp_path / "real", SHAPE, window=(-500.5, 1500), workers=1))
    assert "--window -500.5 1500" in refused(tiny_dataset, real, run, monkeypatch, tmp_path)


def test_percentiles_are_not_held_against_what_cannot_know_them(generator, scans, tmp_path):
    """A generator knows the intensities of its training set, not the percents behind them."""
    dataset = prepare(PrepareConfig(scans, tmp_path / "dataset", SHAPE, percentiles=(1, 99), workers=1))
    folder = generator(intensity={"kind": "percentiles", "low": 5.0, "high": 900.0})
    open_pair(str(folder), dataset)
    open_pair(samples_of(folder, tmp_path / "samples"), dataset)


def test_a_generator_of_another_grid_is_refused(generator, finer, tmp_path):
    # Scans without a record are brought to the generator's grid; a dataset cannot be.
    with pytest.raises(UserError, match="8 x 16 x 8, .*10 x 20 x 10; .*prepare .* --shape 8 16 8 .*instead of"):
        open_pair(generator(), finer)
    dataset = prepare(PrepareConfig(finer, tmp_path / "dataset", (10, 20, 10), window=(0, 1000), workers=1))
    with pytest.raises(UserError, match="shape: .*8 x 16 x 8, .*10 x 20 x 10; a generator is scored against data prep"):
        open_pair(generator(), dataset)
