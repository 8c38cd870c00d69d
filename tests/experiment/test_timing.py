"""What a training costs: kinds of steps in their proportions, and which options decide."""

import json
from types import SimpleNamespace

import pytest
import torch

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment import timing
from splitshuffle_gan.experiment.plan import parse_plan
from splitshuffle_gan.experiment.rates import described, read_rates, significant, speed_key
from splitshuffle_gan.experiment.timing import TimedStep, computing, time_steps

NETWORK = {"channels": [8, 8, 8], "z_dim": 8, "w_dim": 8, "mapping_layers": 2}


def plan(**arms):
    sections = {f"train{rank}d": {"network": NETWORK, "mixed_precision": "no", "batch_size": 4} for rank in (2, 3)}
    return parse_plan({"title": "t", "minutes": 1, "held_out": 4, "baseline": "base", **sections,
                       "arms": {"base": {}, **arms}})  # fmt: skip


def key(arm: dict, rank: int = 3) -> str:
    return speed_key(described(plan(other=arm), "other", rank))


def test_what_does_not_change_the_speed_is_not_timed_again():
    base = key({})
    for section in ({"g_lr": 0.1}, {"r1_gamma": 3.0}, {"ema_kimg": 1}, {"augment_target": 0.3}):
        assert key({"train3d": section}) == base, section
    assert key({"train": 5, "seeds": [7], "minutes": 3}) == base
    for section in ({"batch_size": 8}, {"r1_interval": 8}, {"augment_target": 0}, {"compile": True}, {"pl_weight": 2}):
        assert key({"train3d": section}) != base, section
    assert key({"network": {"conv": "plain"}}) != base
    assert key({}, 2) != base
    assert key({"model": "diffusion", "train3d": {"channels": [8]}}) != base


def test_an_option_of_a_later_release_at_its_default_changes_nothing():
    training = described(plan(), "base", 3)
    older = {**training, "options": {k: v for k, v in training["options"].items() if k != "checkpoint_above"}}
    assert speed_key(older) == speed_key(training)
    assert significant(training)["options"] == {"batch_size": 4, "mixed_precision": "no", "network": NETWORK}


def test_inflation_to_linear_growth_counts_in_3d_only():
    blended = {"share_2d": 0.5, "inflate": {"depth_upsample": "linear"}}
    assert key(blended) == key({"network": {"depth_upsample": "linear"}}) != key({"share_2d": 0.5}) == key({})
    assert key(blended, 2) == key({"share_2d": 0.5}, 2)


def test_a_step_costs_its_kinds_in_their_proportions(monkeypatch):
    """R1 every 8 and path length every 4: of 8 steps one has both, one the path alone, six neither."""
    steps = []
    trainer = SimpleNamespace(step=None, train_step=lambda batch: steps.append(trainer.step))
    timed = TimedStep(trainer, {}, "float32", torch.device("cpu"), {"r1": 8, "path": 4})
    assert timed.counts == {"plain+r1+path": 1, "plain+path": 1, "plain": 6}
    timed.measure()
    assert sorted(steps) == [0, 1, 4]
    times = {"plain+r1+path": [9000.0], "plain+path": [5000.0, 4000.0, 90000.0], "plain": [1000.0]}
    assert timed.seconds(times) == pytest.approx((9 + 5 + 6 * 1) / 8)
    assert TimedStep(trainer, {}, "float32", torch.device("cpu")).seconds({"plain": [2000.0]}) == 2.0


def test_time_in_which_the_process_did_not_compute_does_not_count():
    import time

    assert computing(lambda: time.sleep(0.2), torch.device("cpu")) < 100


def test_trainings_are_timed_and_others_added(tiny_dataset, tmp_path, cpu, monkeypatch):
    monkeypatch.setattr(timing, "REPETITIONS", 2)
    whole = plan(plain={"network": {"conv": "plain"}, "share_2d": 0.5}, other={"train3d": {"r1_interval": 2}})
    trainings = [described(whole, *which) for which in (("base", 3), ("plain", 2), ("other", 3))]
    by_key = {speed_key(training): training for training in trainings}
    first, *rest = by_key
    time_steps({first: by_key[first]}, tiny_dataset, tmp_path / "rates.json")
    known = read_rates(tmp_path / "rates.json")
    time_steps({key: by_key[key] for key in rest}, tiny_dataset, tmp_path / "rates.json")
    rates, record = read_rates(tmp_path / "rates.json"), json.loads((tmp_path / "rates.json").read_text())
    assert list(rates) == [first, *rest] and all(0 < seconds < 60 for seconds in rates.values())
    assert rates[first] == known[first]
    assert [record["steps"][key]["session"] for key in rates] == [0, 1, 1]
    kinds = record["steps"][rest[1]]["milliseconds"]
    mean = (kinds["plain"]["median"] + kinds["plain+r1"]["median"]) / 2000
    assert rates[rest[1]] == pytest.approx(mean)
    assert record["steps"][first]["precision"] == "float32" and record["sessions"][0]["threads"] == 1


def test_damaged_timings_are_named(tmp_path):
    assert read_rates(tmp_path / "none.json") == {}
    (tmp_path / "rates.json").write_text('{"steps": {"a": 1}}')
    with pytest.raises(UserError, match="rates.json: not the timings"):
        read_rates(tmp_path / "rates.json")
