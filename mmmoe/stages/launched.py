"""A run under a launcher (deepspeed, torchrun, srun): on every process that it started; the first holds the folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mmmoe import dist, env
from mmmoe.log import console
from mmmoe.report.page import write_report
from mmmoe.stages.found import go_on
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.lock import FolderLock
from mmmoe.stages.preflight import preflight
from mmmoe.stages.run import join, run_all
from mmmoe.stages.spec import RunSpec


def begin(spec: RunSpec) -> int:
    """Makes one run folder and carries the run out; returns the exit status. Collective."""
    join(spec)
    path, lock = _on_first(lambda: _create(spec))
    return _carry_out(spec, RunFolder.open(path), lock)


def go_on_together(spec: RunSpec, folder: RunFolder, overrides: list[str]) -> int:
    """Goes on with a run; returns the exit status. Collective.

    Raises:
        ValueError: when the run cannot work, or another one holds the folder.
    """
    preflight(spec)
    join(spec)
    path, lock = _on_first(lambda: _take(spec, folder, overrides))
    own = folder.path.absolute()
    if own != path:
        raise ValueError(f"the first process goes on with {path} and this one with {own}; give all of them one folder")
    return _carry_out(spec, folder, lock)


def _create(spec: RunSpec) -> tuple[Path, FolderLock]:
    folder = RunFolder.create(spec)
    console.print(f"run folder: {folder.path}", soft_wrap=True)
    return folder.path, folder.lock()


def _take(spec: RunSpec, folder: RunFolder, overrides: list[str]) -> tuple[Path, FolderLock]:
    lock = folder.lock()
    go_on(spec, folder, overrides, env.world_size(), "launcher")
    return folder.path.absolute(), lock


def _on_first(prepare: Callable[[], tuple[Path, FolderLock]]) -> tuple[Path, FolderLock | None]:
    """Prepares a folder on the first process and tells the others which; what is wrong stops all of them alike."""
    path: Path | None = None
    lock: FolderLock | None = None
    mistake: Exception | None = None
    if env.rank() == 0:
        try:
            path, lock = prepare()
        except (ValueError, OSError) as error:
            mistake = error
    told, wrong = dist.as_on_first((path, None if mistake is None else str(mistake)))
    if mistake is not None:
        raise mistake
    if told is None:
        raise ValueError(wrong)
    return told, lock


def _carry_out(spec: RunSpec, folder: RunFolder, lock: FolderLock | None) -> int:
    try:
        run_all(spec, folder, folder.again("LAUNCHER ... mmmoe.cli resume"))
        if env.rank() == 0:
            console.print(f"report: {write_report(folder.path)}", soft_wrap=True)
    finally:
        if lock is not None:
            lock.close()
    return 0
