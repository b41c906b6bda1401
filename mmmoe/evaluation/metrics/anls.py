"""ANLS: how near an answer is to the nearest right one in letters, nothing where that is not half.

Sources differ in what the edit distance is divided by: see `configs/benchmarks/metrics/anls.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmmoe.evaluation.metrics.metric import Item, MeanMetric, Verdict
from mmmoe.evaluation.writing import edit_distance

THRESHOLD = 0.5
Distance = Callable[[str, str], float]
"""From prediction and right answer to a distance between 0 and 1."""


def distance(prediction: str, answer: str) -> float:
    """Returns the edit distance of both in lower case and stripped, over the longer of these (arXiv 1905.13648)."""
    ours, theirs = prediction.lower().strip(), answer.lower().strip()
    return _over(edit_distance(ours, theirs), max(len(ours), len(theirs)))


def docvqa_distance(prediction: str, answer: str) -> float:
    """Returns DocVQA's: white space squeezed as well, but over the longer of both as they were, in capitals."""
    ours, theirs = (" ".join(text.lower().split()) for text in (prediction, answer))
    return _over(edit_distance(ours, theirs), max(len(prediction.upper()), len(answer.upper())))


def text_harmony_distance(prediction: str, answer: str) -> float:
    """Returns TextHarmony's: as `distance`, but over the longer of the stripped prediction and the answer as it was."""
    ours, theirs = prediction.lower().strip(), answer.lower().strip()
    return _over(edit_distance(ours, theirs), max(len(prediction.strip()), len(answer)))


def anls(prediction: str, answers: Sequence[str], by: Distance = distance) -> float:
    """Returns 1 - the least distance to an answer, 0 where that is below one half."""
    nearness = 1.0 - min(by(prediction, answer) for answer in answers)
    return nearness if nearness >= THRESHOLD else 0.0


def _metric(name: str, by: Distance) -> MeanMetric:
    def rule(prediction: str, item: Item) -> Verdict:
        return Verdict(anls(prediction, item.answers, by), prediction.strip() or None)

    return MeanMetric(name, rule)


def _over(edits: int, length: int) -> float:
    # A letter can be longer in lower case than it was (U+0130), so raw lengths may be passed by the distance.
    return min(1.0, edits / length) if length else float(edits > 0)


ANLS = _metric("anls", distance)
ANLS_DOCVQA = _metric("anls_docvqa", docvqa_distance)
ANLS_TEXT_HARMONY = _metric("anls_text_harmony", text_harmony_distance)
