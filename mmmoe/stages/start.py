"""From the command line to running processes: a new run, or one that goes on.

What a run's own processes need takes seconds to load, so it is loaded here only where it is used.
"""

from __future__ import annotations

from pathlib import Path

from mmmoe import env
from mmmoe.log import console
from mmmoe.stages.found import go_on, tell_end
from mmmoe.stages.launch import launch
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.restart import with_restarts
from mmmoe.stages.spec import RunSpec


def start_new(spec: RunSpec) -> int:
    """Makes a run folder and carries the run out; returns the exit status.

    Under a launcher (deepspeed, torchrun, srun) each process calls this and the run uses the launcher's processes;
    otherwise `engine.processes` are started here.
    """
    if env.is_launched():
        from mmmoe.stages import launched

        return launched.begin(spec)
    folder = RunFolder.create(spec)
    console.print(f"run folder: {folder.path}", soft_wrap=True)
    return carry_out(spec, folder)


def start_again(path: Path, overrides: list[str]) -> int:
    """Goes on with a run folder; returns the exit status. Its processes look first whether the run can work.

    Raises:
        ValueError: when the folder is no run's, or another process is using it.
    """
    folder = RunFolder.open(path)
    spec = folder.spec(overrides)
    if env.is_launched():
        from mmmoe.stages import launched

        return launched.go_on_together(spec, folder, overrides)
    return carry_out(spec, folder, overrides)


def carry_out(spec: RunSpec, folder: RunFolder, overrides: list[str] | None = None) -> int:
    """Starts the processes of a run, waits for them and writes the report; returns the exit status.

    A run that died of nothing that a user can mend is started again, `engine.restarts` times.

    Args:
        spec: The run's, with overrides.
        folder: The run's.
        overrides: None for a run that is new.
    """
    verb, words = ("work", []) if overrides is None else ("work-on", overrides)
    arguments, logs = [verb, str(folder.path), *words], folder.path / "logs"
    with folder.lock():
        if overrides is not None:
            go_on(spec, folder, overrides, spec.engine.processes, "resume")
        status = with_restarts(spec.engine.restarts, folder, lambda: launch(spec.engine, arguments, logs))
        if status == 0:
            from mmmoe.report.page import write_report

            console.print(f"report: {write_report(folder.path)}", soft_wrap=True)
        else:
            tell_end(folder, status)
    return status
