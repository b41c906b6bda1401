"""A whole MoVA sits an exam: the routing pass and the answer in batches are those of one question at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mova_project import finished_stage, make_mova_project

from mmmoe.config.load import load
from mmmoe.data.routed_images import draw_routing
from mmmoe.evaluation.questions import load_questions
from mmmoe.evaluation.routing import ANSWER_TOKENS, answer_losses, with_routing
from mmmoe.models.lora.spec import LoRASpec
from mmmoe.stages.evaluate import subject_of
from mmmoe.stages.handover import rebuild
from mmmoe.stages.spec import RunSpec


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load(make_mova_project(tmp_path_factory.mktemp("exam") / "project", samples=12), RunSpec)


@pytest.fixture(scope="module")
def judge(run, tmp_path_factory):
    return finished_stage(tmp_path_factory.mktemp("judge") / "final", run, language=0.4)


@pytest.fixture(scope="module")
def questions(run):
    asked = load_questions(run.evaluation.benchmarks[0]).questions
    longer = [replace(q, id=f"long{q.id}", text=f"{q.text} say it, and why, in one word") for q in asked[::2]]
    text = [replace(q, id=f"text{q.id}", image=None) for q in asked[:2]]
    placed = [replace(q, id=f"placed{q.id}", text=f"what is on <image> here? {q.id}") for q in asked[:3]]
    return [*asked, *longer, *text, *placed]


def subject(judge, tmp_path, batch):
    """Returns who is asked; what its random language model says stands for a routing all the same."""
    model, heritage = rebuild(judge.path)
    made = subject_of(model, heritage, tmp_path)
    made.batch = batch
    made.guide.read = lambda answer: draw_routing(answer, 3)
    return made


@pytest.mark.parametrize("blind", [False, True])
def test_batches_route_and_answer_as_single_questions_do(judge, questions, tmp_path, blind):
    told = []
    for batch in (1, 3, 64):
        asked = subject(judge, tmp_path, batch)
        routed = with_routing(asked, questions, "predicted", blind)
        told.append(([question.routing for question in routed], asked.generate(routed, 8, blind)))
    assert told[0] == told[1] == told[2]
    routings, answers = (set(of_all) for of_all in told[0])
    assert len(routings) > 3, "the routing passes say different things"
    assert len(answers) > 3
    assert [routing for routing, q in zip(told[0][0], questions, strict=True) if q.image is None] == [(), ()]


def test_scores_and_losses_do_not_depend_on_the_batch(judge, questions, tmp_path):
    one, many = (subject(judge, tmp_path, batch) for batch in (1, 64))
    routed = with_routing(one, questions, "random")
    for a, b in zip(one.score(routed), many.score(routed), strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    shown = [question for question in questions if question.image is not None]
    for a, b in zip(answer_losses(one, shown), answer_losses(many, shown), strict=True):
        assert a == pytest.approx(b, abs=1e-4)
        assert len({round(loss, 4) for loss in a}) == 4, "every expert makes a difference"


def test_experts_are_run_for_the_images_routed_to_them_alone(judge, questions, tmp_path):
    asked = subject(judge, tmp_path, 64)
    seen = []
    encode = asked._model.encode
    asked._model.encode = lambda view, media: seen.append(view) or encode(view, media)
    asked.generate([replace(question, routing=None) for question in questions], ANSWER_TOKENS)
    assert set(seen) == {"image"}
    asked.generate([replace(question, routing=(0, 1, 0)) for question in questions], 2)
    assert set(seen) == {"image", "image.colour"}
    assert "image.grain" not in seen


def test_an_adapter_for_routing_passes_leaves_answers_as_they_are(judge, questions, tmp_path):
    plain, adapted = (subject(judge, tmp_path, 64) for _ in range(2))
    adapted._model.add_adapters([LoRASpec(sites=["language.*.mlp.*_proj"], rank=2, alpha=8, rows="routing")])
    for name, parameter in adapted._model.named_parameters():
        if name.endswith("b_EDR"):
            parameter.data.normal_(std=0.5)
    routed = with_routing(plain, questions, "predicted")
    assert adapted.generate(routed, 8) == plain.generate(routed, 8)
    assert adapted.score(routed) == plain.score(routed)
    assert with_routing(adapted, questions, "predicted") != routed
