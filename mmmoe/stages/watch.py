"""Raises the alarm while a stage trains: dead experts and collapsed routers over the last steps, each told once."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmmoe.log import logger
from mmmoe.report.alarms import Alarm, find_alarms, sentences
from mmmoe.report.router_counts import RouterCounts, counts_of

LEAST_WINDOW = 50
"""Steps that are looked at together, at least; a twentieth of the stage where that is more."""
SPOKEN = 8
"""Sentences a step; the rest stands in the file."""


class RouterWatch:
    """Looks at the lines of a stage as they are written (on the first process) and only at them.

    So a resumed stage knows from the lines it goes on from what was told already and what its last steps were: the file
    comes out as that of a stage nobody stopped.
    """

    def __init__(self, stage: str, steps: int, lines: Sequence[dict[str, Any]] = ()) -> None:
        """Begins or goes on.

        Args:
            stage: its name, for the log.
            steps: steps of the whole stage.
            lines: what is in the file already.
        """
        self._stage = stage
        self._size = max(LEAST_WINDOW, steps // 20)
        self._window: deque[RouterCounts] = deque()
        self._total_RE = np.zeros((0, 0))
        self._told = {Alarm.read(record).key for line in lines for record in line.get("alarms", ())}
        for line in [line for line in lines if line.get("load")][-self._size :]:
            self._add(line)

    def see(self, line: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the alarms that are new with this line, as they stand in it, and warns in the log."""
        if not self._add(line) or len(self._window) < self._size:
            return []
        positions = sum(counts.positions for counts in self._window)
        over_window = RouterCounts(self._window[0].names, self._total_RE, positions)
        new = [alarm for alarm in find_alarms(over_window) if alarm.key not in self._told]
        if new:
            self._told.update(alarm.key for alarm in new)
            self._warn(int(line["step"]), sentences(new))
        return [alarm.record() for alarm in new]

    def _add(self, line: dict[str, Any]) -> bool:
        counts = counts_of(line)
        if counts is None:
            return False
        if not self._window or self._window[0].names != counts.names:
            self._window.clear()
            self._total_RE = np.zeros_like(counts.count_RE)
        # Counts are whole numbers, so what is taken away again leaves no rounding behind.
        self._window.append(counts)
        self._total_RE += counts.count_RE
        if len(self._window) > self._size:
            self._total_RE -= self._window.popleft().count_RE
        return True

    def _warn(self, step: int, told: list[str]) -> None:
        for text in told[:SPOKEN]:
            logger().warning("stage %s, last %d steps to %d: %s", self._stage, self._size, step, text)
        if len(told) > SPOKEN:
            more = len(told) - SPOKEN
            logger().warning("stage %s, step %d: and %d more; see alarms in metrics.jsonl", self._stage, step, more)
