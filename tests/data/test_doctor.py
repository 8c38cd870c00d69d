"""What `doctor` says about small sets whose faults are known, and that its proposal runs."""

import json
import os
import pickle
import shlex
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from splitshuffle_gan.config import Schedule
from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.data.doctor import findings, proposal
from splitshuffle_gan.data.doctor.examine import DoctorConfig, examine
from splitshuffle_gan.data.doctor.measure import QUANTILES, looks_like_hu, measure, standardised
from splitshuffle_gan.data.doctor.picture import TILE, draw_views
from splitshuffle_gan.data.doctor.report import table
from splitshuffle_gan.data.readers.scans import find_scans
from splitshuffle_gan.errors import UserError

SHAPE = (20, 24, 18)
SECRET = "Jane Doe 1970-12-31"


def head(seed: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A bright, lopsided blob in the dark, like others of its kind but with detail of its own; float32, 0 to 1000."""
    rng = np.random.default_rng(seed)
    x, y, z = (np.linspace(-1, 1, side) for side in shape)
    distance = np.sqrt((x[:, None, None] * 1.2) ** 2 + y[:, None] ** 2 + (z - 0.1 * x[:, None, None]) ** 2)
    detail = ndimage.gaussian_filter(rng.normal(size=shape), 1.0)
    bright = 1 / (1 + np.exp((distance - 0.8) * 12))
    return (bright * (600 + 800 * detail + 100 * x[:, None, None]) + rng.uniform(0, 20, shape)).astype(np.float32)


def thorax(seed: int, brightest: float = 180, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Like CT, int16 in HU: air outside, tissue inside, 5 % of the tissue up to `brightest`."""
    rng = np.random.default_rng(seed)
    body = head(seed, shape) > 200
    tissue = np.where(rng.uniform(size=shape) < 0.05, rng.uniform(brightest / 2, brightest, shape), 0)
    return np.where(body, np.maximum(tissue, rng.normal(40, 20, shape)), rng.normal(-1000, 5, shape)).astype(np.int16)


def save(path: Path, array: np.ndarray, spacing=(1.0, 1.0, 1.0), axes: str = "RAS") -> Path:
    """`array` (x, y, z) of RAS+, stored along `axes`."""
    image = nib.Nifti1Image(array, np.diag([*spacing, 1.0]))
    codes = nib.orientations.axcodes2ornt
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(nib.orientations.ornt_transform(codes("RAS"), codes(axes))), path)
    return path


@pytest.fixture
def scans(tmp_path) -> Path:
    """Eight good scans."""
    for seed in range(8):
        save(tmp_path / "scans" / f"{seed}.nii.gz", head(seed))
    return tmp_path / "scans"


def look(source: Path, **changes) -> dict:
    return examine(DoctorConfig(source=source, workers=1, **changes))


def found(report: dict) -> dict[str, set[str]]:
    """Kind of finding -> the scans that it names, without personal data, which a writer's own name can cause."""
    kinds: dict[str, set[str]] = {}
    for finding in report["findings"]:
        if finding["kind"] not in ("personal data", "remark"):
            kinds.setdefault(finding["kind"], set()).update(finding["scans"])
    return kinds


def says(report: dict, kind: str) -> list[str]:
    return [finding["text"] for finding in report["findings"] if finding["kind"] == kind]


# Facts


def test_a_good_set_has_no_findings(scans):
    report = look(scans)
    assert found(report) == {}
    assert report["summary"]["scans"] == 8 and report["summary"]["rejected"] == 0
    assert report["summary"]["looks_like_hu"] == 0
    assert "Findings" in table(report)


def test_facts_are_those_of_the_voxels_brought_to_ras(tmp_path):
    array = np.rint(head(0)).astype(np.int16)
    save(tmp_path / "in" / "a.nii", array, spacing=(0.8, 0.9, 4.0), axes="PSL")
    (scan,) = look(tmp_path / "in")["scans"]
    assert (scan["name"], scan["shape"], scan["dtype"]) == ("a.nii", list(SHAPE), "int16")
    assert scan["orientation"] == "PSL"
    np.testing.assert_allclose(scan["spacing"], (0.8, 0.9, 4.0), rtol=1e-6)
    assert scan["anisotropy"] == pytest.approx(5)
    assert scan["percentiles"]["0"] == array.min() and scan["percentiles"]["100"] == array.max()
    assert scan["percentiles"]["99.5"] == pytest.approx(np.percentile(array, 99.5))
    assert scan["mean"] == pytest.approx(array.mean(), rel=1e-5)
    assert scan["oblique_degrees"] == 0


def test_an_oblique_scan_says_by_how_much(tmp_path):
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) * (1, 1, 3)
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(head(0), affine), tmp_path / "in" / "a.nii.gz")
    report = look(tmp_path / "in")
    assert report["scans"][0]["oblique_degrees"] == pytest.approx(20, abs=0.01)
    assert "20 degrees oblique" in table(report)


# Findings


@pytest.mark.parametrize("axes", ["LPS", "SAR", "PIL"])
def test_a_duplicate_is_found_however_it_is_stored(scans, axes):
    save(scans / "again.nii.gz", head(3), axes=axes)
    report = look(scans)
    assert found(report) == {"duplicate": {"3.nii.gz", "again.nii.gz"}}
    assert says(report, "duplicate") == ["same voxels as each other"]


def test_a_duplicate_of_another_type_or_spacing_is_found(scans):
    save(scans / "again.nii.gz", head(3).astype(np.float64))
    save(scans / "more.nii.gz", head(3), spacing=(1, 1, 1.05))
    report = look(scans)
    assert found(report)["duplicate"] == {"3.nii.gz", "again.nii.gz", "more.nii.gz"}
    assert "spacing differs" in says(report, "duplicate")[0]


def test_minus_zero_is_zero(scans):
    array = np.where(head(3) < 300, 0, head(3)).astype(np.float32)
    save(scans / "zero.nii.gz", array)
    save(scans / "minus.nii.gz", np.where(array == 0, np.float32(-0.0), array))
    assert "same voxels as each other" in says(look(scans), "duplicate")


def test_a_turned_copy_with_the_old_header_is_found(scans):
    save(scans / "turned.nii.gz", np.ascontiguousarray(head(3)[::-1].transpose(1, 0, 2)))
    (text,) = says(look(scans), "duplicate")
    assert "wrong orientation" in text
    assert found(look(scans))["duplicate"] == {"3.nii.gz", "turned.nii.gz"}


def test_the_same_picture_with_other_intensities_is_found(scans):
    save(scans / "bright.nii.gz", head(3) * 1.3 + 7, axes="LPS")
    report = look(scans)
    assert found(report)["duplicate"] == {"3.nii.gz", "bright.nii.gz"}
    assert "other intensities" in says(report, "duplicate")[0]


def test_pairs_are_found_across_blocks_of_comparison(monkeypatch):
    rng = np.random.default_rng(0)
    rows = [standardised(rng.normal(size=512)) for _ in range(1500)]
    rows[1400], rows[1499] = rows[3], rows[1100]
    pairs = findings._alike_pictures([{"name": str(i), "_sample": row} for i, row in enumerate(rows)])
    assert {(a["name"], b["name"]) for a, b in pairs} == {("3", "1400"), ("1100", "1499")}


def test_a_clipped_scan_is_found(scans):
    array = head(20)
    save(scans / "clipped.nii.gz", np.minimum(array, np.quantile(array, 0.98)))
    assert found(look(scans)) == {"saturated": {"clipped.nii.gz"}}


def test_ct_cut_off_below_is_found(tmp_path):
    for seed in range(6):
        save(tmp_path / "in" / f"{seed}.nii.gz", np.maximum(thorax(seed), -870) if seed == 2 else thorax(seed))
    # No modality: a scan without air is not known to be CT, so it differs from the others.
    assert found(look(tmp_path / "in"))["mixed units"] == {"2.nii.gz"}
    facts = {"name": "a", "looks_like_hu": True, "few_values": False, "share_highest": 0.0, "share_lowest": 0.3}
    levels = {"0": -250.0, "100": 650.0}
    assert list(findings._saturated([facts | {"percentiles": levels}])) == ["in HU, but cut off below"]
    assert not findings._saturated([facts | {"percentiles": levels | {"0": -1024.0}}])


def test_a_label_map_among_scans_is_found(scans):
    labels = (head(4) > 300).astype(np.uint8) + (head(4) > 600)
    save(scans / "labels.nii.gz", labels)
    report = look(scans)
    assert found(report)["few values"] == {"labels.nii.gz"}
    assert "saturated" not in found(report)


def test_nan_constant_and_unreadable_scans_are_named_with_reasons(scans):
    array = head(9)
    array[3, 4, 5] = np.nan
    save(scans / "nan.nii.gz", array)
    array[3, 4, 5] = np.inf
    save(scans / "inf.nii.gz", array)
    save(scans / "flat.nii.gz", np.full(SHAPE, 7, np.float32))
    save(scans / "flat too.nii.gz", np.full(SHAPE, 7, np.float32))
    path = save(scans / "cut.nii.gz", head(10))
    path.write_bytes(path.read_bytes()[:5000])
    report = look(scans)
    assert found(report) == {
        "not finite": {"nan.nii.gz", "inf.nii.gz"},
        "constant": {"flat.nii.gz", "flat too.nii.gz"},
        "unreadable": {"cut.nii.gz"},
    }
    (entry,) = report["rejected"]
    assert entry["name"] == "cut.nii.gz" and entry["reason"]
    assert report["proposal"]["left_out"] == 5 and report["proposal"]["scans"] == 8
    assert "--skip-bad" in report["proposal"]["arguments"]
    assert "cut.nii.gz" in table(report)


OUTLIERS = {
    "outlier: spacing": lambda path: save(path, head(30), spacing=(1.0, 1.0, 1.4)),
    "outlier: shape": lambda path: save(path, head(30, (20, 24, 36))),
    "outlier: intensity": lambda path: save(path, head(30) * 1000),
    "outlier: content": lambda path: save(path, 700 - head(30)),
}


@pytest.mark.parametrize("kind", OUTLIERS)
def test_an_outlier_is_found_and_the_others_are_not_accused(scans, kind):
    OUTLIERS[kind](scans / "odd.nii.gz")
    kinds = found(look(scans))
    assert kinds[kind] == {"odd.nii.gz"}
    assert set().union(*kinds.values()) == {"odd.nii.gz"}


def test_a_large_group_is_mixed_and_no_outlier(tmp_path):
    for seed in range(20):
        save(tmp_path / "in" / f"{seed:02d}.nii.gz", head(seed) * (1 if seed < 15 else 1000))
    kinds = found(look(tmp_path / "in"))
    assert kinds == {"mixed intensity": {f"{seed}.nii.gz" for seed in range(15, 20)}}


def test_few_scans_have_no_outliers(tmp_path):
    save(tmp_path / "in" / "a.nii.gz", head(0))
    save(tmp_path / "in" / "b.nii.gz", head(1) * 1000, spacing=(1, 1, 3))
    assert not [kind for kind in found(look(tmp_path / "in")) if "outlier" in kind]


def test_slices_in_another_plane_are_found(tmp_path):
    for seed in range(4):
        save(tmp_path / "in" / f"{seed}.nii.gz", head(seed), spacing=(1, 4, 1) if seed else (4, 1, 1))
    report = look(tmp_path / "in")
    assert found(report)["plane"] == {"0.nii.gz"}
    assert report["proposal"]["plane"] == "coronal"


def test_headers_that_disagree_are_found(scans):
    image = nib.Nifti1Image(head(11), np.eye(4))
    image.set_sform(np.diag([1.0, 1.0, 1.0, 1.0]), code=1)
    image.set_qform(np.diag([1.0, 1.0, 2.5, 1.0]), code=1)
    image.header["pixdim"][1:4] = (1, 1, 2.5)
    nib.save(image, scans / "two minds.nii.gz")
    assert found(look(scans))["headers disagree"] == {"two minds.nii.gz"}


def test_personal_data_is_found_and_repeated_nowhere(scans, tmp_path, run):
    image = nib.Nifti1Image(head(11), np.eye(4))
    image.header["descrip"] = SECRET.encode()
    image.header["db_name"] = b"Jane^Doe"
    nib.save(image, scans / "named.nii.gz")
    outcome = run("doctor", scans, "--out", tmp_path / "out", "--workers", 1)
    report = json.loads((tmp_path / "out" / "doctor.json").read_text())
    personal = [finding for finding in report["findings"] if finding["kind"] == "personal data"]
    assert any("descrip" in finding["text"] and finding["scans"] == ["named.nii.gz"] for finding in personal)
    written = [path.read_bytes() for path in (tmp_path / "out").iterdir()]
    for text in (outcome.out.encode(), outcome.err.encode(), *written):
        assert b"Jane" not in text and b"1970-12-31" not in text


# Units


@pytest.mark.parametrize(
    "values, modality, truth",
    [
        (thorax(0), "", True),
        (thorax(0), "CT", True),
        (thorax(0), "MR", False),
        (np.maximum(thorax(0), -250), "CT", True),
        (np.maximum(thorax(0), -250), "", False),
        (thorax(0).astype(np.float32) + 1024, "CT", False),
        (thorax(0) + 1024, "", False),
        (head(0), "", False),
        (head(0) - 1000, "", False),
        (np.linspace(-5000, 5000, 1000), "", False),
    ],
)
def test_hu_likeness(values, modality, truth):
    assert looks_like_hu(np.sort(values, axis=None), modality) is truth


@pytest.mark.parametrize("brightest, window", [(180, (-160, 240)), (600, (-250, 650)), (990, (-350, 1000))])
def test_the_window_is_the_narrowest_that_cuts_little(tmp_path, brightest, window):
    for seed in range(3):
        save(tmp_path / "in" / f"{seed}.nii.gz", thorax(seed, brightest))
    report = look(tmp_path / "in")
    assert report["summary"]["looks_like_hu"] == 3
    assert tuple(report["proposal"]["intensity"]["bounds"]) == window
    tissue = thorax(1, brightest)[thorax(1, brightest) > -250]
    assert report["scans"][1]["tissue_above_window"]["brain"] == pytest.approx((tissue > 80).mean())


def test_one_ct_among_mr_leaves_percentiles(scans):
    save(scans / "ct.nii.gz", thorax(0))
    report = look(scans)
    assert found(report)["mixed units"] == {"ct.nii.gz"}
    assert report["proposal"]["intensity"]["kind"] == "percentiles"


# The proposal


def run_as_printed(report: dict, run, monkeypatch, folder: Path):
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    arguments = shlex.split(report["proposal"]["command"])
    assert arguments == ["splitshuffle", "prepare", *report["proposal"]["arguments"]]
    outcome = run(*arguments[1:], "--workers", 1)
    assert outcome.code == 0, outcome.err
    return open_dataset(folder / arguments[arguments.index("--out") + 1])


def test_the_proposal_runs_as_printed(scans, tmp_path, run, monkeypatch):
    report = look(scans)
    dataset = run_as_printed(report, run, monkeypatch, tmp_path / "here")
    assert (len(dataset), list(dataset.shape)) == (8, report["proposal"]["shape"])
    assert dataset.volumes.nbytes == report["proposal"]["dataset_bytes"]
    assert Schedule.for_shape(dataset.shape).levels == report["proposal"]["levels"]


def test_the_proposal_runs_for_a_bad_set_in_a_folder_with_an_awkward_name(tmp_path, run, monkeypatch):
    source = tmp_path / "it's a $(set) of Köpfe; -rf"
    for seed in range(3):
        save(source / f"{seed}.nii.gz", thorax(seed), spacing=(0.7, 0.7, 3))
    (source / "broken.nii.gz").write_bytes(b"no scan")
    report = look(source)
    assert report["proposal"]["intensity"]["kind"] == "window"
    dataset = run_as_printed(report, run, monkeypatch, tmp_path / "here")
    assert len(dataset) == 3 and dataset.spacing == pytest.approx((3, 0.7, 0.7))
    # What is there already is not proposed again.
    assert look(source)["proposal"]["arguments"][2] != report["proposal"]["arguments"][2]


def test_every_folder_name_survives_a_shell(tmp_path):
    for name in ("plain", "two words", "it's", "back\\slash $HOME `x`", "line\nbreak", os.fsdecode(b"\xff\xfe"), "ü*?"):
        line = proposal._quoted(name)
        assert "\n" not in line
        again = subprocess.run(["bash", "-c", f"printf %s {line}"], capture_output=True, check=True).stdout
        assert again == os.fsencode(name)


def test_a_relative_source_that_starts_with_a_dash_is_no_option(tmp_path, monkeypatch):
    save(tmp_path / "-x" / "0.nii.gz", head(0))
    monkeypatch.chdir(tmp_path)
    assert look(Path("-x"))["proposal"]["arguments"][0] == "./-x"


@settings(deadline=None)
@given(st.integers(1, 3000))
def test_a_side_is_valid_holds_what_is_needed_and_little_more(need):
    side = proposal._side(need)
    Schedule.for_shape((side, side, side))
    assert side >= need
    valid = next(n for n in range(max(need, 4), 2 * need + 8) if n % 2 ** max((n // 4).bit_length() - 2, 0) == 0)
    assert side <= max(1.15 * need, valid)


@pytest.mark.parametrize("spacing, plane", [((1, 1, 5), "axial"), ((1, 5, 1), "coronal"), ((5, 1, 1), "sagittal")])
def test_anisotropic_scans_keep_their_in_plane_resolution(tmp_path, spacing, plane):
    for seed in range(3):
        save(tmp_path / "in" / f"{seed}.nii.gz", head(seed), spacing=spacing)
    proposal = look(tmp_path / "in")["proposal"]
    assert proposal["plane"] == plane
    np.testing.assert_allclose(proposal["spacing"], (5, 1, 1), rtol=1e-5)


def test_the_grid_holds_the_foreground_of_nearly_all_scans(tmp_path):
    boxes = np.random.default_rng(0).integers(13, 21, size=(40, 3))
    for number, box in enumerate(boxes):
        array = np.random.default_rng(number).uniform(0, 10, (40, 40, 40)).astype(np.float32)
        start = 20 - box // 2
        inside = tuple(slice(a, a + b) for a, b in zip(start, box, strict=True))
        array[inside] += 500
        save(tmp_path / "in" / f"{number:02d}.nii", array)
    proposal = look(tmp_path / "in")["proposal"]
    shape = np.array(proposal["shape"][::-1])
    reach = 2 * np.maximum(box_reach := boxes // 2, boxes - box_reach)
    held = (reach <= shape).all(axis=1).mean()
    assert held >= 0.95 and proposal["share_held"] == pytest.approx(held)
    assert (shape < 30).all()


def test_the_grid_holds_whole_scans_and_not_each_axis_by_itself():
    extents = np.full((100, 3), 30.0)
    assert proposal._grid(extents, np.ones(3)) == (32, 32, 32)
    extents[:5, 0] = 60
    assert proposal._grid(extents, np.ones(3)) == (32, 32, 32)
    extents[5:10, 1] = 60  # per axis 95 of 100 fit, but only 90 scans would
    shape = np.array(proposal._grid(extents, np.ones(3)))
    assert (extents <= shape).all(axis=1).mean() >= 0.95
    assert proposal._grid(extents, np.array([2.0, 2.0, 1.0])) == (32, 32, 32)


def test_too_large_a_grid_grows_all_spacings_alike():
    levels = {f"{at:g}": float(at) for at in QUANTILES}
    facts = {
        "name": "a",
        "shape": [512, 512, 400],
        "spacing": [0.5, 0.5, 1.0],
        "percentiles": levels,
        "looks_like_hu": False,
        "foreground_mm": [[-128.0, 128.0], [-128.0, 128.0], [-200.0, 200.0]],
    }
    proposed = proposal.propose(Path("in"), None, [facts], [], 1.0)
    assert np.prod(proposed["shape"]) <= proposal.MAX_VOXELS
    assert np.prod(proposed["shape_at_median_spacing"]) > proposal.MAX_VOXELS
    assert proposed["spacing"][0] / proposed["spacing"][1] == pytest.approx(2, rel=1e-4)
    assert (np.array(proposed["shape"]) * proposed["spacing"] >= (400, 256, 256)).all()


def test_sparse_scans_get_percentiles_that_leave_a_range(tmp_path, run, monkeypatch):
    for seed in range(3):
        array = np.zeros(SHAPE, np.float32)
        array[9:11, 11:13, 8 : 10 + seed] = np.random.default_rng(seed).uniform(50, 90, (2, 2, 2 + seed))
        save(tmp_path / "in" / f"{seed}.nii.gz", array)
    report = look(tmp_path / "in")
    assert report["proposal"]["scans"] == 3
    assert len(run_as_printed(report, run, monkeypatch, tmp_path / "here")) == 3


@pytest.mark.parametrize("volume, count", [(1, 4), ("all", 6)])
def test_the_choice_of_4d_volumes_is_in_the_proposal(tmp_path, run, monkeypatch, volume, count):
    for seed in range(2):
        save(tmp_path / "in" / f"{seed}.nii.gz", head(seed))
    for seed in range(2):
        save(tmp_path / "in" / f"4d-{seed}.nii.gz", np.stack([head(10 + seed), head(20 + seed)], axis=-1))
    assert look(tmp_path / "in")["summary"]["rejected"] == 2
    report = look(tmp_path / "in", volume=volume)
    assert (report["summary"]["scans"], found(report)) == (count, {})
    assert len(run_as_printed(report, run, monkeypatch, tmp_path / "here")) == count


def test_labels_beside_images_are_said_and_not_taken_for_scans(tmp_path):
    save(tmp_path / "in" / "images" / "0.nii.gz", head(0))
    save(tmp_path / "in" / "labels" / "0.nii.gz", (head(0) > 300).astype(np.uint8))
    report = look(tmp_path / "in")
    assert (report["summary"]["scans"], report["summary"]["labels"]) == (1, ["labels"])
    assert "--labels auto" in table(report)


# Small, empty and bad sets


def test_one_scan_is_enough(tmp_path, run, monkeypatch):
    path = save(tmp_path / "in" / "only one.nii.gz", head(0))
    report = look(path, out=tmp_path / "out")
    assert (tmp_path / "out" / "doctor.png").is_file()
    assert found(report) == {}
    assert len(run_as_printed(report, run, monkeypatch, tmp_path / "here")) == 1


def test_a_set_in_which_everything_is_bad_is_no_failure(tmp_path, run):
    save(tmp_path / "in" / "flat.nii.gz", np.zeros(SHAPE, np.float32))
    save(tmp_path / "in" / "nan.nii.gz", np.full(SHAPE, np.nan, np.float32))
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"no scan")
    outcome = run("doctor", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)
    assert outcome.code == 0 and "no scan can be used" in outcome.out
    report = json.loads((tmp_path / "out" / "doctor.json").read_text())
    assert report["proposal"] is None
    assert found(report) == {"constant": {"flat.nii.gz"}, "not finite": {"nan.nii.gz"}, "unreadable": {"broken.nii.gz"}}
    assert (tmp_path / "out" / "doctor.png").is_file()


def test_only_unreadable_files(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"no scan")
    report = look(tmp_path / "in", out=tmp_path / "out")
    assert (report["summary"]["scans"], report["summary"]["rejected"], report["proposal"]) == (0, 1, None)
    assert "broken.nii.gz" in table(report)


def test_a_source_without_scans_is_an_error(tmp_path, run):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        outcome = run("doctor", tmp_path / name, "--out", tmp_path / "out")
        assert outcome.code == 1 and name in outcome.err and "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()


def test_settings_that_make_no_sense_are_named():
    with pytest.raises(UserError, match="workers"):
        DoctorConfig(source=Path("in"), workers=-1)


# The report


def test_the_report_is_versioned_whole_and_not_overwritten(scans, tmp_path):
    out = tmp_path / "out"
    report = look(scans, out=out)
    assert sorted(path.name for path in out.iterdir()) == ["doctor.json", "doctor.md", "doctor.png"]
    on_disk = json.loads((out / "doctor.json").read_text(), parse_constant=pytest.fail)
    assert on_disk == report
    assert (on_disk["format"], on_disk["version"]) == ("splitshuffle-doctor", 1)
    assert not [key for scan in report["scans"] for key in scan if key.startswith("_")]
    assert report["proposal"]["command"] in (out / "doctor.md").read_text()
    with pytest.raises(UserError, match="--overwrite"):
        look(scans, out=out)
    look(scans, out=out, overwrite=True)
    with pytest.raises(UserError, match="doctor.json"):
        look(scans, out=scans, overwrite=True)


def test_the_screen_ends_with_the_command(scans, tmp_path, run):
    outcome = run("doctor", scans, "--workers", 1)
    assert outcome.code == 0
    assert outcome.out.strip().split("\n")[-1].startswith(f"splitshuffle prepare {scans} --out ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scans"]


def test_the_number_of_processes_changes_nothing(scans):
    one, two = look(scans), examine(DoctorConfig(source=scans, workers=2))
    for field in ("scans", "findings", "summary"):
        assert one[field] == two[field]


def test_what_a_scan_leaves_in_memory_is_small(tmp_path):
    save(tmp_path / "in" / "a.nii.gz", head(0, (96, 96, 96)))
    facts = measure(find_scans(tmp_path / "in").scans[0])
    assert len(pickle.dumps(facts)) < 10_000


def test_views_are_true_to_scale_and_the_right_way_up(tmp_path):
    array = np.zeros((20, 30, 10), np.float32)  # 40 x 30 x 40 mm
    array[14:, 20:, 7:] = 100  # right, anterior, superior
    save(tmp_path / "in" / "a.nii.gz", array + 50, spacing=(2, 1, 4), axes="LPI")
    image = draw_views((find_scans(tmp_path / "in").scans[0], (0, 100)))
    for number, (wide, high) in enumerate([(40, 30), (40, 40), (30, 40)]):
        view = image[:, number * (image.shape[1] + 3) // 3 :][:, :TILE]
        rows, columns = np.nonzero(view > 20)
        assert np.ptp(columns) + 1 == pytest.approx(wide / 40 * TILE, abs=2)
        assert np.ptp(rows) + 1 == pytest.approx(high / 40 * TILE, abs=2)
    # The middle of each axis lies before the bright corner, so each view shows none of it; move the corner there.
    array[:] = 0
    array[8:, 13:, 3:] = 100
    save(tmp_path / "in" / "a.nii.gz", array, spacing=(2, 1, 4), axes="LPI")
    image = draw_views((find_scans(tmp_path / "in").scans[0], (0, 100)))
    for number in range(3):
        view = image[:, number * (image.shape[1] + 3) // 3 :][:, :TILE].astype(float)
        rows, columns = np.indices(view.shape) - (TILE - 1) / 2
        assert (view * rows).sum() < 0 < (view * columns).sum()


def test_the_picture_has_room_for_many_and_odd_names(tmp_path):
    for seed in range(30):
        save(tmp_path / "in" / f"a $very$ long & odd_name_{'x' * 60}{seed}.nii.gz", head(seed, (12, 12, 12)))
    look(tmp_path / "in", out=tmp_path / "out")
    with Image.open(tmp_path / "out" / "doctor.png") as image:
        assert image.width == 1540 and np.asarray(image.convert("L")).std() > 20


# Real scans


def test_real_hippocampi(real_data, tmp_path, run, monkeypatch):
    names = sorted((real_data / "hippocampus" / "images").iterdir())[::4]
    (tmp_path / "some").mkdir()
    for path in names:
        shutil.copy(path, tmp_path / "some")
    report = examine(DoctorConfig(source=tmp_path / "some", workers=2))
    images = [nib.load(path) for path in names]
    dtypes = [str(image.get_data_dtype()) for image in images]
    assert report["summary"]["dtype"] == {name: dtypes.count(name) for name in set(dtypes)} and len(set(dtypes)) > 1
    tops = [float(image.get_fdata().max()) for image in images]
    assert report["summary"]["intensity"]["highest"] == pytest.approx([min(tops), np.median(tops), max(tops)], rel=1e-5)
    assert max(tops) > 100 * min(tops) and found(report)["mixed intensity"]
    assert report["proposal"]["intensity"]["kind"] == "percentiles"
    assert (np.array(report["proposal"]["shape"]) >= (32, 48, 32)).all()
    assert report["proposal"]["spacing"] == [1, 1, 1]
    assert len(run_as_printed(report, run, monkeypatch, tmp_path / "here")) == len(names)


def test_real_dicom(real_data, tmp_path, run, monkeypatch):
    if not (real_data / "dicom").is_dir():
        pytest.skip("no real DICOM beside the hippocampi")
    report = look(real_data / "dicom" / "mr-brain-t1post")
    (scan,) = report["scans"]
    assert sorted(scan["shape"]) == [22, 280, 320] and scan["modality"] == "MR"
    assert sorted(scan["spacing"]) == pytest.approx([0.6875, 0.6875, 6.5], abs=0.01)  # 5 mm thick, with gaps
    assert scan["oblique_degrees"] > 1 and not scan["looks_like_hu"]
    assert report["proposal"]["plane"] == "axial" and report["proposal"]["intensity"]["kind"] == "percentiles"
    report = look(real_data / "dicom" / "ct-heart-generated")
    (scan,) = report["scans"]
    assert (scan["shape"], scan["modality"], scan["looks_like_hu"]) == ([256, 256, 64], "CT", True)
    assert scan["spacing"] == pytest.approx([0.488, 0.488, 2.5], abs=0.01)
    assert report["proposal"]["intensity"]["kind"] == "window"
    assert len(run_as_printed(report, run, monkeypatch, tmp_path / "here")) == 1
