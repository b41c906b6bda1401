"""Two evaluations of the same questions: the difference by hand, and everything that makes them not comparable."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from evaluation_fakes import make_subject
from rich.console import Console

from mmmoe.evaluation.answers import read_answers, write_answers
from mmmoe.evaluation.compare import COMPARISON_FILE, compare, comparison_table
from mmmoe.evaluation.runner import evaluate
from mmmoe.evaluation.scores import read_scores, write_scores
from mmmoe.evaluation.spec import BenchmarkSpec, EvaluationSpec


@pytest.fixture
def two(benchmark_file, tmp_path):
    """Makes two evaluations of one benchmark; the second's answers to some questions are turned round."""

    def make(turned, n=40, **fields):
        rows = [
            {"id": f"q{i}", "question": "q" if i % 2 else "z", "answer": "q", "group": f"{i // 2}" if fields else ""}
            for i in range(n)
        ]
        benchmark = BenchmarkSpec(name="b", file=str(benchmark_file(rows)), kind="short_answer")
        spec = EvaluationSpec(benchmarks=[benchmark], bootstrap=100)
        folders = [tmp_path / "a", tmp_path / "b"]
        for folder in folders:
            evaluate(make_subject(), spec, folder / "evaluation", "trained")
        path = folders[1] / "evaluation" / "trained" / "b.jsonl"
        answers = [
            replace(one, score=1.0 - one.score) if place in turned else one
            for place, one in enumerate(read_answers(path))
        ]
        write_answers(path, answers)
        scores = folders[1] / "evaluation" / "scores.json"
        [row] = read_scores(scores)
        write_scores(scores, [replace(row, score=sum(one.score for one in answers) / n)])
        return folders

    return make


def change(folder, **fields):
    [row] = read_scores(folder / "evaluation" / "scores.json")
    write_scores(folder / "evaluation" / "scores.json", [replace(row, **fields)])


def test_the_difference_is_that_of_the_scores_and_who_was_better_is_counted(two):
    a, b = two(turned=range(0, 12, 2))  # six that the first got wrong
    [row] = compare(a, b)
    assert (row.first, row.second, row.difference) == (0.5, 0.65, pytest.approx(-0.15))
    assert (row.n, row.groups, row.first_only, row.second_only) == (40, 40, 0, 6)
    assert row.low < row.difference < row.high < 0
    assert row.p < 0.05
    [back] = compare(b / "evaluation", a / "evaluation")
    assert (back.difference, back.first_only) == (pytest.approx(0.15), 6)
    kept = json.loads((a / "evaluation" / COMPARISON_FILE).read_text())
    assert kept["rows"] == [asdict(row)]


def test_equal_runs_do_not_differ(two):
    [row] = compare(*two(turned=()))
    assert (row.difference, row.p, row.first_only, row.second_only) == (0.0, 1.0, 0, 0)


def test_questions_that_are_judged_together_are_resampled_together(two):
    assert compare(*two(turned=(), groups=True))[0].groups == 20


def test_the_table_shows_it(two):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(comparison_table(compare(*two(turned=range(0, 12, 2))), "a", "b"))
    assert "-15.0" in console.export_text()


def test_what_cannot_be_compared_is_refused_in_words(two, tmp_path):
    a, b = two(turned=())
    with pytest.raises(ValueError, match="does not exist"):
        compare(a, tmp_path / "nothing")
    with pytest.raises(ValueError, match="has no benchmark 'other'; it has b"):
        compare(a, b, ["other"])
    change(b, prompt_hash="abc")
    with pytest.raises(ValueError, match="asked in other words"):
        compare(a, b)
    change(b, prompt_hash=read_scores(a / "evaluation" / "scores.json")[0].prompt_hash, beams=5)
    with pytest.raises(ValueError, match=r"other decoding .beams 1 and repetition_penalty 1; beams 5"):
        compare(a, b)
    change(b, metric="contained")
    with pytest.raises(ValueError, match="scored by exact and contained"):
        compare(a, b)
    (b / "evaluation" / "scores.json").write_text("[]")
    with pytest.raises(ValueError, match="no benchmark is in both"):
        compare(a, b)


def test_other_questions_or_answers_are_refused(two):
    a, b = two(turned=())
    path = b / "evaluation" / "trained" / "b.jsonl"
    answers = read_answers(path)
    write_answers(path, answers[:-1])
    with pytest.raises(ValueError, match="1 questions were put to one of the two only"):
        compare(a, b)
    write_answers(path, [replace(answers[0], answers=["other"]), *answers[1:]])
    with pytest.raises(ValueError, match="the right answer of 1 questions differs"):
        compare(a, b)
    path.write_text('{"id": "q0"}\n')
    with pytest.raises(ValueError, match="evaluate again"):
        compare(a, b)
