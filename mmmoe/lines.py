"""Lines of JSON that are added one by one, also behind a line that a kill or a full disk has cut short."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def append(path: Path, fields: dict[str, Any], *, durable: bool = False) -> None:
    """Adds a line; a torn one before it gets its end, so that it takes none of this one with it.

    Args:
        path: The file; its folder exists.
        fields: What the line says.
        durable: Wait until it is on the disk.
    """
    line = (json.dumps(fields, ensure_ascii=False) + "\n").encode()
    with path.open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        stream.write(line)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
