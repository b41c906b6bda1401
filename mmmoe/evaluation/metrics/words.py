"""Answers that hold the right one as whole words: Tiny LVLM-eHub's abilities, videos without a judge."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmmoe.evaluation.metrics.metric import (
    Array,
    Counts,
    Item,
    MeanMetric,
    Sums,
    Verdict,
    by_category,
    categories,
    column,
    grouped,
    share,
)
from mmmoe.evaluation.metrics.vqa import plainly_spelled


def holds(prediction: str, answer: str) -> bool:
    """Says whether an answer, both spelled as VQA's evaluation does, holds the right one between ends of words."""
    right = plainly_spelled(answer)
    return bool(right) and re.search(rf"\b{re.escape(right)}\b", plainly_spelled(prediction)) is not None


def _words(prediction: str, item: Item) -> Verdict:
    right = any(holds(prediction, answer) for answer in item.answers)
    return Verdict(float(right), plainly_spelled(prediction) or None)


@dataclass(frozen=True)
class Abilities:
    """The sum over abilities of the mean accuracy of their data sets; a category is `ability/data set`."""

    name: str = "tiny_lvlm"
    scale: float = 100.0
    is_share: bool = False

    def judge(self, predictions: Sequence[str], items: Sequence[Item]) -> list[Verdict]:
        """Returns a verdict an answer."""
        return WORDS.judge(predictions, items)

    def counts(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> Counts:
        """Returns right answers and all, by data set.

        Raises:
            ValueError: A category is not of the form `ability/data set`.
        """
        for item in items:
            if item.category.count("/") != 1 or not all(item.category.split("/")):
                raise ValueError(f"question {item.id!r} is of category {item.category!r}; write ability/data set")
        columns = {"score": [verdict.score for verdict in verdicts], "n": [1.0] * len(verdicts)}
        return grouped(items, columns | by_category(items, columns))

    def headline(self, sums: Sums) -> Array:
        """Returns the sum of the abilities' scores: 0 to 5 where all five are there."""
        return np.asarray(sum(_abilities(sums).values(), np.zeros_like(np.asarray(sums["n"], np.float64))))

    def measures(self, sums: Sums) -> dict[str, Array]:
        """Returns the score of each ability and the accuracy on each data set."""
        return _abilities(sums) | _sets(sums)


def _sets(sums: Sums) -> dict[str, Array]:
    return {name: share(sums[column("score", name)], sums[column("n", name)]) for name in categories(sums)}


def _abilities(sums: Sums) -> dict[str, Array]:
    members: dict[str, list[Array]] = {}
    for name, accuracy in _sets(sums).items():
        members.setdefault(name.split("/")[0], []).append(accuracy)
    return {ability: np.mean(accuracies, axis=0) for ability, accuracies in members.items()}


WORDS = MeanMetric("words", _words)
"""Whole words of the right answer; MSVD-QA, MSRVTT-QA and ActivityNet-QA without the papers' judge."""
TINY_LVLM = Abilities()
