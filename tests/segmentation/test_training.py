"""Runs of both networks: what they learn, leave behind and refuse."""

import dataclasses
import json

import pytest
import torch
import tyro
from monai.losses import FocalLoss

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.segmentation import training
from splitshuffle_gan.segmentation.building import build
from splitshuffle_gan.segmentation.network2d import SliceSegmenter
from splitshuffle_gan.segmentation.network3d import VolumeSegmenter
from splitshuffle_gan.segmentation.options import Network2DOptions, Network3DOptions, Segment2DConfig, Segment3DConfig
from splitshuffle_gan.segmentation.segmenter import open_labelled
from splitshuffle_gan.segmentation.training import train_segmenter

SMALLEST = (1, 1, 1, 1)


@pytest.fixture
def config2d(balls, tmp_path, cpu):
    """`config2d(**changes)`: two steps of the smallest 2D network."""

    def make(**changes) -> Segment2DConfig:
        values = {"data": balls.train, "out": tmp_path / "run", "steps": 2, "batch_size": 2, "mixed_precision": "no"}
        values["network"] = Network2DOptions(layers=SMALLEST, width=4)
        return Segment2DConfig(**values | changes)

    return make


def lines(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_2d_network_learns_and_the_best_one_is_kept(run2d, balls):
    assert {path.name for path in run2d.iterdir()} == {
        "run.json", "log.jsonl", "network", "metrics.json", "predictions.png"
    }  # fmt: skip
    validations = [line for line in lines(run2d) if "mean_dice" in line]
    assert [line["step"] for line in validations] == [20, 40]
    metrics = json.loads((run2d / "metrics.json").read_text())
    best = max(validations, key=lambda line: line["mean_dice"])
    assert metrics["step"] == best["step"] and metrics["last"]["step"] == 40
    assert metrics["mean_dice"] == pytest.approx(best["mean_dice"], abs=1e-4)
    assert metrics["mean_dice"] > 0.75, metrics
    assert set(metrics["dice"]) == set(metrics["hd95"]) == {"2", "5"}
    assert len(metrics["cases"]) == len(open_labelled(balls.val))


def test_the_record_says_what_was_done(run3d, run2d, balls):
    record = json.loads((run3d / "run.json").read_text())
    assert record["class"] == "VolumeSegmenter" and record["config"]["init"] == str(run2d)
    assert record["network"]["layers"] == list(SMALLEST) and record["network"]["labels"] == [0, 2, 5]
    assert record["network"]["psp_blocks"] == 2  # 64x32x32 inside
    assert record["transfer"]["origin"]["body.bn0.running_mean"] == "copied"
    assert record["transfer"]["origin"]["body.layer1.0.conv2.weight"] == "transferred"
    assert record["sets"]["data"]["data_hash"] == open_labelled(balls.train).data_hash
    assert record["parameters"] == sum(
        p.numel() for p in VolumeSegmenter.from_pretrained(run3d / "network").parameters()
    )


def test_the_3d_network_starts_from_the_2d_encoder(run2d, balls, tmp_path, cpu):
    config = Segment3DConfig(data=balls.train, out=tmp_path, init=run2d, network=Network3DOptions(scale=(8, 1, 1)))
    segmenter, moved = build(config, open_labelled(balls.train))
    source = SliceSegmenter.from_pretrained(run2d / "network")
    assert torch.equal(segmenter.body.layer4[0].bn2.running_var, source.encoder.layer4[0].bn2.running_var)
    assert torch.equal(segmenter.body.layer4[0].conv2.weight[..., 0], source.encoder.layer4[0].conv2.weight)
    assert set(moved.origin.values()) == {"copied", "transferred", "new"}
    scratch, nothing = build(dataclasses.replace(config, init=None, network=Network3DOptions(
        layers=SMALLEST, scale=(8, 1, 1))), open_labelled(balls.train))  # fmt: skip
    assert nothing is None and scratch.config == segmenter.config
    kernel = "up0.conv.weight"  # the decoders are the same fresh ones
    assert torch.equal(scratch.body.state_dict()[kernel], segmenter.body.state_dict()[kernel])


def test_a_3d_network_goes_on_from_another(run3d, balls, tmp_path, cpu):
    config = Segment3DConfig(data=balls.val, out=tmp_path, init=run3d)
    segmenter, moved = build(config, open_labelled(balls.val))
    source = VolumeSegmenter.from_pretrained(run3d / "network")
    assert moved is None and segmenter.config == source.config
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in segmenter.state_dict().items())
    changed = dataclasses.replace(config, network=Network3DOptions(scale=(8, 2, 2)))
    with pytest.raises(UserError, match="scale: .* has .8, 1, 1., this run wants .8, 2, 2."):
        build(changed, open_labelled(balls.val))


def test_the_same_seed_gives_the_same_weights(config2d, tmp_path):
    runs = [train_segmenter(config2d(out=tmp_path / name, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    weights = [(run / "network" / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1] != weights[2]


def test_without_val_the_last_network_is_kept_and_nothing_is_claimed(config2d):
    run = train_segmenter(config2d())
    assert not (run / "metrics.json").exists() and (run / "predictions.png").is_file()
    assert (run / "network" / "model.safetensors").is_file()


def test_the_clock_ends_a_run_that_has_no_steps(config2d):
    run = train_segmenter(config2d(steps=None, minutes=1e-6))
    assert [line["step"] for line in lines(run)] == [1]
    assert config2d(steps=None).last_step == 2000


def test_windows_and_a_network_of_their_size(balls, tmp_path, cpu):
    config = Segment3DConfig(data=balls.train, out=tmp_path, window=(4, 16, 16), network=Network3DOptions(
        layers=SMALLEST, scale=(8, 4, 2)))  # fmt: skip
    segmenter, _ = build(config, open_labelled(balls.train))
    assert segmenter.config.shape == (4, 16, 16)
    with pytest.raises(UserError, match="window: found .9, 16, 16., larger than the volumes"):
        build(dataclasses.replace(config, window=(9, 16, 16)), open_labelled(balls.train))


def test_a_size_that_does_not_fit_stops_before_anything_is_written(balls, tmp_path, cpu):
    config = Segment3DConfig(data=balls.train, out=tmp_path / "run", network=Network3DOptions(layers=SMALLEST))
    with pytest.raises(UserError, match="D is 8, must be at least 32"):
        train_segmenter(config)
    assert not (tmp_path / "run").exists()


def test_sets_that_do_not_fit_are_refused(config2d, tiny_dataset, balls, tmp_path):
    with pytest.raises(UserError, match="has no labels"):
        train_segmenter(config2d(data=tiny_dataset))
    with pytest.raises(UserError, match="has no labels"):
        train_segmenter(config2d(val=tiny_dataset))
    manifest = json.loads((balls.val / "manifest.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    for name in ("volumes.npy", "labels.npy"):
        (other / name).symlink_to(balls.val / name)
    for change, message in (
        ({"spacing": [4.0, 1.0, 2.0]}, "val: spacing"),
        ({"intensity": {"mode": "window", "low": -9.0, "high": 9.0}}, "val: intensity"),
        ({"labels": manifest["labels"] | {"values": [0, 2, 9]}}, "labels .9., which the training set lacks"),
    ):
        (other / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(UserError, match=message):
            train_segmenter(config2d(val=other))
    with pytest.raises(UserError, match="^val: .* of its volumes, such as .*, are in .* as well"):
        train_segmenter(config2d(val=balls.train))
    assert not (tmp_path / "run").exists()


def test_an_existing_folder_is_kept_unless_it_is_a_run_and_may_go(config2d):
    config = config2d()
    config.out.mkdir()
    (config.out / "precious").touch()
    with pytest.raises(UserError, match="exists already"):
        train_segmenter(config)
    with pytest.raises(UserError, match="no run.json"):
        train_segmenter(dataclasses.replace(config, overwrite=True))


def test_a_loss_that_is_not_finite_ends_the_run(config2d, monkeypatch):
    monkeypatch.setitem(training.LOSSES, "focal", lambda: lambda logits, _: logits.sum() * float("nan"))
    with pytest.raises(FloatingPointError, match="step 2: the loss is nan; lower --learning-rate"):
        train_segmenter(config2d(loss="focal"))


@pytest.mark.parametrize("name", ["focal", "dice_focal", "dice_ce"])
def test_every_loss_falls_towards_the_truth(name):
    classes = torch.tensor([0, 1, 2, 1]).reshape(1, 1, 2, 2)
    truth = torch.nn.functional.one_hot(classes[:, 0], 3).movedim(-1, 1).float()
    loss = training.LOSSES[name]()
    values = [float(loss(factor * truth, classes)) for factor in (-4.0, 0.0, 4.0, 20.0)]
    assert values == sorted(values, reverse=True) and values[-1] < 1e-3


def test_the_loss_of_a_heat_map_is_least_at_the_heat_and_focal_at_its_ends():
    heat = torch.tensor([0.0, 0.2, 0.7, 1.0]).reshape(1, 1, 2, 2)
    logits = torch.logit(heat, eps=1e-6).requires_grad_()
    (slope,) = torch.autograd.grad(training.heat_focal(logits, heat), logits)
    assert slope.abs().max() < 1e-5
    for step in (-0.5, 0.5):
        assert training.heat_focal(logits + step, heat) > training.heat_focal(logits, heat)
    ends, logits = torch.randint(2, (3, 1, 4, 4)).float(), torch.linspace(-3, 3, 48).reshape(3, 1, 4, 4)
    focal = FocalLoss(gamma=2.0, reduction="none")(logits, ends).sum() / 3
    assert float(training.heat_focal(logits, ends)) == pytest.approx(float(focal), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: found 0"),
        ({"minutes": 0.0}, "minutes: found 0"),
        ({"augment_p": 1.5}, "augment_p: found 1.5"),
        ({"loss": "mse"}, "loss: found 'mse'"),
        ({"weight_decay": -1.0}, "weight_decay: found -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(config2d, change, message):
    with pytest.raises(UserError, match=message):
        config2d(**change)


def test_the_command_line_knows_all_options():
    line = "--data d --out o --minutes 5 --network.scale 1 2 2 --network.pad --loss dice_ce --init r --window 8 16 16"
    config = tyro.cli(Segment3DConfig, args=line.split(), config=(tyro.conf.FlagCreatePairsOff,))
    assert config.network == Network3DOptions(scale=(1, 2, 2), pad=True)
    assert (config.minutes, config.loss, config.window, config.batch_size) == (5.0, "dice_ce", (8, 16, 16), 4)
    assert (config.detect, config.sigma) == (None, 4.0)
    assert tyro.cli(Segment2DConfig, args=["--data", "d", "--out", "o"]).batch_size == 32
