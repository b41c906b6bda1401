"""GQA's accuracy: the same word, which the official scorer compares as it comes and LLaVA prepares first."""

from __future__ import annotations

import string

from mmmoe.evaluation.metrics.metric import Item, MeanMetric, Verdict

_DELETE = str.maketrans("", "", string.punctuation)


def prepared(text: str) -> str:
    """Returns an answer as LLaVA hands it to the official scorer: without periods at its end, in lower case."""
    return text.rstrip(".").lower()


def loose(text: str) -> str:
    """Returns an answer as lmms-eval compares it: in lower case, ASCII punctuation deleted.

    Its numpy arrays drop NUL characters at the end, and cut what is longer in lower case than it was (U+0130).
    """
    return text.rstrip("\0").lower()[: len(text)].translate(_DELETE).rstrip("\0")


def _gqa(prediction: str, item: Item) -> Verdict:
    answer = prepared(prediction)
    return Verdict(float(answer in item.answers), answer or None)


def _gqa_loose(prediction: str, item: Item) -> Verdict:
    answer = loose(prediction)
    return Verdict(float(any(answer == loose(right) for right in item.answers)), answer or None)


GQA = MeanMetric("gqa", _gqa)
GQA_LOOSE = MeanMetric("gqa_loose", _gqa_loose)
"""What lmms-eval reports for GQA."""
