"""The folders of a stage's checkpoints: their names, their order, and which go. What is in them is not looked at."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

_NAME = re.compile(r"^step_(\d{6,})$")


def step_folder(folder: Path, step: int) -> Path:
    """Returns where the checkpoint after `step` steps stands."""
    return folder / f"step_{step:06d}"


def all_steps(folder: Path) -> list[Path]:
    """Returns the checkpoint folders, oldest first, unverified."""
    if not folder.is_dir():
        return []
    found = [(int(match.group(1)), path) for path in folder.iterdir() if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found)]


def prune(folder: Path, keep: int, is_kept: Callable[[int], bool] = lambda step: False) -> list[Path]:
    """Removes checkpoints and what interrupted writes left; returns what went.

    Args:
        folder: of the checkpoints.
        keep: this many newest ones stay.
        is_kept: says of a step whether its checkpoint stays in any case.
    """
    doomed = [path for path in all_steps(folder)[:-keep] if not is_kept(int(path.name.partition("_")[2]))]
    for path in doomed:
        shutil.rmtree(path, ignore_errors=True)
    sweep(folder)
    return doomed


def sweep(folder: Path) -> None:
    """Removes what interrupted writes left; a checkpoint that had stepped aside for a newer self comes back."""
    for old in folder.glob(".old_step_*"):
        place = old.with_name(old.name.removeprefix(".old_"))
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(place)
    for draft in folder.glob(".writing_step_*"):
        shutil.rmtree(draft, ignore_errors=True)
