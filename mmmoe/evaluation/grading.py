"""From answers to a score row: every benchmark is judged by one metric, and everything told of it comes from that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mmmoe.evaluation.answers import Answer, Reply, answer_of
from mmmoe.evaluation.guessing import guessed, most_frequent, scored
from mmmoe.evaluation.metrics.exact import normalise
from mmmoe.evaluation.metrics.metric import Item, Metric, Verdict, total
from mmmoe.evaluation.metrics.registry import OF_KIND, metric_of
from mmmoe.evaluation.questions import SHOWN_ERRORS, Exam, Question, SetAside
from mmmoe.evaluation.scores import CategoryScore, ScoreRow
from mmmoe.evaluation.spec import BenchmarkSpec
from mmmoe.evaluation.statistics import bootstrap
from mmmoe.log import logger

SHOWN_REASONS = 5
NOTHING = Verdict(0.0, None)
"""What no answer is worth."""


@dataclass(frozen=True)
class Sitting:
    """What is known of one benchmark's exam besides questions and replies."""

    variant: str
    benchmark: BenchmarkSpec
    set_aside: SetAside
    partial: bool
    prompt_hash: str
    resamples: int
    seconds: float
    reused: int
    """Questions whose answer was known from before."""
    beams: int = 1
    repetition_penalty: float = 1.0


def metric_for(benchmark: BenchmarkSpec) -> Metric:
    """Returns what judges a benchmark."""
    return metric_of(benchmark.metric or OF_KIND[benchmark.kind])


def check_gradable(benchmark: BenchmarkSpec, questions: Sequence[Question]) -> None:
    """Has the metric judge the right answers, so that what it cannot judge is told before anything is asked.

    Raises:
        ValueError: A question lacks what the metric needs.
    """
    try:
        scored(questions, [question.answer for question in questions], metric_for(benchmark))
    except ValueError as error:
        raise ValueError(f"benchmark {benchmark.name!r}: {error}") from error


def gradable(benchmark: BenchmarkSpec, exam: Exam, limit: int | None) -> Exam:
    """Returns the exam without questions whose right answers the metric cannot judge, where such are to be skipped.

    Raises:
        ValueError: One of the first `limit` cannot be judged, and none is to be skipped or none would be left.
    """
    try:
        check_gradable(benchmark, exam.questions[:limit])
    except ValueError:
        if benchmark.stops_at_bad_rows:
            raise
        metric, kept, reasons = metric_for(benchmark), list[Question](), list[str]()
        for question in exam.questions:
            try:
                metric.judge([question.answer], [question.item])
                kept.append(question)
            except ValueError as error:
                reasons.append(str(error))
        if not kept or not reasons:
            raise
        check_gradable(benchmark, kept[:limit])
        before = exam.set_aside
        logger().info("benchmark %s: %d more rows set aside, the first: %s", benchmark.name, len(reasons), reasons[0])
        told = (*before.reasons, *reasons)[:SHOWN_ERRORS]
        return Exam(kept, SetAside(before.count + len(reasons), told))
    return exam


def graded(benchmark: BenchmarkSpec, questions: Sequence[Question], replies: Sequence[Reply]) -> list[Answer]:
    """Returns each reply with what the metric makes of it; a question that was not answered is wrong by any metric."""
    verdicts = metric_for(benchmark).judge(
        [reply.prediction for reply in replies], [question.item for question in questions]
    )
    return [
        answer_of(question, reply, NOTHING if reply.unanswered else verdict)
        for question, reply, verdict in zip(questions, replies, verdicts, strict=True)
    ]


def score_row(
    sitting: Sitting,
    questions: Sequence[Question],
    answers: Sequence[Answer],
    measures: Mapping[str, float],
) -> ScoreRow:
    """Returns the score with what is needed to judge it.

    Args:
        sitting: the exam.
        questions: what was asked.
        answers: what was answered, judged.
        measures: what else was measured, beside what the metric tells.
    """
    benchmark, metric = sitting.benchmark, metric_for(sitting.benchmark)
    items, verdicts = [answer.item for answer in answers], [answer.verdict for answer in answers]
    counts = metric.counts(items, verdicts)
    low, high = bootstrap(counts, metric, sitting.resamples)
    categories = by_category(metric, items, verdicts)
    told = {name: float(value) for name, value in metric.measures(total(counts)).items()}
    known = {category.name for category in categories}
    unanswered = [answer.unanswered for answer in answers if answer.unanswered]
    kept = {name: value for name, value in {**told, **measures}.items() if math.isfinite(value) and name not in known}
    return ScoreRow(
        variant=sitting.variant,
        benchmark=benchmark.name,
        domain=benchmark.domain,
        kind=benchmark.kind,
        n=len(answers),
        score=float(metric.headline(total(counts))),
        low=low,
        high=high,
        chance=guessed(questions, metric),
        majority=most_frequent(questions, metric),
        empty_share=_share(not normalise(answer.prediction) for answer in answers),
        partial=sitting.partial,
        prompt_hash=sitting.prompt_hash,
        seconds=round(sitting.seconds, 3),
        measures={name: round(value, 4) for name, value in kept.items()},
        metric=metric.name,
        scale=metric.scale,
        is_share=metric.is_share,
        unparsable_share=_share(verdict.parsed is None for verdict in verdicts),
        categories=categories,
        set_aside=sitting.set_aside.count,
        set_aside_reasons=list(sitting.set_aside.reasons[:SHOWN_REASONS]),
        unanswered=len(unanswered),
        unanswered_reasons=unanswered[:SHOWN_REASONS],
        reused=sitting.reused,
        beams=sitting.beams,
        repetition_penalty=sitting.repetition_penalty,
    )


def by_category(metric: Metric, items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[CategoryScore]:
    """Returns the headline of each category's questions alone; none where questions have no category."""
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(item.category, []).append(place)
    if set(places) <= {""}:
        return []
    found = []
    for name, part in sorted(places.items()):
        counts = metric.counts([items[place] for place in part], [verdicts[place] for place in part])
        found.append(CategoryScore(name, len(part), round(float(metric.headline(total(counts))), 6)))
    return found


def _share(flags: Iterable[bool]) -> float:
    listed = list(flags)
    return sum(listed) / len(listed)
