"""What a run folder holds when a run goes on: what is done, where it goes on, and what is not as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmmoe.engine.step_folders import all_steps
from mmmoe.log import console
from mmmoe.stages.ledger import STOP_FILE, RunFolder
from mmmoe.stages.spec import RunSpec


def go_on(spec: RunSpec, folder: RunFolder, overrides: list[str], world: int | None) -> None:
    """Tells what a run goes on from, takes a request to stop back, and writes the ledger's line."""
    for line in tell_found(folder, spec, world):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    (folder.path / STOP_FILE).unlink(missing_ok=True)
    folder.record("resumed", overrides=overrides)


def tell_found(folder: RunFolder, spec: RunSpec, world: int | None) -> Iterator[str]:
    """Yields lines for whoever resumes a run.

    Args:
        folder: The run's.
        spec: As it goes on, with overrides.
        world: Number of processes from now on, None if that is not known.
    """
    done = folder.done()
    todo = [stage.name for stage in spec.stages if stage.name not in done]
    yield f"{folder.path}: done: {', '.join(done) or 'nothing'}; to do: {', '.join(todo) or 'evaluation and report'}"
    begun = [event for event in folder.events() if event["event"] == "stage_started"]
    if todo:
        yield f"goes on in stage {todo[0]} {_place(folder, todo[0], begun)}"
    before = begun[-1].get("world") if begun else None
    if before is not None and world is not None and before != world:
        yield f"{before} processes before, {world} now: the same samples in the same order; sums differ by rounding"
    yield from changes(_last_spec(folder).model_dump(mode="json"), spec.model_dump(mode="json"))


def _last_spec(folder: RunFolder) -> RunSpec:
    """Returns what the last attempt went by."""
    try:
        return folder.spec(folder.overrides())
    except ValueError:  # they may name a file that is gone
        return folder.spec()


def _place(folder: RunFolder, stage: str, begun: list[dict[str, Any]]) -> str:
    steps = all_steps(folder.stage(stage) / "checkpoints")
    if not steps:
        return "from its start: it has no checkpoint"
    total = next((f" of {event['steps']}" for event in reversed(begun) if event["stage"] == stage), "")
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
