"""OCRBench: the right text is somewhere in the answer; ten types of question, a thousand in all (arXiv 2305.07895)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmmoe.evaluation.metrics.metric import Array, Item, MeanMetric, Sums, Verdict

FORMULA = "Handwritten Mathematical Expression Recognition"
COMPLETE = 1000


def is_found(prediction: str, item: Item) -> bool:
    """Says whether an answer holds a right one: on one line in lower case, of a formula with case but no spaces."""
    said = _plain(prediction, item.category)
    return any(_plain(answer, item.category) in said for answer in item.answers)


def _plain(text: str, category: str) -> str:
    if category == FORMULA:
        return text.strip().replace("\n", " ").replace(" ", "")
    return text.lower().strip().replace("\n", " ")


def _ocrbench(prediction: str, item: Item) -> Verdict:
    return Verdict(float(is_found(prediction, item)), prediction.strip() or None)


@dataclass(frozen=True)
class OcrBench(MeanMetric):
    """The share of right answers; as points out of a thousand only where a thousand questions were asked."""

    def measures(self, sums: Sums) -> dict[str, Array]:
        """Returns the share of each type, and the points of a complete run."""
        found = super().measures(sums)
        is_complete = bool(np.all(sums["n"] == COMPLETE))
        return {"of 1000": np.asarray(sums["score"]), **found} if is_complete else found


OCRBENCH = OcrBench("ocrbench", _ocrbench)
