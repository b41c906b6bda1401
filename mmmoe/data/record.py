"""One sample as it lies in a shard, before any tokenizer or transform has seen it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmmoe.data.media import Item

ROUTING_FIELD = "routing_weights"
"""MoVA's field of a row: 0 or 1 for each vision expert, in the model's order."""


@dataclass(frozen=True)
class Turn:
    """One turn of a dialogue; a mark such as `<image>` in the text says where an item of media stands."""

    role: str
    """human or gpt (LLaVA's names)."""
    text: str


@dataclass(frozen=True)
class Record:
    """A dialogue with its media, still encoded."""

    key: str
    """Unique within its source."""
    turns: tuple[Turn, ...]
    media: Mapping[str, tuple[Item, ...]] = field(default_factory=dict)
    """Items by kind, in the order of their marks; a kind that has none, or was not asked for, is left out."""
    domain: str = ""
    """Domain tag of the sample when the shard carries one; otherwise the source's counts."""
    routing: tuple[int, ...] | None = None
    """0 or 1 for each vision expert (MoVA's `routing_weights`); None where the shard says nothing."""
