"""Stages of runs carried out: order, sharing, failures; no process is started."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from splitshuffle_gan.experiment import runs
from splitshuffle_gan.experiment.process import FAILURE
from splitshuffle_gan.experiment.runs import Stage, carry_out, cores_for


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Stages that note in `log` that they ran; those in `bad` fail, those in `killed` die without a word."""
    state = SimpleNamespace(log=[], bad=set(), killed=set(), finished=set(), most=0, open=[])

    class Process:
        def __init__(self, key: str, folder: Path) -> None:
            self.sentinel, self.key, self.folder, self.exitcode = object(), key, folder, None
            state.open.append(self)
            state.most = max(state.most, len(state.open))

        def join(self) -> None:
            state.open.remove(self)
            state.log.append(self.key)
            self.exitcode = 1 if self.key in state.bad else -9 if self.key in state.killed else 0
            if self.exitcode == 0:
                state.finished.add(self.key)
            if self.exitcode == 1:
                (self.folder / FAILURE).write_text(json.dumps({"stage": "train", "message": f"{self.key} is bad"}))

    def stage(key: str) -> Stage:
        folder = tmp_path / key
        folder.mkdir(exist_ok=True)
        return Stage(key, key, folder, "train", "none", lambda: (), lambda: key in state.finished)

    monkeypatch.setattr(runs, "start", lambda function, arguments, folder, name, cores: Process(folder.name, folder))
    monkeypatch.setattr(runs, "wait", lambda sentinels, timeout: sentinels[:1])
    state.failures = []

    def go(chains: dict[str, str], jobs: int = 1) -> list[str]:
        chains = {name: [stage(key) for key in keys.split()] for name, keys in chains.items()}
        carry_out(chains, jobs, lambda *found: state.failures.append(found), lambda: None)
        return state.log

    state.go = go
    return state


def test_earlier_chains_come_first_and_each_in_its_order(work):
    assert work.go({"a": "a2 a3 ae", "b": "b3 be"}) == ["a2", "a3", "ae", "b3", "be"]
    assert work.most == 1 and not work.failures


def test_a_shared_stage_is_done_once_and_waited_for(work):
    log = work.go({"a": "s a3", "b": "s b3", "c": "c3"}, jobs=3)
    assert sorted(log) == ["a3", "b3", "c3", "s"]
    assert log.index("s") < min(log.index("a3"), log.index("b3")) and work.most <= 3


def test_what_is_done_is_not_done_again(work):
    work.finished = {"a2", "a3"}
    assert work.go({"a": "a2 a3 ae"}) == ["ae"]


def test_a_failure_ends_the_chains_that_need_it_and_no_others(work):
    work.bad, work.killed = {"s"}, {"c3"}
    assert sorted(work.go({"a": "s a3", "b": "s b3", "c": "c3 ce", "d": "d3"}, jobs=2)) == ["c3", "d3", "s"]
    assert sorted(name for name, *_ in work.failures) == ["a", "b", "c"]
    messages = {name: message for name, _, message in work.failures}
    assert messages["a"] == messages["b"] == "s is bad"
    assert messages["c"].startswith("killed by signal 9, often for memory") and messages["c"].endswith("train.log")


def test_the_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(runs.os, "sched_getaffinity", lambda _: {1, 2, 5, 7, 8}, raising=False)
    assert cores_for(2) == [{1, 2, 5}, {7, 8}]
    assert cores_for(1) == [{1, 2, 5, 7, 8}]
    assert cores_for(6) == [{1}, {2}, {5}, {7}, {8}, {1}]
