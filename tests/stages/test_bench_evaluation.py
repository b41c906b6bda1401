"""The bench of batched answers: same answers either way, told in words, and what it needs is asked for."""

from __future__ import annotations

import pytest
import torch

from mmmoe.evaluation.questions import Question
from mmmoe.evaluation.spec import BenchmarkSpec, EvaluationSpec
from mmmoe.stages import bench_evaluation as bench


class Subject:
    """Answers with the length of a question; if it is careless, otherwise to the last of several at once."""

    device = torch.device("cpu")
    batch = 0

    def __init__(self, careless=False):
        self.careless = careless
        self.sizes = set()

    def generate(self, questions, max_new_tokens):
        self.sizes.add(self.batch)
        said = [str(len(question.text)) for question in questions]
        return [*said[:-1], "?"] if self.careless and self.batch > 1 else said

    def score(self, questions):
        self.sizes.add(self.batch)
        return [[0.0, -1.0 / self.batch] for _ in questions]


QUESTIONS = [Question(f"{n}", "q" * n, "a", choices=("a", "b")) for n in range(5)]


@pytest.mark.parametrize(("kind", "careless", "same"), [
    ("short_answer", False, 5), ("short_answer", True, 4), ("multiple_choice", False, 5),
])  # fmt: skip
def test_both_ways_are_timed_and_held_against_each_other(monkeypatch, capsys, kind, careless, same):
    monkeypatch.setattr("mmmoe.kernels.measure.LEAST_SECONDS", 0.0)
    subject = Subject(careless)
    found = bench.measured(subject, "words", BenchmarkSpec(name="b", file="f", kind=kind), QUESTIONS, 64, 1)
    assert subject.sizes == {1, 64}
    assert found.versus == "one by one"
    assert found.bound == bench.BOUND
    assert f"{same} of 5 answers are the same" in capsys.readouterr().out


def test_a_run_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="run"):
        bench.bench_evaluation([])
    with pytest.raises(ValueError, match="is not a run folder"):
        bench.bench_evaluation([f"run={tmp_path}"])


def test_questions_of_each_kind_come_from_all_its_benchmarks(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"id": "1", "question": "q", "answer": "a", "choices": ["a", "b"]}\n')
    kinds = ("short_answer", "multiple_choice", "short_answer")
    spec = EvaluationSpec(
        benchmarks=[{"name": f"b{n}", "kind": kind, "file": str(tmp_path / "b.jsonl")} for n, kind in enumerate(kinds)]
    )
    found = bench._asked(spec, 8, tmp_path)
    assert [(kind, benchmark.name, len(questions)) for kind, benchmark, questions in found] == [
        ("words", "b0", 2),
        ("choices", "b1", 1),
    ]
