"""Processes that belong together: waits for all, and stops all when one fails or somebody asks."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

from mmmoe.log import logger
from mmmoe.stages.status import FINAL, STOPPED, UNSAVED


@dataclass(frozen=True)
class Child:
    """A process that was started, and how to deal with it."""

    name: str
    process: subprocess.Popen[bytes]
    ask: Callable[[], None]
    """Asks it to save and stop."""
    last_words: Callable[[], str] = str
    """Returns what it said last where nobody has seen it."""

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None


def wait_for(children: Sequence[Child], grace_s: float) -> int:
    """Waits for all; returns 0, or the status that says best why one failed.

    SIGTERM and SIGINT are handed on. When one fails the others notice by themselves, are asked after a quarter of
    `grace_s`, and killed after all of it.
    """
    asked = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for child in children:
            if child.is_running:
                child.ask()

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        first = _wait(children, grace_s, asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    statuses = [child.process.returncode for child in children if child.process.returncode]
    if asked:
        return _of_asked(statuses)
    if first != STOPPED:  # the others were asked to stop because of the one that failed
        statuses = [status for status in statuses if status != STOPPED]
    # When one fails, the others lose their peer: the status that says why comes first.
    telling = (known for rule in (lambda s: s in FINAL, lambda s: s > 1) for known in statuses if rule(known))
    status = next(telling, first)
    return 128 - status if status < 0 else status


def _how(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"stopped with status {status}"


def _of_asked(statuses: Sequence[int]) -> int:
    """Returns the status that says best how processes ended that were asked to, from those that are not 0."""
    known = next((status for status in statuses if status in FINAL), None)
    if known is not None or not statuses:
        return known or 0
    # The signal itself ends a process only before it has begun or after its end: there is nothing to save.
    return STOPPED if all(status == -signal.SIGTERM for status in statuses) else UNSAVED


def _wait(children: Sequence[Child], grace_s: float, stopping: Sequence[int]) -> int:
    """Waits for all; returns the status of the first that failed.

    Args:
        children: The processes.
        grace_s: What others are given when one fails.
        stopping: Not empty once all were asked to stop; that the signal ends one then is no error.
    """
    failed_at: float | None = None
    asked: set[str] = set()
    first = 0
    is_over = False
    while not is_over:
        is_over = not any(child.is_running for child in children)  # looked at once more: one may have failed just now
        for child in children:
            if failed_at is None and child.process.poll() not in (None, 0):
                failed_at, first = time.monotonic(), child.process.returncode
                if first != STOPPED and not (stopping and first == -signal.SIGTERM):
                    logger().error("%s %s%s", child.name, _how(first), child.last_words())
        for child in (child for child in children if failed_at is not None and child.is_running):
            seconds = time.monotonic() - (failed_at or 0.0)
            if seconds > grace_s:
                child.process.kill()
            elif seconds > grace_s / 4 and child.name not in asked:
                asked.add(child.name)
                child.ask()
        time.sleep(0.0 if is_over else 0.1)
    return first
