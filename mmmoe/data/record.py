"""One sample as it lies in a shard, before any tokenizer or transform has seen it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """One turn of a dialogue; `<image>` in the text marks where an image stands."""

    role: str
    """human or gpt (LLaVA's names)."""
    text: str


@dataclass(frozen=True)
class Record:
    """A dialogue with its media, still encoded."""

    key: str
    """Unique within its source."""
    turns: tuple[Turn, ...]
    images: tuple[bytes, ...] = ()
    """Encoded files (png, jpg, webp), in the order of their placeholders."""
    domain: str = ""
    """Domain tag of the sample when the shard carries one; otherwise the source's counts."""
