"""A shard that mmmoe writes: there with its index, whole, or not at all; known again when it is finished."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from mmmoe.data.index import Header, build_index, index_path, read_header, write_atomically
from mmmoe.data.shards import Shard
from mmmoe.log import logger


def refuse_strangers(folder: Path, planned: Collection[Path]) -> None:
    """Refuses a folder with tars that are not planned: whoever reads the folder would read them as well.

    Raises:
        ValueError: There are some.
    """
    strangers = sorted(set(folder.glob("*.tar")) - set(planned))
    if strangers:
        raise ValueError(
            f"{folder} holds {len(strangers)} shards of another packing ({strangers[0].name}, ...), which would be "
            "read as well; choose an empty folder or delete them"
        )


def finished(tar: Path, origin: str) -> Header | None:
    """Returns the header of a shard that stands already, made of the same things; None otherwise."""
    if not tar.is_file() or not index_path(tar).is_file():
        return None
    try:
        header = Shard(tar).header
    except ValueError as error:
        logger().warning("writing again: %s", error)
        return None
    return header if header.origin == origin else None


def write_shard(tar: Path, origin: str, fill: Callable[[Any], None]) -> Header:
    """Writes a shard and its index.

    Args:
        tar: the file.
        origin: fingerprint of what it is made of.
        fill: writes the tar into a stream.
    """
    index_path(tar).unlink(missing_ok=True)  # while it stands it vouches for the old tar
    temporary = tar.with_name(f".{tar.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(tar)
    finally:
        temporary.unlink(missing_ok=True)
    index = build_index(tar, origin)
    write_atomically(index_path(tar), index)
    return read_header(tar, index)
