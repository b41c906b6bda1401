"""Exams of a model with vision experts: which of them look at a question's image, and how well it chose them."""

import json
from dataclasses import replace

import pytest
import torch.multiprocessing
from evaluation_fakes import make_subject
from routed_fake import judge_in_process, routed_subject

from mmmoe import env
from mmmoe.evaluation.questions import load_questions
from mmmoe.evaluation.routing import ROUTING_FILE, answer_losses, judge_routing, routing_score, with_routing
from mmmoe.evaluation.runner import evaluate, evaluate_all
from mmmoe.evaluation.spec import BenchmarkSpec, EvaluationSpec

ROWS = [
    {"id": "a", "shade": 3, "question": "what", "answer": "3n", "choices": ["3n", "x"]},
    {"id": "b", "shade": 9, "question": "and this longer one", "answer": "9", "choices": ["9", "8"]},
    {"id": "c", "image": None, "question": "no picture", "answer": "q", "choices": ["q", "r"]},
    {"id": "d", "shade": 20, "question": "here <image> inside", "answer": "20f", "choices": ["20f", "2"]},
    {"id": "e", "shade": 3, "question": "twice", "answer": "3", "choices": ["3", "5"]},
]
PREDICTED = {"a": (1, 1, 0), "b": (0, 0, 1), "c": (), "d": (0, 0, 0), "e": (1, 1, 0)}
LABELS = {"a": (1, 0, 1), "b": (0, 0, 0), "c": (), "d": (0, 1, 0), "e": (1, 0, 1)}


@pytest.fixture
def benchmark(benchmark_file):
    return BenchmarkSpec(name="shades", file=str(benchmark_file(ROWS)), kind="short_answer", max_new_tokens=8)


@pytest.fixture
def questions(benchmark):
    return load_questions(benchmark).questions


def spec_of(benchmark, **changes):
    values = {"benchmarks": [benchmark], "bootstrap": 100, "blind": False, "untrained": False} | changes
    return EvaluationSpec(**values)


def routings(questions):
    return {question.id: question.routing for question in questions}


MODES = {
    "predicted": PREDICTED,
    "labels": LABELS,
    "none": {"a": (0, 0, 0), "b": (0, 0, 0), "c": (), "d": (0, 0, 0), "e": (0, 0, 0)},
    "all": {"a": (1, 1, 1), "b": (1, 1, 1), "c": (), "d": (1, 1, 1), "e": (1, 1, 1)},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch", [1, 2, 64])
def test_each_mode_routes_as_it_says(mode, batch, questions):
    assert routings(with_routing(routed_subject(batch), questions, mode)) == MODES[mode]


def test_named_experts_look_at_every_image(questions):
    found = with_routing(routed_subject(), questions, ["wide", "near"])
    assert set(routings(found).values()) == {(1, 0, 1), ()}
    assert set(routings(with_routing(routed_subject(), questions, [])).values()) == {(0, 0, 0), ()}


def test_a_name_that_is_no_expert_is_refused(questions):
    with pytest.raises(
        ValueError, match=r"evaluation\.routing: \['sam'\] are no experts of this model \(near, far, wi"
    ):
        with_routing(routed_subject(), questions, ["near", "sam"])


def test_random_routings_are_of_one_to_three_and_drawn_by_the_id(questions):
    asked = [replace(questions[0], id=f"{number}") for number in range(200)]
    found = with_routing(routed_subject(), asked, "random")
    assert {sum(question.routing) for question in found} == {1, 2, 3}
    assert len({question.routing for question in found}) == 7
    alone = [with_routing(routed_subject(), [question], "random")[0] for question in reversed(asked)]
    assert routings(alone) == routings(found)
    single = with_routing(routed_subject(), asked, "random_one")
    assert {question.routing for question in single} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}


def test_a_model_without_experts_is_asked_as_before(benchmark, questions, tmp_path):
    for mode in ("predicted", "labels", "random", "random_one", "none", "all", ["near"]):
        assert with_routing(make_subject(), questions, mode) == questions
    rows = [
        evaluate(make_subject(), spec_of(benchmark, routing=mode), tmp_path / str(mode), "trained")[0]
        for mode in ("predicted", "all")
    ]
    assert (rows[0].score, rows[0].prompt_hash) == (rows[1].score, rows[1].prompt_hash)
    evaluate_all(make_subject(), spec_of(benchmark, routing_labels=2), tmp_path / "judged")
    assert not (tmp_path / "judged" / ROUTING_FILE).exists()


def test_only_questions_with_images_are_asked_for_a_routing(questions):
    subject = routed_subject()
    asked = []
    generate, score = subject.generate, subject.score
    subject.generate = lambda given, *rest: asked.append(len(given)) or generate(given, *rest)
    subject.score = lambda given, *rest: asked.append(len(given)) or score(given, *rest)
    with_routing(subject, questions, "predicted")
    with_routing(subject, questions, "labels")
    with_routing(subject, questions, "all")
    assert asked == [4, 4, 4, 4, 4]
    assert with_routing(subject, questions[2:3], "predicted")[0].routing == ()


@pytest.mark.parametrize("batch", [1, 64])
def test_answers_are_given_with_the_predicted_experts(benchmark, batch, tmp_path):
    evaluate(routed_subject(), spec_of(benchmark, batch=batch), tmp_path, "trained")
    lines = [json.loads(line) for line in (tmp_path / "trained/shades.jsonl").read_text().splitlines()]
    assert [line["prediction"] for line in lines] == ["3nf", "9w", "?", "20", "3nf"]
    assert {line["id"]: tuple(line["routing"]) for line in lines} == PREDICTED
    assert [line["question"] for line in lines] == [row["question"] for row in ROWS], "not the routing prompt"


def test_a_blind_model_chooses_by_grey(benchmark, questions, tmp_path):
    evaluate(routed_subject(), spec_of(benchmark), tmp_path, "blind", blind=True)
    lines = [json.loads(line) for line in (tmp_path / "blind/shades.jsonl").read_text().splitlines()]
    assert [line["prediction"] for line in lines] == ["128f", "128f", "?", "128f", "128f"]
    blind = with_routing(routed_subject(), questions, "labels", blind=True)
    assert set(routings(blind).values()) == {(0, 0, 1), ()}


def test_choices_are_scored_with_the_routed_experts(benchmark, questions, tmp_path):
    subject = routed_subject()
    without = subject.score(with_routing(subject, questions, "none"))
    labelled = subject.score(with_routing(subject, questions, "labels"))
    gains = {"a": 2.5, "b": 0.0, "c": 0.0, "d": 0.25, "e": 2.5}
    for question, before, after in zip(questions, without, labelled, strict=True):
        assert after == pytest.approx([score + gains[question.id] for score in before], abs=1e-4)
    choosing = spec_of(benchmark.model_copy(update={"kind": "multiple_choice"}), routing=["far"])
    evaluate(routed_subject(), choosing, tmp_path, "trained")
    lines = [json.loads(line) for line in (tmp_path / "trained/shades.jsonl").read_text().splitlines()]
    assert [line["routing"] for line in lines] == [[0, 1, 0], [0, 1, 0], [], [0, 1, 0], [0, 1, 0]]


def test_losses_of_an_answer_are_those_with_each_expert_alone(questions):
    shown = [question for question in questions if question.image is not None]
    losses = answer_losses(routed_subject(), shown)
    gains = [tuple(base - loss for loss in rest) for base, *rest in losses]
    for found, wanted in zip(gains, [(2, -1, 0.5), (-1, -1, -1), (0, 0.25, 0), (2, -1, 0.5)], strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)


BY_HAND = {"benchmark": "shades", "n": 4, "exact": 0.0, "bits": 6 / 12, "best": 2 / 3}
"""Predicted and wanted: 110 and 101 (one bit of three, the best is chosen) twice; 001 and 000; 000 and 010 (missed)."""


@pytest.mark.parametrize("kind", ["short_answer", "multiple_choice"])
def test_the_choice_of_experts_is_held_against_the_labels(kind, benchmark, tmp_path):
    spec = spec_of(benchmark.model_copy(update={"kind": kind}), routing_labels=5, routing="none")
    evaluate_all(routed_subject(), spec, tmp_path)
    [told] = json.loads((tmp_path / ROUTING_FILE).read_text())
    assert told.pop("shares") == [
        {"domain": "general", "n": 4, "predicted": [0.5, 0.5, 0.25], "labels": [0.5, 0.25, 0.5]}
    ]
    assert told == pytest.approx(BY_HAND)


def test_as_many_questions_as_asked_for_are_judged(benchmark, tmp_path):
    [score] = judge_routing(routed_subject(), spec_of(benchmark, routing_labels=2), tmp_path)
    assert (score.n, score.exact, score.bits, score.best) == (2, 0.0, 3 / 6, 1.0)


def test_a_benchmark_without_images_is_left_out(benchmark_file, tmp_path):
    file = benchmark_file([ROWS[2]], "text.jsonl")
    spec = spec_of(BenchmarkSpec(name="text", file=str(file), kind="short_answer"), routing_labels=3)
    assert judge_routing(routed_subject(), spec, tmp_path) == []
    assert json.loads((tmp_path / ROUTING_FILE).read_text()) == []


def test_agreement_by_hand():
    losses = [(1.0, 0.5, 2.0), (1.0, 2.0, 2.0), (1.0, 0.9, 0.8), (1.0, 0.5, 2.0)]  # 10, 00, 11 (best: second), 10
    score = routing_score("hand", [(1, 0), (1, 0), (1, 0), (0, 0)], losses)
    assert (score.n, score.exact, score.bits, score.best) == (4, 1 / 4, 5 / 8, 1 / 3)
    nobody = routing_score("hand", [(0, 0)], [(1.0, 2.0, 2.0)])
    assert (nobody.exact, nobody.bits, nobody.best) == (1.0, 1.0, None)


@pytest.mark.slow
def test_two_processes_judge_as_one(benchmark, tmp_path):
    spec = spec_of(benchmark, routing_labels=5)
    alone = judge_routing(routed_subject(), spec, tmp_path / "one")
    (tmp_path / "two").mkdir()
    given = (2, env.free_port(), spec, tmp_path / "two")
    torch.multiprocessing.spawn(judge_in_process, args=given, nprocs=2)
    assert {(tmp_path / "two" / f"rank{rank}.txt").read_text() for rank in range(2)} == {repr(alone)}
    one, two = ((tmp_path / name / ROUTING_FILE).read_text() for name in ("one", "two"))
    assert one == two
