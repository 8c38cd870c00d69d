"""Phantoms: reproducible, anatomically sensible, true to their factors, written whole or not at all."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage, stats

from splitshuffle_gan.data import phantom as package
from splitshuffle_gan.data.phantom import FACTORS, LABELS, make_phantom, write_phantoms
from splitshuffle_gan.errors import UserError

CUBE = {"brain": ((64, 64, 64), (3.3, 3.3, 3.3)), "heart": ((64, 64, 64), (5.3, 5.3, 5.3))}
SEEDS = range(6)
KINDS = pytest.mark.parametrize("kind", ["brain", "heart"])


@pytest.fixture(scope="module")
def cohort() -> dict[str, list[package.Phantom]]:
    return {kind: [make_phantom(kind, *CUBE[kind], seed) for seed in SEEDS] for kind in CUBE}


def mask(phantom: package.Phantom, kind: str, *names: str) -> np.ndarray:
    numbers = [number for number, name in LABELS[kind].items() if name in names]
    assert len(numbers) == len(names)
    return np.isin(phantom.label, numbers)


def centroid(phantom: package.Phantom, where: np.ndarray) -> np.ndarray:
    """RAS mm of the centre of a mask, through the affine."""
    return (phantom.affine @ [*ndimage.center_of_mass(where), 1])[:3]


def touches(inner: np.ndarray, outer: np.ndarray) -> float:
    """Fraction of `inner` with a face on `outer`."""
    return (ndimage.binary_dilation(outer) & inner).sum() / inner.sum()


@KINDS
def test_same_seed_gives_the_same_bytes(kind):
    first, second = (make_phantom(kind, (24, 32, 28), (8, 7, 9), 5) for _ in range(2))
    other = make_phantom(kind, (24, 32, 28), (8, 7, 9), 6)
    assert first.image.tobytes() == second.image.tobytes()
    assert first.label.tobytes() == second.label.tobytes()
    assert first.factors == second.factors
    assert first.image.tobytes() != other.image.tobytes()


@KINDS
@pytest.mark.parametrize(
    ("shape", "spacing"), [((32, 32, 32), (6.0, 6.0, 6.0)), ((16, 48, 56), (10.0, 4.0, 4.0)), ((8, 8, 8), (1, 1, 1))]
)
def test_contract_on_any_grid(kind, shape, spacing):
    made = make_phantom(kind, shape, spacing, 1)
    assert made.image.shape == made.label.shape == shape
    assert made.image.dtype == np.float32 and made.label.dtype == np.uint8
    assert np.isfinite(made.image).all()
    assert set(made.factors) == set(FACTORS[kind])
    assert json.loads(json.dumps(made.factors)) == made.factors
    np.testing.assert_allclose(np.linalg.norm(made.affine[:3, :3], axis=0), spacing)
    middle = made.affine @ [*((np.array(shape) - 1) / 2), 1]
    np.testing.assert_allclose(middle, [0, 0, 0, 1], atol=1e-9)


@KINDS
def test_small_field_of_view_shrinks_the_anatomy(kind):
    shape, spacing = CUBE[kind]
    large = make_phantom(kind, shape, tuple(1.5 * s for s in spacing), 2)
    small = make_phantom(kind, shape, tuple(0.5 * s for s in spacing), 2)
    assert large.factors["scale"] == 1
    assert small.factors["scale"] == pytest.approx(make_phantom(kind, shape, spacing, 2).factors["scale"] / 2, rel=0.05)
    anatomy = small.label != 0
    assert 0.15 < anatomy.mean() < 0.7
    for face in (anatomy[:, 0], anatomy[:, -1], anatomy[:, :, 0], anatomy[:, :, -1]):
        assert face.mean() < 0.05


@KINDS
def test_every_label_is_there(kind, cohort):
    present = [set(np.unique(p.label)) for p in cohort[kind]]
    always = set(LABELS[kind]) - {n for n, name in LABELS[kind].items() if name == "coronary_calcium"}
    for phantom, labels in zip(cohort[kind], present, strict=True):
        assert labels >= always, [LABELS[kind][n] for n in always - labels]
        if kind == "heart":
            assert (phantom.factors["calcium_volume_mm3"] > 0) == bool(labels - always)
    assert set().union(*present) == set(LABELS[kind])


def test_brain_is_laid_out_like_a_head(cohort):
    for p in cohort["brain"]:
        white = mask(p, "brain", "white_matter")
        assert touches(white, mask(p, "brain", "background", "scalp", "fat")) == 0
        assert touches(white, mask(p, "brain", "skull")) < 0.005
        assert touches(white, mask(p, "brain", "grey_matter")) > 0.3
        assert touches(mask(p, "brain", "grey_matter"), mask(p, "brain", "background", "scalp", "fat")) == 0
        assert touches(mask(p, "brain", "lateral_ventricle"), mask(p, "brain", "skull", "background")) == 0
        eye, cerebellum, ventricle = (
            centroid(p, mask(p, "brain", name)) for name in ("eye", "cerebellum", "lateral_ventricle")
        )
        assert eye[1] > cerebellum[1] + 80 * p.factors["scale"]
        assert ventricle[2] > cerebellum[2] + 25 * p.factors["scale"]
        grey, all_white = mask(p, "brain", "grey_matter").sum(), white.sum()
        assert 0.6 < grey / all_white < 2.2


def test_heart_is_laid_out_like_a_chest(cohort):
    for p in cohort["heart"]:
        scale = p.factors["scale"]
        at = {name: centroid(p, mask(p, "heart", name)) for name in LABELS["heart"].values() if "calc" not in name}
        assert at["lv_cavity"][0] < at["right_atrium"][0] - 30 * scale
        assert at["rv_cavity"][1] > at["left_atrium"][1] + 30 * scale
        assert at["descending_aorta"][0] < at["spinal_canal"][0]
        assert at["spinal_canal"][1] < at["descending_aorta"][1] < at["ascending_aorta"][1]
        assert at["abdomen"][2] < at["lv_cavity"][2] < at["ascending_aorta"][2]
        cavity = mask(p, "heart", "lv_cavity")
        assert touches(cavity, mask(p, "heart", "lung", "fat", "air", "bone", "muscle")) == 0
        assert touches(cavity, mask(p, "heart", "pericardial_fat")) < 0.04
        assert touches(mask(p, "heart", "lung"), mask(p, "heart", "air")) == 0
        assert 25 < p.factors["lv_volume_ml"] / scale**3 < 220
        canal = mask(p, "heart", "spinal_canal")
        assert touches(canal, mask(p, "heart", "lung", "air")) == 0


def test_brain_intensities_are_t1_ordered(cohort):
    for p in cohort["brain"]:
        mean = {name: p.image[mask(p, "brain", name)].mean() for name in LABELS["brain"].values()}
        assert mean["fat"] > mean["white_matter"] > mean["grey_matter"] > mean["csf"] > mean["background"]
        assert mean["grey_matter"] > 1.5 * mean["lateral_ventricle"]
        assert mean["white_matter"] > mean["putamen"] > mean["lateral_ventricle"]
        assert mean["skull"] < 0.6 * mean["grey_matter"]


def test_heart_intensities_are_hounsfield_units(cohort):
    phases = set()
    for p in cohort["heart"]:
        # One voxel inside, where edges do not mix; thin structures as they are.
        mean = {}
        for name in LABELS["heart"].values():
            whole = mask(p, "heart", name)
            inside = ndimage.binary_erosion(whole)
            mean[name] = p.image[inside if inside.sum() > 20 else whole].mean() if whole.any() else None
        assert -1005 < mean["air"] < -980
        assert -900 < mean["lung"] < -750
        assert -130 < mean["fat"] < -60
        assert 30 < mean["muscle"] < 80
        assert mean["bone"] > 150
        blood = mean["lv_cavity"]
        phases.add(p.factors["phase"])
        low, high = {"non_contrast": (25, 65), "arterial": (220, 450), "venous": (110, 220)}[p.factors["phase"]]
        assert low < blood < high
        assert mean["descending_aorta"] == pytest.approx(blood, abs=25)
    assert len(phases) > 1


def test_calcium_is_dense():
    shape, spacing = CUBE["heart"]
    found = 0
    for seed in range(12):
        p = make_phantom("heart", shape, spacing, seed)
        calcium = mask(p, "heart", "coronary_calcium")
        found += calcium.any()
        assert p.factors["calcium_volume_mm3"] == pytest.approx(calcium.sum() * np.prod(spacing))
        assert (p.factors["lesions"] == 0) <= (not calcium.any())
        assert (p.image[calcium] > 130).all()
    assert 3 <= found <= 11


def test_ventricles_grow_with_their_factor():
    made = [make_phantom("brain", (64, 64, 64), (3.3,) * 3, seed) for seed in range(16)]
    head = np.array([p.factors["scale"] * p.factors["head_size"] for p in made])
    volume = np.array([mask(p, "brain", "lateral_ventricle").sum() for p in made]) / head**3
    factor = np.array([p.factors["ventricle_scale"] for p in made])
    age = np.array([p.factors["age"] for p in made])
    assert stats.spearmanr(factor, volume).statistic > 0.9
    assert stats.spearmanr(age, volume).statistic > 0.4


def test_same_seed_is_the_same_subject_on_another_grid():
    coarse = make_phantom("heart", (48, 48, 48), (8.0,) * 3, 3)
    fine = make_phantom("heart", (96, 96, 96), (4.0,) * 3, 3)
    assert coarse.factors["phase"] == fine.factors["phase"]
    assert coarse.factors["lv_volume_ml"] == pytest.approx(fine.factors["lv_volume_ml"], rel=0.06)


def test_brain_noise_is_rician():
    for seed in SEEDS:
        p = make_phantom("brain", (48, 48, 48), (7.0,) * 3, seed)
        air = ndimage.binary_erosion(mask(p, "brain", "background"), iterations=2)
        rayleigh_mean = p.factors["gain"] * p.factors["noise_sigma"] * np.sqrt(np.pi / 2)
        assert p.image[air].mean() == pytest.approx(rayleigh_mean, rel=0.02)


def test_heart_noise_has_its_sigma(cohort):
    ratios = []
    for p in cohort["heart"]:
        pool = ndimage.binary_erosion(mask(p, "heart", "lv_cavity"))
        ratios.append(p.image[pool].std() / p.factors["noise_sigma"])
    assert np.mean(ratios) == pytest.approx(1, abs=0.06)


@KINDS
def test_written_volumes_read_back(kind, tmp_path):
    shape, spacing = (20, 24, 28), (9.0, 10.0, 12.0)
    out = write_phantoms(kind, 3, shape, spacing, 7, tmp_path / "set")
    record = json.loads((out / "factors.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]
    assert record["shape"] == list(shape) and record["spacing"] == list(spacing) and record["kind"] == kind
    assert {int(n): name for n, name in record["labels"].items()} == LABELS[kind]
    assert record["distributions"] == FACTORS[kind]
    for entry in record["volumes"]:
        made = make_phantom(kind, shape, spacing, entry["seed"])
        assert made.factors == entry["factors"]
        image, label = (nib.load(out / folder / entry["file"]) for folder in ("images", "labels"))
        assert image.get_data_dtype() == (np.int16 if kind == "heart" else np.float32)
        np.testing.assert_allclose(image.get_fdata(), made.image.T, atol=0.5 if kind == "heart" else 0)
        np.testing.assert_array_equal(np.asarray(label.dataobj), made.label.T)
        for nifti in (image, label):
            assert nib.aff2axcodes(nifti.affine) == ("R", "A", "S")
            assert nifti.header.get_zooms() == spacing[::-1]
            assert nifti.header["sform_code"] == nifti.header["qform_code"] == 1
            np.testing.assert_allclose(nifti.get_qform(), nifti.get_sform(), atol=1e-4)
            np.testing.assert_allclose(nifti.affine @ [2, 3, 4, 1], made.affine @ [4, 3, 2, 1], atol=1e-4)


def test_a_volume_does_not_depend_on_the_count(tmp_path):
    few = write_phantoms("brain", 1, (16, 16, 16), (12.0,) * 3, 3, tmp_path / "few")
    many = write_phantoms("brain", 3, (16, 16, 16), (12.0,) * 3, 3, tmp_path / "many")
    arrays = [np.asarray(nib.load(out / "images" / "brain0000.nii.gz").dataobj) for out in (few, many)]
    np.testing.assert_array_equal(*arrays)
    seeds = [v["seed"] for v in json.loads((many / "factors.json").read_text())["volumes"]]
    assert len(set(seeds)) == 3


def test_existing_folder_is_refused_unless_overwrite(tmp_path):
    out = tmp_path / "set"
    write_phantoms("heart", 2, (16, 16, 16), (20.0,) * 3, 0, out)
    before = (out / "factors.json").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        write_phantoms("heart", 1, (16, 16, 16), (20.0,) * 3, 1, out)
    assert (out / "factors.json").read_bytes() == before
    write_phantoms("heart", 1, (16, 16, 16), (20.0,) * 3, 1, out, overwrite=True)
    assert [p.name for p in (out / "images").iterdir()] == ["heart0000.nii.gz"]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_overwrite_spares_a_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no factors.json in it"):
        write_phantoms("brain", 1, (16, 16, 16), (12.0,) * 3, 0, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_failure_leaves_nothing_and_keeps_the_old_folder(tmp_path, monkeypatch):
    out = write_phantoms("brain", 1, (16, 16, 16), (12.0,) * 3, 0, tmp_path / "set")
    before = (out / "factors.json").read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(package.nib, "save", full)
    for target in (out, tmp_path / "new"):
        with pytest.raises(OSError, match="disk full"):
            write_phantoms("brain", 3, (16, 16, 16), (12.0,) * 3, 1, target, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    assert (out / "factors.json").read_bytes() == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "liver"}, "kind is 'liver'"),
        ({"shape": (4, 16, 16)}, "shape is"),
        ({"shape": (16, 16)}, "shape is"),
        ({"spacing": (0, 1, 1)}, "spacing is"),
        ({"spacing": (float("nan"), 1, 1)}, "spacing is"),
        ({"seed": -1}, "seed is -1"),
        ({"count": 0}, "count is 0"),
    ],
)
def test_bad_arguments_are_named(wrong, message, tmp_path):
    good = {"kind": "brain", "count": 1, "shape": (16, 16, 16), "spacing": (12, 12, 12), "seed": 0}
    with pytest.raises(UserError, match=message):
        write_phantoms(**{**good, **wrong}, out=tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_works_from_a_script_without_a_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from splitshuffle_gan.data.phantom import write_phantoms\n"
        f"write_phantoms('brain', 2, (16, 16, 16), (12, 12, 12), 0, {str(tmp_path / 'set')!r})\n"
    )
    root = Path(package.__file__).parents[3]
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env={"PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "set" / "images").iterdir())) == 2
