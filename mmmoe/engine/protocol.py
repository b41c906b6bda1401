"""What the loop knows of a model, a batch, an engine and whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class TrainingOutput(Protocol):
    """What a model's forward returns, as far as the loop is concerned."""

    def loss(self, num_targets: float, num_samples: float) -> Tensor:
        """Returns this micro-batch's share of the global batch's loss."""


class TrainingBatch(Protocol):
    """One micro-batch of one process."""

    @property
    def num_samples(self) -> int:
        """Samples in it (bad samples are left out, so it can be 0; it is forwarded all the same)."""

    @property
    def num_targets(self) -> int:
        """Target tokens in it."""

    @property
    def num_tokens(self) -> int:
        """Text tokens in it, padding left out."""

    @property
    def keys(self) -> Sequence[str]:
        """Names of its samples, for messages."""

    def to(self, device: torch.device) -> TrainingBatch:
        """Returns the batch on a device."""

    def inputs(self) -> dict[str, object]:
        """Returns the keyword arguments of the model's forward."""


class BatchSource(Protocol):
    """Gives a step's micro-batches; a pure function of the step, so there is no state to save."""

    def step(self, step: int) -> Sequence[TrainingBatch]:
        """Returns this process's micro-batches of optimiser step `step` (0-based); as many on every process."""


class Engine(Protocol):
    """DeepSpeed or plain torch; everything the loop may ask of either."""

    @property
    def module(self) -> nn.Module:
        """The bare model."""

    @property
    def device(self) -> torch.device:
        """Where batches go."""

    def forward(self, inputs: Mapping[str, object]) -> TrainingOutput:
        """Runs the model."""

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Adds gradients. Shares of all processes are summed; `is_last` marks the step's last micro-batch."""

    def step(self, rates: list[float]) -> float:
        """Clips, updates with one learning rate a rule, clears gradients; returns the global norm before clipping.

        A norm that is not finite comes back without an update.
        """

    def discard(self) -> None:
        """Clears the gradients of all the step's micro-batches; no weight and no moment changes. Collective."""

    @property
    def updates(self) -> int:
        """Updates that weights and moments have had: steps, without those that were skipped."""

    def tensors(self) -> dict[str, Tensor]:
        """Returns the trainable parameters in full (float32 masters) by global name, on the CPU. Collective."""

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Returns moments in full as `exp_avg.<name>` and `exp_avg_sq.<name>`, on the CPU. Collective."""

    def load(self, tensors: Mapping[str, Tensor], moments: Mapping[str, Tensor], updates: int) -> None:
        """Puts parameters and moments back after `updates` steps; no moments: a fresh optimiser. Collective."""

    def close(self) -> None:
        """Takes the engine off the model."""


@dataclass(frozen=True)
class StepRecord:
    """What one optimiser step did, over all processes."""

    step: int
    """Steps done, this one included."""
    loss: float
    grad_norm: float
    """Global norm before clipping; NaN where a step was skipped for its loss."""
    rates: tuple[float, ...]
    """The default learning rate, then each rule's."""
    seconds: float
    """Wall clock of the step on this process."""
    data_seconds: float
    """Part of it spent waiting for data."""
    tokens: int
    samples: int
    skipped: str | None = None
    """Why the step changed nothing; None for a step that counts."""


class Observer(Protocol):
    """Watches a stage's training; every process has one and all are called alike."""

    def on_batch(self, batch: TrainingBatch, output: TrainingOutput) -> None:
        """Sees each micro-batch of this process after its backward."""

    def on_step(self, record: StepRecord) -> None:
        """Sees each finished step."""

    def should_save(self, step: int) -> bool:
        """Says whether state is written after `step` steps; the same answer on every process."""

    def is_overdue(self) -> bool:
        """Says whether this process's clock asks for the state to be written; one process's wish is enough."""

    def save(self, step: int) -> None:
        """Writes the state after `step` steps. Collective."""
