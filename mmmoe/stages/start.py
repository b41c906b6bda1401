"""From the command line to running processes: a new run, or one that goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mmmoe import dist
from mmmoe.log import console
from mmmoe.report.page import write_report
from mmmoe.stages.found import tell_found
from mmmoe.stages.launch import launch
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.lock import FolderLock
from mmmoe.stages.preflight import preflight
from mmmoe.stages.restart import with_restarts
from mmmoe.stages.run import STOP_FILE, run_all
from mmmoe.stages.spec import RunSpec


def start_new(spec: RunSpec) -> int:
    """Makes a run folder and carries the run out; returns the exit status.

    Under a launcher (deepspeed, torchrun, srun) each process calls this and the run uses the launcher's processes;
    otherwise `engine.processes` are started here.
    """
    if dist.is_launched():
        dist.start()
        path, lock = _on_first(lambda: _create(spec))
        return _here(spec, RunFolder.open(path), lock)
    folder = RunFolder.create(spec)
    console.print(f"run folder: {folder.path}", soft_wrap=True)
    return carry_out(spec, folder)


def start_again(path: Path, overrides: list[str]) -> int:
    """Goes on with a run folder; returns the exit status.

    Raises:
        ValueError: when the folder is no run's, or another process is using it.
    """
    folder = RunFolder.open(path)
    spec = folder.spec(overrides)
    preflight(spec)
    if dist.is_launched():
        dist.start()
        _, lock = _on_first(lambda: _take(spec, folder, overrides))
        return _here(spec, folder, lock)
    return carry_out(spec, folder, overrides)


def go_on(spec: RunSpec, folder: RunFolder, overrides: list[str], world: int | None) -> None:
    """Tells what a run goes on from, takes a request to stop back, and writes the ledger's line."""
    for line in tell_found(folder, spec, world):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    (folder.path / STOP_FILE).unlink(missing_ok=True)
    folder.record("resumed", overrides=overrides)


def carry_out(spec: RunSpec, folder: RunFolder, overrides: list[str] | None = None) -> int:
    """Starts the processes of a run, waits for them and writes the report; returns the exit status.

    A run that died of nothing that a user can mend is started again, `engine.restarts` times.

    Args:
        spec: The run's, with overrides.
        folder: The run's.
        overrides: None for a run that is new.
    """
    arguments, logs = ["work", str(folder.path), *(overrides or [])], folder.path / "logs"
    with folder.lock():
        if overrides is not None:
            go_on(spec, folder, overrides, spec.engine.processes)
        status = with_restarts(spec.engine.restarts, folder, lambda: launch(spec.engine, arguments, logs))
        if status == 0:
            console.print(f"report: {write_report(folder.path)}", soft_wrap=True)
        else:
            console.print(
                f"the run stopped with status {status}; go on with: mmmoe resume {folder.path}", soft_wrap=True
            )
    return status


def _create(spec: RunSpec) -> tuple[Path, FolderLock]:
    folder = RunFolder.create(spec)
    console.print(f"run folder: {folder.path}", soft_wrap=True)
    return folder.path, folder.lock()


def _take(spec: RunSpec, folder: RunFolder, overrides: list[str]) -> tuple[Path, FolderLock]:
    lock = folder.lock()
    go_on(spec, folder, overrides, dist.world_size())
    return folder.path, lock


def _on_first(prepare: Callable[[], tuple[Path, FolderLock]]) -> tuple[Path, FolderLock | None]:
    """Prepares a folder on the first process and tells the others which; what is wrong stops all of them alike."""
    path: Path | None = None
    lock: FolderLock | None = None
    mistake: Exception | None = None
    if dist.rank() == 0:
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


def _here(spec: RunSpec, folder: RunFolder, lock: FolderLock | None) -> int:
    """Carries a run out on the processes of a launcher; the first holds the folder and writes the report."""
    try:
        run_all(spec, folder)
        if dist.rank() == 0:
            console.print(f"report: {write_report(folder.path)}", soft_wrap=True)
    finally:
        if lock is not None:
            lock.close()
    return 0
