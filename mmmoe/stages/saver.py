"""A stage's checkpoints: what they say of it, which one it goes on from, and the one it leaves behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mmmoe import dist
from mmmoe.engine import checkpoint
from mmmoe.engine.keeper import CheckpointKeeper
from mmmoe.engine.protocol import Engine
from mmmoe.log import logger
from mmmoe.models.adapters import AdapterSpec
from mmmoe.stages.handover import Heritage
from mmmoe.stages.spec import RunSpec, StageSpec


class StageSaver:
    """Saves a stage's engine and finds its state again; every method is collective."""

    def __init__(
        self,
        run: RunSpec,
        stage: StageSpec,
        adapters: list[AdapterSpec],
        heritage: Heritage | None,
        engine: Engine,
        folder: Path,
    ) -> None:
        self._name, self._heritage, self._engine = stage.name, heritage, engine
        self._folder, self._steps = folder, folder / "checkpoints"
        self._keeper = CheckpointKeeper(self._steps, stage.training.checkpoint)
        self._seed = run.seed
        self._declared: dict[str, Any] = {
            "model": run.model.model_dump(mode="json"),
            "adapters": [adapter.model_dump(mode="json") for adapter in adapters],
            "template": stage.template.model_dump(mode="json"),
            "stage": stage.model_dump(mode="json"),
        }

    def restore(self) -> int:
        """Puts the newest sound checkpoint into the engine; returns its step, 0 when there is none."""
        held = self._keeper.resume(self._engine)
        if held is None:
            return 0
        logger().info("stage %s goes on after step %d", self._name, held.state.step)
        return held.state.step

    def is_due(self, step: int) -> bool:
        """Says whether the stage asks for a checkpoint after so many steps."""
        return self._keeper.is_due(step)

    def save(self, step: int) -> None:
        """Writes what trains and its moments; the file work is done beside the training."""
        self._keeper.save(self._engine, self._state(step))

    def finish(self, step: int) -> None:
        """Writes `final`: all tensors that this stage and the ones before it trained, without moments."""
        self._keeper.wait()
        tensors = self._engine.tensors()
        if dist.rank() == 0:
            inherited = self._heritage.checkpoint.tensors if self._heritage else {}
            checkpoint.write_at(self._folder / "final", self._state(step), {**inherited, **tensors}, {})
            shutil.rmtree(self._steps, ignore_errors=True)
        dist.barrier()

    def wait(self) -> None:
        """Waits for what is being written."""
        self._keeper.wait()

    def _state(self, step: int) -> checkpoint.CheckpointState:
        parent = self._heritage.checkpoint.digest if self._heritage else None
        return checkpoint.CheckpointState(step, self._declared, parent, {"run": self._seed})
