"""What is told of a run that goes on (what is done, where it goes on, what is not as it was) or ends before its end."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from mmmoe.engine.step_folders import all_steps
from mmmoe.log import console
from mmmoe.stages.ledger import STOP_FILE, RunFolder
from mmmoe.stages.spec import RunSpec, StageSpec


def go_on(spec: RunSpec, folder: RunFolder, overrides: list[str], world: int | None, by: str) -> None:
    """Tells what a run goes on from, takes a request to stop back, and writes the ledger's line.

    Args:
        spec: As it goes on, with overrides.
        folder: The run's.
        overrides: Those.
        world: Number of processes from now on, None if that is not known.
        by: Who started them: `resume`, or a `launcher`.
    """
    for line in tell_found(folder, spec, world):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    (folder.path / STOP_FILE).unlink(missing_ok=True)
    folder.record("resumed", overrides=overrides, by=by)


def tell_end(folder: RunFolder, status: int) -> None:
    """Notes in the ledger that a run ended before its end, with an exit status, and tells how to go on."""
    again = shlex.join(["mmmoe", "resume", str(folder.path)])
    with suppress(OSError):  # the disk may be what it ended by
        again = folder.again()
        if [event["event"] for event in folder.events()][-1:] != ["stopped"]:
            folder.record("ended", status=status)
    console.print(f"the run stopped with status {status}; go on with: {again}", soft_wrap=True, markup=False)


def tell_found(folder: RunFolder, spec: RunSpec, world: int | None) -> Iterator[str]:
    """Yields lines for whoever resumes a run.

    Args:
        folder: The run's.
        spec: As it goes on, with overrides.
        world: Number of processes from now on, None if that is not known.
    """
    done, events = folder.done(), folder.events()
    todo = [stage.name for stage in spec.stages if stage.name not in done]
    is_over = any(event["event"] == "finished" for event in events)
    rest = "the report" if is_over or spec.evaluation is None else "evaluation and report"
    yield f"{folder.path}: done: {', '.join(done) or 'nothing'}; to do: {', '.join(todo) or rest}"
    begun = [event for event in events if event["event"] == "stage_started"]
    if todo and not begun:
        yield f"begins with stage {todo[0]}"
    elif todo:
        stage = next(stage for stage in spec.stages if stage.name == todo[0])
        yield f"goes on in stage {todo[0]} {_place(folder, stage)}"
    before = begun[-1].get("world") if begun else None
    if before is not None and world is not None and before != world:
        yield f"{before} processes before, {world} now: the same samples in the same order; sums differ by rounding"
    for line in changes(_last_spec(folder).model_dump(mode="json"), spec.model_dump(mode="json")):
        name = next((name for name in done if line.startswith(f"changed: stages.{name}.")), None)
        has_effect = name is None or line.startswith(f"changed: stages.{name}.name: ")
        yield line if has_effect else f"{line} (no effect: stage {name} is done)"


def _last_spec(folder: RunFolder) -> RunSpec:
    """Returns what the last attempt went by."""
    try:
        return folder.spec(folder.overrides("resumed"))  # a launch that leads here stands in the ledger already
    except ValueError:  # they may name a file that is gone
        return folder.spec()


def _place(folder: RunFolder, stage: StageSpec) -> str:
    steps = all_steps(folder.stage(stage.name) / "checkpoints")
    if not steps:
        return "from its start: it has no checkpoint"
    total = "" if stage.training.steps is None else f" of {stage.training.steps}"
    return f"after step {int(steps[-1].name.rpartition('_')[2])}{total}, if its newest checkpoint is sound"


def changes(before: Any, after: Any, route: str = "") -> Iterator[str]:
    """Yields a line for every value that differs between two trees of plain values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            yield from changes(before.get(key), after.get(key), f"{route}.{key}" if route else str(key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            label = old.get("name", number) if isinstance(old, dict) else number
            yield from changes(old, new, f"{route}.{label}")
    elif before != after:
        yield f"changed: {route}: {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
