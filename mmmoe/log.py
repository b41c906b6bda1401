"""The one logger and the one console, and where the run is; only the first rank speaks unless something went wrong."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.logging import RichHandler

from mmmoe import env
from mmmoe.conceal import conceal

console = Console(stderr=True)

_place = ["the start", ""]
"""What this process is at: a part of the run, and how far in it. For messages alone, so that any thread may tell it."""


def enter(part: str) -> None:
    """Notes which part of the run this process is at from now on."""
    _place[:] = [part, ""]


def reach(step: int) -> None:
    """Notes a step of that part as done."""
    _place[1] = f", after step {step}"


def place() -> str:
    """Returns what this process is at."""
    return "".join(_place)


class _Concealing(logging.Filter):
    """Takes passwords and keys out of what is logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = conceal(record.getMessage()), ()
        return True


def logger() -> logging.Logger:
    """Returns the project's logger: INFO on the first rank, WARNING on the others."""
    log = logging.getLogger("mmmoe")
    if not log.handlers:
        log.addFilter(_Concealing())
        log.addHandler(RichHandler(console=console, show_path=False, rich_tracebacks=False))
        log.propagate = False
        log.setLevel(logging.INFO if env.rank() == 0 else logging.WARNING)
    return log
