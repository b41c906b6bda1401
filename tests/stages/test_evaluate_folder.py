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
        ({"beams": 5, "limit": 3}, "evaluation_beams_5_partial"),
        ({"beams": 5, "repetition_penalty": 1.3, "routing": "all"}, "evaluation_beams_5_penalty_1.3_routing_all"),
    ],
)
def test_nothing_asked_otherwise_takes_the_place_of_the_runs_scores(fields, name):
    assert folder_name(spec(**fields), spec()) == name


def test_a_runs_own_routing_is_in_the_usual_place():
    assert folder_name(spec(routing="random", limit=3), spec(routing="random")) == "evaluation_partial"
    assert folder_name(spec(), spec(routing="random")) == "evaluation_routing_predicted"


def test_a_benchmark_that_another_suite_declares_anew_has_a_place_of_its_own():
    def suite(**fields):
        return EvaluationSpec(benchmarks=[{"name": "b", "file": "b.jsonl", "kind": "short_answer"} | fields])

    names = {folder_name(suite(**fields), suite()) for fields in ({"prompt": "{question}!"}, {"max_new_tokens": 9})}
    assert len(names) == 2
    assert all(name.startswith("evaluation_suite_") for name in names)
    assert folder_name(suite(name="c"), suite()) == "evaluation", "no score of the run's is in its way"
    assert folder_name(suite(prompt="{question}!"), suite(prompt="{question}!")) == "evaluation"


def test_the_report_finds_whole_scores_of_other_routings(tmp_path):
    (tmp_path / "stages" / "s").mkdir(parents=True)
    (tmp_path / "stages" / "s" / "metrics.jsonl").write_text('{"step": 1}\n')
    for fields in ({"routing": "random"}, {"routing": ["sam", "dots"]}, {"routing": "none", "limit": 3}):
        folder = tmp_path / folder_name(spec(**fields), spec())
        folder.mkdir()
        (folder / "scores.json").write_text(json.dumps([{"benchmark": "b"}]))
    assert set(read_run(tmp_path).other_routings) == {"random", "sam, dots"}
