"""Samples that cannot be read: set aside by name, up to a budget, and the same ones again after a resume."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mmmoe import lines
from mmmoe.log import logger

SHOWN = 10


@dataclass(frozen=True)
class BadSample:
    """Why one sample was set aside."""

    source: str
    shard: str
    key: str
    reason: str


class Quarantine:
    """The list of bad samples of a run; every process appends to its own file and counts all files."""

    def __init__(self, folder: str | Path | None, budget: int, rank: int = 0) -> None:
        """Reads what earlier processes set aside.

        Args:
            folder: Where `quarantine.RANK.jsonl` lies; None keeps the list in memory.
            budget: Most samples that may be set aside.
            rank: This process.
        """
        self.budget = budget
        self._folder = Path(folder) if folder is not None else None
        self._path = self._folder / f"quarantine.{rank}.jsonl" if self._folder else None
        self._lock = threading.Lock()
        self._own: dict[tuple[str, str, str], BadSample] = {}
        self._own = {_identity(bad): bad for bad in self.read()}

    def __len__(self) -> int:
        return len(self.read())

    def add(self, bad: BadSample) -> None:
        """Sets a sample aside; one that already is stays there once.

        Raises:
            ValueError: There are more than the budget allows, whoever found them; the reasons are listed.
        """
        with self._lock:
            is_new = _identity(bad) not in self._own
            if is_new:
                self._write(bad)
            every = self.read()
        if is_new:
            logger().warning("sample %s of %s (%s) set aside: %s", bad.key, bad.source, bad.shard, bad.reason)
        if len(every) > self.budget:
            raise ValueError(self._over_budget(every))

    def _write(self, bad: BadSample) -> None:
        self._own[_identity(bad)] = bad
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines.append(self._path, asdict(bad))

    def read(self) -> list[BadSample]:
        """Returns all bad samples, those of the other processes included, each once."""
        found = dict(self._own)
        for path in sorted(self._folder.glob("quarantine.*.jsonl")) if self._folder else []:
            for fields in lines.read(path):
                with suppress(TypeError):  # no line of ours
                    bad = BadSample(**fields)
                    found[_identity(bad)] = bad
        return list(found.values())

    def _over_budget(self, every: list[BadSample]) -> str:
        reasons = Counter(bad.reason for bad in every).most_common(SHOWN)
        listed = "\n  ".join(f"{count} x {reason}" for reason, count in reasons)
        last = "\n  ".join(f"{bad.source}/{bad.shard}/{bad.key}" for bad in every[-SHOWN:])
        where = f" (all in {self._folder})" if self._folder else ""
        return (
            f"{len(every)} samples cannot be read, more than bad_samples = {self.budget}{where}; repair the shards "
            f"(`mmmoe data check` finds all) or raise mixture.bad_samples.\nReasons:\n  {listed}\nSamples:\n  {last}"
        )


def _identity(bad: BadSample) -> tuple[str, str, str]:
    return bad.source, bad.shard, bad.key
