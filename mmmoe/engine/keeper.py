"""Keeps a stage's checkpoints: when one is due, who writes it, which are kept, where to go on from."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from mmmoe import dist
from mmmoe.engine import checkpoint
from mmmoe.engine.checkpoint import BackgroundWriter, Checkpoint, CheckpointState
from mmmoe.engine.protocol import Engine
from mmmoe.engine.spec import CheckpointSpec


class CheckpointKeeper:
    """Saves and restores an engine in one folder; every process has one, the first one writes."""

    def __init__(self, folder: Path, spec: CheckpointSpec, *, in_background: bool = True) -> None:
        self._folder = folder
        self._spec = spec
        self._in_background = in_background
        self._writer = BackgroundWriter()

    def is_due(self, step: int) -> bool:
        """Says whether the spec asks for a checkpoint after `step` steps."""
        return self._spec.every is not None and step % self._spec.every == 0

    def save(self, engine: Engine, state: CheckpointState) -> None:
        """Collects the state on every process and writes it on the first, beside the training. Collective.

        Raises:
            DiskFullError: On every process, here or at the next `save` or `wait`.
        """
        self.wait()
        tensors, moments = engine.tensors(), engine.optimizer_tensors()
        if dist.rank() == 0:

            def work() -> None:
                checkpoint.write(self._folder, state, tensors, moments)
                checkpoint.prune(self._folder, self._spec.keep)

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
        text = dist.gather_objects(None if fault is None else str(fault))[0]
        if fault is not None:
            raise fault
        if text is not None:
            raise checkpoint.DiskFullError(errno.ENOSPC, f"the first rank could not write a checkpoint: {text}")

    def resume(self, engine: Engine, check: Callable[[Checkpoint], None] = lambda held: None) -> Checkpoint | None:
        """Puts the newest whole checkpoint into the engine and returns it, None if there is none. Collective.

        Args:
            engine: what it is put into.
            check: looks at it before; what it raises is raised, and the engine is left as it was.
        """
        found = checkpoint.latest_valid(self._folder) if dist.rank() == 0 else None
        if found is not None:
            # Damaged ones with higher numbers would count as the newest to keep and push the sound ones out.
            for newer in checkpoint.all_steps(self._folder):
                if newer.name > found.name:
                    newer.rename(newer.with_name(f"damaged_{newer.name}"))
        path = dist.gather_objects(found)[0]
        if not isinstance(path, Path):
            return None
        held = checkpoint.read(path)
        check(held)
        engine.load(held.tensors, held.moments, held.state.step)
        return held
