"""What a plain tar holds and where, found in one pass that trusts nothing it reads and unpacks nothing."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mmmoe.data.media import VIDEO_ENDINGS

TEXT_ENDINGS = frozenset({"json", "txt"})
MAX_TEXT_BYTES = 16 * 2**20
"""Largest json or txt member; a dialogue is some kilobytes."""
MAX_MEDIA_BYTES = 256 * 2**20
"""Largest image or sound file."""
MAX_VIDEO_BYTES = 2**30
"""Largest video file; a sample is read into memory whole."""


def size_limit(ending: str) -> int:
    """Returns the most bytes that a member may have."""
    suffix = ending.rsplit(".", 1)[-1].lower()
    if suffix in TEXT_ENDINGS:
        return MAX_TEXT_BYTES
    return MAX_VIDEO_BYTES if suffix in VIDEO_ENDINGS else MAX_MEDIA_BYTES


def samples_of(tar: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Yields (key, members) of neighbouring files that share a key, as WebDataset groups them.

    Members are offset of the content and size by ending.

    Raises:
        ValueError: The file is no plain tar, is cut off or damaged, or holds what a shard must not hold.
    """
    key = ""
    members: dict[str, tuple[int, int]] = {}
    seen: set[str] = set()
    for info in _members(tar):
        path = PurePosixPath(info.name)
        stem, _, ending = path.name.partition(".")
        name = str(path.with_name(stem)) if stem else path.name
        if name != key and members:
            yield key, members
            members = {}
        if name != key and name in seen:
            raise ValueError(f"shard {tar}: key {name!r} stands in two places; pack its files side by side")
        if ending in members:
            raise ValueError(f"shard {tar}: member {info.name!r} stands there twice; pack it again with one of them")
        key = name
        seen.add(key)
        members[ending] = (info.offset_data, info.size)
    if members:
        yield key, members


def _members(tar: Path) -> Iterator[tarfile.TarInfo]:
    """Yields the plain files of a tar, which must be whole up to its end mark."""
    try:
        # "r:" refuses compression: bytes inside a compressed tar cannot be found by offset.
        with tarfile.open(tar, "r:", encoding="utf-8", errors="strict") as archive:
            end = 0
            for info in archive:
                _refuse_unsafe(tar, info)
                if archive.offset <= end:  # a size that leads back would be read forever
                    raise ValueError(f"shard {tar}: member {info.name!r} has an impossible size; pack it again")
                end = archive.offset
                if not info.isdir():
                    yield info
            _check_end(tar, archive.offset)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"shard {tar}: a name in it, of a member or its owner, is not UTF-8 ({error.object!r:.80}); pack it again"
        ) from error
    except (tarfile.TarError, OverflowError, MemoryError, RecursionError, EOFError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{tar} is not a plain tar or is cut off ({reason}); unpack .gz, or copy it again") from error


def _check_end(tar: Path, offset: int) -> None:
    """Compares what follows the last member with a tar's end: zeros alone, one block of them at least."""
    with tar.open("rb") as stream:
        stream.seek(offset)
        block = stream.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE or any(block):
            raise ValueError(
                f"{tar} is damaged or cut off at byte {offset}, where no member and no end is; copy it again"
            )
        while block:
            if block.count(0) != len(block):
                raise ValueError(
                    f"{tar} goes on behind its end at byte {offset}, where nobody reads it; pack it again, "
                    "or give tars that were joined one by one"
                )
            block = stream.read(2**20)


def _refuse_unsafe(tar: Path, info: tarfile.TarInfo) -> None:
    path = PurePosixPath(info.name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"shard {tar}: member {info.name!r} points outside the shard; pack it again with plain names")
    if info.isdir() and info.size == 0:
        return
    if not info.isreg() or info.issparse():
        raise ValueError(
            f"shard {tar}: member {info.name!r} is a link or a device, or has holes; only plain files are read"
        )
    if not path.name:
        raise ValueError(f"shard {tar}: a member has no name; pack it again")
    limit = size_limit(path.name)
    if not 0 <= info.size <= limit:
        raise ValueError(f"shard {tar}: member {info.name!r} has {info.size} bytes, more than the limit of {limit}")
