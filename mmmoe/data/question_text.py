"""What the gate of MoVA's adapter reads: the questions about an image, joined, as ids of the text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmmoe.data.media import MARKED
from mmmoe.data.record import Turn
from mmmoe.data.tokenizer import load_tokenizer


def joined_questions(questions: Sequence[str]) -> str:
    """Returns the text that the release gives to BERT: lower case, numbered from 0, a blank line after each."""
    return "".join(f"question {number}: {text.lower()}\n\n" for number, text in enumerate(questions))


def questions_of(turns: Sequence[Turn]) -> list[str]:
    """Returns what the human says in a dialogue, without marks of media."""
    return [MARKED.sub("", turn.text).strip() for turn in turns if turn.role == "human"]


class QuestionIds:
    """Texts to rows of ids of one length, padded on the right, cut at the text encoder's longest."""

    def __init__(self, folder: str | Path, length: int) -> None:
        """Reads the tokenizer.

        Raises:
            ValueError: The folder holds none.
        """
        self._tokenizer: Any = load_tokenizer(folder)
        self._length = length

    def __call__(self, questions: Sequence[str]) -> Tensor:
        """Returns ids (1, L) int64 of a sample's questions."""
        ids = self._tokenizer.encode(joined_questions(questions), truncation=True, max_length=self._length)
        row_L = torch.full((self._length,), int(self._tokenizer.pad_token_id), dtype=torch.int64)
        row_L[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return row_L.unsqueeze(0)
