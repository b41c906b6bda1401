"""What the data asks of a transform, whatever kind of media it is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mmmoe.data.media import KINDS, Item


class Transform(Protocol):
    """One encoded item to what a tower takes: (C, H, W) of an image, (F, C, H, W) of a video, chunks of sound."""

    @property
    def key(self) -> str:
        """Names what features depend on besides the tower's own key."""

    def __call__(self, item: Item, /) -> Tensor:
        """Returns float32.

        Raises:
            ValueError: The item cannot be decoded; the text says why.
        """

    def blank(self) -> Tensor:
        """Returns an item that shows or says nothing: even grey, silence."""


def placeholders(kind: str, made: Tensor) -> int:
    """Returns how many placeholders an item has once a transform or a tower has made something of it."""
    return len(made) if KINDS[kind].is_chunked else 1


def stack_items(kind: str, items: Sequence[Tensor]) -> Tensor:
    """Returns items of one kind with what stands at one placeholder along the first axis."""
    return torch.cat(tuple(items)) if KINDS[kind].is_chunked else torch.stack(tuple(items))
