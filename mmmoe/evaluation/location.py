"""Answers that say where something is: four numbers, right where the two boxes share half of what they cover."""

from __future__ import annotations

import re

Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""
ENOUGH = 0.5
_NUMBER = re.compile(r"(?:(?<![\w.])-)?(?:\d+(?:\.\d+)?|\.\d+)")
"""A minus behind a letter, a digit or a point is a dash: 1-3 are two numbers."""


def box_of(text: str) -> Box | None:
    """Returns the box that a text names by its first four numbers, None where it names none or one turned round."""
    numbers = [float(number) for number in _NUMBER.findall(text)[:4]]
    if len(numbers) < 4 or numbers[2] < numbers[0] or numbers[3] < numbers[1]:
        return None
    return (numbers[0], numbers[1], numbers[2], numbers[3])


def area(box: Box) -> float:
    """Returns what a box covers."""
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(one: Box, other: Box) -> float:
    """Returns the area two boxes share over the area that they cover together (intersection over union)."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    if wide <= 0 or high <= 0:
        return 0.0
    return wide * high / (area(one) + area(other) - wide * high)


def is_there(prediction: str, answer: str) -> bool:
    """Says whether a predicted box overlaps the right one by half or more (Acc@0.5)."""
    found, right = box_of(prediction), box_of(answer)
    return found is not None and right is not None and overlap(found, right) >= ENOUGH
