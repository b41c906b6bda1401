"""A whole run: every stage that is not done yet, then the evaluation, then the report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter

from mmmoe import dist, env
from mmmoe.engine import checkpoint
from mmmoe.engine.stop import StopRequest
from mmmoe.log import console, enter, logger
from mmmoe.stages.assembly import digests, finished_stage, read_parts
from mmmoe.stages.cache import StageCache
from mmmoe.stages.evaluate import evaluate_run
from mmmoe.stages.heartbeat import heartbeat
from mmmoe.stages.heritage import Heritage, redeclared
from mmmoe.stages.ledger import STOP_FILE, RunFolder, Stopped
from mmmoe.stages.spec import RunSpec, StageSpec
from mmmoe.stages.stage import run_stage

_STAGE = TypeAdapter(StageSpec)


def run_all(spec: RunSpec, folder: RunFolder, again: str | None = None) -> None:
    """Carries out what is left of a run, on every process of it.

    Args:
        spec: The run's.
        folder: The run's.
        again: The command that goes on, if it is not `mmmoe resume`.

    Raises:
        Stopped: when a signal asked the run to stop; the state is saved by then.
    """
    join(spec)
    if env.world_size() > 1:
        console.print(f"{env.who()}, one of {env.world_size()}, on {dist.device()}", soft_wrap=True)
    try:
        with heartbeat(spec.engine.deadline_s, again or folder.again()):
            _carry_out(spec, folder, StopRequest(folder.path / STOP_FILE))
    finally:
        dist.stop()


def join(spec: RunSpec) -> None:
    """Joins the other processes of a run. Until its heartbeats begin they wait minutes for one another, not hours."""
    wait_s = max(dist.JOIN_S, spec.engine.deadline_s)
    dist.start(wait_s, wait_s)


def _carry_out(spec: RunSpec, folder: RunFolder, stop: StopRequest) -> None:
    try:
        with stop:
            for stage in spec.stages:
                enter(f"stage {stage.name}")
                _one_stage(spec, stage, folder, stop)
        enter("the evaluation")
        if spec.evaluation is not None:
            with stop.at_once(Stopped()):
                evaluate_run(spec, folder)
        if env.rank() == 0:
            folder.record("finished")
        dist.barrier()
    except Stopped as stopped:
        if env.rank() == 0:
            folder.record("stopped", stage=stopped.stage, step=stopped.step)
        if stopped.stage is not None:  # else the others are anywhere in the evaluation, and this one waits for none
            dist.barrier()  # a launcher kills the others of a node when the first of them ends
        raise


def parent_of(spec: RunSpec, stage: StageSpec, folder: RunFolder) -> Path | None:
    """Returns the finished stage that a stage starts from, or None for the first.

    Raises:
        ValueError: when `init_from` names nothing that is finished.
    """
    position = spec.stages.index(stage)
    if stage.init_from is None:
        return folder.final(spec.stages[position - 1].name) if position else None
    return finished_stage(spec, stage, stage.init_from, folder)


def _one_stage(spec: RunSpec, stage: StageSpec, folder: RunFolder, stop: StopRequest) -> None:
    if stage.name in folder.done():
        logger().info("stage %s is done; its result is %s", stage.name, folder.final(stage.name))
        return
    parent = parent_of(spec, stage, folder)
    heritage = Heritage.read(parent) if parent is not None else None
    parts = read_parts(spec, stage, folder, heritage)
    final = folder.final(stage.name)
    cache = StageCache(spec, stage, heritage, parts) if stage.reuse else None
    started = time.monotonic()
    reused = cache.fetch(final) if cache else False
    # A crash may have fallen between the last file of a stage and its line in the ledger.
    if not reused and not _is_finished(stage, final, heritage, parts):
        run_stage(spec, stage, folder, heritage, parts, stop)
    dist.barrier()
    if env.rank() == 0:
        seconds = round(time.monotonic() - started, 1)
        folder.record("stage_done", stage=stage.name, parent=str(parent or ""), reused=reused, seconds=seconds)
        logger().info("stage %s: %s in %.0f s", stage.name, "taken from the cache" if reused else "trained", seconds)
        if cache and not reused:
            cache.store(final)
    dist.barrier()


def _is_finished(stage: StageSpec, final: Path, heritage: Heritage | None, parts: Mapping[str, Heritage]) -> bool:
    """Says whether a stage's result stands already, made from this declaration and this parent; collective."""
    found = False
    if env.rank() == 0 and not checkpoint.verify(final):
        state = checkpoint.read(final).state
        parent = heritage.checkpoint.digest if heritage else None
        found = redeclared(_STAGE, state.spec.get("stage")) == stage.model_dump(mode="json") and state.parent == parent
        found = found and state.extra.get("parts", {}) == digests(parts)
    return dist.as_on_first(found)
