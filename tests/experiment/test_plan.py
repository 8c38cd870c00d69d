"""Plans: what they inherit, and that whatever makes no sense is named."""

from pathlib import Path

import pytest
import yaml

from splitshuffle_gan.config import GeneratorConfig
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment.plan import parse_plan, read_plan, train_config

PLAN = """
title: A test
minutes: 2
held_out: 8
baseline: plain
train2d: {batch_size: 32, network: {z_dim: 8, channels: [8, 8]}}
train3d: {batch_size: 4, r1_gamma: 5, network: {z_dim: 8, channels: [8, 8]}}
arms:
  plain: {title: Plain, network: {conv: plain, depth_aware: false}}
  ours:
    share_2d: 0.25
    inflate: {method: mean, depth_upsample: linear}
    train3d: {g_lr: 1.0e-3}
    seeds: [4]
  ours_mean: {like: ours, title: Another, inflate: {method: binomial}, minutes: 5}
"""
PLACE = {"data": Path("data"), "out": Path("out")}


def changed(**changes) -> dict:
    """The plan with values at dotted names (`__` for a dot) changed, or taken out where they are `...`."""
    values = yaml.safe_load(PLAN)
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return values


def test_a_plan_is_read(tmp_path):
    (tmp_path / "plan.yaml").write_text(PLAN)
    plan = read_plan(tmp_path / "plan.yaml")
    assert (plan.minutes, plan.seeds, plan.evaluations, plan.draws) == (2.0, (0, 1, 2), 5, 3)
    assert plan.seeds_of("ours") == (4,) and plan.seeds_of("plain") == (0, 1, 2)
    assert plan.minutes_of("ours_mean") == 5 and plan.minutes_of("ours") == 2


def test_an_arm_is_like_another_but_for_what_it_says():
    plan = parse_plan(changed())
    ours, other = plan.arms["ours"], plan.arms["ours_mean"]
    assert (other.inflate.method, other.inflate.depth_upsample) == ("binomial", "linear")
    assert (other.share_2d, other.train3d, other.seeds) == (ours.share_2d, ours.train3d, (4,))
    assert (ours.title, other.title) == ("", "Another")


def test_options_of_the_plan_hold_for_all_arms_and_the_arms_own_go_over_them():
    plan = parse_plan(changed(arms__ours__network={"channels": [16, 16]}, train3d__g_lr=0.5))
    config = train_config(plan, "ours", 3, **PLACE)
    assert (config.g_lr, config.batch_size, config.r1_gamma) == (0.001, 4, 5.0)
    assert (config.network.z_dim, config.network.channels) == (8, (16, 16))
    plain = train_config(plan, "plain", 3, **PLACE)
    assert (plain.g_lr, plain.network.conv, plain.network.depth_aware) == (0.5, "plain", False)
    assert plain.network.given(GeneratorConfig)["channels"] == (8, 8)
    in_2d = train_config(plan, "plain", 2, **PLACE)
    assert (in_2d.batch_size, in_2d.network.conv, in_2d.network.z_dim) == (32, "plain", 8)


def test_a_diffusion_arm_takes_its_own_options():
    plan = parse_plan(changed(arms__other={"model": "diffusion", "train3d": {"channels": [8, 8], "lr": 0.01}}))
    config = train_config(plan, "other", 3, **PLACE)
    assert (type(config).__name__, config.channels, config.lr) == ("DiffusionConfig", (8, 8), 0.01)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"minute": 3}, "^minute: unknown; known are title, minutes"),
        ({"held_out": ...}, "^held_out: missing"),
        ({"minutes": "20"}, "^minutes: found '20', a number"),
        ({"minutes": 0}, "^minutes: found 0"),
        ({"minutes": True}, "^minutes: found True, a number"),
        ({"seeds": 3}, "^seeds: found 3, a list"),
        ({"seeds": [0, 0]}, r"^seeds: found \[0, 0\], different"),
        ({"draws": 1.5}, "^draws: found 1.5, a whole number"),
        ({"evaluations": 0}, "^evaluations: found 0, at least 1"),
        ({"baseline": "none"}, "^baseline: found 'none', one of the arms is wanted: plain, ours"),
        ({"train3d__lr": 1}, "^train3d.lr: unknown; known are data, out"),
        ({"train3d__batch_size": -1}, "^train3d.batch_size: found -1"),
        ({"train3d__kimg": 5}, "^train3d.kimg: the runner sets it"),
        ({"train2d__g_lr": "1e-3"}, "^train2d.g_lr: found '1e-3', a number, as 0.001 or 1.0e-3"),
        ({"arms__ours__train2d__seed": 5}, "^arms.ours.train2d.seed: the runner sets it"),
        ({"arms__ours__train3d__augment__flip": 1}, "^arms.ours.train3d.augment.flip: unknown"),
        ({"arms__ours__share_2d": 1}, "^arms.ours.share_2d: found 1.0"),
        ({"arms__ours__inflate__method": "middle"}, "^arms.ours.inflate.method: found 'middle', one of center, mean"),
        ({"arms__ours__network__conv": "dense"}, "^arms.ours.network.conv: found 'dense', one of split_shuffle"),
        ({"arms__ours__network__channels": ["8"]}, "^arms.ours.network.channels: found '8', a whole number"),
        ({"arms__ours__train3d__network": {"z_dim": 4}}, "^arms.ours: network.z_dim is 8 in 2D and 4 in 3D"),
        ({"arms__ours__train": 0}, "^arms.ours.train: found 0"),
        ({"arms__ours__seeds": []}, r"^arms.ours.seeds: found \[\]"),
        ({"arms__ours_mean__like": "theirs"}, "^arms.ours_mean.like: found 'theirs', one of plain, ours"),
        ({"arms__ours__like": "ours_mean"}, "^arms.ours.like: ours is like ours_mean is like ours, which never"),
        ({"arms__a/b": {}}, "^arms.a/b: the name of an arm becomes a folder's"),
        ({"arms": [1]}, r"^arms: found \[1\], fields by name"),
        ({"arms__ours": 5}, "^arms.ours: found 5, fields by name"),
        ({"arms__ours__model": "diffusion"}, "^arms.ours: a diffusion model has no share_2d"),
        ({"arms__new": {"model": "diffusion", "train3d": {"g_lr": 1}}}, "^arms.new.train3d.g_lr: unknown"),
    ],
)
def test_what_makes_no_sense_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        parse_plan(changed(**changes))


@pytest.mark.parametrize(
    "text, message",
    [
        (PLAN + "  plain: {}\n", "'plain' comes twice"),
        ("title: [", "not readable as YAML"),
        ("", "the plan: found None, fields by name"),
        (PLAN.replace("minutes: 2", "minutes: two"), "minutes: found 'two'"),
    ],
)
def test_the_file_is_named(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=f"bad.yaml: .*{message}"):
        read_plan(tmp_path / "bad.yaml")
    with pytest.raises(UserError, match="none.yaml: no such file"):
        read_plan(tmp_path / "none.yaml")


PLANS = sorted((Path(__file__).parents[2] / "evaluate" / "plans").glob("*.yaml"))
PLANS = [path for path in PLANS if path.stem != "probe"]  # of another command


@pytest.mark.parametrize("path", PLANS, ids=[path.stem for path in PLANS])
def test_a_plan_that_ships_can_start_and_its_arms_differ_in_what_they_say(path):
    plan = read_plan(path)
    jobs = {}
    for name, arm in plan.arms.items():
        ranks = (2, 3) if arm.share_2d else (3,)
        trained = [train_config(plan, name, rank, **PLACE) for rank in ranks]
        jobs[name] = (trained, arm.share_2d, arm.inflate, arm.train, plan.minutes_of(name))
    names = list(jobs)
    same = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if jobs[a] == jobs[b]]
    assert not same
    assert all(not plan.arms[plan.against(name)].group or plan.arms[name].group for name in names)


def test_there_is_a_plan_for_each_organ_and_one_for_ablations():
    assert {path.stem for path in PLANS} == {"hippocampus", "hippocampus-ablations", "heart-ct"}
