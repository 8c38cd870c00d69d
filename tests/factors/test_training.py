"""From a labelled dataset to an estimator, and from that to a comparison that sees damage."""

import json

import numpy as np
import pytest
import torch

from splitshuffle_gan.data.dataset import open_dataset
from splitshuffle_gan.data.split import write_part
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.factors.anatomy import Factor
from splitshuffle_gan.factors.estimator import Estimator, EstimatorConfig
from splitshuffle_gan.factors.run import FactorsConfig, run_factors
from splitshuffle_gan.factors.training import TrainFactorsConfig, errors, train_factors, true_factors

FACTORS = {"shell": Factor((1,)), "core": Factor((2,), "mm3"), "light": Factor((2,), "HU")}
GEOMETRY = {
    "spacing": [2.0, 1.0, 1.0],
    "plane": "axial",
    "affine": np.diag([2.0, 1.0, 1.0, 1.0]).tolist(),
    "intensity": {"kind": "window", "low": -250.0, "high": 650.0},
}


def train_config(data, out, **changes) -> TrainFactorsConfig:
    values = {"anatomy": "labels", "held_out": 10, "steps": 80, "batch_size": 12, "precision": "no"}
    return TrainFactorsConfig(**{"data": data, "out": out, "learning_rate": 1e-2, **values, **changes})


def test_truth_is_what_the_labels_hold(balls):
    dataset = open_dataset(balls(40))
    found = true_factors(FACTORS, dataset, [3, 5])
    for row, index in enumerate((3, 5)):
        core = dataset.labels[index] == 2
        light = (dataset.volumes[index][core].mean() + 1) * 450 - 250
        assert found[row] == pytest.approx([(dataset.labels[index] == 1).sum() * 2 / 1000, core.sum() * 2, light])


def test_an_estimator_learns_tells_its_error_and_sees_which_half_is_missing(balls, tmp_path, cpu):
    out = train_factors(train_config(balls(40), tmp_path / "estimator"))
    error = json.loads((out / "training.json").read_text())["error"]
    assert list(error) == ["label 1", "label 2"] and error["label 2"]["n"] == 10
    assert all(row["r2"] > 0.8 for row in error.values())

    real = open_dataset(balls(48, seed=1))
    size = true_factors(FACTORS, real)[:, 1]
    write_part(real, np.flatnonzero(size > np.median(size)).tolist(), tmp_path / "large")
    common = {"real": str(real.folder), "estimator": out, "resamples": 20, "splits": 40}
    report = run_factors(FactorsConfig(generated=str(tmp_path / "large"), out=tmp_path / "a", **common))
    damaged = report["factors"]["label 2"]
    assert damaged["above_floor"] and damaged["over_floor"] > 1.5 and damaged["shift"] > 0.3
    assert report["error_on_real"]["label 2"]["r2"] > 0.8
    assert np.abs(np.array(report["values"]["real"])[:, 1] - size / 1000).mean() < 0.07
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"factors.json", "factors.md", "factors.png"}
    assert "label 2, ml" in (tmp_path / "a" / "factors.md").read_text()

    other = FactorsConfig(generated=str(balls(40)), floor_from=str(tmp_path / "large"), out=tmp_path / "b", **common)
    assert not run_factors(other)["factors"]["label 2"]["above_floor"]


def test_a_factor_that_the_network_does_not_measure_is_marked(balls, labelled_noise, tmp_path, cpu):
    brief = {"held_out": 4, "steps": 4, "batch_size": 4}
    out = train_factors(train_config(labelled_noise, tmp_path / "estimator", **brief))
    common = {"generated": str(balls(40)), "real": str(labelled_noise), "estimator": out, "resamples": 20, "splits": 20}
    report = run_factors(FactorsConfig(**common, out=tmp_path / "a"))
    r2 = report["error_on_real"]["label 1"]["r2"]
    assert r2 < 0.25 and report["factors"]["label 1"]["r2"] == r2
    assert f"label 1, ml (**hardly measured: R² {r2:.2f}**)" in (tmp_path / "a" / "factors.md").read_text()
    with pytest.raises(UserError, match="n: found 41, .* has 40 volumes"):
        run_factors(FactorsConfig(**common, out=tmp_path / "b", n=41))
    assert not (tmp_path / "b").exists()


def test_what_cannot_be_seen_is_expected_as_often_as_it_was_there(labelled_noise, tmp_path, cpu):
    brief = {"held_out": 4, "steps": 30, "batch_size": 4, "learning_rate": 3e-4}  # longer, it learns them by heart
    config = train_config(labelled_noise, tmp_path / "estimator", **brief)
    row = json.loads((train_factors(config) / "training.json").read_text())["error"]["label 1"]
    assert abs(row["bias"]) < 0.25 * 0.02 * 2048 * 2 / 1000


def test_estimates_are_expected_counts_on_any_grid(tmp_path):
    torch.manual_seed(0)
    estimator = Estimator(EstimatorConfig(factors=FACTORS, channels=(4, 4, 4, 4)), GEOMETRY).eval()
    images = torch.rand(2, 1, 5, 12, 9) * 2 - 1  # no side is a multiple of 8
    found = estimator.estimate(images)
    with torch.no_grad():
        shares = estimator(images).softmax(1).numpy()
    assert shares.shape == (2, 3, 5, 12, 9)
    assert found[:, 0] + found[:, 1] / 1000 == pytest.approx(shares[:, 1:].sum((1, 2, 3, 4)) * 2 / 1000, rel=1e-4)
    estimator.save_pretrained(tmp_path)
    again = Estimator.from_pretrained(tmp_path)
    assert again.config == estimator.config and again.estimate(images) == pytest.approx(found)


def test_logits_are_shifted_for_good_and_the_smallest_volumes_do():
    estimator = Estimator(EstimatorConfig(factors=FACTORS, channels=(4, 4, 4, 4)), GEOMETRY).eval()
    smallest = torch.zeros(1, 1, 4, 5, 4)  # one voxel at the coarsest level, were it not for padding
    estimator.head[-1].weight.data.zero_()
    estimator.shift(np.log([0.2, 0.1, 0.7]), fresh=True)
    estimator.shift(-np.log([2.0, 0.25, 1.0]))
    shares = estimator(smallest).softmax(1)[0, :, 0, 0, 0]
    assert shares.tolist() == pytest.approx([0.1 / 1.2, 0.4 / 1.2, 0.7 / 1.2])


def test_errors_leave_out_volumes_in_which_the_factor_does_not_exist():
    truth = np.array([[1.0, 2.0, np.nan], [2.0, 2.0, 5.0], [3.0, 2.0, 6.0], [6.0, 2.0, 7.0]])
    found = errors(FACTORS, truth, truth + [[0.5, 0, 9], [-0.5, 0, 1], [0.5, 0, 1], [-0.5, 0, 1]])
    assert found["shell"]["mae"] == 0.5 and found["shell"]["bias"] == 0
    assert found["shell"]["r2"] == pytest.approx(1 - 0.25 / truth[:, 0].var())
    assert found["core"]["r2"] is None
    assert found["light"]["n"] == 3 and found["light"]["bias"] == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"anatomy": "liver"}, "anatomy: found 'liver'"),
        ({"anatomy": "heart"}, "has the labels 0, 1, 2, not those of heart"),
        ({"held_out": 40}, "held_out"),
        ({"steps": 0}, "steps: found 0"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"precision": "fp8"}, "precision"),
    ],
)
def test_what_cannot_be_trained_is_told(balls, tmp_path, cpu, changes, message):
    with pytest.raises(UserError, match=message):
        train_factors(train_config(balls(40), tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_volumes_unlike_the_training_set_are_refused(balls, tiny_dataset, tmp_path, cpu):
    path = tmp_path / "estimator"
    Estimator(EstimatorConfig(factors=FACTORS, channels=(4, 4, 4, 4)), GEOMETRY).save_pretrained(path)
    config = {"estimator": path, "out": tmp_path / "out"}
    with pytest.raises(UserError, match="training.json: missing or damaged"):
        run_factors(FactorsConfig(generated=str(balls(40)), real=str(balls(40)), **config))
    (path / "training.json").write_text('{"data_hash": "", "train": 1, "error": {}}')
    with pytest.raises(UserError, match="6 volumes; at least 8"):
        run_factors(FactorsConfig(generated=str(tiny_dataset), real=str(tiny_dataset), **config))
    header = json.loads((path / "config.json").read_text())
    header["geometry"]["spacing"] = [2.0, 2.0, 2.0]
    (path / "config.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match="spacing: .* was trained with"):
        run_factors(FactorsConfig(generated=str(balls(40)), real=str(balls(40)), **config))
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_labels_is_refused(tiny_dataset, tmp_path, cpu):
    with pytest.raises(UserError, match="has no labels"):
        train_factors(train_config(tiny_dataset, tmp_path / "out"))
