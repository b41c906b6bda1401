"""What the processes of an evaluation divide and what they file together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, cast

from mmmoe import dist, env

T = TypeVar("T")


def share(everything: Sequence[T]) -> list[T]:
    """Returns this process's part: a run of neighbours, which often share a picture."""
    rank, world = env.rank(), env.world_size()
    return list(everything[len(everything) * rank // world : len(everything) * (rank + 1) // world])


def joined(mine: Sequence[T]) -> list[T]:
    """Returns the parts of all processes, in order; collective."""
    return [one for part in cast("list[list[T]]", dist.gather_objects(list(mine))) for one in part]


def write_text(path: Path, text: str) -> None:
    """Writes a file that has its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
