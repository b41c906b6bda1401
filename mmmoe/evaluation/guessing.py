"""What one gets for nothing, by a benchmark's own metric: a uniform guess, and always the most frequent answer."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmmoe.evaluation.metrics.exact import normalise
from mmmoe.evaluation.metrics.metric import Metric, total
from mmmoe.evaluation.prompts import letter
from mmmoe.evaluation.questions import Question

CLOSED = ("exact", "choice", "written")
"""Metrics by which an answer is right when it equals the right one: what a guess gets is counted and not tried."""
BY_LETTER = ("options", "mmbench", "scienceqa", "letters")
"""Metrics that look for an option's letter."""
GUESSES, MANY = 3, 2000
"""Times that a whole benchmark is guessed; once where it has many questions, whose mean varies little."""
TRIED = 10
"""Most frequent answers that are given to every question: a caption's metric takes seconds for each."""


def guessed(questions: Sequence[Question], metric: Metric) -> float:
    """Returns the score of a uniform guess: among a question's choices, or among all answers of the benchmark."""
    if _is_closed(questions, metric):
        return chance(questions)
    by_letter = metric.name in BY_LETTER
    different = sorted(_frequent(questions, by_letter))
    generator = random.Random(0)
    found = []
    for _ in range(GUESSES if len(questions) < MANY else 1):
        guesses = [generator.choice(_choices(question, by_letter) or different) for question in questions]
        found.append(scored(questions, guesses, metric))
    return sum(found) / len(found)


def most_frequent(questions: Sequence[Question], metric: Metric) -> float:
    """Returns the score of always giving the one answer that scores best, of those that are right most often."""
    if _is_closed(questions, metric):
        return majority(questions)
    tried = _frequent(questions, metric.name in BY_LETTER)[:TRIED]
    return max(scored(questions, [answer] * len(questions), metric) for answer in tried)


def chance(questions: Sequence[Question]) -> float:
    """Returns the expected score of a uniform guess.

    Among its choices for a question that has some, otherwise among all different answers of the benchmark (a guess by
    someone who knows what kind of answer is wanted).
    """
    different = len({normalise(question.answer) for question in questions})
    return float(np.mean([1.0 / (len(question.choices) or different) for question in questions]))


def majority(questions: Sequence[Question]) -> float:
    """Returns the score of always giving the benchmark's most frequent answer."""
    counts = Counter(normalise(question.answer) for question in questions)
    return counts.most_common(1)[0][1] / len(questions)


def scored(questions: Sequence[Question], predictions: Sequence[str], metric: Metric) -> float:
    """Returns the headline of some answers."""
    items = [question.item for question in questions]
    return float(metric.headline(total(metric.counts(items, metric.judge(predictions, items)))))


def _is_closed(questions: Sequence[Question], metric: Metric) -> bool:
    """Says whether every question has one right answer, by a metric that wants just that."""
    return metric.name in CLOSED and all(len({*map(normalise, question.answers)}) == 1 for question in questions)


def _frequent(questions: Sequence[Question], by_letter: bool) -> list[str]:
    """Returns the different right answers, each as it first stands, those of the most questions first."""
    counts, texts = Counter[str](), dict[str, str]()
    for question in questions:
        for key, text in {normalise(text) or text: text for text in _right(question, by_letter)}.items():
            counts[key] += 1
            texts.setdefault(key, text)
    return [texts[key] for key, _ in counts.most_common()]


def _right(question: Question, by_letter: bool) -> list[str]:
    if not by_letter:
        return [answer for answer in question.answers if answer.strip()]
    return [letter(question.choices.index(question.answer)) if question.answer in question.choices else question.answer]


def _choices(question: Question, by_letter: bool) -> list[str]:
    return [letter(place) if by_letter else text for place, text in enumerate(question.choices)]
