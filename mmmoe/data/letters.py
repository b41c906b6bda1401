"""Which ids of a dialogue are the letters that an image is asked to show: those in quotation marks before it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from mmmoe.config.ids import IMAGE_ID
from mmmoe.data.tokenizer import Tokenizer

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
        """Returns the places of what stands between the last two marks; none where there are not two."""
        found = [place for place, token in enumerate(ids) if token in self._marks]
        return range(found[-2] + 1, found[-1]) if len(found) > 1 else range(0)

    def before(self, ids: Sequence[int], drawn: Sequence[int]) -> Tensor:
        """Returns for each image that is to be drawn (by its number) the places of its letters (I, L), -1 behind."""
        images = [place for place, token in enumerate(ids) if token == IMAGE_ID]
        return torch.stack([self.padded(ids[: images[number]]) for number in drawn])

    def padded(self, ids: Sequence[int]) -> Tensor:
        """Returns the places (L,) of the letters that a prompt asks for, -1 behind the last."""
        places = list(self.quoted(ids))[:MOST]
        return torch.tensor(places + [-1] * (MOST - len(places)), dtype=torch.int64)
