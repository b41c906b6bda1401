"""What a frozen tower makes of media, kept on disk: each item is encoded once, whatever the epochs, stages and runs.

Features are stored per kind and shard in parts of a fixed number of items. A part is complete as soon as its file has
its name, so processes divide parts without talking, a stopped encoding goes on at the next missing part, and at any
world size. An item of speech or audio keeps the features of all its chunks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from mmmoe.data.feature_folders import About, describe
from mmmoe.data.feature_lease import Lease
from mmmoe.data.feature_part import Encoded, OpenPart, open_part, write_part
from mmmoe.data.media import KINDS, Item
from mmmoe.data.shards import ShardSet

PARTS = {"image": 256, "video": 32, "speech": 32, "audio": 32}
"""Items of one part: 300 MB for 576 tokens of 1024 channels, so that a stopped encoding loses little."""
VERSION = 1


@dataclass(frozen=True)
class Part:
    """A run of items of one shard."""

    number: int
    """Counted over all shards."""
    shard: int
    start: int
    stop: int


class FeatureStore:
    """Features of all items of one kind of a shard set under one tower, float16."""

    def __init__(self, folder: str | Path, key: str, shards: ShardSet, kind: str = "image") -> None:
        """Finds what is there; nothing is read yet.

        Args:
            folder: The cache; shards, towers and kinds of any number share it.
            key: Names the tower (architecture, hash of its weights and options) and what the features depend on
                besides. Another key, other features.
            shards: Whose items.
            kind: Which of their media.
        """
        self.shards = shards
        self.kind = kind
        self.key = key
        self.lease: Lease | None = None
        """Keeps the folders from being deleted while they are used."""
        named = key if kind == "image" else f"{kind} {key}"  # images came first, and what was kept stays good
        self.folders = [
            Path(folder) / hashlib.sha256(f"{VERSION} {named} {shard.header.sha256}".encode()).hexdigest()[:32]
            for shard in shards.shards
        ]
        """Of each shard."""
        self._open: dict[Path, OpenPart] = {}
        self._lock = Lock()

    def parts(self) -> list[Part]:
        """Returns all parts, present or not, in a fixed order."""
        size = PARTS[self.kind]
        spans = [
            (shard, start, min(start + size, self._count(shard)))
            for shard in range(len(self.shards.shards))
            for start in range(0, self._count(shard), size)
        ]
        return [Part(number, *span) for number, span in enumerate(spans)]

    def missing(self) -> list[Part]:
        """Returns the parts that are not on disk."""
        return [part for part in self.parts() if not self.path(part).is_file()]

    def path(self, part: Part) -> Path:
        """Returns where a part lies, or will."""
        return self._path(part.shard, part.start)

    def describe(self, shard: int, row: tuple[int, ...]) -> None:
        """Has the folder of a shard say what it holds.

        Args:
            shard: Number of the shard in the set.
            row: Shape of the features of an image, a video or a chunk.
        """
        one = self.shards.shards[shard]
        about = About(self.key, self.kind, one.path.name, one.header.sha256, self._count(shard), row)
        describe(self.folders[shard], about)

    def get(self, shard_index: int, item_index: int) -> Tensor:
        """Returns one item's features, float16: image (P, C), video (F, P, C), speech and audio (chunks, P, C).

        Args:
            shard_index: Number of the shard in the set.
            item_index: Number of the item in the shard (`Entry.first[kind]` and following).

        Raises:
            ValueError: The item could not be decoded when it was encoded.
            OSError: Its features are missing or damaged; damaged ones are made anew by the next encoding.
        """
        place = item_index % PARTS[self.kind]
        path = self._path(shard_index, item_index - place)
        opened = self._open.get(path) or self._load(path, shard_index, item_index - place)
        rows = torch.from_numpy(opened.rows(place))
        return rows if KINDS[self.kind].is_chunked else rows[0]

    def items(self, part: Part) -> Iterator[Item]:
        """Yields a part's encoded items in order."""
        shard = self.shards.shards[part.shard]
        low, high = 0, shard.header.count - 1
        while low < high:  # last record whose first item is not beyond the part's
            middle = (low + high + 1) // 2
            low, high = (middle, high) if shard.entry(middle).first[self.kind] <= part.start else (low, middle - 1)
        number = part.start
        while number < part.stop:
            entry = shard.entry(low)
            first = entry.first[self.kind]
            for members in entry.items(self.kind)[number - first : part.stop - first]:
                yield shard.item(entry, members, self.kind)
                number += 1
            low += 1

    def write(self, part: Part, batches: Iterator[Encoded]) -> None:
        """Writes a part as its batches arrive; the part appears when it is whole."""
        first = next(batches)
        self.describe(part.shard, tuple(first.features.shape[1:]))
        write_part(self.path(part), chain([first], batches), part.stop - part.start)

    def close(self) -> None:
        """Lets go of the parts that were read, and of the lease."""
        with self._lock:
            self._open.clear()
        if self.lease is not None:
            self.lease.release()

    def _count(self, shard: int) -> int:
        return self.shards.shards[shard].header.items.get(self.kind, 0)

    def _path(self, shard: int, start: int) -> Path:
        return self.folders[shard] / f"{start:08d}.npy"

    def _load(self, path: Path, shard: int, start: int) -> OpenPart:
        with self._lock:
            if path not in self._open:
                expected = min(PARTS[self.kind], self._count(shard) - start)
                self._open[path] = open_part(path, expected, is_chunked=KINDS[self.kind].is_chunked)
            return self._open[path]
