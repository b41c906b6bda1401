"""A question that the model has no room for is wrong, counted and told, and changes nothing of the others."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch.multiprocessing as mp
from evaluation_fakes import FakeReader, drawing_subject, make_subject, mortal_subject, sit_in_step
from PIL import Image
from rich.console import Console

from mmmoe import env
from mmmoe.config.ids import IMAGE_ID
from mmmoe.evaluation import runner
from mmmoe.evaluation.answers import read_answers
from mmmoe.evaluation.metrics.metric import Item, Verdict, total
from mmmoe.evaluation.metrics.registry import METRICS
from mmmoe.evaluation.questions import Question
from mmmoe.evaluation.runner import evaluate
from mmmoe.evaluation.scores import read_scores
from mmmoe.evaluation.sequences import Row, length_of
from mmmoe.evaluation.spec import BenchmarkSpec, DrawingSpec, EvaluationSpec
from mmmoe.evaluation.table import score_table
from mmmoe.models.generation import NO_NUMBER

ROOM = 30
SHADES = [3, 9, 5, 12, 7]
LONG = 2
"""Place of the question that does not fit."""


def rows_of(long=LONG, **more):
    words = ["x" * (40 if n == long else 4 * n) for n in range(len(SHADES))]
    return [{"id": f"q{n}", "shade": s, "question": words[n], "answer": str(s), **more} for n, s in enumerate(SHADES)]


def spec_of(file, **more):
    benchmark = BenchmarkSpec(name="said", file=str(file), **{"kind": "short_answer", **more})
    drawing = DrawingSpec(judge="reader.onnx", steps=3, guidance=1.5, seed=40) if benchmark.kind == "drawing" else None
    return EvaluationSpec(benchmarks=[benchmark], bootstrap=100, batch=2, drawing=drawing)


def narrow(subject, room=ROOM):
    subject._model.max_positions = room
    return subject


def answers_in(folder):
    return read_answers(folder / "trained" / "said.jsonl")


def test_one_long_question_is_wrong_and_told_and_the_others_are_answered(benchmark_file, tmp_path):
    spec = spec_of(benchmark_file(rows_of()))
    [row] = evaluate(narrow(make_subject()), spec, tmp_path, "trained")
    assert (row.n, row.score, row.unanswered, row.set_aside, row.partial) == (5, 0.8, 1, 0, False)
    want = "question 'q2': its prompt takes 43 positions and the model has 30; shorten it or raise max_positions"
    assert row.unanswered_reasons == [want]
    assert read_scores(tmp_path / "scores.json") == [row]
    told = answers_in(tmp_path)
    assert [answer.prediction for answer in told] == ["3", "9", "", "12", "7"]
    assert [answer.unanswered for answer in told] == ["", "", want, "", ""]
    assert (told[LONG].parsed, told[LONG].score, told[LONG].correct) == (None, 0.0, False)
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(score_table([row]))
    text = " ".join(console.export_text().split())
    assert "said, trained: 1 of 5 not answered, which counts as wrong, the first: question 'q2'" in text


def test_a_prompt_that_just_fits_is_asked(benchmark_file, tmp_path):
    spec = spec_of(benchmark_file(rows_of()))
    assert evaluate(narrow(make_subject(), 43), spec, tmp_path, "trained")[0].unanswered == 0
    assert evaluate(narrow(make_subject(), 42), spec, tmp_path, "trained")[0].unanswered == 1


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_the_others_share_the_batches_that_they_have_without_it(benchmark_file, tmp_path, batch):
    """The same sequences side by side, so the same bits."""
    logs = []
    for name, rows in (("with", rows_of()), ("without", rows_of()[:LONG] + rows_of()[LONG + 1 :])):
        subject = narrow(mortal_subject(tmp_path / f"{name}.log"))
        shapes, words = [], subject._model.generate

        def generate(input_ids_BT, *given, shapes=shapes, words=words, **more):
            shapes.append(tuple(input_ids_BT.shape))
            return words(input_ids_BT, *given, **more)

        subject._model.generate = generate
        spec = spec_of(benchmark_file(rows, f"{name}.jsonl")).model_copy(update={"batch": batch})
        evaluate(subject, spec, tmp_path / name, "trained")
        logs.append((shapes, (tmp_path / f"{name}.log").read_text()))
    assert logs[0] == logs[1]
    mine = [answer for answer in answers_in(tmp_path / "with") if not answer.unanswered]
    assert mine == answers_in(tmp_path / "without")


@pytest.mark.parametrize("kind", ["short_answer", "multiple_choice"])
def test_after_a_kill_it_is_not_asked_again(benchmark_file, tmp_path, kind):
    more = {"choices": ["3", "9", "5", "12", "7"]} if kind == "multiple_choice" else {}
    spec = spec_of(benchmark_file(rows_of(**more)), kind=kind)

    def die():
        raise KeyboardInterrupt

    def subject(log, lives=None):
        made = narrow(mortal_subject(tmp_path / log, lives, die))
        made._model.longest = ROOM
        return made

    [wanted] = evaluate(subject("whole.log"), spec, tmp_path / "whole", "trained", cache=tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        evaluate(subject("part.log", 1), spec, tmp_path / "out", "trained", cache=tmp_path / "b")
    [row] = evaluate(subject("part.log"), spec, tmp_path / "out", "trained", cache=tmp_path / "b")
    assert sorted((tmp_path / "part.log").read_text().splitlines()) == sorted(
        (tmp_path / "whole.log").read_text().splitlines()
    )
    assert (row.unanswered, row.score) == (1, wanted.score)
    assert row.unanswered_reasons == wanted.unanswered_reasons
    asked = (tmp_path / "part.log").read_text()
    [again] = evaluate(subject("part.log"), spec, tmp_path / "out", "trained", cache=tmp_path / "b")
    assert (tmp_path / "part.log").read_text() == asked, "nothing was asked a third time"
    assert (again.unanswered, again.score) == (1, wanted.score)


def test_choices_none_of_which_fits_are_no_answer(benchmark_file, tmp_path):
    file = benchmark_file(rows_of(choices=["3", "9", "5", "12", "7"]))
    spec = spec_of(file, kind="multiple_choice")
    subject = narrow(make_subject())
    subject._model.longest = ROOM
    [row] = evaluate(subject, spec, tmp_path, "trained")
    assert (row.n, row.unanswered) == (5, 1)
    [reason] = row.unanswered_reasons
    assert reason.startswith("question 'q2': with its prompt none of its choices fits into the model's 30 positions")
    answer = answers_in(tmp_path)[LONG]
    assert (answer.prediction, answer.score, answer.scores) == ("", 0.0, [None] * 5)


def test_a_picture_that_is_not_drawn_is_black(benchmark_file, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "OcrJudge", FakeReader)
    rows = [{"id": f"q{n}", "question": f"{'long ' * n}{c}", "answer": c} for n, c in enumerate("abc")]
    spec = spec_of(benchmark_file(rows), kind="drawing")
    # The longest prompt takes 13 ids, and the beginning of the picture one.
    for room, unanswered in ((14, 0), (13, 1)):
        [row] = evaluate(narrow(drawing_subject(), room), spec, tmp_path / f"{room}", "trained")
        assert (row.n, row.unanswered, row.score) == (3, unanswered, pytest.approx(1 - unanswered / 3))
    answer = answers_in(tmp_path / "13")[2]
    with Image.open(answer.drawn) as picture:
        assert (picture.size, picture.getextrema()) == ((6, 4), ((0, 0),) * 3)


def test_no_metric_takes_it_for_right():
    """To POPE an empty answer is a yes."""
    items = [Item("1", ("yes",)), Item("2", ("no",)), Item("3", ("yes",))]
    nothing = Verdict(0.0, None)
    sums = total(METRICS["pope"].counts(items, [nothing, nothing, Verdict(1.0, "yes")]))
    assert {cell: float(sums[cell]) for cell in ("tp", "fp", "tn", "fn")} == {"tp": 1, "fp": 1, "tn": 0, "fn": 1}


def test_pope_counts_it_as_wrong_where_the_right_answer_is_yes(benchmark_file, tmp_path):
    rows = [row | {"answer": "yes"} for row in rows_of()]
    [row] = evaluate(narrow(make_subject()), spec_of(benchmark_file(rows), metric="pope"), tmp_path, "trained")
    assert (row.measures["accuracy"], row.unparsable_share) == (0.8, 0.2)


def test_answer_files_of_an_earlier_day_are_read(benchmark_file, tmp_path):
    evaluate(make_subject(), spec_of(benchmark_file(rows_of())), tmp_path, "trained")
    file = tmp_path / "trained" / "said.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        del row["unanswered"]
    new = answers_in(tmp_path)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert answers_in(tmp_path) == new


def test_an_image_of_a_routing_pass_takes_its_own_positions():
    sizes = {"image": 9, "image.glance": 4, "speech": 3}
    row = Row(0, [5, IMAGE_ID, 6], [0, 0, 0], {}, {})
    assert length_of(row, sizes.__getitem__) == 11
    assert length_of(replace(row, is_glance=True), sizes.__getitem__) == 6


def test_a_process_whose_only_question_is_too_long_stays_in_step(benchmark_file, tmp_path):
    """It runs the model as often as the other all the same."""
    spec = spec_of(benchmark_file(rows_of(long=1)[:2]))
    both = tmp_path / "both"
    both.mkdir()
    evaluate(narrow(make_subject()), spec, tmp_path / "alone", "trained")
    mp.spawn(sit_in_step, (2, env.free_port(), spec, both, ROOM), nprocs=2)
    assert answers_in(both) == answers_in(tmp_path / "alone")
    assert [answer.prediction for answer in answers_in(both)] == ["3", ""]
    assert len({(both / f"rank{rank}.txt").read_text() for rank in range(2)}) == 1


def test_a_question_alone_gets_no_words_and_a_reason():
    subject = narrow(make_subject(), 4)
    assert subject.generate([Question("1", "four", "f"), Question("2", "4", "4")], 3) == ["", "4"]
    assert list(subject.unanswered) == ["1"]


@pytest.mark.parametrize("kind", ["short_answer", "multiple_choice"])
def test_a_question_of_which_the_model_says_nan_is_no_answer_and_is_asked_again(benchmark_file, tmp_path, kind):
    more = {"choices": ["3", "9", "5", "12", "7"]} if kind == "multiple_choice" else {}
    spec = spec_of(benchmark_file(rows_of(long=-1, **more)), kind=kind)
    spoilt = mortal_subject(tmp_path / "log")
    model = spoilt._model
    words, costs = model.generate, model.cost

    def generate(input_ids_BT, *given, **more):
        said = words(input_ids_BT, *given, **more)
        return [[NO_NUMBER] if text == [ord("5")] else text for text in said]

    model.generate = generate
    model.cost = lambda previous, token, shade: math.nan if int(shade) == 5 else costs(previous, token, shade)
    [row] = evaluate(spoilt, spec, tmp_path / "out", "trained", cache=tmp_path / "cache")
    assert row.unanswered == 1
    assert "question 'q2': the model says NaN: its weights hold some" in row.unanswered_reasons[0]
    told = answers_in(tmp_path / "out")
    assert [bool(answer.unanswered) for answer in told] == [False, False, True, False, False]
    assert (told[2].prediction, told[2].correct) == ("", False)
    [sound] = evaluate(mortal_subject(tmp_path / "log"), spec, tmp_path / "out", "trained", cache=tmp_path / "cache")
    assert (sound.unanswered, sound.reused) == (0, 4)
