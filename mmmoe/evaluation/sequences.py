"""What is run for a question: its dialogue as ids, and several of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmmoe.config.ids import GLANCE_VIEW, IGNORE_ID, MEDIA_IDS
from mmmoe.data.media import KINDS
from mmmoe.data.record import Turn
from mmmoe.evaluation.media import Files
from mmmoe.evaluation.questions import Question

MARK_ORDER = ("image", "speech", "audio", "video")


@dataclass(frozen=True)
class Row:
    """One sequence to run: a question with one of its choices, or its prompt alone."""

    place: int
    """Among all sequences of a call."""
    input_ids: list[int]
    labels: list[int]
    media: Mapping[str, Files | None]
    """By view, the items that the ids still have a placeholder for; None: the blank one."""
    beside: Mapping[str, Tensor]
    """By view, what goes with an item besides."""
    task: int = -1
    """Number of the answer's task (`config/ids.TASKS`)."""
    question: str = ""
    """The question's id."""
    is_glance: bool = False
    """Whether it is a routing pass, in which an image may take fewer positions."""


def length_of(row: Row, positions: Callable[[str], int]) -> int:
    """Returns how many positions a row takes whose placeholders take `positions` of their kind each."""
    counts = {kind: row.input_ids.count(token) for kind, token in MEDIA_IDS.items()}
    sizes = {
        kind: positions(GLANCE_VIEW if row.is_glance and kind == "image" else kind)
        for kind, count in counts.items()
        if count
    }
    return len(row.input_ids) + sum(counts[kind] * (size - 1) for kind, size in sizes.items())


def empty(row: Row, pad_id: int) -> Row:
    """Returns the shortest row there is in the place of another: what whoever has nothing to ask is asked in step."""
    return replace(row, input_ids=[pad_id], labels=[IGNORE_ID], media={}, beside={})


def padded(rows: Sequence[Row], pad_id: int, *, left: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ids, mask and labels (B, T) of rows, padded on one side."""
    longest = max(len(row.input_ids) for row in rows)
    input_ids_BT = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    attention_mask_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
    labels_BT = torch.full((len(rows), longest), IGNORE_ID, dtype=torch.int64)
    for at, row in enumerate(rows):
        length = len(row.input_ids)
        span = slice(longest - length, longest) if left else slice(0, length)
        input_ids_BT[at, span] = torch.tensor(row.input_ids)
        attention_mask_BT[at, span] = True
        labels_BT[at, span] = torch.tensor(row.labels)
    return input_ids_BT, attention_mask_BT, labels_BT


def turns_of(question: Question, answer: str | None = None) -> tuple[Turn, ...]:
    """Returns the dialogue, each item's mark on a line before the text unless the question places it itself.

    For one image that is LLaVA's wording; Uni-MoE's order is image, sound, video.
    """
    marks = [KINDS[kind].mark for kind in MARK_ORDER if kind in question.media]
    text = "\n".join([*(mark for mark in marks if mark not in question.text), question.text])
    human = Turn("human", text)
    return (human,) if answer is None else (human, Turn("gpt", answer))
