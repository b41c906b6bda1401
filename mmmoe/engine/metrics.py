"""The record of a stage: one JSON line a step, cut back on resume so that every step stands there once."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any, TextIO

import torch

from mmmoe import lines


class MetricsFile:
    """Appends to a JSONL file; one process (the first rank) writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: TextIO | None = None

    def append(self, row: dict[str, Any]) -> None:
        """Writes one line and hands it to the system, so that a killed run loses at most the line at hand."""
        if self._stream is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._drop_torn_line()
            self._stream = self._path.open("a", encoding="utf-8")
        self._stream.write(json.dumps(row, separators=(",", ":")) + "\n")
        self._stream.flush()

    def sync(self) -> None:
        """Has the system put what was written on the disk, so that a checkpoint's lines are there when it is."""
        if self._stream is not None:
            os.fsync(self._stream.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Returns all whole lines; one that a kill cut short is left out."""
        return list(lines.read(self._path))

    def truncate_after(self, step: int) -> int:
        """Keeps the rows with `step` at most this; returns how many rows, of steps to be done again, went."""
        self.close()
        if not self._path.is_file():
            return 0
        rows = self.read()
        kept = [row for row in rows if int(row["step"]) <= step]
        draft = self._path.with_name(f".{self._path.name}.writing")
        with draft.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in kept)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(self._path)
        return len(rows) - len(kept)

    def close(self) -> None:
        """Closes the file; the next append opens it again."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _drop_torn_line(self) -> None:
        """Cuts off a last line without its end, which the next one would be glued to."""
        if self._path.is_file():
            content = self._path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self._path, whole)


def peak_memory_mb() -> dict[str, float]:
    """Returns this process's largest resident memory so far and, with a GPU, the largest it allocated there."""
    # The kernel counts kibibytes on Linux and bytes on macOS.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    memory = {"memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)}
    if torch.cuda.is_available():
        memory["gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return memory
