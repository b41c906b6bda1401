"""Where a further evaluation's scores go, and that the report finds them there."""

from __future__ import annotations

import json

import pytest

from mmmoe.evaluation.spec import EvaluationSpec
from mmmoe.report.files import read_run
from mmmoe.stages.evaluate import folder_name


def spec(**fields):
    return EvaluationSpec(benchmarks=[{"name": "b", "file": "b.jsonl", "kind": "short_answer"}], **fields)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "evaluation"),
        ({"limit": 3}, "evaluation_partial"),
        ({"routing": "none"}, "evaluation_routing_none"),
        ({"routing": []}, "evaluation_routing_none"),
        ({"routing": ["sam", "dots"], "limit": 3}, "evaluation_routing_sam+dots_partial"),
    ],
)
def test_neither_a_quick_look_nor_another_routing_takes_the_place_of_the_runs_scores(fields, name):
    assert folder_name(spec(**fields), spec()) == name


def test_a_runs_own_routing_is_in_the_usual_place():
    assert folder_name(spec(routing="random", limit=3), spec(routing="random")) == "evaluation_partial"
    assert folder_name(spec(), spec(routing="random")) == "evaluation_routing_predicted"


def test_the_report_finds_whole_scores_of_other_routings(tmp_path):
    (tmp_path / "stages" / "s").mkdir(parents=True)
    (tmp_path / "stages" / "s" / "metrics.jsonl").write_text('{"step": 1}\n')
    for fields in ({"routing": "random"}, {"routing": ["sam", "dots"]}, {"routing": "none", "limit": 3}):
        folder = tmp_path / folder_name(spec(**fields), spec())
        folder.mkdir()
        (folder / "scores.json").write_text(json.dumps([{"benchmark": "b"}]))
    assert set(read_run(tmp_path).other_routings) == {"random", "sam, dots"}
