"""The one logger and the one console; only the first rank speaks unless something went wrong."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.logging import RichHandler

from mmmoe import dist

console = Console(stderr=True)


def logger() -> logging.Logger:
    """Returns the project's logger: INFO on the first rank, WARNING on the others."""
    log = logging.getLogger("mmmoe")
    if not log.handlers:
        log.addHandler(RichHandler(console=console, show_path=False, rich_tracebacks=False))
        log.propagate = False
        log.setLevel(logging.INFO if dist.rank() == 0 else logging.WARNING)
    return log
