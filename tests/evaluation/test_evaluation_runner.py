import json
import socket

import pytest
import torch
import torch.multiprocessing as mp
from evaluation_fakes import FakeModel, FakeTemplate, FakeTransform, make_subject, sit_in_process, sit_in_step
from rich.console import Console

from mmmoe import env
from mmmoe.evaluation.runner import evaluate, evaluate_all
from mmmoe.evaluation.scores import read_scores
from mmmoe.evaluation.spec import BenchmarkSpec, EvaluationSpec
from mmmoe.evaluation.subject import Subject
from mmmoe.evaluation.table import score_table


@pytest.fixture
def spec(benchmark_file):
    shades = [3, 9, 3, 12, 9, 3, 7]
    said = [{"id": i, "shade": s, "question": "shade", "answer": str(s)} for i, s in enumerate(shades)]
    said[3]["answer"] = "13"  # one that the fake gets wrong
    chosen = [
        {"id": i, "shade": s, "question": f"q{i}", "answer": "a", "choices": ["a", "bb", "c"]}
        for i, s in enumerate(shades)
    ]
    return EvaluationSpec(
        benchmarks=[
            BenchmarkSpec(
                name="said", file=str(benchmark_file(said, "said.jsonl")), kind="short_answer", domain="charts"
            ),
            BenchmarkSpec(name="chosen", file=str(benchmark_file(chosen, "chosen.jsonl")), kind="multiple_choice"),
        ],
        bootstrap=200,
    )


def read_answers(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_and_answer_files(spec, tmp_path):
    said, chosen = evaluate(make_subject(), spec, tmp_path, "trained")
    assert (said.benchmark, said.domain, said.kind, said.n) == ("said", "charts", "short_answer", 7)
    assert said.score == pytest.approx(6 / 7)
    assert said.low < said.score <= said.high
    assert said.chance == pytest.approx(1 / 4)  # 3, 9, 13, 7
    assert said.majority == pytest.approx(3 / 7)
    assert (said.partial, said.empty_share) == (False, 0.0)
    assert chosen.chance == pytest.approx(1 / 3)
    assert chosen.majority == 1.0
    answers = read_answers(tmp_path / "trained" / "said.jsonl")
    assert [answer["correct"] for answer in answers] == [True, True, True, False, True, True, True]
    assert set(answers[0]) == {
        "id", "image", "question", "answer", "prediction", "correct", "choices", "scores", "domain",
        "video", "speech", "audio", "routing", "drawn", "answers", "score", "parsed", "category", "group", "prompt",
        "unanswered",
    }  # fmt: skip
    for answer in read_answers(tmp_path / "trained" / "chosen.jsonl"):
        best = max(answer["scores"])
        assert answer["prediction"] == answer["choices"][answer["scores"].index(best)]
    assert read_scores(tmp_path / "scores.json") == [said, chosen]


def test_all_variants_share_one_scores_file(spec, tmp_path):
    rows = evaluate_all(make_subject(), spec, tmp_path, make_subject)
    assert [row.variant for row in rows] == ["trained"] * 2 + ["blind"] * 2 + ["untrained"] * 2
    assert read_scores(tmp_path / "scores.json") == rows
    blind = {row.benchmark: row for row in rows if row.variant == "blind"}
    assert blind["said"].score == 0.0, "every grey picture is called 128"
    again = evaluate(make_subject(), spec, tmp_path, "trained")
    assert len(read_scores(tmp_path / "scores.json")) == 6
    assert (
        [row.prompt_hash for row in again]
        == [row.prompt_hash for row in rows[:2]]
        == [row.prompt_hash for row in rows[2:4]]
    )


def test_the_decoding_is_recorded_and_does_not_outlast_its_evaluation(spec, tmp_path):
    subject = make_subject()
    generate, asked = subject._model.generate, []

    def generates(*args, beams=None, repetition_penalty=None, **more):
        asked.append((beams, repetition_penalty))
        return generate(*args, **more)

    subject._model.generate = generates
    other = spec.model_copy(update={"beams": 3, "repetition_penalty": 1.3})
    for one, way in ((other, (3, 1.3)), (spec, (1, 1.0))):
        said, chosen = evaluate(subject, one, tmp_path / str(way), "trained")
        assert (said.beams, said.repetition_penalty) == way
        assert (chosen.beams, chosen.repetition_penalty) == (1, 1.0), "nothing is generated"
    assert asked == [(3, 1.3), (None, None)]


def test_a_limit_marks_scores_partial(spec, tmp_path):
    rows = evaluate(make_subject(), spec.model_copy(update={"limit": 3}), tmp_path, "trained")
    assert [(row.n, row.partial) for row in rows] == [(3, True), (3, True)]
    rows = evaluate(make_subject(), spec.model_copy(update={"limit": 7}), tmp_path, "trained")
    assert [row.partial for row in rows] == [False, False]


def test_unanswerable_questions_count_as_empty_and_wrong(spec, tmp_path):
    subject = Subject(FakeModel(longest=2), FakeTemplate(), {"image": FakeTransform()}, torch.device("cpu"))
    chosen = evaluate(subject, spec, tmp_path, "trained")[1]
    assert (chosen.score, chosen.empty_share) == (0.0, 1.0)
    assert read_answers(tmp_path / "trained" / "chosen.jsonl")[0]["scores"] == [None] * 3


def test_all_files_are_read_before_the_first_question(spec, tmp_path):
    broken = spec.benchmarks[1].model_copy(update={"file": str(tmp_path / "none.jsonl")})
    with pytest.raises(ValueError, match="no file at"):
        evaluate(
            make_subject(), spec.model_copy(update={"benchmarks": [spec.benchmarks[0], broken]}), tmp_path, "trained"
        )
    assert not (tmp_path / "trained").exists()


def test_the_table_shows_score_interval_and_baselines(spec, tmp_path):
    rows = evaluate(make_subject(), spec.model_copy(update={"limit": 6}), tmp_path, "trained")
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(score_table(rows))
    text = console.export_text()
    assert "83.3" in text
    assert "6*" in text
    assert "partial" in text


def test_two_processes_write_the_same_answers_as_one(spec, tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    both.mkdir()
    rows = evaluate(make_subject(), spec, alone, "trained")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(sit_in_process, (2, port, spec, both), nprocs=2)
    for name in ("said", "chosen"):
        assert (both / "trained" / f"{name}.jsonl").read_text() == (alone / "trained" / f"{name}.jsonl").read_text()
    expected = repr([(row.benchmark, row.n, row.score, row.prompt_hash) for row in rows])
    assert {(both / f"rank{rank}.txt").read_text() for rank in range(2)} == {expected}


@pytest.mark.parametrize("limit", [7, 5, 1])
def test_processes_that_run_a_model_together_stay_in_step(spec, tmp_path, limit):
    """Five questions make unlike numbers of batches; of one question the second process has none."""
    spec = spec.model_copy(update={"batch": 2, "limit": limit})
    alone, both = tmp_path / "alone", tmp_path / "both"
    both.mkdir()
    evaluate(make_subject(), spec, alone, "trained")
    mp.spawn(sit_in_step, (2, env.free_port(), spec, both), nprocs=2)
    for name in ("said", "chosen"):
        assert (both / "trained" / f"{name}.jsonl").read_text() == (alone / "trained" / f"{name}.jsonl").read_text()
    assert len({(both / f"rank{rank}.txt").read_text() for rank in range(2)}) == 1
