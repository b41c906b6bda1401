"""What a list of answers is worth: exact match, its interval, and the scores one gets for nothing."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmmoe.evaluation.questions import Question

_STRIP = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """Returns the answer in lower case, without punctuation, single-spaced.

    An answer of punctuation alone (such as "<" or "+") keeps it, or every such answer would equal the empty one.
    """
    plain = " ".join(answer.lower().translate(_STRIP).split())
    return plain or " ".join(answer.lower().split())


def is_correct(prediction: str, answer: str) -> bool:
    """Says whether two answers are the same after normalisation; an empty prediction never is."""
    return bool(normalise(prediction)) and normalise(prediction) == normalise(answer)


def interval(outcomes: Sequence[bool], resamples: int, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % percentile-bootstrap interval of the share of right answers.

    A resample of n right-or-wrong outcomes with replacement holds Binomial(n, share) right ones, so the counts are
    drawn directly. When all outcomes are alike every resample is too and the bootstrap would claim certainty; there
    the exact (Clopper-Pearson) bound is returned: 0.025^(1/n) from the certain end.
    """
    count = len(outcomes)
    right = sum(outcomes)
    tail = 0.025 ** (1.0 / count)
    if right == 0:
        return 0.0, 1.0 - tail
    if right == count:
        return tail, 1.0
    shares = np.random.default_rng(seed).binomial(count, right / count, size=resamples) / count
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(low), float(high)


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
