"""Plans: what they mean, and that whatever makes no sense is named."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.probe.plan import parse_plan, read_plan

PLAN = """
title: A test
seeds: [0, 4]
baseline: i3d
pretrain: {steps: 4, batch_size: 4}
sources:
  balls: {dataset: a/dataset}
arms:
  i3d: {way: i3d}
  cross_d: {way: cross_d, phase: rotation, title: Cross}
targets:
  size: {train: a/dataset, test: b/dataset, labels: [1]}
"""
SHIPPED = Path(__file__).parents[2] / "evaluate" / "plans" / "probe.yaml"


def changed(**changes) -> dict:
    """The plan with values at dotted names (`__` for a dot) changed, or taken out where they are `...`."""
    values = yaml.safe_load(PLAN)
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = values
        for parent in parents:
            place = place[parent]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return values


def test_a_plan():
    plan = parse_plan(changed())
    assert plan.modes == ("probe",) and plan.seeds == (0, 4)
    assert [arm.pretrained for arm in plan.arms.values()] == ["plain", "rotation"]
    assert plan.title_of("arms", "cross_d") == "Cross" and plan.title_of("targets", "size") == "size"
    assert parse_plan(changed(finetune={"steps": 2, "batch_size": 2})).modes == ("probe", "finetune")
    only_scratch = changed(arms={"none": {"way": "scratch"}}, baseline="none", sources={})
    assert parse_plan(only_scratch).arms["none"].pretrained is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds: found []"),
        ({"seeds": [1, 1]}, "seeds: found [1, 1]"),
        ({"baseline": "acs"}, "baseline: found 'acs', one of the arms is wanted: i3d, cross_d"),
        ({"pretrain": ...}, "pretrain: missing"),
        ({"pretrain__steps": 1}, "pretrain.steps: found 1, at least 2"),
        ({"pretrain__learning_rate": 0}, "pretrain.learning_rate: found 0"),
        ({"pretrain__learning_rate": float("inf")}, "pretrain.learning_rate: found inf"),
        ({"pretrain__weight_decay": float("nan")}, "pretrain.weight_decay: found nan"),
        ({"pretrain__batch": 1}, "pretrain.batch: unknown"),
        ({"network": {"stem": 4}}, "network.stem: found 4, an odd size"),
        ({"sources": {}}, "sources: none"),
        ({"sources__balls__npz": "some.npz"}, "sources.balls.npz: wanted exactly one of dataset, npz, images"),
        ({"sources__balls": {}}, "sources.balls.dataset: wanted exactly one of"),
        ({"sources__balls__size": [64]}, "sources.balls.size: found [64]"),
        ({"arms__i3d__way": "2d"}, "arms.i3d.way: found '2d', one of scratch, i3d, acs, cross_d"),
        ({"arms__a b": {"way": "acs"}}, "arms.a b: letters, digits"),
        ({"targets__mean": {"npz": "some.npz"}}, "targets.mean: the table has a mean of its own"),
        ({"targets__size__test": ...}, "targets.size.test: missing"),
        ({"targets__size__labels": ...}, "targets.size.labels: wanted either labels or a factor"),
        ({"targets__size__factor": "age"}, "targets.size.labels: wanted either labels or a factor"),
        ({"targets__size": {"train": "a", "test": "b", "factor": "age"}}, "targets.size.factors: wanted together"),
        ({"targets__size__npz": "some.npz"}, "targets.size.train: npz has its own classes"),
        ({"targets__size": {"npz": "some.npz", "above": 1}}, "targets.size.above: npz has its own classes"),
        ({"targets__size": {"train": "a", "test": "b", "labels": [1], "over": [2], "measure": "brightness"}},
         "targets.size.over: goes with the volume"),
        ({"targets__size__volumes": 3}, "targets.size.volumes: found 3, at least 8"),
    ],
)  # fmt: skip
def test_nonsense_is_named(changes, message):
    with pytest.raises(UserError) as error:
        parse_plan(changed(**changes))
    assert message in str(error.value)


def test_the_file_is_named(tmp_path):
    (tmp_path / "bad.yaml").write_text(PLAN + "title: twice")
    with pytest.raises(UserError, match="bad.yaml: .*'title' comes twice"):
        read_plan(tmp_path / "bad.yaml")
    with pytest.raises(UserError, match="none.yaml: no such file"):
        read_plan(tmp_path / "none.yaml")


def test_the_plan_that_ships():
    plan = read_plan(SHIPPED)
    assert {arm.way for arm in plan.arms.values()} == {"scratch", "i3d", "acs", "cross_d"}
    assert plan.modes == ("probe", "finetune") and len(plan.seeds) == 3
    assert {arm.batch_norm for arm in plan.arms.values()} == {"carry"}  # as much for one as for the other
    said = [{name: value for name, value in asdict(arm).items() if name != "title"} for arm in plan.arms.values()]
    assert all(said.count(one) == 1 for one in said)
    learnt = {source.dataset for source in plan.sources.values()}
    assert all(target.train in learnt and target.test not in learnt for target in plan.targets.values())
