"""Acc@0.5: the box that an answer names overlaps the right one by half or more."""

from __future__ import annotations

from mmmoe.evaluation.location import box_of, is_there
from mmmoe.evaluation.metrics.metric import Item, MeanMetric, Verdict


def _location(prediction: str, item: Item) -> Verdict:
    box = box_of(prediction)
    parsed = None if box is None else " ".join(f"{side:g}" for side in box)
    return Verdict(float(any(is_there(prediction, answer) for answer in item.answers)), parsed)


LOCATION = MeanMetric("location", _location)
