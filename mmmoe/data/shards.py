"""Shards read in any order: one sample at a time by its offset, never by unpacking."""

from __future__ import annotations

import glob
import hashlib
import json
import mmap
import os
import threading
from bisect import bisect_right
from collections.abc import Collection
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from mmmoe.data.index import (
    VERSION,
    Entry,
    Header,
    build_index,
    check_size,
    index_path,
    older_header,
    parse_entry,
    read_header,
    write_atomically,
)
from mmmoe.data.media import KINDS, Item
from mmmoe.data.record import ROUTING_FIELD, Record, Turn
from mmmoe.data.tar_members import size_limit
from mmmoe.log import logger


class Shard:
    """One tar and its index; opened when first read."""

    def __init__(self, path: Path) -> None:
        """Reads the index's first line, building the index if there is none or an older version's.

        Raises:
            ValueError: The tar does not fit its index.
        """
        self.path = path
        beside = index_path(path)
        self._index: bytes | None = None
        if beside.is_file():
            with beside.open("rb") as stream:
                line = stream.readline()
            older = older_header(line)
            self._index = None if older is None else _again(path, older)
        else:
            self._index = _first_pass(path)
        self.header: Header = read_header(path, line if self._index is None else self._index)
        check_size(path, self.header)
        self._lock = threading.Lock()
        self._lines: tuple[mmap.mmap | bytes, np.ndarray] | None = None
        self._file: int | None = None

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)  # type: ignore[arg-type]  # not None, asked just above

    def entry(self, index: int) -> Entry:
        """Returns where sample `index` lies."""
        lines = self._lines or self._open_index()
        content, end = lines
        try:
            line = content[int(end[index]) + 1 : int(end[index + 1])]
            return parse_entry(line, index + 1, self.header)
        except ValueError as error:
            raise ValueError(
                f"{index_path(self.path)}, line {index + 2}: {error}; delete the index and it is built anew"
            ) from error

    def read(self, entry: Entry, ending: str) -> bytes:
        """Returns one member's bytes.

        Raises:
            ValueError: The index points beyond the tar or at something too large.
        """
        offset, size = entry.members[ending]
        if not 0 <= size <= size_limit(ending) or offset < 0 or offset + size > self.header.bytes:
            raise ValueError(
                f"{index_path(self.path)}: sample {entry.key!r} claims {size} bytes at {offset}, which the tar "
                f"({self.header.bytes} bytes) cannot hold; delete the index and it is built anew"
            )
        data = os.pread(self._descriptor(), size, offset)
        if len(data) != size:
            raise ValueError(f"shard {self.path} ended inside sample {entry.key!r}; copy or pack it again")
        return data

    def item(self, entry: Entry, members: tuple[str, ...], kind: str) -> Item:
        """Returns an item's bytes; of a video given as frames those of each frame."""
        contents = tuple(self.read(entry, ending) for ending in members)
        is_one_file = members[0].rsplit(".", 1)[-1].lower() in KINDS[kind].endings
        return contents[0] if is_one_file else contents

    def _descriptor(self) -> int:
        if self._file is None:
            with self._lock:
                if self._file is None:
                    self._file = os.open(self.path, os.O_RDONLY)
        return self._file

    def _open_index(self) -> tuple[mmap.mmap | bytes, np.ndarray]:
        """Maps the index and finds its lines; a map is shared by all processes of a machine, objects would not be."""
        with self._lock:
            if self._lines is None:
                content: mmap.mmap | bytes
                if self._index is not None:
                    content = self._index
                else:
                    with index_path(self.path).open("rb") as stream:
                        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                end = np.flatnonzero(np.frombuffer(content, dtype=np.uint8) == ord("\n"))
                if len(end) != self.header.count + 1:
                    raise ValueError(
                        f"{index_path(self.path)} has {len(end) - 1} samples, its header says {self.header.count}; "
                        "delete it and it is built anew from the tar"
                    )
                self._lines = (content, end)
            return self._lines


class ShardSet:
    """All shards of one source as one list of records."""

    def __init__(self, path: str | Path) -> None:
        """Finds the shards and checks their sizes.

        Args:
            path: A folder of tars, one tar, or a glob.

        Raises:
            ValueError: There are no shards, or one does not fit its index.
        """
        self.shards = [Shard(tar) for tar in find_shards(path)]
        self._ends = list(accumulate(shard.header.count for shard in self.shards))
        if not self._ends[-1]:
            raise ValueError(f"the shards at {path} hold no samples; pack some with `mmmoe data pack`")

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def digest(self) -> str:
        """Hash of all shards' hashes, in order."""
        return hashlib.sha256("\n".join(s.header.sha256 for s in self.shards).encode()).hexdigest()

    def locate(self, index: int) -> tuple[int, int]:
        """Returns (number of the shard, number of the sample within it)."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def entry(self, index: int) -> Entry:
        """Returns sample `index`'s line of its index."""
        shard, local = self.locate(index)
        return self.shards[shard].entry(local)

    def record(self, index: int, kinds: Collection[str] = tuple(KINDS)) -> Record:
        """Returns sample `index`; media of other kinds than these are left in the shard.

        Raises:
            ValueError: Its text is not a dialogue, or the shard is damaged.
        """
        number, local = self.locate(index)
        shard = self.shards[number]
        entry = shard.entry(local)
        said = _dialogue(shard, entry)
        media = {
            kind: tuple(shard.item(entry, members, kind) for members in entry.items(kind))
            for kind in entry.kinds
            if kind in kinds
        }
        return replace(said, media=media)


def find_shards(path: str | Path) -> list[Path]:
    """Returns the tars that a path means, sorted.

    Raises:
        ValueError: It is a URL or pipe, or means no tar.
    """
    text = str(path)
    if "://" in text or text.startswith("pipe:"):
        raise ValueError(f"shards {text!r}: only local files are read; copy the shards and give their folder")
    place = Path(text).expanduser()
    if place.is_dir():
        found = sorted(place.glob("*.tar"))
    elif place.is_file():
        found = [place]
    else:
        found = sorted(Path(name) for name in glob.glob(str(place)) if name.endswith(".tar"))  # noqa: PTH207 (absolute globs)
    if not found:
        raise ValueError(f"no shards (*.tar) at {text}; make them with `mmmoe data pack` or correct the path")
    return found


def _again(tar: Path, older: Header) -> bytes:
    """Returns an index of this version, made of the very tar that the older one was made of."""
    check_size(tar, older)
    logger().info("%s is of an older version than %d and is made anew", index_path(tar), VERSION)
    index = build_index(tar, older.origin)
    found = read_header(tar, index).sha256
    if found != older.sha256:
        raise ValueError(
            f"shard {tar} has SHA-256 {found[:12]}, its index says {older.sha256[:12]}; copy or pack it again, "
            f"or delete {index_path(tar).name} if the tar was changed on purpose"
        )
    return _kept(tar, index)


def _first_pass(tar: Path) -> bytes:
    logger().info("indexing %s", tar)
    return _kept(tar, build_index(tar))


def _kept(tar: Path, index: bytes) -> bytes:
    try:
        write_atomically(index_path(tar), index)
    except OSError as error:
        logger().warning("cannot keep the index of %s (%s); it is built anew in every run", tar, error)
    return index


def _dialogue(shard: Shard, entry: Entry) -> Record:
    """Returns what `json` (LLaVA's fields) says or, as caption tars have it, `txt`; without media."""
    where = f"shard {shard.path.name}, sample {entry.key!r}"
    if "json" in entry.members:
        try:
            fields: Any = json.loads(shard.read(entry, "json"))
            turns = tuple(Turn(str(turn["from"]), str(turn["value"])) for turn in fields["conversations"])
            routing = fields.get(ROUTING_FIELD)
            routed = None if routing is None else tuple(int(bit) for bit in routing)
            return Record(entry.key, turns, domain=str(fields.get("domain") or ""), routing=routed)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OverflowError) as error:
            raise ValueError(f"{where}: json has no conversations of from and value ({error!r})") from error
    if "txt" in entry.members:
        marks = "\n".join(KINDS[kind].mark for kind in entry.kinds for _ in entry.items(kind))
        try:
            caption = shard.read(entry, "txt").decode().strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: txt is not UTF-8 ({error})") from error
        return Record(entry.key, (Turn("human", marks), Turn("gpt", caption)))
    raise ValueError(f"{where}: has neither json nor txt, only {sorted(entry.members)}")
