"""The one logger and the one console; only the first rank speaks unless something went wrong."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.logging import RichHandler

from mmmoe import dist
from mmmoe.conceal import conceal

console = Console(stderr=True)


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
        log.setLevel(logging.INFO if dist.rank() == 0 else logging.WARNING)
    return log
