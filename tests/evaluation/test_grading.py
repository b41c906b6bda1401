"""One mechanism from an answer to a score row: the benchmark's metric, its categories, what it did not understand."""

from __future__ import annotations

import json
import math

import pytest
from evaluation_fakes import make_subject
from rich.console import Console

from mmmoe.evaluation.answers import read_answers
from mmmoe.evaluation.grading import metric_for
from mmmoe.evaluation.guessing import guessed, most_frequent
from mmmoe.evaluation.metrics.registry import METRICS
from mmmoe.evaluation.questions import Question
from mmmoe.evaluation.runner import evaluate
from mmmoe.evaluation.scores import PaperScore, ScoreRow, read_scores, write_scores
from mmmoe.evaluation.spec import BenchmarkSpec, EvaluationSpec
from mmmoe.evaluation.table import category_table, score_table


def run(tmp_path, file, kind="short_answer", out="out", **fields):
    limit = fields.pop("limit", None)
    benchmark = BenchmarkSpec(name="b", file=str(file), kind=kind, **fields)
    spec = EvaluationSpec(benchmarks=[benchmark], bootstrap=100, limit=limit)
    [row] = evaluate(make_subject(), spec, tmp_path / out, "trained")
    return row, read_answers(tmp_path / out / "trained" / "b.jsonl")


def words(table):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(table)
    return " ".join(console.export_text().replace("│", " ").split())


# Without a picture the fake says the first letter of the question.
MIXED = [
    {"id": "a", "question": "q", "answers": ["q", "q", "q"], "category": "one", "group": "g"},
    {"id": "b", "question": "q", "answers": ["q", "x", "y"], "category": "two", "group": "g"},
    {"id": "c", "question": "z", "answers": ["x", "x", "y"], "category": "two"},
]


def test_a_benchmark_is_scored_by_its_metric_with_categories(benchmark_file, tmp_path):
    row, answers = run(tmp_path, benchmark_file(MIXED), metric="a_okvqa")
    assert (row.metric, row.scale, row.is_share, row.n) == ("a_okvqa", 100.0, True, 3)
    assert row.score == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert [(one.name, one.n, one.score) for one in row.categories] == [
        ("one", 1, 1.0),
        ("two", 2, pytest.approx(1 / 6, abs=1e-6)),
    ]
    assert row.measures == {}, "the categories are told once"
    assert [(one.score, one.correct, one.category, one.group) for one in answers] == [
        (1.0, True, "one", "g"), (pytest.approx(1 / 3), False, "two", "g"), (0.0, False, "two", ""),
    ]  # fmt: skip
    assert answers[1].answers == ["q", "x", "y"]
    assert len({one.prompt for one in answers}) == 2
    assert "two 2 16.7" in words(category_table(row))


def test_points_are_shown_as_points_and_an_unknown_answer_as_unparsed(benchmark_file, tmp_path):
    rows = [
        {
            "id": f"{n}",
            "question": "yes" if n < 3 else "maybe",
            "answer": "yes",
            "category": "count",
            "group": f"{n // 2}",
        }
        for n in range(4)
    ]
    # The fake says one letter, so its yes is not understood either.
    row, answers = run(tmp_path, benchmark_file(rows), metric="mme")
    assert (row.score, row.scale, row.unparsable_share, row.empty_share) == (0.0, 1.0, 1.0, 0.0)
    assert [one.parsed for one in answers] == [None] * 4
    assert row.majority == 200.0, "always yes"
    assert row.measures["count acc"] == 0.0
    text = words(score_table([row]))
    assert "mme 4 0.0 0.0 to 0.0" in text
    assert "200.0 100.0 %" in text


def test_what_a_metric_cannot_judge_is_told_before_anything_is_asked(benchmark_file, tmp_path):
    rows = [{"id": "a", "question": "q", "answer": "q"}]
    with pytest.raises(ValueError, match="benchmark 'b': question 'a' has one answer"):
        run(tmp_path, benchmark_file(rows), metric="vqa")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="no metric 'vqqa'"):
        BenchmarkSpec(name="b", file="f", kind="short_answer", metric="vqqa")


def test_what_a_metric_cannot_judge_is_set_aside_where_bad_rows_are_skipped(benchmark_file, tmp_path):
    rows = [
        {"id": "a", "question": "q", "answer": "q"},
        {"id": "b", "question": "q", "answers": ["q"] * 10},
        {"id": "c", "question": "q", "answer": ""},
    ]
    row, answers = run(tmp_path, benchmark_file(rows), metric="vqa", bad_rows="skip")
    assert ([one.id for one in answers], row.set_aside, row.partial) == (["b"], 2, False)
    assert "question 'a' has one answer" in row.set_aside_reasons[1]
    with pytest.raises(ValueError, match="benchmark 'b': question 'a' has one answer"):
        run(tmp_path, benchmark_file(rows[:1], "one.jsonl"), metric="vqa", bad_rows="skip")


def test_rows_set_aside_are_counted_and_named(benchmark_file, tmp_path):
    rows = [*MIXED, {"id": "a", "question": "q", "answer": "x"}, {"id": "e", "question": "q", "answer": ""}]
    row, _ = run(tmp_path, benchmark_file(rows), metric="a_okvqa", bad_rows="skip")
    assert (row.n, row.set_aside, len(row.set_aside_reasons)) == (3, 2, 2)
    assert "already used" in row.set_aside_reasons[0]
    assert "2 rows set aside, the first: line 4" in words(score_table([row]))


@pytest.mark.parametrize(
    ("kind", "name"),
    [("multiple_choice", "choice"), ("short_answer", "exact"), ("location", "location"), ("drawing", "written")],
)
def test_every_kind_has_a_metric_of_its_own(kind, name):
    assert metric_for(BenchmarkSpec(name="b", file="f", kind=kind)).name == name


def test_files_of_before_metrics_are_still_read(tmp_path):
    old = {
        "variant": "trained", "benchmark": "b", "domain": "d", "kind": "short_answer", "n": 3, "score": 0.5, "low": 0.1,
        "high": 0.9, "chance": 0.2, "majority": 0.4, "empty_share": 0.0, "partial": False, "prompt_hash": "x",
        "seconds": 1.0,
    }  # fmt: skip
    (tmp_path / "scores.json").write_text(json.dumps([old]))
    [row] = read_scores(tmp_path / "scores.json")
    assert (row.metric, row.shown(row.score), row.categories) == ("", "50.0", [])


def test_rows_come_back_as_they_were_written(benchmark_file, tmp_path):
    row, _ = run(tmp_path, benchmark_file(MIXED), metric="a_okvqa")
    assert read_scores(tmp_path / "out" / "scores.json") == [row]
    lacking = ScoreRow(**{**vars(row), "score": math.nan, "published": [PaperScore("m", "1/2", "table 3")]})
    write_scores(tmp_path / "s.json", [lacking])
    assert "NaN" not in (tmp_path / "s.json").read_text()
    [back] = read_scores(tmp_path / "s.json")
    assert back.shown(back.score) == "-"
    assert back.published == lacking.published
    assert "b: m 1/2 (table 3)" in words(score_table([back]))


def question(answer, *choices, group=""):
    return Question(f"{answer}{choices}{group}", "?", answer, choices=choices, group=group)


def test_guesses_are_judged_by_the_metric_itself():
    turns = [("cat", "dog", "cow", "hen")[n:] + ("cat", "dog", "cow", "hen")[:n] for n in range(4)]
    rotations = [question("cat", *turn, group=f"{g}") for g in range(500) for turn in turns]
    assert guessed(rotations, METRICS["mmbench"]) == pytest.approx(1 / 256, abs=0.01)
    assert guessed(rotations, METRICS["options"]) == pytest.approx(1 / 4, abs=0.05)
    assert most_frequent(rotations, METRICS["options"]) == 1 / 4, "one letter"
    assert most_frequent(rotations, METRICS["mmbench"]) == 0.0
    both = [question("yes"), question("no"), question("yes")]
    assert most_frequent(both, METRICS["gqa"]) == pytest.approx(2 / 3)
    assert guessed(both * 600, METRICS["gqa"]) == pytest.approx(1 / 2, abs=0.05)
    assert guessed(both, METRICS["exact"]) == 1 / 2


def test_what_guesses_get_where_several_answers_are_right():
    def heard(name, *answers):
        return Question(name, "?", answers[0], answers=answers)

    questions = [heard(f"n{n}", "no", "no", "yes") for n in range(6)]
    questions += [heard(f"y{n}", "yes", "yes", "no") for n in range(4)]
    assert most_frequent(questions, METRICS["exact"]) == 1.0, "no is among the right ones of each"
    assert guessed(questions, METRICS["exact"]) == 1.0
    questions += [heard(f"m{n}", "maybe") for n in range(10)]
    assert most_frequent(questions, METRICS["exact"]) == 0.5
    assert guessed(questions * 100, METRICS["exact"]) == pytest.approx((10 * 2 / 3 + 10 / 3) / 20, abs=0.03)
    assert most_frequent([heard("a", "a cat", "cat"), heard("b", "a cat")], METRICS["contained"]) == 1.0


def test_the_best_constant_answer_need_not_equal_the_most_frequent_one():
    boxes = ["[0, 0, 1, 1]"] * 2 + ["[0.4, 0, 1, 1]", "[0.5, 0, 1, 1]", "[0.6, 0, 1, 1]"]
    questions = [Question(f"{n}", "?", box) for n, box in enumerate(boxes)]
    assert most_frequent(questions, METRICS["location"]) == 1.0
    assert 0.0 < guessed(questions, METRICS["location"]) <= 1.0
