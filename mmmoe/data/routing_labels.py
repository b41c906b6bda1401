"""Routing labels of MoVA: which experts lower the loss of a sample (arXiv 2404.13046, section 3.2).

Losses are kept per judge and shard, in parts of a fixed number of samples, under a name that holds all they depend on.
A part is complete as soon as its file has its name, so processes divide parts without talking, and a stopped builder
goes on at the next missing part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmmoe.data.index import write_atomically
from mmmoe.data.routing_prompt import MOST, one_where
from mmmoe.data.shards import ShardSet

PART = 512
"""Samples of one part."""

Losses = npt.NDArray[np.float32]


def routing_of(losses: Sequence[float], most: int = MOST) -> tuple[int, ...]:
    """Returns the label of a sample: the experts whose loss is below the base's, the best ones if there are many.

    Args:
        losses: of the base, then of each expert; not finite where a sample could not be read or shows nothing.
        most: experts at most (paper: 3; which ones it does not say, we take the smallest losses).
    """
    base, *experts = losses
    better = [number for number, loss in enumerate(experts) if loss < base]
    return one_where(set(sorted(better, key=lambda number: (experts[number], number))[:most]), len(experts))


@dataclass(frozen=True)
class LabelPart:
    """A run of samples of one shard."""

    number: int
    """Counted over all shards."""
    shard: int
    start: int
    stop: int
    """Within the shard."""


class LossColumn:
    """The loss of every sample of a shard set under one judge, float32; NaN of what is unreadable or has no image."""

    def __init__(self, folder: str | Path, key: str, shards: ShardSet) -> None:
        """Finds what is there.

        Args:
            folder: of all columns.
            key: names the judge: its weights, its template, the experts it was given.
            shards: whose samples.
        """
        self.shards = shards
        self._folders = [
            Path(folder) / hashlib.sha256(f"{key} {shard.header.sha256}".encode()).hexdigest()[:32]
            for shard in shards.shards
        ]
        self._read: dict[Path, Losses] = {}

    def parts(self) -> list[LabelPart]:
        """Returns all parts, present or not."""
        counts = [shard.header.count for shard in self.shards.shards]
        spans = [
            (shard, start, min(start + PART, count))
            for shard, count in enumerate(counts)
            for start in range(0, count, PART)
        ]
        return [LabelPart(number, *span) for number, span in enumerate(spans)]

    def missing(self) -> list[LabelPart]:
        """Returns the parts that are not on disk."""
        return [part for part in self.parts() if not self._path(part.shard, part.start).is_file()]

    def first(self, part: LabelPart) -> int:
        """Returns the number in the set of a part's first sample."""
        return sum(shard.header.count for shard in self.shards.shards[: part.shard]) + part.start

    def write(self, part: LabelPart, losses_N: Losses) -> None:
        """Keeps a part's losses."""
        path = self._path(part.shard, part.start)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = BytesIO()
        np.save(content, losses_N.astype(np.float32))
        write_atomically(path, content.getvalue())

    def loss(self, index: int) -> float:
        """Returns the loss of sample `index` of the set.

        Raises:
            ValueError: It was never computed.
        """
        shard, local = self.shards.locate(index)
        path = self._path(shard, local - local % PART)
        if path not in self._read:
            if not path.is_file():
                raise ValueError(f"losses {path} were never computed; build the routing labels first")
            self._read[path] = np.load(path, allow_pickle=False)
        return float(self._read[path][local % PART])

    def _path(self, shard: int, start: int) -> Path:
        return self._folders[shard] / f"{start:08d}.npy"
