"""POPE: yes-or-no questions about objects, half of which are not there (arXiv 2305.10355), read as LLaVA reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmmoe.evaluation.metrics.metric import (
    Array,
    Counts,
    Item,
    Sums,
    Verdict,
    by_category,
    categories,
    column,
    grouped,
    share,
)

NEGATIONS = frozenset({"No", "no", "not"})
CELLS = ("tp", "fp", "tn", "fn")


def says_yes(text: str) -> bool:
    """Says whether an answer is a yes: its first sentence, without commas, has none of the words No, no, not."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return NEGATIONS.isdisjoint(words)


def is_yes(answer: str) -> bool:
    """Says whether the right answer is yes."""
    return answer.strip().lower() != "no"


@dataclass(frozen=True)
class Pope:
    """Accuracy, precision, recall and F1 of yes; the headline is the mean F1 of the categories, as LLaVA reports it."""

    name: str = "pope"
    scale: float = 100.0
    is_share: bool = True

    def judge(self, predictions: Sequence[str], items: Sequence[Item]) -> list[Verdict]:
        """Returns a verdict an answer; every answer is a yes or a no to this rule, an empty one is a yes."""
        pairs = zip(predictions, items, strict=True)
        return [_verdict(says_yes(prediction), is_yes(item.answers[0])) for prediction, item in pairs]

    def counts(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> Counts:
        """Returns how many are true and false, yes and no, in all and by category."""
        cells = [_cell(verdict, item) for verdict, item in zip(verdicts, items, strict=True)]
        columns = {name: [float(cell == name) for cell in cells] for name in CELLS}
        return grouped(items, columns | by_category(items, columns))

    def headline(self, sums: Sums) -> Array:
        """Returns the mean F1 of the categories that are there, or that of all where there are none."""
        names = categories(sums) or [""]
        return np.asarray(np.mean([_measures(sums, name)["f1"] for name in names], axis=0))

    def measures(self, sums: Sums) -> dict[str, Array]:
        """Returns accuracy, precision, recall, F1 and the share of answers that were yes, in all and by category."""
        whole = _measures(sums, "")
        parts = {f"{name} {what}": value for name in categories(sums) for what, value in _measures(sums, name).items()}
        return whole | parts


def _verdict(said: bool, right: bool) -> Verdict:
    return Verdict(float(said == right), "yes" if said else "no")


def _cell(verdict: Verdict, item: Item) -> str:
    if verdict.parsed is None:  # it could not be asked, and is wrong whatever would have been right
        return "fn" if is_yes(item.answers[0]) else "fp"
    truth = "t" if verdict.score else "f"
    return truth + ("p" if verdict.parsed == "yes" else "n")


def _measures(sums: Sums, category: str) -> dict[str, Array]:
    """Returns one category's measures; what has no denominator (no yes said) is 0, all is NaN of nothing."""
    tp, fp, tn, fn = (np.asarray(sums[column(name, category)], np.float64) for name in CELLS)
    n = tp + fp + tn + fn
    found = {
        "precision": np.nan_to_num(share(tp, tp + fp)),
        "recall": np.nan_to_num(share(tp, tp + fn)),
        "f1": np.nan_to_num(share(2 * tp, 2 * tp + fp + fn)),
    }
    kept = {name: np.where(n > 0, value, np.nan) for name, value in found.items()}
    return {"accuracy": share(tp + tn, n), **kept, "yes ratio": share(tp + fp, n)}


POPE = Pope()
