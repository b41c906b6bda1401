"""What one gets for nothing, by a benchmark's own metric: a uniform guess, and always the most frequent answer."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from mmmoe.evaluation.metrics.exact import normalise
from mmmoe.evaluation.metrics.metric import Metric, total
from mmmoe.evaluation.prompts import letter
from mmmoe.evaluation.questions import Question
from mmmoe.evaluation.statistics import chance, majority

CLOSED = ("exact", "choice", "contained", "location", "written")
"""Metrics of one right answer: what a guess gets is counted and not tried."""
BY_LETTER = ("options", "mmbench", "scienceqa", "letters")
"""Metrics that look for an option's letter."""
GUESSES, MANY = 3, 2000
"""Times that a whole benchmark is guessed; once where it has many questions, whose mean varies little."""


def guessed(questions: Sequence[Question], metric: Metric) -> float:
    """Returns the score of a uniform guess: among a question's choices, or among all answers of the benchmark."""
    if metric.name in CLOSED:
        return chance(questions)
    by_letter = metric.name in BY_LETTER
    different = sorted({_right(question, by_letter) for question in questions})
    generator = random.Random(0)
    found = []
    for _ in range(GUESSES if len(questions) < MANY else 1):
        guesses = [generator.choice(_choices(question, by_letter) or different) for question in questions]
        found.append(scored(questions, guesses, metric))
    return sum(found) / len(found)


def most_frequent(questions: Sequence[Question], metric: Metric) -> float:
    """Returns the score of giving the benchmark's most frequent right answer to every question."""
    if metric.name in CLOSED:
        return majority(questions)
    by_letter = metric.name in BY_LETTER
    [(common, _)] = Counter(_right(question, by_letter) for question in questions).most_common(1)
    return scored(questions, [common] * len(questions), metric)


def scored(questions: Sequence[Question], predictions: Sequence[str], metric: Metric) -> float:
    """Returns the headline of some answers."""
    items = [question.item for question in questions]
    return float(metric.headline(total(metric.counts(items, metric.judge(predictions, items)))))


def _right(question: Question, by_letter: bool) -> str:
    if by_letter and question.answer in question.choices:
        return letter(question.choices.index(question.answer))
    return question.answer if by_letter else normalise(question.answer) or question.answer


def _choices(question: Question, by_letter: bool) -> list[str]:
    return [letter(place) if by_letter else text for place, text in enumerate(question.choices)]
