"""A look into shards: the first dialogues as a table."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from mmmoe.data.index import Entry
from mmmoe.data.media import KINDS
from mmmoe.data.record import Turn
from mmmoe.data.shards import ShardSet

LONGEST = 120
"""Characters shown of a text."""


def preview(shards: str | Path | ShardSet, n: int = 10) -> Table:
    """Returns the first `n` samples as a table; a sample that cannot be read says why in its row.

    Raises:
        ValueError: There are no shards.
    """
    opened = shards if isinstance(shards, ShardSet) else ShardSet(shards)
    table = Table(title=f"{len(opened)} samples in {len(opened.shards)} shards, first {min(n, len(opened))}")
    for column in ("key", "domain", "media", "human", "gpt", "turns", "tokens"):
        table.add_column(column, justify="right" if column in ("turns", "tokens") else "left")
    for index in range(min(n, len(opened))):
        # Text, not str: a dialogue's own brackets must not be read as markup.
        table.add_row(*(Text(cell) for cell in _row(opened, index)))
    return table


def _row(shards: ShardSet, index: int) -> list[str]:
    try:
        entry = shards.entry(index)
        record = shards.record(index, kinds=())
    except ValueError as error:
        return [f"#{index}", "", "", f"cannot be read: {error}", "", "", ""]
    return [
        record.key,
        record.domain,
        _media(entry),
        _first(record.turns, "human"),
        _first(record.turns, "gpt"),
        str(len(record.turns)),
        str(entry.tokens),
    ]


def _media(entry: Entry) -> str:
    """Returns the sizes of the images and what other media there are."""
    shown = [f"{width}x{height}" for width, height in entry.sizes]
    for kind in KINDS:
        if kind != "image":
            items = entry.items(kind)
            shown += [kind if len(members) == 1 else f"{kind} of {len(members)} frames" for members in items]
    return ", ".join(shown)


def _first(turns: tuple[Turn, ...], role: str) -> str:
    text = next((turn.text for turn in turns if turn.role == role), "").replace("\n", " ")
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "\u2026"
