"""What every preparation does around its steps: look at the manifest, run, time, tell."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preparation.manifest import Manifest
from rich.console import Console
from rich.markup import escape


def carry_out(
    what: str,
    folder: Path,
    manifest_of: Callable[[], Manifest],
    prepare: Callable[[], dict[str, Any]],
    console: Console,
) -> int:
    """Prepares a folder if it is not there, and returns the exit code.

    Args:
        what: names it in messages.
        folder: where it lies.
        manifest_of: the manifest as code and packages would make it now.
        prepare: runs every step and returns the counts.
        console: where it is told.
    """
    start = time.monotonic()
    try:
        if manifest_of().is_current():
            console.print(f"{what} is ready in {folder} ({time.monotonic() - start:.1f} s to check)")
            return 0
        counts = prepare()
        manifest_of().write(counts, time.monotonic() - start)
    except ValueError as problem:
        console.print(f"[bold red]error:[/] {escape(str(problem))}", highlight=False)
        return 1
    console.print(f"{what} written to {folder} in {time.monotonic() - start:.0f} s")
    return 0
