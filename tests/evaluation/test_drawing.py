"""Benchmarks whose answers are pictures or places: what is filed and measured, and what is refused."""

from __future__ import annotations

import json
import socket
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from evaluation_fakes import DrawingModel, FakeReader, draw_in_process, drawing_subject, make_subject
from PIL import Image

from mmmoe.config.ids import LETTERS_VIEW
from mmmoe.evaluation import runner
from mmmoe.evaluation.drawing import as_picture, grid, likeness
from mmmoe.evaluation.location import box_of, is_there, overlap
from mmmoe.evaluation.questions import load_questions
from mmmoe.evaluation.runner import evaluate, evaluate_all
from mmmoe.evaluation.spec import BenchmarkSpec, DrawingSpec, EvaluationSpec
from mmmoe.evaluation.subject import Subject
from mmmoe.stages.evaluate import folder_name, question_task

WORDS = "abcab"
DRAWING = DrawingSpec(judge="reader.onnx", steps=3, guidance=1.5, seed=40)


@pytest.fixture
def faked(monkeypatch):
    monkeypatch.setattr(runner, "OcrJudge", FakeReader)


def rows_of(letters=WORDS, references=None, **more):
    """Returns questions whose prompts end with the letter; the third is about a picture."""
    rows = [{"id": f"q{n}", "question": f"{'long ' * n}{c}", "answer": c, **more} for n, c in enumerate(letters)]
    rows[2]["shade"] = 7
    for row, reference in zip(rows, references or [None] * len(rows), strict=True):
        row["reference"] = reference
    return rows


def spec_of(file, kind="drawing", **more):
    benchmarks = [BenchmarkSpec(name="write", file=str(file), kind=kind, domain="writing")]
    drawing = {"drawing": DRAWING} if kind == "drawing" else {}
    return EvaluationSpec(**({"benchmarks": benchmarks, "bootstrap": 100, "batch": 2} | drawing | more))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pictures_are_filed_and_read(faked, benchmark_file, tmp_path):
    rows = rows_of()
    rows[4]["answer"] = "x"  # one that is drawn wrong
    [row] = evaluate(drawing_subject(), spec_of(benchmark_file(rows)), tmp_path, "trained")
    answers = lines(tmp_path / "trained/write.jsonl")
    assert [answer["prediction"] for answer in answers] == list(WORDS)
    assert [answer["correct"] for answer in answers] == [True] * 4 + [False]
    for number, answer in enumerate(answers):
        assert answer["drawn"] == str(tmp_path / f"trained/write/q{number}.png")
        with Image.open(answer["drawn"]) as picture:
            assert picture.size == (6, 4)
            # The seed is the question's, whatever is drawn beside it.
            assert picture.getpixel((0, 0)) == (ord(WORDS[number]), 40 + number, 7 if number == 2 else 0)
    assert (row.kind, row.n, row.score, row.empty_share) == ("drawing", 5, 0.8, 0.0)
    assert set(row.measures) == {"ned", "shuffled", "shuffled_ned"}
    assert row.measures["ned"] == pytest.approx(0.8, abs=1e-3)
    assert row.measures["shuffled"] == 0.0


def test_steps_guidance_and_tasks_reach_the_model(faked, benchmark_file, tmp_path):
    subject = drawing_subject(task=lambda question, draws: 0 if draws else 1)
    evaluate(subject, spec_of(benchmark_file(rows_of())), tmp_path, "trained")
    calls = subject._model.calls
    assert {call[:2] for call in calls} == {(3, 1.5)}
    assert sorted(seed for call in calls for seed in call[2]) == [40, 41, 42, 43, 44]
    assert all(call[3] == [0] * len(call[2]) for call in calls)


def test_measures_tell_apart_a_model_that_does_not_heed_its_prompt():
    answers = ["ab", "cd", "ab"]
    same = likeness(["ab"] * 3, answers)
    assert same["shuffled"] == pytest.approx(1 / 3), "the third's next other word is the second's"
    assert same["ned"] == pytest.approx(2 / 3, abs=1e-4)
    found = likeness(["A-b", "c", ""], answers)
    assert found["ned"] == pytest.approx((1 + 0.5 + 0) / 3, abs=1e-4)
    assert found["shuffled_ned"] == pytest.approx(0.0, abs=1e-4)
    assert likeness(["c", "d", "a", "a"], ["a", "A!", "b", "c"])["shuffled"] == pytest.approx(1 / 4)
    assert set(likeness(["a", "b"], ["a", "A"])) == {"ned"}, "there is no other word"


def test_pixels_that_are_no_numbers_are_refused():
    pixels = torch.zeros(3, 2, 2)
    pixels[1, 0, 0], pixels[2, 1, 1] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="a drawing has 2 values of 12 that are not finite"):
        as_picture(pixels)


def test_words_that_no_judge_can_tell_from_nothing_are_refused(benchmark_file):
    rows = rows_of()
    rows[1]["answer"], rows[3]["answer"] = "\u00e9", "!?"
    with pytest.raises(ValueError, match="has 2 errors") as refused:
        load_questions(spec_of(benchmark_file(rows)).benchmarks[0])
    assert "answer '!?' has no letter a-z nor digit" in str(refused.value)


def test_an_answer_may_hold_the_right_one(benchmark_file, tmp_path):
    rows = [{"id": "a", "question": "3", "answer": "3"}, {"id": "b", "question": "4", "answer": "none of it"}]
    file = benchmark_file(rows)
    benchmarks = [BenchmarkSpec(name="write", file=str(file), kind="short_answer", metric="contained")]
    [row] = evaluate(make_subject(), spec_of(file, "short_answer", benchmarks=benchmarks), tmp_path, "trained")
    for answer in lines(tmp_path / "trained/write.jsonl"):
        assert answer["correct"] == (answer["answer"] in answer["prediction"])
    assert row.metric == "contained"


def test_judges_are_made_and_references_read_once_for_all_variants(monkeypatch, benchmark_file, tmp_path):
    made, read = [], []

    class Counting(FakeReader):
        def __init__(self, path):
            made.append(path)
            super().__init__(path)

        def read(self, pictures):
            read.append(len(pictures))
            return super().read(pictures)

    monkeypatch.setattr(runner, "OcrJudge", Counting)
    file = benchmark_file(rows_of("abc", ["0.png"] * 3))
    Image.new("RGB", (6, 4), (ord("a"), 0, 0)).save(file.parent / "0.png")
    rows = evaluate_all(drawing_subject(), spec_of(file), tmp_path, drawing_subject)
    assert [row.variant for row in rows] == ["trained", "blind", "untrained"]
    assert len({row.measures["judge"] for row in rows}) == len(made) == 1
    assert read == [3] * 4  # drawings of three variants, the references once


def test_references_say_how_well_the_judge_reads(faked, benchmark_file, tmp_path):
    file = benchmark_file(rows_of("abc", ["0.png", "1.png", "2.png"]))
    for number, letter in enumerate("abx"):
        Image.new("RGB", (6, 4), (ord(letter), 0, 0)).save(file.parent / f"{number}.png")
    [row] = evaluate(drawing_subject(), spec_of(file), tmp_path, "trained")
    assert row.score == 1.0
    assert row.measures["judge"] == pytest.approx(2 / 3, abs=1e-4)


def test_blind_drawings_see_a_grey_picture(faked, benchmark_file, tmp_path):
    rows = evaluate_all(drawing_subject(), spec_of(benchmark_file(rows_of())), tmp_path, drawing_subject)
    assert [row.variant for row in rows] == ["trained", "blind", "untrained"]
    assert len({row.prompt_hash for row in rows}) == 1
    blues = {}
    for variant in ("trained", "blind"):
        with Image.open(tmp_path / variant / "write/q2.png") as picture:
            blues[variant] = picture.getpixel((0, 0))[2]
    assert blues == {"trained": 7, "blind": 128}


def test_two_processes_draw_the_same_as_one(faked, benchmark_file, tmp_path):
    spec = spec_of(benchmark_file(rows_of()))
    alone, both = tmp_path / "alone", tmp_path / "both"
    both.mkdir()
    rows = evaluate(drawing_subject(), spec, alone, "trained")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(draw_in_process, (2, port, spec, both), nprocs=2)
    ours, theirs = (lines(folder / "trained/write.jsonl") for folder in (both, alone))
    assert [answer | {"drawn": None} for answer in ours] == [answer | {"drawn": None} for answer in theirs]
    for number in range(len(WORDS)):
        name = f"trained/write/q{number}.png"
        assert (both / name).read_bytes() == (alone / name).read_bytes()
    expected = repr([(row.n, row.score, row.prompt_hash, row.measures) for row in rows])
    assert {(both / f"rank{rank}.txt").read_text() for rank in range(2)} == {expected}


def test_a_model_that_draws_nothing_is_refused_at_once(faked, benchmark_file, tmp_path):
    subject = make_subject()
    with pytest.raises(ValueError, match="'write' is of kind drawing, but the model draws no images; leave it out"):
        evaluate(subject, spec_of(benchmark_file(rows_of())), tmp_path, "trained")
    assert subject._model.calls == []


def test_drawings_without_a_judge_are_refused(benchmark_file, tmp_path):
    file = benchmark_file(rows_of())
    with pytest.raises(ValueError, match=r"'write' is of kind drawing: give evaluation\.drawing with a judge"):
        spec_of(file, drawing=None)
    missing = spec_of(file, drawing=DrawingSpec(judge=str(tmp_path / "none.onnx")))
    subject = drawing_subject()
    with pytest.raises(ValueError, match="no OCR judge at"):
        evaluate(subject, missing, tmp_path, "trained")
    assert subject._model.calls == [], "before anything is drawn"


def test_files_of_drawings_are_checked_whole(benchmark_file):
    rows = rows_of()
    rows[0]["reference"] = "none.png"
    rows[1]["id"] = "../q1"
    rows[3]["reference"] = 5
    with pytest.raises(ValueError, match="has 3 errors") as refused:
        load_questions(spec_of(benchmark_file(rows)).benchmarks[0])
    told = str(refused.value)
    assert "line 1: no reference at" in told
    assert "line 2: id '../q1' names the picture that is drawn" in told
    assert "line 4: field 'reference' must be text" in told


def test_letters_of_a_prompt_go_with_it(faked, benchmark_file, tmp_path):
    """Rows are sorted by length; each keeps its own letters."""
    subject, seen = drawing_subject(), []
    subject._template = SimpleNamespace(
        tokenizer=subject._template.tokenizer,
        prompt_to_draw=subject._template.prompt_to_draw,
        letters=SimpleNamespace(padded=lambda ids: torch.tensor([len(ids) - 3, -1])),
    )
    drawn = subject._model.draw

    def draw(input_ids_BT, attention_mask_BT, media=None, **more):
        lengths = attention_mask_BT.sum(1)
        assert torch.equal(media[LETTERS_VIEW][:, 0], lengths - 3)
        seen.append(len(lengths))
        return drawn(input_ids_BT, attention_mask_BT, **more)

    subject._model.draw = draw
    evaluate(subject, spec_of(benchmark_file(rows_of())), tmp_path, "trained")
    assert seen == [2, 2, 1]


def test_pictures_of_values_and_their_grid():
    picture = as_picture(torch.tensor([-1.0, 0.5, 2.0])[:, None, None].expand(3, 2, 3))
    assert (picture.size, picture.getpixel((1, 1))) == ((3, 2), (0, 128, 255))
    sheet = grid([Image.new("RGB", (3, 2), (n, 0, 0)) for n in range(5)], columns=2)
    assert sheet.size == (8, 10)
    assert [sheet.getpixel(place)[0] for place in ((0, 0), (3, 0), (5, 0), (0, 4), (5, 9))] == [0, 255, 1, 2, 255]


# Places


def test_boxes_in_words():
    assert box_of("from 1.5, 2 to 30 and 4") == (1.5, 2, 30, 4)
    assert box_of("[1, 2, 3, 4], or 9") == (1, 2, 3, 4)
    assert box_of("[.10, .1, -.5, 0.5]") is None, "turned round: a leading point is no tens"
    assert box_of("[.10, .1, .5, 0.5]") == (0.1, 0.1, 0.5, 0.5)
    assert box_of("1 2 3") is None
    assert box_of("nowhere") is None
    assert box_of("3 2 1 4") is None, "turned round"
    assert box_of("1 4 3 2") is None
    assert box_of("[-3, -1.5, 2, 4]") == (-3, -1.5, 2, 4)
    assert box_of("from 1-3 to 5-7, x-2") == (1, 3, 5, 7), "dashes"


@pytest.mark.parametrize(
    ("prediction", "is_right"),
    [
        ("0 0 10 10", True),
        ("0 0 10 5", True),  # exactly half
        ("0 0 10 4.99", False),
        ("5 0 15 10", False),
        ("0 0 20 10", True),  # exactly half
        ("0 0 20.1 10", False),
        ("10 0 20 10", False),
        ("10 10 0 0", False),
        ("0 0 10", False),
        ("", False),
        ("0 0 0 0", False),
    ],
)
def test_a_place_is_found_if_half_is_shared(prediction, is_right):
    assert is_there(prediction, "0 0 10 10") is is_right


def test_overlap_of_nothing():
    assert overlap((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 4, 4), (1, 1, 2, 2)) == pytest.approx(1 / 16)


def test_places_are_scored_and_wrong_answers_refused(benchmark_file, tmp_path):
    subject = make_subject()
    said = iter(["0 0 10 10", "9 9 1 1", "0 0 1 1"])
    subject.generate = lambda mine, *_: [next(said) for _ in mine]
    rows = [{"id": n, "question": "where?", "answer": "0 0 10 9"} for n in range(3)]
    [row] = evaluate(subject, spec_of(benchmark_file(rows), "location"), tmp_path, "trained")
    assert (row.kind, row.score, row.measures) == ("location", pytest.approx(1 / 3), {})
    rows[1]["answer"] = "in the middle"
    rows[2]["answer"] = "5 5 1 9"
    rows[0]["answer"] = "5 5 5 9"
    with pytest.raises(ValueError, match="has 3 errors") as refused:
        load_questions(spec_of(benchmark_file(rows), "location").benchmarks[0])
    assert "answer 'in the middle' names no box; give left, top, right and bottom" in str(refused.value)
    assert "answers ['5 5 5 9'] hold a box without area" in str(refused.value)


# Who tells the gate


class Gated:
    def __init__(self, gate):
        self.slide = SimpleNamespace(spec=SimpleNamespace(gate=gate), heeds_tasks=False)


@pytest.mark.parametrize(
    ("gate", "tasks", "told"),
    [
        ("learned", "model", None),
        ("learned", "keyword", [0, 1, 1]),
        ("learned", "label", [0, 0, 1]),
        ("keyword", "model", [0, 1, 1]),
        ("keyword", "label", [0, 0, 1]),
        ("label", "model", [0, 0, 1]),
        ("label", "keyword", [0, 1, 1]),
    ],
)
def test_who_tells_the_gate_a_questions_task(gate, tasks, told):
    model = Gated(gate)
    rule = question_task(model, tasks)
    assert (rule is None) == (told is None) == (not model.slide.heeds_tasks)
    if rule is not None:
        asked = [("Generate an image of x.", True), ("Draw x.", True), ("What is it?", False)]
        assert [rule(question, draws) for question, draws in asked] == told


def test_a_model_without_a_gate_is_told_nothing():
    assert question_task(SimpleNamespace(slide=None), "model") is None
    with pytest.raises(ValueError, match=r"evaluation\.tasks is label, but the model has no Slide-LoRA"):
        question_task(SimpleNamespace(slide=None), "label")


def test_tasks_reach_the_model_in_every_kind_of_question(benchmark_file, tmp_path):
    """A model without tasks is told of none."""

    class Told(DrawingModel):
        def generate(self, *given, task_B=None, **more):
            self.calls.append(task_B.tolist())
            return super().generate(*given, **more)

        def forward(self, *given, task_B=None, **more):
            self.calls.append(task_B.tolist())
            return super().forward(*given, **more)

    plain = drawing_subject()
    subject = Subject(
        Told(), plain._template, {}, torch.device("cpu"), task=lambda question, draws: int(question.startswith("w"))
    )
    rows = [{"id": n, "question": q, "answer": "w", "choices": ["w", "b"]} for n, q in enumerate(("what", "draw"))]
    for kind, wanted in (("short_answer", [0, 1]), ("multiple_choice", [0, 0, 1, 1])):
        subject._model.calls.clear()
        evaluate(subject, spec_of(benchmark_file(rows), kind), tmp_path, "trained")
        told = [task for call in subject._model.calls if isinstance(call, list) for task in call]
        assert sorted(told) == wanted


def test_scores_of_other_tasks_have_a_folder_of_their_own(benchmark_file):
    own = spec_of(benchmark_file(rows_of()))
    assert folder_name(own, own) == "evaluation"
    assert folder_name(own.model_copy(update={"tasks": "label"}), own) == "evaluation_tasks_label"
