"""Relaxed accuracy of ChartQA: numbers may be off by a twentieth of the right one, words must be the same."""

from __future__ import annotations

from mmmoe.evaluation.metrics.metric import Item, MeanMetric, Verdict

TOLERANCE = 0.05


def number(text: str) -> float | None:
    """Returns the number that a text is, hundredths where it ends in a per cent sign; None where it is none."""
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def is_near(prediction: str, answer: str) -> bool:
    """Says whether a number is within 5 % of the right one; others, and where 0 is right, are compared as words."""
    found, right = number(prediction), number(answer)
    if found is not None and right:
        return abs(found - right) / abs(right) <= TOLERANCE
    return prediction.lower() == answer.lower()


def _relaxed(prediction: str, item: Item) -> Verdict:
    return Verdict(float(any(is_near(prediction, answer) for answer in item.answers)), prediction.strip() or None)


RELAXED = MeanMetric("relaxed", _relaxed)
"""ChartQA; its halves (human, augmented) are categories."""
