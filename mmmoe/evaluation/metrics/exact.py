"""Answers that are right when they are the same: after normalisation, as a choice, or within what was said."""

from __future__ import annotations

import string

from mmmoe.evaluation.metrics.metric import Item, MeanMetric, Verdict
from mmmoe.evaluation.writing import contains, filtered, is_same

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


def _exact(prediction: str, item: Item) -> Verdict:
    return Verdict(float(any(is_correct(prediction, answer) for answer in item.answers)), normalise(prediction) or None)


def _choice(prediction: str, item: Item) -> Verdict:
    return Verdict(float(prediction in item.answers), prediction or None)


def _contained(prediction: str, item: Item) -> Verdict:
    return Verdict(float(contains(prediction, item.answers)), prediction.strip() or None)


def _written(prediction: str, item: Item) -> Verdict:
    return Verdict(float(is_same(prediction, item.answers[0])), filtered(prediction) or None)


EXACT = MeanMetric("exact", _exact)
"""Same as any right answer in lower case, without punctuation."""
CHOICE = MeanMetric("choice", _choice)
"""The very text of the right choice; for choices by likelihood."""
CONTAINED = MeanMetric("contained", _contained)
"""TextHarmony's accuracy: the answer holds a right one."""
WRITTEN = MeanMetric("written", _written)
"""TextHarmony's sentence accuracy: what a judge reads on a drawn picture has the letters and digits asked for."""
