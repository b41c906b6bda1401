"""CircularEval of MMBench: a question is asked with its options in every rotation and must be right in all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmmoe.evaluation.metrics.metric import Array, Counts, Item, Sums, Verdict, categories, column, grouped, keys, share
from mmmoe.evaluation.metrics.options import letter_rule, mmbench_letter


@dataclass(frozen=True)
class Circular:
    """The share of questions right in all rotations (arXiv 2307.06281, section 4.1), also by each level of category."""

    name: str = "mmbench"
    scale: float = 100.0
    is_share: bool = True

    def judge(self, predictions: Sequence[str], items: Sequence[Item]) -> list[Verdict]:
        """Returns a verdict an answer: whether the letter found in it is right for that rotation."""
        rule = letter_rule(mmbench_letter)
        return [rule(prediction, item) for prediction, item in zip(predictions, items, strict=True)]

    def counts(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> Counts:
        """Returns by group whether all rotations are right; groups that lack rotations are counted as `incomplete`."""
        names = keys(items)
        asked = Counter(names)
        wrong = {name for name, verdict in zip(names, verdicts, strict=True) if not verdict.score}
        first = {name: item.category for name, item in zip(reversed(names), reversed(items), strict=True)}
        rows = []
        for name, item, verdict in zip(names, items, verdicts, strict=True):
            part = 1.0 / asked[name]
            row = {"right": part * (name not in wrong), "n": part, "score": verdict.score, "questions": 1.0}
            row["incomplete"] = part * (asked[name] < len(item.choices))
            levels = {column(what, level): row[what] for level in _levels(first[name]) for what in ("right", "n")}
            rows.append(row | levels)
        columns = dict.fromkeys(name for row in rows for name in row)
        counts = grouped(items, {name: [row.get(name, 0.0) for row in rows] for name in columns})
        # What is counted by group was spread over its rotations; thirds do not add up to exactly one.
        return replace(counts, columns={name: values.round(9) for name, values in counts.columns.items()})

    def headline(self, sums: Sums) -> Array:
        """Returns the share of questions that are right in all rotations."""
        return share(sums["right"], sums["n"])

    def measures(self, sums: Sums) -> dict[str, Array]:
        """Returns that share by category, the share of single answers that are right, and the incomplete groups."""
        found = {name: share(sums[column("right", name)], sums[column("n", name)]) for name in categories(sums)}
        return {"each answer": share(sums["score"], sums["questions"]), "incomplete": sums["incomplete"] + 0.0, **found}


def _levels(category: str) -> list[str]:
    """Returns a category and what it is a part of: of a/b/c also a and a/b."""
    names = category.split("/") if category else []
    return ["/".join(names[: depth + 1]) for depth in range(len(names))]


MMBENCH = Circular()
