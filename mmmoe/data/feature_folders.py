"""The folders of the feature cache: one a tower, kind and shard, each with a file that says what it holds.

The time of that file is when the folder was last used. Folders of older caches have none until a stage uses them.
Times of several machines need not agree: they decide only which of the folders that nobody uses is deleted first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from mmmoe.data.feature_part import DAMAGED
from mmmoe.data.index import write_atomically

ABOUT = "about.json"
NAME = re.compile(r"[0-9a-f]{32}")
"""What a folder is called; any other is none of ours."""


@dataclass(frozen=True)
class About:
    """What a folder holds."""

    tower: str
    """What names the features: the tower's key, and what its transform adds."""
    kind: str
    """Of the media."""
    shard: str
    """Name of the shard's file."""
    sha256: str
    """The shard's hash."""
    items: int
    """Of this kind in the shard."""
    row: tuple[int, ...]
    """Shape of the features of an image, a video or a chunk: (P, C) or (F, P, C)."""


@dataclass(frozen=True)
class FolderState:
    """A folder as it lies on the disk."""

    path: Path
    bytes: int
    """Of its features."""
    used: float
    """Time of last use, in seconds since 1970."""
    about: About | None
    """None in folders of older caches that no stage has used since."""


def describe(folder: Path, about: About) -> None:
    """Makes a folder that says what it holds; does nothing where it is."""
    if not (folder / ABOUT).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ABOUT, json.dumps(asdict(about), indent=1).encode())


def mark_used(folder: Path) -> None:
    """Notes that a folder is used now."""
    if (folder / ABOUT).is_file():
        os.utime(folder / ABOUT)


def read_folders(root: Path) -> list[FolderState]:
    """Returns all folders of a feature cache, those not used for longest first."""
    if not root.is_dir():
        return []
    found = [_read(path) for path in root.iterdir() if path.is_dir() and NAME.fullmatch(path.name)]
    return sorted(found, key=lambda state: (state.used, state.path.name))


def remove(folder: Path) -> None:
    """Deletes a folder. One that is found half deleted is merely one that lacks parts."""
    shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Deletes what killed processes left half written, and damaged parts; nobody may be using the folder."""
    for file in (*folder.glob(".*.tmp"), *folder.glob(f"*{DAMAGED}")):
        file.unlink(missing_ok=True)


def _read(path: Path) -> FolderState:
    size, newest, used = 0, 0.0, None
    with os.scandir(path) as files:
        for file in files:
            try:
                stat = file.stat()
            except FileNotFoundError:
                continue  # a file that is being written has got its name meanwhile
            newest = max(newest, stat.st_mtime)
            if file.name == ABOUT:
                used = stat.st_mtime
            else:
                size += stat.st_size
    return FolderState(path, size, newest if used is None else used, _about(path / ABOUT))


def _about(path: Path) -> About | None:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return About(**fields | {"row": tuple(fields["row"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
