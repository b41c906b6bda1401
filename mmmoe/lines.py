"""Lines of JSON that are added one by one and read again, also where a kill or a full disk has cut one short."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def append(path: Path, fields: dict[str, Any], *, durable: bool = False) -> None:
    """Adds a line; a torn one before it gets its end, so that it takes none of this one with it.

    Args:
        path: The file; its folder exists.
        fields: What the line says.
        durable: Wait until it is on the disk.
    """
    line = (json.dumps(fields) + "\n").encode()  # ASCII alone: no letter can be cut in two, nothing else ends a line
    with path.open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        stream.write(line)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file, none where there is no file; lines that were cut short are passed over."""
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():  # as text, more than that would end a line
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(fields, dict):
            yield fields
