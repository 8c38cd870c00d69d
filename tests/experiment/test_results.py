"""The file of results: whole lines, torn lines, bad lines."""

import json

import pytest

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment.results import append, evaluations, failures, mend, read


def line(arm="a", seed=0, index=0, kind="evaluation", **more) -> dict:
    return {"kind": kind, "arm": arm, "seed": seed, "set": "held_out", "index": index, **more}


def test_what_is_appended_is_read(tmp_path):
    path = tmp_path / "results.jsonl"
    assert read(path) == []
    lines = [line(), line(index=1), line("b", kind="failure")]
    for one in lines:
        append(path, one)
    assert read(path) == lines
    with pytest.raises(ValueError):
        append(path, {"value": float("nan")})
    assert read(path) == lines


def test_a_torn_last_line_is_dropped_with_a_message(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    append(path, line())
    mend(path)
    assert capsys.readouterr().err == ""
    with open(path, "a") as file:
        file.write(json.dumps(line(index=1))[:20])
    assert read(path) == [line()]
    mend(path)
    assert "the last line was cut short" in capsys.readouterr().err
    append(path, line(index=2))
    assert read(path) == [line(), line(index=2)]
    mend(tmp_path / "none.jsonl")


def test_a_bad_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"kind": "failure"}\nnonsense\n{}\n')
    with pytest.raises(UserError, match="results.jsonl: line 2 is not JSON"):
        read(path)


def test_of_an_evaluation_that_came_twice_the_last_counts():
    lines = [line(value=1), line(value=2), line(kind="failure"), {**line(value=3), "set": "final"}]
    assert [found["value"] for found in evaluations(lines).values()] == [2, 3]
    assert list(evaluations(lines, "final")) == [("a", 0, "final", 0)]


def test_a_run_that_went_on_after_a_failure_has_not_failed():
    lines = [line("a", kind="failure"), line("b"), line("b", kind="failure"), line("a")]
    assert list(failures(lines)) == [("b", 0)]
