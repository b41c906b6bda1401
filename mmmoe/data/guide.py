"""What a family that looks at an item in several ways adds to a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from mmmoe.data.record import Record, Turn


@dataclass(frozen=True)
class Guided:
    """A record as the model is asked it."""

    turns: tuple[Turn, ...]
    """The dialogue, or another one about the same media."""
    views: frozenset[str]
    """Views that are looked up or decoded; what the others would show is left out."""
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    """By view, what goes with every item of its kind: one row."""
    counts_as: Mapping[str, str] = field(default_factory=dict)
    """By kind, the view whose number of positions a placeholder takes, where that is not the kind's own."""


class Guide(Protocol):
    """Decides sample by sample."""

    def __call__(self, record: Record, source: int, index: int, /) -> Guided:
        """Returns how sample `index` of a source is asked.

        Raises:
            ValueError: The sample lacks what the decision needs.
        """
