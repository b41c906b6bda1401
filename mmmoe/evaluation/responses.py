"""What a model answered before: kept batch by batch, so that a killed evaluation goes on and another need not ask."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import IO

from mmmoe.log import logger

RESPONSES = "responses"
"""Folder of all answers in a cache: one folder a model, in it JSON Lines, one file for each process at a time."""
FORM = 3
"""Number of the way answers are made and named, generation included; those under another one are not found."""
Response = str | float
"""Words that were generated, or the log-likelihood of a choice."""


def key_of(*parts: object) -> str:
    """Returns the name of an answer: the digest of everything that it depends on."""
    return hashlib.sha256(json.dumps([FORM, *parts], sort_keys=True).encode()).hexdigest()[:32]


def folder_of(model: str, parent: Path) -> Path:
    """Returns where the answers of a model are kept."""
    return parent / hashlib.sha256(model.encode()).hexdigest()[:16]


class Responses:
    """The answers of one model by what it was asked.

    Any number of processes may keep answers in one folder: each takes a file that no other is writing. What others add
    is seen when the folder is opened anew.
    """

    def __init__(self, folder: Path) -> None:
        """Reads what is there."""
        self.folder = folder
        self._known: dict[str, Response] = dict(_read(folder))
        self._file: IO[bytes] | None = None

    def get(self, key: str) -> Response | None:
        """Returns what was answered, None where it was not asked yet."""
        return self._known.get(key)

    def keep(self, answers: Mapping[str, Response]) -> None:
        """Writes some answers; when this returns they are on the disk."""
        if self._file is None:
            self._file = _own_file(self.folder)
        self._known.update(answers)
        lines = (json.dumps([key, answer], ensure_ascii=False) + "\n" for key, answer in answers.items())
        self._file.write("".join(lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Lets others write to this process's file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _read(folder: Path) -> Iterator[tuple[str, Response]]:
    """Yields what is in a folder's files; a line that a kill cut short is passed over, and asked again."""
    for path in sorted(folder.glob("*.jsonl")):
        torn = 0
        # By bytes: text has line ends of its own, and a cut may fall into a letter.
        for line in path.read_bytes().split(b"\n"):
            try:
                key, answer = json.loads(line or "null") or (None, None)
            except ValueError:
                torn += 1
                continue
            if isinstance(key, str) and isinstance(answer, str | float):
                yield key, answer
        if torn:
            logger().info("%s: %d answers were not written to their end and are asked again", path, torn)


def _own_file(folder: Path) -> IO[bytes]:
    """Returns the first file that no other process writes, held for this one, without a torn last line."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in count():
        path = folder / f"{number}.jsonl"
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
        return file
    raise AssertionError("there is always another number")
