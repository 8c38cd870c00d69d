"""The memorisation audit: planted copies are found, each by name, and clean sets are left in peace."""

import itertools
import json
from math import comb

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.metrics import audit_report, memorisation
from splitshuffle_gan.metrics.audit import AuditConfig, audit, run_audit
from splitshuffle_gan.metrics.audit_report import render, save_pairs
from splitshuffle_gan.metrics.memorisation import (
    ALPHA,
    FLIPS,
    Space,
    Tail,
    compare,
    copies,
    linear_model_ratio,
    signatures,
    tendency,
)

SHAPE = (12, 16, 14)
RESAMPLES = 200


def subjects(count: int, seed: int = 0) -> np.ndarray:
    """`[count, *SHAPE]` in [-1, 1]: one organ, of another smooth texture, brightness and contrast in each."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*[np.linspace(-1, 1, side) for side in SHAPE], indexing="ij")
    organ = np.tanh(4 * (0.7 - np.hypot(grid[0], np.hypot(grid[1] * 0.8, grid[2])))) + 0.3 * grid[2]
    texture = np.stack([gaussian_filter(rng.normal(size=SHAPE), 1.6) for _ in range(count)])
    volumes = 0.4 * organ + 0.25 * texture / texture.std()
    gain, offset = rng.uniform(0.8, 1.2, (2, count, 1, 1, 1))
    return np.clip(gain * volumes + 0.1 * (offset - 1), -1, 1).astype(np.float32)


def block_statistics(volumes) -> np.ndarray:
    """Features: mean and deviation of eight blocks."""
    rows = []
    for index in range(len(volumes)):
        blocks = [volumes[index]]
        for axis in range(3):
            blocks = [half for block in blocks for half in np.array_split(block, 2, axis)]
        rows.append([value for block in blocks for value in (block.mean(), block.std())])
    return np.array(rows)


def noisy(volume: np.ndarray, sigma: float = 0.1) -> np.ndarray:
    return volume + np.random.default_rng(int(1e6 * abs(volume.mean()))).normal(0, sigma, volume.shape)


KINDS = {
    "exact": lambda volume: volume,
    "flipped left-right": lambda volume: volume[:, :, ::-1],
    "flipped along all axes": lambda volume: volume[::-1, ::-1, ::-1],
    "noisy": noisy,
    "darker": lambda volume: 0.8 * (volume + 1) - 1,
    "brighter": lambda volume: 1.2 * (volume + 1) - 1,
    "flipped, brighter and noisy": lambda volume: noisy(1.2 * (volume[:, ::-1] + 1) - 1),
}


def planted(kind: str, volumes: np.ndarray) -> np.ndarray:
    return np.stack([np.clip(KINDS[kind](volume), -1, 1) for volume in volumes]).astype(np.float32)


def by_index(report: dict) -> list[dict]:
    return sorted(report["samples"], key=lambda sample: sample["index"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_planted_copy_is_found_and_named(kind):
    train, held_out = subjects(40, 1), subjects(40, 2)
    report = audit(planted(kind, train), train, held_out, block_statistics, permutations=199)
    assert [sample["flagged"] for sample in by_index(report)] == [True] * 40
    assert [sample["train_index"] for sample in by_index(report)] == list(range(40))
    assert report["level"] == "copies" and "40 of 40" in report["verdict"]
    found = report["spaces"]["voxel"]
    assert found["copies"]["share_nearer"] == 1
    assert found["tendency"]["p"] == 1 / 200 and found["tendency"]["ratio"] < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_one_copy_among_a_hundred_clean_samples_is_found_alone(kind):
    train, held_out, clean = subjects(40, 1), subjects(40, 2), subjects(99, 3)
    generated = np.concatenate([clean[:60], planted(kind, train[17:18]), clean[60:]])
    report = audit(generated, train, held_out, block_statistics, permutations=99)
    assert [sample["index"] for sample in report["samples"] if sample["flagged"]] == [60]
    assert report["samples"][0]["index"] == 60 and report["samples"][0]["train_index"] == 17
    assert "sample 60 of training volume 17" in report["verdict"]


def test_the_flip_of_a_copy_is_reported():
    train, held_out = subjects(30, 1), subjects(30, 2)
    report = audit(train[:8, ::-1, :, ::-1], train, held_out, permutations=19)
    assert all(sample["voxel"]["flip"] == [0, 2] for sample in report["samples"])


def test_copies_are_found_in_a_training_set_that_holds_every_subject_twice():
    single, held_out = subjects(40, 1), subjects(40, 2)
    train = np.concatenate([single, planted("noisy", single)])
    report = audit(np.concatenate([subjects(20, 3), planted("brighter", single[:5])]), train, held_out, permutations=19)
    assert [sample["index"] for sample in by_index(report) if sample["flagged"]] == [20, 21, 22, 23, 24]
    assert report["spaces"]["voxel"]["train_duplicates"] == [[i, i + 40] for i in range(40)]
    assert report["spaces"]["voxel"]["copies"]["nearest_real_pair"] > 0.5


def test_a_held_out_set_that_repeats_training_volumes_is_reported_and_hides_nothing():
    train, held_out = subjects(40, 1), subjects(40, 2)
    held_out[[3, 9]] = train[[5, 2]]
    report = audit(np.concatenate([subjects(20, 3), train[5:6]]), train, held_out, permutations=19)
    assert report["spaces"]["voxel"]["held_out_duplicates"] == [[3, 5], [9, 2]]
    assert "2 held-out volumes are near-duplicates" in report["verdict"]
    assert [sample["index"] for sample in report["samples"] if sample["flagged"]] == [20]


def test_copies_of_held_out_volumes_are_no_memories():
    train, held_out = subjects(40, 1), subjects(40, 2)
    report = audit(held_out, train, held_out, block_statistics, permutations=199)
    assert report["level"] == "none"
    assert report["spaces"]["voxel"]["tendency"]["ratio"] > 2 and report["spaces"]["voxel"]["tendency"]["p"] == 1


def test_neither_a_smooth_sample_near_to_all_nor_an_odd_one_with_an_odd_relative_is_accused():
    train, held_out = subjects(60, 1), subjects(60, 2)
    report = audit(held_out.mean(0)[None], train, held_out, permutations=19)
    assert report["samples"][0]["voxel"]["p"] > 0.5
    features = np.random.default_rng(0).normal(size=(121, 6))
    features[0, 0], features[60, 0] = 30, 31  # sample 0 and a training volume: far from all others, and 2 apart
    space = compare([features[60:61]], [features[:60]], [features[61:]])
    found = copies(space)
    assert found["p"][0] < ALPHA["copies"] and not found["flagged"][0]


def test_samples_that_lean_towards_the_training_set_are_a_tendency_not_copies():
    train, held_out, new = subjects(60, 1), subjects(60, 2), subjects(60, 3)
    report = audit(np.clip(0.7 * new + 0.3 * train, -1, 1), train, held_out, permutations=199)
    assert report["level"] == "tendency"
    assert report["spaces"]["voxel"]["tendency"]["ratio"] < report["spaces"]["voxel"]["tendency"]["by_chance"][0]
    assert "leans on its training subjects" in report["verdict"]


def test_the_linear_model_is_the_gaussian_of_the_training_set():
    rng = np.random.default_rng(0)
    train, held_out = rng.normal(size=(24, 6)), rng.normal(size=(24, 6))  # fewer dimensions than components
    drawn = rng.multivariate_normal(train.mean(0), np.cov(train.T), 4000)
    expected = tendency(compare([drawn], [train], [held_out]), 1, rng)["ratio"]
    found = linear_model_ratio([train], [held_out], rng)
    assert found == pytest.approx(expected, abs=0.02) and expected < 0.97


def test_a_verdict_of_leaning_says_how_far_fitting_alone_goes():
    train, held_out, new = subjects(60, 1), subjects(60, 2), subjects(60, 3)
    report = audit(np.clip(0.7 * new + 0.3 * train, -1, 1), train, held_out, permutations=199)
    ratio = report["spaces"]["voxel"]["linear_model"]["ratio"]
    assert 0.8 < ratio < 1
    assert f"comes to {ratio:.2f}" in report["verdict"] and f"{ratio:.3f} (10 components)" in render(report)


def accusations(tables: list[np.ndarray], sizes: tuple[int, int, int], seed: int = 0) -> int:
    """In how many resamples real volumes, called generated, are accused of anything; `tables` hold all distances."""
    rng, count = np.random.default_rng(seed), 0
    for _ in range(RESAMPLES):
        made, train, held = np.split(rng.permutation(len(tables[0]))[: sum(sizes)], np.cumsum(sizes)[:2])
        accused = False
        for table in tables:
            parts = [table[np.ix_(a, b)] for a, b in ((made, train), (made, held), (held, train), (held, held))]
            space = Space(*parts, table[np.ix_(train, train)], np.zeros(parts[0].shape, np.int8), 1.0)
            accused |= bool(copies(space)["flagged"].any())
            accused |= tendency(space, 99, rng)["p"] <= ALPHA["tendency"]
        count += accused
    return count


def all_distances(volumes: np.ndarray, features: bool = True) -> list[np.ndarray]:
    def table(views: list[np.ndarray]) -> np.ndarray:
        return compare(views, views, views).train_train

    voxels = signatures(volumes)
    tables = [table([np.flip(voxels, [axis + 1 for axis in axes]) for axes in FLIPS])]
    if features:
        rows = [block_statistics(volumes), block_statistics(volumes[:, :, :, ::-1])]
        tables.append(table([(view - rows[0].mean(0)) / rows[0].std(0) for view in rows]))
    return tables


@pytest.mark.parametrize("sizes", [(60, 60, 60), (40, 100, 30), (100, 20, 20)])
def test_clean_sets_are_accused_in_at_most_5_percent(sizes):
    assert accusations(all_distances(subjects(200, 4)), sizes) <= 0.05 * RESAMPLES


def test_real_scans_are_left_in_peace_and_their_copies_found(real_data, tmp_path):
    config = PrepareConfig(real_data / "hippocampus" / "images", tmp_path / "set", (32, 48, 32), spacing=(1, 1, 1))
    volumes = np.array(open_dataset(prepare(config)).volumes[:, 0])
    sizes = (60, 70, 70)
    assert accusations(all_distances(volumes), sizes) <= 0.05 * RESAMPLES
    clean, train, held_out = np.split(volumes[np.random.default_rng(0).permutation(200)], np.cumsum(sizes)[:2])
    made = np.concatenate([clean, *[planted(kind, train) for kind in KINDS]])
    flagged = [sample for sample in audit(made, train, held_out, permutations=19)["samples"] if sample["flagged"]]
    assert sorted(sample["index"] for sample in flagged) == list(range(60, 60 + 70 * len(KINDS)))
    assert all((sample["index"] - 60) % 70 == sample["train_index"] for sample in flagged)


def test_distances_are_the_plain_ones_in_units_of_the_typical():
    rng = np.random.default_rng(0)
    made, train, held = (rng.normal(size=(2, n, 3)) for n in (4, 5, 6))
    space = compare(list(made), list(train), list(held))

    def plain(views, others):
        return np.array([[min(np.linalg.norm(v - b) for v in a) for b in others] for a in np.swapaxes(views, 0, 1)])

    unit = np.median(plain(held, train[0]))
    assert space.unit == pytest.approx(unit)
    np.testing.assert_allclose(space.to_train * unit, plain(made, train[0]))
    np.testing.assert_allclose(space.to_held * unit, plain(made, held[0]))
    np.testing.assert_allclose(space.held_train * unit, plain(held, train[0]))
    assert np.isinf(np.diag(space.held_held)).all() and np.isinf(np.diag(space.train_train)).all()
    nearer = np.linalg.norm(made[1, :, None] - train[0], axis=-1) < np.linalg.norm(made[0, :, None] - train[0], axis=-1)
    np.testing.assert_array_equal(space.flip, nearer)


def test_signatures_do_not_know_gain_and_offset_and_hardly_noise():
    volumes = subjects(6, 5)
    plain = signatures(volumes)
    assert plain.shape == (6, 6, 8, 7)
    np.testing.assert_allclose(np.square(plain).sum((1, 2, 3)), 1, atol=1e-5)
    np.testing.assert_allclose(signatures(0.5 * volumes - 0.2), plain, atol=1e-5)
    assert (np.sum(signatures(planted("noisy", volumes)) * plain, axis=(1, 2, 3)) > 0.98).all()
    np.testing.assert_allclose(signatures(volumes[:, ::-1]), plain[:, ::-1], atol=1e-6)
    large = np.random.default_rng(0).normal(size=(1, 33, 64, 50))
    assert signatures(large).size <= memorisation.SIGNATURE_VOXELS


def test_the_tail_holds_its_level():
    rng = np.random.default_rng(0)
    hits = np.zeros((2, 4000))
    for trial in range(4000):
        # Logs whose lower half is exponential; and normal ones, of a lighter tail.
        for kind, draw in enumerate((lambda n: rng.laplace(size=n), lambda n: rng.normal(size=n))):
            tail = Tail.fit(np.exp(0.1 * draw(60)))
            hits[kind, trial] = tail.p_values(np.exp(0.1 * draw(1)))[0] <= 0.02
    assert 0.014 < hits[0].mean() < 0.027 and hits[1].mean() < 0.015
    assert tail.p_values(np.array([tail.threshold(1e-4)]))[0] == pytest.approx(1e-4)


def test_the_tail_is_not_stretched_by_a_few_duplicates():
    scores = np.exp(0.1 * np.random.default_rng(0).normal(size=80))
    spoilt = np.concatenate([scores, np.full(8, 1e-3)])
    assert Tail.fit(spoilt).threshold(1e-4) > 0.6 * Tail.fit(scores).threshold(1e-4)


def test_sets_of_unequal_size_are_compared_at_equal_size():
    for size, subset in ((6, 2), (5, 5), (7, 1)):
        weights = np.zeros(size)
        for chosen in itertools.combinations(range(size), subset):
            weights[min(chosen)] += 1 / comb(size, subset)
        np.testing.assert_allclose(memorisation._subset_weights(size, subset), weights, atol=1e-12)
    train, held_out = subjects(120, 1), subjects(30, 2)
    found = audit(subjects(60, 3), train, held_out, permutations=99)["spaces"]["voxel"]["tendency"]
    low, high = found["by_chance"]
    assert low < 1 < high and 0.95 < found["ratio"] < 1.05 and found["volumes_compared"] == 30


def test_the_report_is_json_the_same_twice_and_readable():
    train, held_out = subjects(25, 1), subjects(25, 2)
    made = np.concatenate([subjects(5, 3), train[:1]])
    reports = [audit(made, train, held_out, block_statistics, seed=3, permutations=49) for _ in range(2)]
    assert json.dumps(reports[0], allow_nan=False) == json.dumps(reports[1], allow_nan=False)
    text = render(reports[0])
    assert "1 of 6 generated volumes look like copies" in text and "at most 5%" in text
    assert all(limit in text for limit in audit_report.LIMITS)


def test_the_picture_has_a_row_for_each_pair_and_turns_the_training_volume_to_fit(tmp_path, monkeypatch):
    train, held_out = subjects(25, 1), subjects(25, 2)
    made = np.concatenate([subjects(5, 3), 0.5 * train[:1, :, :, ::-1]])
    report = audit(made, train, held_out, permutations=19)
    heights = [Image.open(save_pairs(report, made, train, tmp_path / f"{k}.png", k)).height for k in (1, 2, 3)]
    assert heights[2] - heights[1] == heights[1] - heights[0] > 64
    shown = {}
    monkeypatch.setattr(audit_report, "save_montage", lambda tiles, *_, **options: shown.update(options, tiles=tiles))
    save_pairs(report, made, train, tmp_path / "pairs.png", 2)
    sample, real, difference = shown["tiles"][:3]
    np.testing.assert_array_equal(sample, made[5])
    np.testing.assert_array_equal(real, train[0, :, :, ::-1])
    np.testing.assert_allclose(difference, 0, atol=1e-6)
    assert shown["titles"][:2] == ["generated 5: COPY", "training 0, mirrored left-right"]
    assert np.abs(shown["tiles"][5]).mean() > 0.05 and len(shown["tiles"]) == 6
    with pytest.raises(UserError, match="k: 0 pairs"):
        save_pairs(report, made, train, tmp_path / "none.png", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": subjects(19)}, "train: found 19 volumes; the audit needs at least 20"),
        ({"held_out": subjects(3)}, "held-out: found 3 volumes; the audit needs at least 20"),
        ({"generated": subjects(3)[:0]}, "generated: found 0 volumes"),
        ({"generated": subjects(3)[:, 1:]}, r"shape: generated volumes are \[11, 16, 14\], train .* \[12, 16, 14\]"),
        ({"held_out": subjects(20)[:, :, 1:]}, r"shape: held-out volumes are \[12, 15, 14\]"),
        ({"generated": [*subjects(2), np.zeros((8, 8, 8))]}, r"generated: volume 2 has shape \[8, 8, 8\]"),
        ({"generated": np.stack([*subjects(2), np.full(SHAPE, 0.5)])}, "generated: volume 2 is constant"),
        ({"train": np.stack([*subjects(20), np.full(SHAPE, np.nan)])}, "train: volume 20 holds NaN"),
        ({"features_of": lambda volumes: np.full((len(volumes), 2), np.nan)}, "features: not finite"),
        ({"features_of": lambda volumes: np.ones((len(volumes), 2))}, "the same for all real volumes"),
    ],
)
def test_bad_input_is_named(change, message):
    sets = {"generated": subjects(2, 1), "train": subjects(20, 2), "held_out": subjects(20, 3)}
    with pytest.raises(UserError, match=message):
        audit(**(sets | change), permutations=9)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Prepared sets: 22 training, 22 held-out volumes, and as generated three new ones with a copy of training 4."""
    folder = tmp_path_factory.mktemp("audit")
    train = subjects(22, 1)
    sets = {"train": train, "held": subjects(22, 2), "made": np.concatenate([subjects(3, 3), train[4:5, :, :, ::-1]])}
    for name, volumes in sets.items():
        (folder / f"{name}-scans").mkdir()
        for index, volume in enumerate(volumes):
            scan = nib.Nifti1Image(np.transpose(volume, (2, 1, 0)), np.eye(4))
            nib.save(scan, folder / f"{name}-scans" / f"{index:02d}.nii.gz")
        prepare(PrepareConfig(folder / f"{name}-scans", folder / name, (12, 16, 14), window=(-1, 1), workers=1))
    return folder


@pytest.mark.parametrize("source", ["made", "made-scans"])
def test_an_audit_on_disk(datasets, tmp_path, cpu, source):
    sets = {"generated": str(datasets / source), "train": datasets / "train", "held_out": datasets / "held"}
    out = tmp_path / "out"
    config = AuditConfig(**sets, out=out, extractor="random-0", k=2)
    returned = run_audit(config)
    assert sorted(path.name for path in out.iterdir()) == ["audit.json", "audit.md", "pairs.png"]
    report = json.loads((out / "audit.json").read_text())
    assert report == returned and report["level"] == "copies"
    first = report["samples"][0]
    assert (first["index"], first["train_index"], first["name"]) == (3, 4, "03.nii.gz")
    assert first["train_name"] == "04.nii.gz" and first["flagged"]
    assert all(first[space]["flip"] == [2] and first[space]["distance"] < 0.05 for space in ("voxel", "feature"))
    assert report["extractor"]["name"] == "random-0" and report["format"] == "splitshuffle-audit"
    assert len(report["sources"]["train"]["data_hash"]) == 64
    assert "sample 3 of training volume 4" in (out / "audit.md").read_text()
    with pytest.raises(UserError, match="exists already"):
        run_audit(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": "train"}, "is the training set itself"),
        ({"n": 0}, "n: found 0"),
        ({"k": 0}, "k: found 0"),
        ({"weights": "w.pth", "extractor": None}, "say which network"),
        ({"extractor": "nonsense"}, "extractor"),
        ({"held_out": "nowhere"}, "nowhere"),
    ],
)
def test_bad_settings_are_named_and_leave_nothing(datasets, tmp_path, cpu, change, message):
    values = {"generated": "made", "train": "train", "held_out": "held", "extractor": "none"} | change
    paths = {name: datasets / values.pop(name) for name in ("train", "held_out")}
    paths["generated"] = str(datasets / values.pop("generated"))
    with pytest.raises(UserError, match=message):
        run_audit(AuditConfig(out=tmp_path / "out", **paths, **values))
    assert not list(tmp_path.iterdir())


def test_fewer_generated_volumes_on_request(datasets, tmp_path, cpu):
    sets = {"generated": str(datasets / "made"), "train": datasets / "train", "held_out": datasets / "held"}
    report = run_audit(AuditConfig(**sets, out=tmp_path / "out", extractor="none", n=2))
    assert report["n"] == {"generated": 2, "train": 22, "held-out": 22} and report["extractor"] is None
    assert list(report["spaces"]) == ["voxel"]


def test_a_held_out_set_that_is_mostly_training_volumes_is_refused():
    train, held_out = subjects(30, 1), subjects(30, 2)
    held_out[:12] = train[:12]
    with pytest.raises(UserError, match="held-out: 12 of its 30 volumes are in the training set"):
        audit(subjects(5, 3), train, held_out)
