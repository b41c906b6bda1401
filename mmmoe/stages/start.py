"""From the command line to running processes: a new run, or one that goes on."""

from __future__ import annotations

from pathlib import Path

from mmmoe import dist
from mmmoe.log import console
from mmmoe.report.page import write_report
from mmmoe.stages.launch import launch
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.preflight import preflight
from mmmoe.stages.run import STOP_FILE, run_all
from mmmoe.stages.spec import RunSpec


def start_new(spec: RunSpec) -> int:
    """Makes a run folder and carries the run out; returns the exit status.

    Under a launcher (deepspeed, torchrun) each process calls this and the run uses the launcher's processes;
    otherwise `engine.processes` are started here.
    """
    if dist.is_launched():
        dist.start()
        path = RunFolder.create(spec).path if dist.rank() == 0 else None
        folder = RunFolder.open(Path(str(dist.gather_objects(str(path))[0])))
        return _here(spec, folder)
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
        return _here(spec, folder)
    done = folder.done()
    todo = [stage.name for stage in spec.stages if stage.name not in done]
    console.print(
        f"{path}: done: {', '.join(done) or 'nothing'}; to do: {', '.join(todo) or 'evaluation and report'}",
        soft_wrap=True,
    )
    (path / STOP_FILE).unlink(missing_ok=True)
    folder.record("resumed", overrides=overrides)
    return carry_out(spec, folder, overrides)


def _here(spec: RunSpec, folder: RunFolder) -> int:
    lock = folder.lock() if dist.rank() == 0 else None
    run_all(spec, folder)
    if dist.rank() == 0:
        console.print(f"report: {write_report(folder.path)}", soft_wrap=True)
    if lock is not None:
        lock.close()
    return 0


def carry_out(spec: RunSpec, folder: RunFolder, overrides: list[str] | None = None) -> int:
    """Starts the processes of a run, waits for them and writes the report; returns the exit status."""
    with folder.lock():
        status = launch(spec.engine, ["work", str(folder.path), *(overrides or [])], folder.path / "logs")
        if status == 0:
            console.print(f"report: {write_report(folder.path)}", soft_wrap=True)
        else:
            console.print(
                f"the run stopped with status {status}; go on with: mmmoe resume {folder.path}", soft_wrap=True
            )
    return status
