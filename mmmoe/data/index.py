"""The index beside a shard: where each sample's members lie in the tar, so that any sample can be read alone."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from mmmoe.data.index_line import as_counts, as_pair, as_sizes, as_text, parse_line, signed
from mmmoe.data.media import KINDS, media_members
from mmmoe.data.tar_members import TEXT_ENDINGS, samples_of
from mmmoe.data.transforms import BROKEN

VERSION = 2
"""2: media of all kinds; 1 knew images only and is replaced on sight."""
CHARACTERS_A_TOKEN = 4
"""Rough length of a token in English text; the estimate only serves planning."""


@dataclass(frozen=True)
class Header:
    """First line of an index: what the shard is, in a few bytes."""

    bytes: int
    """Size of the tar."""
    sha256: str
    """Hash of the tar."""
    count: int
    """Samples."""
    items: Mapping[str, int]
    """Items of media of all samples, by kind."""
    origin: str = ""
    """Fingerprint of what the shard was packed from; empty for tars that mmmoe did not pack."""
    is_signed: bool = False
    """Whether each line has a checksum; those of before there were any do not."""


@dataclass(frozen=True)
class Entry:
    """One sample's line of an index."""

    key: str
    members: dict[str, tuple[int, int]]
    """Offset of the content and size, by member ending (`json`, `0.png`)."""
    modalities: tuple[str, ...]
    """The kinds of media it has, then `text`."""
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each image; (0, 0) when its header cannot be read."""
    tokens: int
    """Estimated text tokens."""
    first: Mapping[str, int]
    """How many items of each kind stand before it in the shard: the number of its own first one."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of media it has."""
        return self.modalities[:-1]

    def items(self, kind: str) -> tuple[tuple[str, ...], ...]:
        """Returns the member endings of its items of a kind, in reading order."""
        return media_members(self.members).get(kind, ())


def index_path(tar: Path) -> Path:
    """Returns where a shard's index lies."""
    return tar.with_name(tar.name + ".index.jsonl")


def build_index(tar: Path, origin: str = "") -> bytes:
    """Returns the index of any WebDataset tar, made in one pass over it.

    Raises:
        ValueError: The file is no plain tar, is cut off, or holds members that a shard must not have.
    """
    size = tar.stat().st_size
    lines: list[str] = []
    counts = dict.fromkeys(KINDS, 0)
    with tar.open("rb") as stream:
        for key, members in samples_of(tar):
            entry = _entry(stream, tar, key, members, counts)
            for kind, items in media_members(members).items():
                counts[kind] += len(items)
            lines.append(_entry_line(entry, len(lines) + 1))
    digest = file_sha256(tar)
    if tar.stat().st_size != size:
        raise ValueError(f"{tar} changed while it was indexed; index it again when nothing writes to it")
    header = {
        "version": VERSION,
        "bytes": size,
        "sha256": digest,
        "count": len(lines),
        "items": {kind: count for kind, count in counts.items() if count},
        "origin": origin,
    }
    return ("\n".join([signed(header, 0), *lines]) + "\n").encode()


def read_header(tar: Path, index: bytes) -> Header:
    """Returns the first line of an index.

    Raises:
        ValueError: It is not an index of this version.
    """
    cure = f"delete {index_path(tar)} and it is built anew from the tar"
    try:
        fields = parse_line(index.split(b"\n", 1)[0], 0)
    except ValueError as error:
        raise ValueError(f"{index_path(tar)} is no shard index ({error}); {cure}") from error
    version = fields.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ValueError(f"{index_path(tar)} has index version {version!r:.40}, expected {VERSION}; {cure}")
    try:
        size, count = as_sizes([fields["bytes"], fields["count"]])
        items, origin = as_counts(fields["items"]), as_text(fields.get("origin", ""))
        return Header(size, as_text(fields["sha256"]), count, items, origin, "crc32" in fields)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{index_path(tar)} is no shard index ({error!r}); {cure}") from error


def older_header(index: bytes) -> Header | None:
    """Returns what the first line of an older version's index says of its tar; None where it is of this version."""
    try:
        fields = parse_line(index.split(b"\n", 1)[0], 0)
        if not 1 <= fields["version"] < VERSION:
            return None
        size, count = as_sizes([fields["bytes"], fields["count"]])
        return Header(size, as_text(fields["sha256"]), count, {}, as_text(fields.get("origin", "")))
    except (ValueError, KeyError, TypeError):
        return None


def check_size(tar: Path, header: Header) -> None:
    """Compares the tar's size with its index.

    Raises:
        ValueError: They differ, as after a copy that was cut off.
    """
    actual = tar.stat().st_size
    if actual != header.bytes:
        state = "truncated" if actual < header.bytes else "longer than when it was indexed"
        raise ValueError(
            f"shard {tar} is {state}: expected {header.bytes} bytes, found {actual}; copy or pack it again, "
            f"or delete {index_path(tar).name} if the tar was changed on purpose"
        )


def parse_entry(line: bytes, number: int, header: Header) -> Entry:
    """Returns line `number` of an index, which is a sample's (the header's is 0).

    Raises:
        ValueError: It is not as it was written.
    """
    fields = parse_line(line, number)
    if header.is_signed and "crc32" not in fields:
        raise ValueError("it has no checksum, as the others have")
    try:
        return Entry(
            key=as_text(fields["key"]),
            members={as_text(ending): as_pair(place) for ending, place in fields["members"].items()},
            modalities=tuple(as_text(name) for name in fields["modalities"]),
            sizes=tuple(as_pair(size) for size in fields["sizes"]),
            tokens=as_sizes([fields["tokens"]])[0],
            first=as_counts(fields["first"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"it is no sample's line ({error!r})") from error


def file_sha256(path: Path) -> str:
    """Returns a file's SHA-256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that it is either whole or absent, whenever the process dies."""
    # Not the process's number: threads share it, and so may processes of two machines.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _entry(stream: Any, tar: Path, key: str, members: dict[str, tuple[int, int]], before: Mapping[str, int]) -> Entry:
    def content(ending: str) -> bytes:
        offset, size = members[ending]
        stream.seek(offset)
        data: bytes = stream.read(size)
        if len(data) != size:
            raise ValueError(f"shard {tar} is truncated inside sample {key!r}; copy or pack it again")
        return data

    media = media_members(members)
    characters = sum(len(content(ending)) for ending in members if ending in TEXT_ENDINGS)
    return Entry(
        key=key,
        members=members,
        modalities=(*media, "text"),
        sizes=tuple(_image_size(content(ending)) for (ending,) in media.get("image", ())),
        tokens=max(1, characters // CHARACTERS_A_TOKEN),
        first=dict(before),
    )


def _image_size(data: bytes) -> tuple[int, int]:
    try:
        with Image.open(BytesIO(data)) as image:
            return image.size
    except (ValueError, *BROKEN):
        return (0, 0)  # the sample is set aside when it is drawn, with the reason


def _entry_line(entry: Entry, number: int) -> str:
    return signed(
        {
            "key": entry.key,
            "members": entry.members,
            "modalities": entry.modalities,
            "sizes": entry.sizes,
            "tokens": entry.tokens,
            "first": entry.first,
        },
        number,
    )
