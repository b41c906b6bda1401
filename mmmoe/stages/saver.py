"""A stage's checkpoints: what they say of it, which one it goes on from, and the one it leaves behind."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mmmoe import dist, env
from mmmoe.engine import checkpoint
from mmmoe.engine.checkpoint import Checkpoint
from mmmoe.engine.expert_groups import ExpertGroups
from mmmoe.engine.keeper import SCORES, CheckpointKeeper
from mmmoe.engine.protocol import Engine
from mmmoe.log import logger
from mmmoe.models.spec import MODEL
from mmmoe.models.weights import base_fingerprint
from mmmoe.stages.assembly import digests
from mmmoe.stages.handover import StageModel
from mmmoe.stages.heritage import ADAPTERS, Heritage, redeclared
from mmmoe.stages.spec import RunSpec, StageSpec

BEST = "best"
"""Where a stage that keeps its best checkpoint leaves it."""


@dataclass(frozen=True)
class Origin:
    """What a stage's checkpoints say of where it comes from."""

    run: RunSpec
    stage: StageSpec
    start: StageModel
    """The model before the stage trained it."""
    heritage: Heritage | None
    parts: Mapping[str, Heritage]

    def declared(self) -> dict[str, Any]:
        """Returns the declaration that a later stage rebuilds the model from."""
        return {
            "model": self.run.model.model_dump(mode="json"),
            "adapters": [adapter.model_dump(mode="json") for adapter in self.start.adapters],
            "template": self.stage.template.model_dump(mode="json"),
            "stage": self.stage.model_dump(mode="json"),
        }

    def extra(self) -> dict[str, Any]:
        """Returns which base weights and which other finished stages went into it."""
        return {"base": base_fingerprint(self.run.model.language), "parts": digests(self.parts)}


class StageSaver:
    """Saves a stage's engine and finds its state again; every method is collective."""

    def __init__(self, origin: Origin, engine: Engine, folder: Path, experts: ExpertGroups | None = None) -> None:
        """Begins a stage.

        Args:
            origin: where its model comes from.
            engine: what is saved.
            folder: the stage's.
            experts: who holds which whole experts, where a process does not hold all.
        """
        self._origin, self._engine, self._experts = origin, engine, experts
        self._name = origin.stage.name
        self._folder, self._steps = folder, folder / "checkpoints"
        self._keeper = CheckpointKeeper(self._steps, origin.stage.training.checkpoint)
        self._declared, self._extra = origin.declared(), origin.extra()

    def restore(self, total_steps: int) -> int:
        """Puts the newest sound checkpoint into the engine; returns its step, 0 when there is none.

        Raises:
            ValueError: The checkpoint is of another start, or of a later step than the stage's last.
        """

        def check(held: Checkpoint) -> None:
            self._refuse_another_start(held)
            self._refuse_a_later_step(held.state.step, total_steps)

        held = self._keeper.resume(self._engine, check)
        if held is None:
            return 0
        logger().info("stage %s goes on after step %d", self._name, held.state.step)
        return held.state.step

    def _refuse_another_start(self, held: Checkpoint) -> None:
        """Compares what the checkpoint was trained from with what the stage starts from now."""
        now = self._state(held.state.step)
        then = held.state.spec
        pairs = {
            "the model's declaration": (redeclared(MODEL, then.get("model")), now.spec["model"]),
            "the adapters' declaration": (redeclared(ADAPTERS, then.get("adapters")), now.spec["adapters"]),
            "the stage it starts from": (held.state.parent, now.parent),
            "the base weights": (held.state.extra.get("base"), now.extra["base"]),
            "the stages it takes experts or connectors from": (held.state.extra.get("parts"), now.extra["parts"]),
        }
        changed = [what for what, (before, present) in pairs.items() if before != present]
        if changed:
            raise ValueError(
                f"stage {self._name} cannot go on from {self._steps}: {', '.join(changed)} changed since step "
                f"{held.state.step}. Put that back, or delete the folder to train the stage anew"
            )

    def _refuse_a_later_step(self, step: int, total_steps: int) -> None:
        """Refuses to call weights of one step the end of a stage that has fewer."""
        if step > total_steps:
            key, steps = f"stages.{self._name}.training", self._origin.stage.training.steps
            higher = f"a higher {key}.epochs" if steps is None else f"{key}.steps={step}"
            raise ValueError(
                f"stage {self._name} was trained for {step} steps, and its declaration asks for {total_steps} now: "
                f"resume with the overrides of the attempt before (ledger.jsonl has them), or with {higher}; to end "
                f"it earlier, delete the checkpoints of later steps in {self._steps}"
            )

    def is_due(self, step: int, scores: Mapping[str, float]) -> bool:
        """Says whether the stage asks for a checkpoint after so many steps, and an exam with these scores if any."""
        return self._keeper.is_due(step, scores)

    def is_overdue(self) -> bool:
        """Says whether this process's clock asks for a checkpoint."""
        return self._keeper.is_overdue()

    def save(self, step: int, scores: Mapping[str, float]) -> None:
        """Writes what trains and its moments; the file work is done beside the training."""
        state = self._state(step)
        if scores:
            state = replace(state, extra=state.extra | {SCORES: dict(scores)})
        self._keeper.save(self._engine, state)

    def finish(self, step: int) -> None:
        """Writes `final`: all tensors that this stage and the ones before it trained, without moments.

        Where the best checkpoint is kept, `best` is written before, alike.
        """
        self._keeper.wait()
        tensors = self._engine.tensors()
        inherited = self._inherited(tensors)
        if env.rank() == 0:
            best = self._keeper.best()
            if best is not None:
                checkpoint.write_at(self._folder / BEST, best.state, {**inherited, **best.tensors}, {})
                told = f"{best.state.extra[SCORES]}; it stays in {self._folder / BEST}"
                logger().info("stage %s: the best checkpoint is that of step %d, %s", self._name, best.state.step, told)
            checkpoint.write_at(self._folder / "final", self._state(step), {**inherited, **tensors}, {})
            shutil.rmtree(self._steps, ignore_errors=True)
        dist.barrier()

    def wait(self) -> None:
        """Waits for what is being written."""
        self._keeper.wait()

    def _inherited(self, trained: Collection[str]) -> dict[str, Tensor]:
        """Returns the tensors that this stage did not train, on the first process. Collective."""
        start, found = self._origin.start, dict[str, Tensor]()
        for name, tensor in start.inherited.items():
            if name in trained:
                continue
            if self._experts is not None and name in start.shares:
                tensor = self._experts.gather(tensor.to(self._engine.device)).cpu()
            if env.rank() == 0:
                found[name] = tensor
        return found

    def _state(self, step: int) -> checkpoint.CheckpointState:
        heritage = self._origin.heritage
        parent = heritage.checkpoint.digest if heritage else None
        return checkpoint.CheckpointState(step, self._declared, parent, {"run": self._origin.run.seed}, self._extra)
