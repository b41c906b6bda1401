"""The bars of a preparation: one a step, with what it does, how far it is and since when."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


def bars(console: Console) -> Progress:
    """Returns the bars, to be entered."""
    columns = (SpinnerColumn(), TextColumn("{task.description:34}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console)
