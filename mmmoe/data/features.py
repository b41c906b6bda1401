"""What a frozen tower makes of media, kept on disk: each item is encoded once, whatever the epochs, stages and runs.

Features are stored per kind and shard in parts of a fixed number of items. A part is complete as soon as its file has
its name, so processes divide parts without talking, a stopped encoding goes on at the next missing part, and at any
world size. An item of speech or audio keeps the features of all its chunks; beside such a part stand their numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmmoe.data.index import write_atomically
from mmmoe.data.media import KINDS, Item
from mmmoe.data.rowfile import RowFile
from mmmoe.data.shards import ShardSet

PARTS = {"image": 256, "video": 32, "speech": 32, "audio": 32}
"""Items of one part: 300 MB for 576 tokens of 1024 channels, so that a stopped encoding loses little."""
VERSION = 1
HALF_MAX = 65504.0
"""Largest float16; some CLIP channels have outliers, and an infinity would poison a whole run."""


@dataclass(frozen=True)
class Part:
    """A run of items of one shard."""

    number: int
    """Counted over all shards."""
    shard: int
    start: int
    stop: int


@dataclass(frozen=True)
class Encoded:
    """Features of a few successive items."""

    features: Tensor
    """(N, ...): a row an image, a video or a chunk."""
    counts: tuple[int, ...]
    """Rows of each item; all 1 but for speech and audio."""
    failures: dict[int, str]
    """By place of the item, why it could not be decoded; its features are never handed out."""


@dataclass(frozen=True)
class _Opened:
    features: np.ndarray
    first: tuple[int, ...]
    """Row that each item begins at, and where the last one ends."""
    failures: dict[str, str]


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
        named = key if kind == "image" else f"{kind} {key}"  # images came first, and what was kept stays good
        self._folders = [
            Path(folder) / hashlib.sha256(f"{VERSION} {named} {shard.header.sha256}".encode()).hexdigest()[:32]
            for shard in shards.shards
        ]
        self._open: dict[Path, _Opened] = {}
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
        return [part for part in self.parts() if not self._path(part.shard, part.start).is_file()]

    def get(self, shard_index: int, item_index: int) -> Tensor:
        """Returns one item's features, float16: image (P, C), video (F, P, C), speech and audio (chunks, P, C).

        Args:
            shard_index: Number of the shard in the set.
            item_index: Number of the item in the shard (`Entry.first[kind]` and following).

        Raises:
            ValueError: The item could not be decoded when it was encoded, or its features are missing or damaged.
        """
        place = item_index % PARTS[self.kind]
        path = self._path(shard_index, item_index - place)
        opened = self._open.get(path) or self._load(path, shard_index, item_index - place)
        reason = opened.failures.get(str(place))
        if reason is not None:
            raise ValueError(reason)
        rows = torch.from_numpy(np.array(opened.features[opened.first[place] : opened.first[place + 1]]))
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
        path = self._path(part.shard, part.start)
        path.parent.mkdir(parents=True, exist_ok=True)
        failures: dict[str, str] = {}
        counts: list[int] = []
        with RowFile(path) as file:
            for batch in batches:
                file.append(batch.features.float().clamp(-HALF_MAX, HALF_MAX).half().cpu().numpy())
                failures.update({str(len(counts) + place): reason for place, reason in batch.failures.items()})
                counts += batch.counts
            assert len(counts) == part.stop - part.start, f"part {part} got {len(counts)} items"
            if failures:
                write_atomically(path.with_suffix(".bad.json"), json.dumps(failures).encode())
            if KINDS[self.kind].is_chunked:
                write_atomically(path.with_suffix(".chunks.json"), json.dumps(counts).encode())

    def _count(self, shard: int) -> int:
        return self.shards.shards[shard].header.items.get(self.kind, 0)

    def _path(self, shard: int, start: int) -> Path:
        return self._folders[shard] / f"{start:08d}.npy"

    def _load(self, path: Path, shard: int, start: int) -> _Opened:
        with self._lock:
            if path not in self._open:
                expected = min(PARTS[self.kind], self._count(shard) - start)
                try:
                    features = np.load(path, mmap_mode="r", allow_pickle=False)
                except FileNotFoundError as error:
                    raise FileNotFoundError(f"features {path} were never written; encode the media first") from error
                except (OSError, ValueError, EOFError) as error:
                    raise OSError(f"features {path} are damaged ({error}); delete the file, it is made anew") from error
                counts = [1] * expected
                if KINDS[self.kind].is_chunked:
                    counts = _read_json(path.with_suffix(".chunks.json"), counts)
                if features.ndim < 3 or len(features) != sum(counts) or len(counts) != expected:
                    raise OSError(
                        f"features {path} have shape {features.shape}, expected {expected} {KINDS[self.kind].plural}; "
                        "delete the file, it is made anew"
                    )
                failures = _read_json(path.with_suffix(".bad.json"), {})
                self._open[path] = _Opened(features, tuple(accumulate(counts, initial=0)), failures)
            return self._open[path]


def _read_json(path: Path, otherwise: Any) -> Any:
    """Returns what a file beside a part holds, or something else where there is none."""
    return json.loads(path.read_text()) if path.is_file() else otherwise
