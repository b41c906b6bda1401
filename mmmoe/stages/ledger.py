"""The ledger of a run folder: which stages are done, from what, and what happened; append-only JSON Lines."""

from __future__ import annotations

import os
import shlex
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmmoe import lines, paths
from mmmoe.config.load import dump, load
from mmmoe.stages.lock import FolderLock
from mmmoe.stages.spec import RunSpec

SPEC_FILE = "spec.yaml"
LEDGER_FILE = "ledger.jsonl"
STOP_FILE = "stop"
"""Making this file in a run folder asks the run to save and stop, as SIGTERM does."""


class Stopped(Exception):  # noqa: N818  # not an error: somebody asked for it
    """A run ended before its end because it was asked to; its state is saved."""

    def __init__(self, stage: str | None = None, step: int = 0) -> None:
        """Says where: after a step of a stage, or in the evaluation, which is no stage."""
        where = (
            "the evaluation; its answers are kept"
            if stage is None
            else f"stage {stage} after step {step}; the state is saved"
        )
        super().__init__(f"stopped as asked in {where}")
        self.stage, self.step = stage, step


class RunFolder:
    """The files of one run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, spec: RunSpec, path: Path | None = None) -> RunFolder:
        """Makes a run folder and writes the resolved spec into it; never touches an existing one.

        Raises:
            ValueError: when `path` is given and already holds something.
        """
        if path is None:
            path = _take_free_name(Path(spec.runs), spec.name)
        elif path.exists() and any(path.iterdir()):
            raise ValueError(f"{path} exists and is not empty; continue it with `mmmoe resume {path}` or name another")
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        with (path / SPEC_FILE).open("x", encoding="utf-8") as file:
            file.write(dump(spec))
            file.flush()
            os.fsync(file.fileno())  # a disk that breaks later must not have it empty
        folder.record("created", name=spec.name)
        return folder

    @classmethod
    def next_path(cls, spec: RunSpec) -> Path:
        """Returns the folder that a new run of this spec would get."""
        return _free_name(Path(spec.runs), spec.name)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Returns an existing run folder.

        Raises:
            ValueError: when the folder is no run's.
        """
        if not (path / SPEC_FILE).is_file() or not (path / LEDGER_FILE).is_file():
            why = f"it has no {SPEC_FILE} and {LEDGER_FILE}; see `ls {path.parent}`"
            if path.is_file():
                why = "it is a file; a configuration begins with `mmmoe run`"
            elif not path.exists():
                near = paths.near(path)
                why = f"there is none; did you mean {near}?" if near else f"there is none; see `ls {path.parent}`"
            raise ValueError(f"{path} is not a run folder: {why}")
        return cls(path)

    def spec(self, overrides: list[str] | None = None) -> RunSpec:
        """Returns the run's resolved spec, with overrides on top."""
        return load(self.path / SPEC_FILE, RunSpec, overrides)

    def stage(self, name: str) -> Path:
        """Returns the folder of a stage."""
        return self.path / "stages" / name

    def final(self, name: str) -> Path:
        """Returns where a finished stage's checkpoint stands."""
        return self.stage(name) / "final"

    def record(self, event: str, **fields: Any) -> None:
        """Appends an event and makes sure that it is on disk."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **fields}
        lines.append(self.path / LEDGER_FILE, line, durable=True)

    def events(self) -> list[dict[str, Any]]:
        """Returns all events; a last line cut short by a crash is left out."""
        return list(lines.read(self.path / LEDGER_FILE))

    def overrides(self, *kinds: str) -> list[str]:
        """Returns the overrides of the last event of some kinds; by default of the last start, sent off or resumed."""
        kinds = kinds or ("resumed", "launched")
        return next((e["overrides"] for e in reversed(self.events()) if e["event"] in kinds and "overrides" in e), [])

    def again(self, resume: str = "mmmoe resume") -> str:
        """Returns the command that goes on as the last attempt did: as it was last sent to nodes, else by `resume`."""
        words = shlex.join([str(self.path), *self.overrides()])
        starts = [event for event in self.events() if "option" in event or event.get("by") == "resume"]
        option = starts[-1].get("option") if starts else None
        return f"mmmoe launch {words} {option}" if option else f"{resume} {words}"

    def done(self) -> dict[str, dict[str, Any]]:
        """Returns the finishing event of every finished stage, by name."""
        return {e["stage"]: e for e in self.events() if e["event"] == "stage_done"}

    def lock(self) -> FolderLock:
        """Holds the folder for this process, until the lock is closed.

        Raises:
            ValueError: when another process holds it, on this node or another.
        """
        return FolderLock(self.path)


def finished_stage(path: Path) -> tuple[Path, Path]:
    """Returns a finished stage's folder and its run's cache.

    Args:
        path: That folder itself, or a run's, whose last finished stage is meant.

    Raises:
        ValueError: It is neither.
    """
    if (path / "manifest.json").is_file():
        return path, Path(RunFolder.open(path.parent.parent.parent).spec().cache)
    folder = RunFolder.open(path)
    done = folder.done()
    if not done:
        raise ValueError(f"{path} has no finished stage yet; go on with `mmmoe resume {path}`")
    return folder.final(list(done)[-1]), Path(folder.spec().cache)


def _take_free_name(parent: Path, name: str) -> Path:
    """Makes the folder; another run may do so at the same moment, and then takes the next name."""
    while True:
        path = _free_name(parent, name)
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            return path


def _free_name(parent: Path, name: str) -> Path:
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        if not path.exists():
            return path
        number += 1
