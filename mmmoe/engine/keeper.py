"""Keeps a stage's checkpoints: when one is due, who writes it, which are kept, where to go on from."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from mmmoe import dist, env
from mmmoe.engine import checkpoint
from mmmoe.engine.checkpoint import BackgroundWriter, Checkpoint, CheckpointState
from mmmoe.engine.protocol import Engine
from mmmoe.engine.spec import CheckpointSpec
from mmmoe.engine.step_folders import all_steps, prune, step_folder, sweep
from mmmoe.log import logger

SCORES = "scores"
"""Where a checkpoint's `extra` holds the scores of the exam after its last step, by benchmark."""


class CheckpointKeeper:
    """Saves and restores an engine in one folder; every process has one, the first one writes."""

    def __init__(self, folder: Path, spec: CheckpointSpec, *, in_background: bool = True) -> None:
        self._folder = folder
        self._spec = spec
        self._in_background = in_background
        self._writer = BackgroundWriter()
        self._saved = -1
        self._saved_at = time.monotonic()
        self._best: tuple[float, int] | None = None

    def is_due(self, step: int, scores: Mapping[str, float] | None = None) -> bool:
        """Says whether the spec asks for a checkpoint after `step` steps.

        Args:
            step: steps done.
            scores: of the exam that followed them, by benchmark, if there was one.
        """
        if any(step % every == 0 for every in (self._spec.every, self._spec.keep_every) if every is not None):
            return True
        score = (scores or {}).get(self._spec.keep_best or "")
        return score is not None and (self._best is None or score > self._best[0])

    def is_overdue(self) -> bool:
        """Says whether the spec's time has passed on the first process's clock; the others never say so.

        The clock is one that only goes forward, and no two clocks are compared.
        """
        if self._spec.minutes is None or env.rank() != 0:
            return False
        return time.monotonic() - self._saved_at >= 60 * self._spec.minutes

    def save(self, engine: Engine, state: CheckpointState) -> None:
        """Collects the state on every process and writes it on the first, beside the training. Collective.

        Does nothing where the last checkpoint is of this very step.

        Raises:
            OSError: On every process, here or at the next `save` or `wait`; so is any other error of the writer.
        """
        self.wait()
        if state.step == self._saved:
            return
        state = replace(state, updates=engine.updates)
        tensors, moments = engine.tensors(), engine.optimizer_tensors()
        self._note(state)
        kept = self._kept()
        if env.rank() == 0:

            def work() -> None:
                checkpoint.write(self._folder, state, tensors, moments)
                prune(self._folder, self._spec.keep, kept)

            self._writer.submit(work)
        if not self._in_background:
            self.wait()

    def wait(self) -> None:
        """Waits until the last checkpoint stands; what went wrong is raised on every process. Collective."""
        fault: Exception | None = None
        try:
            self._writer.wait()
        except Exception as error:
            fault = error
        # Not the error itself, which may not survive the way: its number, its kind and its words.
        kind = next((kind for kind in (OSError, MemoryError, ValueError) if isinstance(fault, kind)), RuntimeError)
        told = dist.as_on_first(None if fault is None else (getattr(fault, "errno", None), kind, str(fault)))
        if fault is not None:
            raise fault
        if told is not None:
            number, kind, text = told
            text = f"the first process could not write a checkpoint: {text}"
            raise OSError(number, text) if number is not None else kind(text)

    def resume(self, engine: Engine, check: Callable[[Checkpoint], None] = lambda held: None) -> Checkpoint | None:
        """Puts the newest whole checkpoint into the engine and returns it, None if there is none. Collective.

        Args:
            engine: what it is put into.
            check: looks at it before; what it raises is raised, and the engine is left as it was.
        """
        found = self._look() if env.rank() == 0 else None
        told = dist.as_on_first(found)
        if told is None:
            return None
        path, self._best = told
        held = checkpoint.read(path)
        check(held)
        state = held.state
        engine.load(held.tensors, held.moments, state.step if state.updates is None else state.updates)
        self._saved, self._saved_at = state.step, time.monotonic()
        return held

    def best(self) -> Checkpoint | None:
        """Returns the best checkpoint on the first process, None elsewhere and where the spec keeps none."""
        if env.rank() != 0 or self._best is None:
            return None
        path = step_folder(self._folder, self._best[1])
        try:
            return checkpoint.read(path)
        except ValueError as error:
            logger().warning("the best checkpoint is lost: %s", error)
            return None

    def _look(self) -> tuple[Path, tuple[float, int] | None] | None:
        """Returns the newest sound checkpoint, and the best's score and step; damaged newer ones are put aside."""
        sweep(self._folder)
        found = checkpoint.latest_valid(self._folder)
        steps = all_steps(self._folder)
        # Damaged ones with higher numbers would count as the newest to keep and push the sound ones out.
        for newer in steps if found is None else steps[steps.index(found) + 1 :]:
            aside = newer.with_name(f"damaged_{newer.name}")
            shutil.rmtree(aside, ignore_errors=True)
            newer.rename(aside)
            logger().warning(
                "checkpoint %s is called %s from now on, until the stage ends; it goes on from %s",
                newer,
                aside.name,
                "its start" if found is None else found.name,
            )
        return None if found is None else (found, self._best_on_disk())

    def _note(self, state: CheckpointState) -> None:
        """Remembers when was saved, and which was best."""
        self._saved, self._saved_at = state.step, time.monotonic()
        score = self._score(state)
        if score is not None and (self._best is None or score > self._best[0]):
            self._best = score, state.step

    def _score(self, state: CheckpointState) -> float | None:
        scores = state.extra.get(SCORES) or {}
        return None if self._spec.keep_best is None else scores.get(self._spec.keep_best)

    def _best_on_disk(self) -> tuple[float, int] | None:
        """Returns the highest score of a sound checkpoint and its step; of equal ones the first."""
        scored = []
        for path in all_steps(self._folder):
            state = checkpoint.read_state(path)
            score = None if state is None else self._score(state)
            if state is not None and score is not None:
                scored.append((-score, state.step, path))
        sound = ((-lost, step) for lost, step, path in sorted(scored) if not checkpoint.verify(path))
        return next(sound, None)

    def _kept(self) -> Callable[[int], bool]:
        """Returns what says of a step whether its checkpoint stays, however old it is."""
        best = None if self._best is None else self._best[1]
        every = self._spec.keep_every
        return lambda step: step == best or (every is not None and step % every == 0)
