"""Gives each question of an exam the vision experts that look at its image: asked of the model, drawn, or by loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mmmoe import dist, env
from mmmoe.data.routed_images import draw_routing
from mmmoe.data.routing_labels import routing_of
from mmmoe.data.routing_prompt import MOST, one_where
from mmmoe.evaluation.questions import Question, load_questions
from mmmoe.evaluation.shares import joined, share, write_text
from mmmoe.evaluation.spec import EvaluationSpec, RoutingMode
from mmmoe.evaluation.subject import Subject

ROUTING_FILE = "routing.json"
ANSWER_TOKENS = 16
"""Longest answer of a routing pass, as released; three letters take five."""


def with_routing(
    subject: Subject, questions: Sequence[Question], mode: RoutingMode, blind: bool = False
) -> list[Question]:
    """Returns the questions with a routing each; as they are where the model has no experts or there is no image.

    Args:
        subject: who is asked.
        questions: some questions.
        mode: predicted: the model answers a routing prompt first, in batches; labels: the experts that lower the loss
            of the right answer; random: one to three, drawn by the question's id; random_one: one; none; all; or names.
        blind: whether images are grey, in the routing pass as well.
    """
    if subject.guide is None:
        return list(questions)
    shown = [question for question in questions if question.image is not None]
    routings = iter(_routings(subject, shown, mode, blind))
    return [replace(question, routing=() if question.image is None else next(routings)) for question in questions]


def _routings(subject: Subject, questions: Sequence[Question], mode: RoutingMode, blind: bool) -> list[tuple[int, ...]]:
    guide = subject.guide
    assert guide is not None
    experts = len(guide.experts)
    if mode == "predicted":
        return _predicted(subject, questions, blind)
    if mode == "labels":
        return [routing_of(losses) for losses in answer_losses(subject, questions, blind)]
    if mode in ("random", "random_one"):
        most = MOST if mode == "random" else 1
        return [draw_routing(question.id, experts, most, least=1) for question in questions]
    if isinstance(mode, str):
        return [(int(mode == "all"),) * experts] * len(questions)
    unknown = sorted(set(mode) - set(guide.experts))
    if unknown:
        raise ValueError(f"evaluation.routing: {unknown} are no experts of this model ({', '.join(guide.experts)})")
    return [one_where({guide.experts.index(name) for name in mode}, experts)] * len(questions)


def answer_losses(subject: Subject, questions: Sequence[Question], blind: bool = False) -> list[tuple[float, ...]]:
    """Returns the loss of each right answer without experts, then with each alone."""
    assert subject.guide is not None
    experts = len(subject.guide.experts)
    columns = []
    for chosen in (set[int](), *({expert} for expert in range(experts))):
        routing = one_where(chosen, experts)
        asked = [replace(question, choices=(question.answer,), routing=routing) for question in questions]
        columns.append([-score for (score,) in subject.score(asked, blind)])
    return list(zip(*columns, strict=True))


def _predicted(subject: Subject, questions: Sequence[Question], blind: bool) -> list[tuple[int, ...]]:
    guide = subject.guide
    assert guide is not None
    asked = [replace(question, text=guide.prompt(question.text), routing=None, choices=()) for question in questions]
    return [guide.read(answer) for answer in subject.generate(asked, ANSWER_TOKENS, blind)]


@dataclass(frozen=True)
class RoutingShare:
    """How often each expert is named in the questions of a domain, by the model and by the labels."""

    domain: str
    n: int
    predicted: list[float]
    """Share of the questions, by expert."""
    labels: list[float]


@dataclass(frozen=True)
class RoutingScore:
    """How well a model's own routing of a benchmark agrees with the labels by loss."""

    benchmark: str
    n: int
    exact: float
    """Share of questions with the very set of experts."""
    bits: float
    """Share of experts, over all questions, that are in both sets or in neither."""
    best: float | None
    """Of the questions that some expert helps, the share in which the most helpful one was chosen; null without any."""
    shares: tuple[RoutingShare, ...] = ()
    """One a domain of the questions."""


def routing_score(
    benchmark: str, predicted: Sequence[Sequence[int]], losses: Sequence[tuple[float, ...]]
) -> RoutingScore:
    """Returns the agreement of routings with what losses (of none, then of each expert) say."""
    wanted = [routing_of(of_question) for of_question in losses]
    pairs = [(tuple(one), other) for one, other in zip(predicted, wanted, strict=True)]
    bits = [p == w for one, other in pairs for p, w in zip(one, other, strict=True)]
    hits = [
        one[min(range(len(one)), key=lambda expert: of_question[1 + expert])] == 1
        for (one, other), of_question in zip(pairs, losses, strict=True)
        if any(other)
    ]
    return RoutingScore(
        benchmark,
        len(pairs),
        sum(one == other for one, other in pairs) / len(pairs),
        sum(bits) / len(bits),
        sum(hits) / len(hits) if hits else None,
    )


def routing_shares(
    domains: Sequence[str], predicted: Sequence[Sequence[int]], losses: Sequence[tuple[float, ...]]
) -> tuple[RoutingShare, ...]:
    """Returns how often experts are named, for each domain in order of first appearance."""
    shares = []
    for domain in dict.fromkeys(domains):
        places = [place for place, one in enumerate(domains) if one == domain]
        named = ([predicted[place] for place in places], [routing_of(losses[place]) for place in places])
        columns = [[sum(bits) / len(places) for bits in zip(*rows, strict=True)] for rows in named]
        shares.append(RoutingShare(domain, len(places), *columns))
    return tuple(shares)


def judge_routing(
    subject: Subject, spec: EvaluationSpec, out_folder: Path, cache: Path | None = None
) -> list[RoutingScore]:
    """Holds the model's own routing against the labels by loss, and writes `routing.json`; collective."""
    assert subject.guide is not None
    scores = []
    for benchmark in spec.benchmarks:
        exam = load_questions(benchmark, spec.routing_labels, cache)
        asked = [question for question in exam.questions if question.image is not None]
        mine = share(asked)
        found = list(zip(_predicted(subject, mine, False), answer_losses(subject, mine), strict=True))
        everything = joined(found)
        if everything:
            predicted, losses = zip(*everything, strict=True)
            shares = routing_shares([question.domain for question in asked], predicted, losses)
            scores.append(replace(routing_score(benchmark.name, predicted, losses), shares=shares))
    if env.rank() == 0:
        write_text(out_folder / ROUTING_FILE, json.dumps([asdict(score) for score in scores], indent=1) + "\n")
    dist.barrier()
    return scores
