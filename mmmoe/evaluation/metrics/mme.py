"""MME: two yes-or-no questions on each image, points for each and for both (arXiv 2306.13394)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmmoe.evaluation.metrics.metric import Array, Counts, Item, Sums, Verdict, column, grouped, keys, share

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
PARTS: Mapping[str, Sequence[str]] = {"perception": PERCEPTION, "cognition": COGNITION}
QUESTIONS = 2
"""On each image."""
LEAD = 4
"""Letters of an answer that are looked at."""


def official(text: str) -> str:
    """Returns yes, no or other: which word is among the first four letters in lower case, yes before no."""
    lead = text.lower()[:LEAD]
    return "yes" if "yes" in lead else "no" if "no" in lead else "other"


def mova(text: str) -> str:
    """Returns what MoVA's copy of the script understands: what is not yes is no."""
    return "yes" if official(text) == "yes" else "no"


@dataclass(frozen=True)
class Mme:
    """Points of perception and cognition together; a sub-task gives 100 for the questions and 100 for the images."""

    name: str = "mme"
    parse: Callable[[str], str] = official
    scale: float = 1.0
    is_share: bool = False

    def judge(self, predictions: Sequence[str], items: Sequence[Item]) -> list[Verdict]:
        """Returns a verdict an answer; other is neither yes nor no and never right."""
        found = []
        for prediction, item in zip(predictions, items, strict=True):
            said = self.parse(prediction)
            found.append(Verdict(float(said == item.answers[0].strip().lower()), None if said == "other" else said))
        return found

    def counts(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> Counts:
        """Returns by sub-task the questions right, the images with both right, and how many there are of each.

        An image without its two questions counts as `incomplete`, and in no image count.

        Raises:
            ValueError: A category is none of the fourteen sub-tasks.
        """
        unknown = sorted({item.category for item in items} - {*PERCEPTION, *COGNITION})
        if unknown:
            raise ValueError(f"MME has no sub-task {unknown[0]!r}; category is one of {[*PERCEPTION, *COGNITION]}")
        # Images of different sub-tasks may share a name.
        items = [replace(item, group=f"{item.category}/{name}") for item, name in zip(items, keys(items), strict=True)]
        asked = Counter(keys(items))
        right: Counter[str] = Counter()
        for name, verdict in zip(keys(items), verdicts, strict=True):
            right[name] += int(verdict.score)
        rows = [_row(item.category, verdict, asked[item.group], right[item.group])
                for item, verdict in zip(items, verdicts, strict=True)]  # fmt: skip
        names = dict.fromkeys(name for row in rows for name in row)
        return grouped(items, {name: [row.get(name, 0.0) for row in rows] for name in names})

    def headline(self, sums: Sums) -> Array:
        """Returns perception and cognition together."""
        points = self.measures(sums)
        return np.asarray(points["perception"] + points["cognition"])

    def measures(self, sums: Sums) -> dict[str, Array]:
        """Returns the sums of both parts, points, acc and acc+ by sub-task, and the number of incomplete images."""
        tasks = {name: _points(sums, name) for part in PARTS.values() for name in part if column("n", name) in sums}
        none = np.zeros_like(sums["incomplete"])
        found = {
            part: np.asarray(sum((acc + both for name, (acc, both) in tasks.items() if name in names), none))
            for part, names in PARTS.items()
        }
        for name, (acc, both) in tasks.items():
            found |= {name: acc + both, f"{name} acc": acc, f"{name} acc+": both}
        return found | {"incomplete images": np.asarray(sums["incomplete"])}


def _row(task: str, verdict: Verdict, asked: int, right: int) -> dict[str, float]:
    """Returns a question's part of its image's counts: what is counted by image is spread over its questions."""
    is_whole = asked == QUESTIONS
    return {
        column("right", task): verdict.score,
        column("n", task): 1.0,
        column("both", task): float(is_whole and right == QUESTIONS) / asked,
        column("images", task): float(is_whole) / asked,
        "incomplete": float(not is_whole) / asked,
    }


def _points(sums: Sums, task: str) -> tuple[Array, Array]:
    """Returns acc and acc+ of a sub-task, 0 to 100; acc+ is 0 where no image has both questions."""
    acc = 100.0 * share(sums[column("right", task)], sums[column("n", task)])
    both = 100.0 * share(sums[column("both", task)], sums[column("images", task)])
    return acc, np.where(np.isnan(acc), np.nan, np.nan_to_num(both))


MME = Mme()
MME_MOVA = Mme("mme_mova", mova)
