"""A stage's checkpoints: what goes into them, where they stand, which one a stage goes on from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mmmoe import dist
from mmmoe.engine import checkpoint
from mmmoe.engine.protocol import Engine
from mmmoe.log import logger
from mmmoe.models.spec import AdapterSpec
from mmmoe.stages.handover import Heritage
from mmmoe.stages.spec import RunSpec, StageSpec


class StageSaver:
    """Writes a stage's state in the background and finds it again; every method is collective."""

    def __init__(
        self,
        run: RunSpec,
        stage: StageSpec,
        adapters: list[AdapterSpec],
        heritage: Heritage | None,
        engine: Engine,
        folder: Path,
    ) -> None:
        self._stage, self._heritage, self._engine = stage, heritage, engine
        self._folder = folder
        self._steps = folder / "checkpoints"
        self._writer = checkpoint.BackgroundWriter()
        self._seed = run.seed
        self._declared: dict[str, Any] = {
            "model": run.model.model_dump(mode="json"),
            "adapters": [adapter.model_dump(mode="json") for adapter in adapters],
            "template": stage.template.model_dump(mode="json"),
            "stage": stage.model_dump(mode="json"),
        }

    def restore(self) -> int:
        """Puts the newest sound checkpoint into the engine; returns its step, 0 when there is none."""
        found = checkpoint.latest_valid(self._steps) if dist.rank() == 0 else None
        name = dist.gather_objects(str(found) if found else None)[0]
        if name is None:
            return 0
        saved = checkpoint.read(Path(str(name)))
        self._engine.load(saved.tensors, saved.moments, saved.state.step)
        logger().info("stage %s goes on after step %d (%s)", self._stage.name, saved.state.step, name)
        return saved.state.step

    def save(self, step: int) -> None:
        """Writes what trains and its moments; the file work is done beside the training."""
        tensors, moments = self._engine.tensors(), self._engine.optimizer_tensors()
        if dist.rank() != 0:
            return
        state, keep = self._state(step), self._stage.training.checkpoint.keep

        def write() -> None:
            checkpoint.write(self._steps, state, tensors, moments)
            checkpoint.prune(self._steps, keep)

        self._writer.submit(write)

    def finish(self, step: int) -> None:
        """Writes `final`: all tensors that this stage and the ones before it trained, without moments."""
        self._writer.wait()
        tensors = self._engine.tensors()
        if dist.rank() == 0:
            inherited = self._heritage.checkpoint.tensors if self._heritage else {}
            checkpoint.write_at(self._folder / "final", self._state(step), {**inherited, **tensors}, {})
            shutil.rmtree(self._steps, ignore_errors=True)
        dist.barrier()

    def close(self) -> None:
        """Waits for what is being written."""
        self._writer.wait()

    def _state(self, step: int) -> checkpoint.CheckpointState:
        parent = self._heritage.checkpoint.digest if self._heritage else None
        return checkpoint.CheckpointState(step, self._declared, parent, {"run": self._seed})
