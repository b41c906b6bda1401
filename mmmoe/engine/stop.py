"""A request to stop: SIGTERM from a scheduler, or a trigger file from a user."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Remembers, inside its `with` block, that somebody asked the run to stop after the step at hand."""

    def __init__(self, trigger: Path | None = None) -> None:
        self._trigger = trigger
        self._requested = False
        self._before: Any = None

    @property
    def requested(self) -> bool:
        """Whether SIGTERM came or the trigger file is there."""
        return self._requested or (self._trigger is not None and self._trigger.exists())

    def request(self) -> None:
        """Asks from within the process."""
        self._requested = True

    @contextmanager
    def at_once(self, error: Exception) -> Iterator[None]:
        """Raises `error` as soon as a request comes, or if one is there: for work that keeps what it has as it goes."""

        def leave(number: int, frame: FrameType | None) -> None:
            raise error

        if self.requested:
            raise error
        with self:
            if self._before is not None:
                signal.signal(signal.SIGTERM, leave)
            yield

    def __enter__(self) -> StopRequest:
        # Python takes signals in the main thread alone; elsewhere the trigger file still works.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
