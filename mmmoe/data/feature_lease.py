"""Who uses which folders of the feature cache: so that no run deletes what another one trains on.

A lease is a file that a process holds locked while it lives; the kernel lets go of it, however the process ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LEASES = ".leases"


class Lease:
    """Folders of a cache that are in use until the lease is released."""

    def __init__(self, root: Path, folders: Mapping[Path, int]) -> None:
        """Takes the lease; called while the cache is `locked`.

        Args:
            root: the cache.
            folders: those in use, with the bytes that each will have.
        """
        place = root / LEASES
        place.mkdir(parents=True, exist_ok=True)
        self._path = place / f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.json"
        self._file: IO[str] | None = self._path.open("w", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        json.dump({folder.name: size for folder, size in folders.items()}, self._file)
        self._file.flush()

    def release(self) -> None:
        """Lets go of the folders; more than once is fine."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None


def in_use(root: Path) -> dict[str, int]:
    """Returns the names of the folders that living processes hold, with the bytes that each will have.

    Leases of dead processes are forgotten; called while the cache is `locked`.
    """
    held: dict[str, int] = {}
    for path in (root / LEASES).glob("*.json"):
        try:
            with path.open("r", encoding="utf-8") as file:
                if not _is_held(file):
                    path.unlink(missing_ok=True)
                    continue
                for name, size in json.load(file).items():
                    held[name] = max(size, held.get(name, 0))
        except FileNotFoundError:
            continue  # released meanwhile
    return held


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Holds the cache, so that two runs do not make room at once."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_held(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True  # held, or a file system without locks, where all that is said to be in use counts as such
    return False
