"""What a metric is: it judges answers, counts the verdicts by groups, and makes a score of sums of the counts.

Every score here is a function of sums over groups that are independent of one another. So one bootstrap serves all
metrics: it weights the groups anew and asks for the headline of the new sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Sums = Mapping[str, Array]
"""Sums of the counts by column, all of one shape: that of the resamples, or () for the run itself."""


@dataclass(frozen=True)
class Item:
    """What a metric may know of a question."""

    id: str
    answers: tuple[str, ...]
    """The right answers, one or more; of VQA all ten that people gave, equal ones repeated."""
    choices: tuple[str, ...] = ()
    category: str = ""
    """Sub-task, split or type of question; levels are parted by a slash where a metric knows levels."""
    group: str = ""
    """Shared by the questions that are judged together, such as those on one image; empty: the id."""


@dataclass(frozen=True)
class Verdict:
    """What one answer is worth."""

    score: float
    """0 to 1; CIDEr has its own scale."""
    parsed: str | None
    """What was understood of the answer; None where nothing was."""


@dataclass(frozen=True)
class Counts:
    """Numbers that are added over groups."""

    columns: dict[str, Array]
    """By name a number a group."""
    groups: tuple[str, ...]


class Metric(Protocol):
    """A way to score a benchmark."""

    @property
    def name(self) -> str:
        """Its name in the registry."""

    @property
    def scale(self) -> float:
        """What a headline of 1.0 is shown as: 100 for shares, 1 for points."""

    @property
    def is_share(self) -> bool:
        """Whether the headline lies between 0 and 1, so that these two are certain ends."""

    def judge(self, predictions: Sequence[str], items: Sequence[Item]) -> list[Verdict]:
        """Returns a verdict an answer; neither answers nor items are changed."""

    def counts(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> Counts:
        """Returns what is to be added over groups."""

    def headline(self, sums: Sums) -> Array:
        """Returns the score of each set of sums; NaN where a part that the score needs is not in the sums."""

    def measures(self, sums: Sums) -> dict[str, Array]:
        """Returns what stands beside the headline, by name."""


Rule = Callable[[str, Item], Verdict]
"""Judges one answer by itself."""


@dataclass(frozen=True)
class MeanMetric:
    """The mean of the verdicts' scores, in all and by category."""

    name: str
    rule: Rule
    scale: float = 100.0
    is_share: bool = field(default=True)

    def judge(self, predictions: Sequence[str], items: Sequence[Item]) -> list[Verdict]:
        """Returns a verdict an answer."""
        return [self.rule(prediction, item) for prediction, item in zip(predictions, items, strict=True)]

    def counts(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> Counts:
        """Returns the sum of scores and the number of answers, in all and by category."""
        columns = {"score": [verdict.score for verdict in verdicts], "n": [1.0] * len(verdicts)}
        return grouped(items, columns | by_category(items, columns))

    def headline(self, sums: Sums) -> Array:
        """Returns the mean score."""
        return share(sums["score"], sums["n"])

    def measures(self, sums: Sums) -> dict[str, Array]:
        """Returns the mean score of each category."""
        return {name: share(sums[column("score", name)], sums[column("n", name)]) for name in categories(sums)}


def column(name: str, category: str) -> str:
    """Returns the name of a column that counts one category only."""
    return f"{name}:{category}" if category else name


def categories(sums: Sums) -> list[str]:
    """Returns the categories that sums know, in the order in which they were counted."""
    return list(dict.fromkeys(name.split(":", 1)[1] for name in sums if ":" in name))


def by_category(items: Sequence[Item], columns: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Returns each column once more for each category, 0 for items of others; nothing where items have no category."""
    names = dict.fromkeys(item.category for item in items if item.category)
    return {
        column(name, category): [
            value if item.category == category else 0.0 for item, value in zip(items, values, strict=True)
        ]
        for category in names
        for name, values in columns.items()
    }


def keys(items: Sequence[Item]) -> list[str]:
    """Returns the name of each item's group."""
    return [item.group or item.id for item in items]


def grouped(items: Sequence[Item], columns: Mapping[str, Sequence[float]]) -> Counts:
    """Returns columns that hold a value an item as sums over the items' groups."""
    names = keys(items)
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    index = np.array([places[name] for name in names], dtype=np.int64)
    added: dict[str, Array] = {}
    for name, values in columns.items():
        added[name] = np.zeros(len(places))
        np.add.at(added[name], index, np.asarray(values, dtype=np.float64))
    return Counts(added, tuple(places))


def total(counts: Counts) -> dict[str, Array]:
    """Returns the sums of the run itself."""
    return {name: np.asarray(values.sum()) for name, values in counts.columns.items()}


def share(part: Array, whole: Array) -> Array:
    """Returns part / whole, NaN where there is no whole."""
    above, below = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    found: Array = np.full(above.shape, np.nan)
    return np.asarray(np.divide(above, below, out=found, where=below > 0))
