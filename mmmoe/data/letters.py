"""Which ids of a dialogue are the letters that an image is asked to show: those in quotation marks before it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from mmmoe.config.ids import IMAGE_ID
from mmmoe.data.tokenizer import Tokenizer

UNREADABLE = "\ufffd"
"""What a part of a letter is decoded to."""
MOST = 32
"""Ids of a quotation that count; what is beyond is left out."""


class Letters:
    """Finds quotations by the ids that hold a quotation mark."""

    def __init__(self, tokenizer: Tokenizer, mark: str = '"') -> None:
        self._tokenizer, self._mark = tokenizer, mark

    @cached_property
    def _marks(self) -> frozenset[int]:
        decode = self._tokenizer.decode
        return frozenset(number for number in range(len(self._tokenizer)) if self._mark in decode([number]))

    def quoted(self, ids: Sequence[int]) -> range:
        """Returns the places of what stands in the last pair of marks; none where there is none.

        Marks are paired from the first on; one that is left over at the end opens nothing.
        """
        found = [place for place, token in enumerate(ids) if token in self._marks]
        last = len(found) // 2 * 2
        return range(found[last - 2] + 1, found[last - 1]) if last else range(0)

    def problem(self, ids: Sequence[int], cells: int) -> str | None:
        """Returns why what is quoted cannot be laid on so many cells, a letter each; None if it can."""
        pieces = [self._tokenizer.decode([ids[place]]) for place in self.quoted(ids)]
        most = min(cells, MOST)
        if len(pieces) > most:
            return f"{''.join(pieces)!r} between quotation marks has {len(pieces)} letters, but {most} fit; shorten it"
        wrong = [piece for piece in pieces if len(piece.strip()) > 1 or piece in ("", UNREADABLE)]
        if wrong:
            return (
                f"of {''.join(pieces)!r} between quotation marks the tokenizer makes {pieces}, but each of these is "
                "laid on the cell of one letter; write it in letters that it keeps apart, as capitals"
            )
        return None

    def before(self, ids: Sequence[int], drawn: Sequence[int]) -> Tensor:
        """Returns for each image that is to be drawn (by its number) the places of its letters (I, L), -1 behind."""
        images = [place for place, token in enumerate(ids) if token == IMAGE_ID]
        return torch.stack([self.padded(ids[: images[number]]) for number in drawn])

    def padded(self, ids: Sequence[int]) -> Tensor:
        """Returns the places (L,) of the letters that a prompt asks for, -1 behind the last."""
        places = list(self.quoted(ids))[:MOST]
        return torch.tensor(places + [-1] * (MOST - len(places)), dtype=torch.int64)
