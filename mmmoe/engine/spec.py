"""How a stage is carried out: engine, optimiser, schedule, checkpoints."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from mmmoe.config.spec import Spec


class EngineSpec(Spec):
    """DeepSpeed or plain torch, and on how many processes."""

    kind: Literal["deepspeed", "local"] = "deepspeed"
    processes: int = Field(default=1, ge=1)
    """Processes that `mmmoe run` starts on this machine; a launcher's own world size wins."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads per process; by default the cores shared out among the processes."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """TCP port the processes of this machine meet on; by default a free one is taken."""
    deadline_s: float = Field(default=120, ge=2)
    """Seconds within which a process that is dead, frozen or out of reach is found, and the others stop."""
    restarts: int = Field(default=0, ge=0)
    """How often `mmmoe run`, `resume` and `launch` start a run again from its last checkpoint after a process died of
    something that is no mistake of yours. `launch --hostfile` leaves nodes out that do not answer any more; torchrun
    cannot (`launch --torchrun` refuses it)."""
    zero: Literal[0, 1, 2, 3] = 1
    """ZeRO stage of DeepSpeed."""
    ep_size: int = Field(default=1, ge=1)
    """Processes that hold the experts of a sparse block together (expert parallelism); 1 keeps all in each process."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 keeps float32 master weights in the optimiser."""
    device: Literal["auto", "cpu"] = "auto"
    deepspeed: dict[str, Any] = {}
    """Further keys of DeepSpeed's JSON; a key that mmmoe sets itself is refused."""

    @model_validator(mode="after")
    def _experts_can_be_shared(self) -> EngineSpec:
        if self.ep_size > 1 and self.kind == "deepspeed" and self.zero == 3:
            raise ValueError(
                "ep_size above 1 shares experts out whole, and ZeRO 3 would cut them up as well: use zero 0, 1 or 2, "
                "or ep_size 1 with zero 3"
            )
        if self.ep_size > 1 and self.kind == "deepspeed" and self.zero == 0 and self.precision == "bf16":
            # Its norm of spread experts is an average over processes there (seen with 0.19.8: 30.5 for 46.1).
            raise ValueError("ep_size above 1 in bf16 needs zero 1 or 2: with zero 0 DeepSpeed clips by a wrong norm")
        return self


class RateRule(Spec):
    """A learning rate for the parameters whose names match."""

    match: str
    """Glob over parameter names."""
    lr: float = Field(gt=0)


class OptimizerSpec(Spec):
    """AdamW."""

    lr: float = Field(gt=0)
    rates: list[RateRule] = []
    """Exceptions to `lr`; the first match counts, and one that matches nothing stops the run."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float | None = Field(default=1.0, gt=0)
    """Largest global gradient norm."""


class ScheduleSpec(Spec):
    """Learning rate over a stage: linear warm-up, then the curve."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of the steps spent warming up."""
    final_ratio: float = Field(default=0.0, ge=0, le=1)
    """Rate at the end, as a share of the peak."""


class CheckpointSpec(Spec):
    """When state is written; the end of a stage always is."""

    every: int | None = Field(default=200, ge=1)
    """Steps between checkpoints; null writes none by step."""
    minutes: float | None = Field(default=None, gt=0)
    """Longest time between checkpoints, by the clock of the first process. A checkpoint changes no result, so neither
    does the time it is written at."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept while a stage runs."""
    keep_every: int | None = Field(default=None, ge=1)
    """After every so many steps a checkpoint is written that stays until the stage ends."""
    keep_best: str | None = None
    """A benchmark of the stage's `evaluate`: the checkpoint with its highest score so far is kept, and its tensors
    stay in `stages/<name>/best`, a folder like `final`, when the stage ends. Of equal scores the first counts."""


class FaultsSpec(Spec):
    """Steps that must not count. A skipped one changes no weight and no moment; the schedule goes on."""

    nonfinite: Literal["stop", "skip"] = "stop"
    """What follows from a loss or a gradient norm that is not finite."""
    spike: float | None = Field(default=None, gt=1)
    """A step is skipped if its loss is more than so many times the median of the last accepted ones; null: none is."""
    window: int = Field(default=50, ge=1)
    """Accepted losses that the median is taken of; until there are as many, no step counts as a spike."""
    budget: int = Field(default=10, ge=0)
    """Steps that a stage may skip; one more stops the run."""


class TrainingSpec(Spec):
    """Length and size of a stage's training."""

    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps; give this or epochs."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the mixture, counted in samples of all its sources."""
    batch: int = Field(ge=1)
    """Samples of one optimiser step over all processes."""
    micro_batch: int = Field(ge=1)
    """Largest number of samples a process takes at once; the rest is gradient accumulation."""
    optimizer: OptimizerSpec
    schedule: ScheduleSpec = ScheduleSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    faults: FaultsSpec = FaultsSpec()
    gradient_checkpointing: bool = False
    seed: int = 0
