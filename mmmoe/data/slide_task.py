"""What a dialogue asks for, an image or text: TextHarmony's released rule on the question, and the answer itself."""

from __future__ import annotations

from collections.abc import Sequence

from mmmoe.config.ids import MEDIA_MARKS
from mmmoe.data.record import Turn

IMAGE_GENERATION, TEXT_GENERATION = 0, 1
TRIGGERS = ("generate an image", "fill the masked")
"""What the release looks for. Other wordings, segmentation and removal among them, count as text."""


def keyword_task(question: str) -> int:
    """Returns the task by the released rule: an image if the question holds one of two phrases, in whatever case."""
    lowered = question.lower()
    return IMAGE_GENERATION if any(trigger in lowered for trigger in TRIGGERS) else TEXT_GENERATION


def answer_task(turns: Sequence[Turn]) -> int:
    """Returns the task by the answers: an image if one of them is to show one."""
    is_image = any(turn.role == "gpt" and MEDIA_MARKS["image"] in turn.text for turn in turns)
    return IMAGE_GENERATION if is_image else TEXT_GENERATION
