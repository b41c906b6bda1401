"""One number for every sample of a shard set, kept on disk in parts: what a judge has to say of each.

Numbers are kept per judge and shard, in parts of a fixed number of samples, under a name that holds all they depend on.
A part is complete as soon as its file has its name, so processes divide parts without talking, and a stopped builder
goes on at the next missing part.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmmoe.data.index import write_atomically
from mmmoe.data.shards import ShardSet

PART = 512
"""Samples of one part."""

Numbers = npt.NDArray[np.float64]
"""Exact for the bits of as many experts as there are letters."""


@dataclass(frozen=True)
class ColumnPart:
    """A run of samples of one shard."""

    number: int
    """Counted over all shards."""
    shard: int
    start: int
    stop: int
    """Within the shard."""


class SampleColumn:
    """A number for every sample of a shard set; NaN of what is unreadable or has no image."""

    def __init__(self, folder: str | Path, key: str, shards: ShardSet) -> None:
        """Finds what is there.

        Args:
            folder: of all columns.
            key: names the judge and what it is asked: its weights, its template, the experts it is given.
            shards: whose samples.
        """
        self.shards = shards
        self._folders = [
            Path(folder) / hashlib.sha256(f"{key} {shard.header.sha256}".encode()).hexdigest()[:32]
            for shard in shards.shards
        ]
        self._read: dict[Path, Numbers] = {}

    def parts(self) -> list[ColumnPart]:
        """Returns all parts, present or not."""
        counts = [shard.header.count for shard in self.shards.shards]
        spans = [
            (shard, start, min(start + PART, count))
            for shard, count in enumerate(counts)
            for start in range(0, count, PART)
        ]
        return [ColumnPart(number, *span) for number, span in enumerate(spans)]

    def missing(self) -> list[ColumnPart]:
        """Returns the parts that are not on disk."""
        return [part for part in self.parts() if not self._path(part.shard, part.start).is_file()]

    def first(self, part: ColumnPart) -> int:
        """Returns the number in the set of a part's first sample."""
        return sum(shard.header.count for shard in self.shards.shards[: part.shard]) + part.start

    def write(self, part: ColumnPart, numbers_N: Numbers) -> None:
        """Keeps a part's numbers."""
        path = self._path(part.shard, part.start)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = BytesIO()
        np.save(content, numbers_N.astype(np.float64))
        write_atomically(path, content.getvalue())

    def number(self, index: int) -> float:
        """Returns the number of sample `index` of the set.

        Raises:
            ValueError: It was never computed.
        """
        shard, local = self.shards.locate(index)
        path = self._path(shard, local - local % PART)
        if path not in self._read:
            if not path.is_file():
                raise ValueError(f"numbers {path} were never computed; fill their column first")
            self._read[path] = np.load(path, allow_pickle=False)
        return float(self._read[path][local % PART])

    def _path(self, shard: int, start: int) -> Path:
        return self._folders[shard] / f"{start:08d}.npy"
