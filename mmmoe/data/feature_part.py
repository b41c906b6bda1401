"""A part of the feature cache: the rows of a run of items, with a hash of each behind them in the same file.

Hashes stand in the file itself, so that no other process's can come beside these rows, and one an item, so that a
sample costs the reading of its own features only: hashing a part of 300 MB for the first sample drawn from it would
have every process read the whole cache before its first epoch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mmmoe.data.rowfile import HEADER, RowFile, read_rows

HALF_MAX = 65504.0
"""Largest float16; some CLIP channels have outliers, and an infinity would poison a whole run."""
SUM_BYTES = 8
"""Length of a hash: against disks and copies, not against people."""
DAMAGED = ".damaged"
"""What a part is called that was taken out, until it is made anew: so that every process of a run can say why."""
NOTE_BYTES, NOTE_BYTES_AN_ITEM = 64, 28
"""What a note takes at most where nothing failed: the text around, then `1, ` and `"0123456789abcdef", ` an item."""

Rows = npt.NDArray[np.float16]


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
class OpenPart:
    """A part on disk, mapped."""

    path: Path
    features: Rows
    first: tuple[int, ...]
    """Row that each item begins at, and where the last one ends."""
    failures: Mapping[str, str]
    sums: Sequence[str]
    """Hash of each item; none in parts that were written before there were hashes, which are taken as they are."""
    inode: int
    seen: set[int] = field(default_factory=set)
    """Places whose hash was found right."""

    def rows(self, place: int) -> Rows:
        """Returns an item's features; its hash is compared when they are first read.

        Raises:
            ValueError: The item could not be decoded when it was encoded.
            OSError: Its features are not those that were written.
        """
        reason = self.failures.get(str(place))
        if reason is not None:
            raise ValueError(reason)
        rows = np.array(self.features[self.first[place] : self.first[place + 1]])
        if self.sums and place not in self.seen:
            if _sum(rows) != self.sums[place]:
                raise set_aside(self.path, f"item {place} has another hash than when it was written", self.inode)
            self.seen.add(place)
        return rows


def write_part(path: Path, batches: Iterable[Encoded], expected: int) -> None:
    """Writes a part of so many items as its batches arrive; it appears when it is whole."""
    failures: dict[str, str] = {}
    counts: list[int] = []
    sums: list[str] = []
    with RowFile(path) as file:
        for batch in batches:
            rows = batch.features.float().clamp(-HALF_MAX, HALF_MAX).half().cpu().numpy()
            file.append(rows)
            failures.update({str(len(counts) + place): reason for place, reason in batch.failures.items()})
            counts += batch.counts
            sums += [_sum(rows[a:b]) for a, b in pairwise(accumulate(batch.counts, initial=0))]
        assert len(counts) == expected, f"part {path} got {len(counts)} items instead of {expected}"
        content = json.dumps({"counts": counts, "failures": failures, "sums": sums}).encode()
        file.note(_digest(content).encode() + content)
    path.with_suffix(DAMAGED).unlink(missing_ok=True)


def part_bytes(items: int, row: Sequence[int]) -> int:
    """Returns the size of a part whose items have a row each of this shape, or a little more."""
    return HEADER + items * prod(row) * np.dtype(np.float16).itemsize + NOTE_BYTES + items * NOTE_BYTES_AN_ITEM


def open_part(path: Path, expected: int, *, is_chunked: bool) -> OpenPart:
    """Returns a part that was written.

    Args:
        path: the file.
        expected: its number of items.
        is_chunked: whether an item may have several rows.

    Raises:
        FileNotFoundError: It is not there.
        OSError: It is damaged; it is taken out of the cache then.
    """
    try:
        inode = path.stat().st_ino
        features, note = read_rows(path)
    except FileNotFoundError as error:
        if path.with_suffix(DAMAGED).is_file():
            raise _damage(path, "another process found it") from error
        raise FileNotFoundError(f"features {path} were never written; encode the media first") from error
    except (ValueError, EOFError) as error:
        raise set_aside(path, str(error), inode) from error
    noted = _read_note(note) if note else _notes_beside(path, [1] * expected)
    if noted is None:
        raise set_aside(path, "the hashes behind the rows are not those that were written", inode)
    counts = noted["counts"]
    is_even = is_chunked or set(counts) == {1}
    if features.ndim < 3 or len(features) != sum(counts) or len(counts) != expected or not is_even:
        raise set_aside(path, f"shape {features.shape} does not fit {expected} items", inode)
    return OpenPart(path, features, tuple(accumulate(counts, initial=0)), noted["failures"], noted["sums"], inode)


def set_aside(path: Path, fault: str, inode: int) -> OSError:
    """Takes a damaged part out of the cache, so that the next encoding makes it anew; returns the error to raise."""
    with suppress(OSError):  # a cache that cannot be written: then the message says which file to delete
        if path.stat().st_ino == inode:  # else another process has made it anew already
            path.replace(path.with_suffix(DAMAGED))
    return _damage(path, fault)


def _damage(path: Path, fault: str) -> OSError:
    done = f"delete the file {path.name}" if path.exists() else "the part was taken out of the cache"
    return OSError(
        f"features {path} are damaged ({fault}); {done}, and the next encoding makes it anew: resume the run"
    )


def _sum(rows: Rows) -> str:
    return _digest(np.ascontiguousarray(rows).reshape(-1).view(np.uint8))


def _digest(content: Any) -> str:
    return hashlib.blake2b(content, digest_size=SUM_BYTES).hexdigest()


def _read_note(note: bytes) -> dict[str, Any] | None:
    """Returns what stands behind the rows, None where it is damaged."""
    digest, content = note[: 2 * SUM_BYTES], note[2 * SUM_BYTES :]
    if digest != _digest(content).encode():
        return None
    found: dict[str, Any] = json.loads(content)
    return found


def _notes_beside(path: Path, counts: list[int]) -> dict[str, Any]:
    """Returns what older parts have in files beside them."""

    def read(ending: str, otherwise: Any) -> Any:
        file = path.with_suffix(ending)
        return json.loads(file.read_text()) if file.is_file() else otherwise

    return {"counts": read(".chunks.json", counts), "failures": read(".bad.json", {}), "sums": []}
