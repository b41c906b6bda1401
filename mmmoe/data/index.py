"""The index beside a shard: where each sample's members lie in the tar, so that any sample can be read alone."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from mmmoe.data.transforms import BROKEN

VERSION = 1
IMAGE_ENDINGS = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"})
TEXT_ENDINGS = frozenset({"json", "txt"})
MAX_TEXT_BYTES = 16 * 2**20
"""Largest json or txt member; a dialogue is some kilobytes."""
MAX_IMAGE_BYTES = 256 * 2**20
"""Largest encoded image."""
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
    images: int
    """Images of all samples."""
    origin: str = ""
    """Fingerprint of what the shard was packed from; empty for tars that mmmoe did not pack."""


@dataclass(frozen=True)
class Entry:
    """One sample's line of an index."""

    key: str
    members: dict[str, tuple[int, int]]
    """Offset of the content and size, by member ending (`json`, `0.png`)."""
    modalities: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each image; (0, 0) when its header cannot be read."""
    tokens: int
    """Estimated text tokens."""
    first_image: int
    """Number of the sample's first image within the shard."""

    @property
    def images(self) -> tuple[str, ...]:
        """Endings of its image members in reading order."""
        return image_members(self.members)


def index_path(tar: Path) -> Path:
    """Returns where a shard's index lies."""
    return tar.with_name(tar.name + ".index.jsonl")


def image_members(endings: dict[str, Any]) -> tuple[str, ...]:
    """Returns the image endings in reading order: by the number in front (`0.png`, `1.jpg`), then by name."""

    def place(ending: str) -> tuple[int, str]:
        number = ending.split(".")[0]
        return (int(number) if number.isdigit() else 0, ending)

    return tuple(sorted((e for e in endings if e.rsplit(".", 1)[-1].lower() in IMAGE_ENDINGS), key=place))


def build_index(tar: Path, origin: str = "") -> bytes:
    """Returns the index of any WebDataset tar, made in one pass over it.

    Raises:
        ValueError: The file is no plain tar, is cut off, or holds members that a shard must not have.
    """
    size = tar.stat().st_size
    lines: list[str] = []
    num_images = 0
    with tar.open("rb") as stream:
        for key, members in _samples(tar):
            entry = _entry(stream, tar, key, members, num_images)
            num_images += len(entry.images)
            lines.append(_entry_line(entry))
    digest = file_sha256(tar)
    if tar.stat().st_size != size:
        raise ValueError(f"{tar} changed while it was indexed; index it again when nothing writes to it")
    header = {
        "version": VERSION,
        "bytes": size,
        "sha256": digest,
        "count": len(lines),
        "images": num_images,
        "origin": origin,
    }
    return ("\n".join([json.dumps(header), *lines]) + "\n").encode()


def read_header(tar: Path, index: bytes) -> Header:
    """Returns the first line of an index.

    Raises:
        ValueError: It is not an index of this version.
    """
    cure = f"delete {index_path(tar)} and it is built anew from the tar"
    try:
        fields = json.loads(index.split(b"\n", 1)[0])
        if fields["version"] != VERSION:
            raise ValueError(f"{index_path(tar)} has index version {fields['version']}, expected {VERSION}; {cure}")
        return Header(fields["bytes"], fields["sha256"], fields["count"], fields["images"], fields.get("origin", ""))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{index_path(tar)} is no shard index ({error!r}); {cure}") from error


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


def parse_entry(line: bytes) -> Entry:
    """Returns one sample's line as an object."""
    fields = json.loads(line)
    return Entry(
        key=fields["key"],
        members={ending: (offset, size) for ending, (offset, size) in fields["members"].items()},
        modalities=tuple(fields["modalities"]),
        sizes=tuple((w, h) for w, h in fields["sizes"]),
        tokens=fields["tokens"],
        first_image=fields["first_image"],
    )


def file_sha256(path: Path) -> str:
    """Returns a file's SHA-256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that it is either whole or absent, whenever the process dies."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _samples(tar: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Yields (key, members) of neighbouring files that share a key, as WebDataset groups them."""
    key = ""
    members: dict[str, tuple[int, int]] = {}
    seen: set[str] = set()
    try:
        # "r:" refuses compression: bytes inside a compressed tar cannot be found by offset.
        with tarfile.open(tar, "r:") as archive:
            for info in archive:
                if info.isdir():
                    continue
                _refuse_unsafe(tar, info)
                path = PurePosixPath(info.name)
                stem, _, ending = path.name.partition(".")
                name = str(path.with_name(stem)) if stem else path.name
                if name != key and members:
                    yield key, members
                    members = {}
                if name != key and name in seen:
                    raise ValueError(f"shard {tar}: key {name!r} stands in two places; pack its files side by side")
                key = name
                seen.add(key)
                members[ending] = (info.offset_data, info.size)
    except tarfile.TarError as error:
        raise ValueError(f"{tar} is not a plain tar or is cut off ({error}); unpack .gz, or copy it again") from error
    if members:
        yield key, members


def _refuse_unsafe(tar: Path, info: tarfile.TarInfo) -> None:
    path = PurePosixPath(info.name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"shard {tar}: member {info.name!r} points outside the shard; pack it again with plain names")
    if not info.isreg():
        raise ValueError(f"shard {tar}: member {info.name!r} is a link or a device; only plain files are read")
    ending = path.name.rsplit(".", 1)[-1].lower()
    limit = MAX_TEXT_BYTES if ending in TEXT_ENDINGS else MAX_IMAGE_BYTES
    if info.size > limit:
        raise ValueError(f"shard {tar}: member {info.name!r} has {info.size} bytes, more than the limit of {limit}")


def _entry(stream: Any, tar: Path, key: str, members: dict[str, tuple[int, int]], first_image: int) -> Entry:
    def content(ending: str) -> bytes:
        offset, size = members[ending]
        stream.seek(offset)
        data: bytes = stream.read(size)
        if len(data) != size:
            raise ValueError(f"shard {tar} is truncated inside sample {key!r}; copy or pack it again")
        return data

    images = image_members(members)
    characters = sum(len(content(ending)) for ending in members if ending in TEXT_ENDINGS)
    return Entry(
        key=key,
        members=members,
        modalities=("image", "text") if images else ("text",),
        sizes=tuple(_image_size(content(ending)) for ending in images),
        tokens=max(1, characters // CHARACTERS_A_TOKEN),
        first_image=first_image,
    )


def _image_size(data: bytes) -> tuple[int, int]:
    try:
        with Image.open(BytesIO(data)) as image:
            return image.size
    except (ValueError, *BROKEN):
        return (0, 0)  # the sample is set aside when it is drawn, with the reason


def _entry_line(entry: Entry) -> str:
    return json.dumps(
        {
            "key": entry.key,
            "members": entry.members,
            "modalities": entry.modalities,
            "sizes": entry.sizes,
            "tokens": entry.tokens,
            "first_image": entry.first_image,
        }
    )
