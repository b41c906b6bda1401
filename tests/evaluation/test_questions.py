import pytest
from pydantic import ValidationError

from mmmoe.evaluation.answers import read_answers
from mmmoe.evaluation.questions import load_questions
from mmmoe.evaluation.scores import read_scores
from mmmoe.evaluation.spec import BenchmarkSpec, EvaluationSpec


def spec(path, kind="multiple_choice"):
    return BenchmarkSpec(name="b", file=str(path), kind=kind, domain="charts")


def test_fields_order_and_defaults(benchmark_file):
    path = benchmark_file(
        [
            {"id": 7, "shade": 3, "question": "q1", "answer": "a", "choices": ["a", "b"]},
            {"id": "x", "image": None, "question": "q2", "answer": "b", "choices": ["a", "b"], "domain": "general"},
        ]
    )
    first, second = load_questions(spec(path)).questions
    assert (first.id, first.text, first.answer, first.choices) == ("7", "q1", "a", ("a", "b"))
    assert first.image == path.parent / "3.png"
    assert (first.domain, second.domain) == ("charts", "general")
    assert second.image is None
    assert load_questions(spec(path), limit=1).questions == [first]


def test_every_wrong_line_is_told_at_once(benchmark_file):
    path = benchmark_file(
        [
            {"id": 1, "question": "q", "answer": "c", "choices": ["a", "b"]},
            {"id": 1, "question": "q", "answer": "a", "choices": ["a", "b"]},
            {"id": 2, "question": "q"},
            {"id": 3, "question": "q", "answer": "a", "choices": ["a"]},
            {"id": 4, "image": "gone.png", "question": "q", "answer": "a", "choices": ["a", "b"]},
            {"id": 5, "question": "<image> q", "answer": "a", "choices": ["a", "b"]},
            {"id": 6, "question": "q", "answer": "a", "choices": ["a", "a"]},
        ]
    )
    path.write_text(path.read_text() + "{broken\n[1]\n")
    with pytest.raises(ValueError) as caught:
        load_questions(spec(path))
    text = str(caught.value)
    for part in (
        "has 9 errors",
        "line 1: answer 'c' is not among the choices",
        "line 2: id '1' was already used in line 1",
        "line 3: field 'answer' is missing",
        "line 4: multiple_choice needs two choices",
        "line 5: no image at",
        "line 6: the question holds <image> but",
        "line 7: choices repeat",
        "line 8: not JSON",
        "line 9: expected an object, got list",
    ):
        assert part in text


def test_long_lists_of_errors_are_cut(benchmark_file):
    path = benchmark_file([{"id": i, "question": "q"} for i in range(25)])
    with pytest.raises(ValueError, match="and 5 more"):
        load_questions(spec(path))


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(ValueError, match="no file at"):
        load_questions(spec(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no questions"):
        load_questions(spec(tmp_path / "empty.jsonl"))


def test_another_encoding_is_told_with_file_and_line(benchmark_file, tmp_path):
    path = benchmark_file([{"id": 1, "question": "q", "answer": "a"}, {"id": 2, "question": "q", "answer": "?"}])
    path.write_bytes(path.read_bytes().replace(b'"?"', '"\u00e9t\u00e9"'.encode("latin-1")))
    with pytest.raises(ValueError, match=r"(?s)jsonl has 1 errors.*line 2: not UTF-8 .*save the file in that encoding"):
        load_questions(spec(path, "short_answer"))
    scores, answers = tmp_path / "scores.json", tmp_path / "b.jsonl"
    scores.write_bytes(b'[\n"\xe9"]')
    with pytest.raises(ValueError, match=r"scores.json line 2 is not UTF-8 .*evaluate again"):
        read_scores(scores)
    scores.write_text('["text"]')
    with pytest.raises(ValueError, match=r"scores.json is not a file of scores"):
        read_scores(scores)
    for broken in (b'{"id": "\xe9"}\n', b'{"id"\n', b"3\n"):
        answers.write_bytes(broken)
        with pytest.raises(ValueError, match=r"b.jsonl line 1 is no answer .*evaluate again"):
            read_answers(answers)


def test_names_cannot_leave_the_folder_or_clash(tmp_path):
    with pytest.raises(ValidationError, match="name"):
        BenchmarkSpec(name="../x", file="f", kind="short_answer")
    one = BenchmarkSpec(name="x", file="f", kind="short_answer")
    with pytest.raises(ValidationError, match="must differ"):
        EvaluationSpec(benchmarks=[one, one])
