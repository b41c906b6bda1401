"""Steps that must not count: a loss or gradient that is not finite, a loss that leaps; skipped by rule, up to a budget.

A verdict follows from numbers that all processes share, the losses and norms of this stage, so all of them agree.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmmoe import dist
from mmmoe.engine.protocol import TrainingBatch
from mmmoe.engine.spec import FaultsSpec
from mmmoe.log import logger

NAMED = 32
"""Samples that a message names."""


@dataclass(frozen=True)
class Fault:
    """Why a step must not count."""

    text: str
    is_spike: bool = False
    """Whether its numbers are finite."""


@dataclass(frozen=True)
class History:
    """What a stage has been through when it goes on."""

    losses: tuple[float, ...] = ()
    """Of accepted steps, the last ones."""
    skipped: int = 0
    """Steps skipped so far."""

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]] | None, spec: FaultsSpec) -> History:
        """Returns what the lines of a stage's record say. Collective.

        Args:
            rows: the lines, on the first process; the others know none (None) and are told.
            spec: how many losses count.
        """
        told = None
        if rows is not None:
            losses = [float(row["loss"]) for row in rows if "skipped" not in row]
            told = cls(tuple(losses[-spec.window :]), sum("skipped" in row for row in rows))
        found = dist.as_on_first(told)
        assert found is not None, "the first process knows the lines"
        return found


class FaultRule:
    """Says of each step of a stage whether it counts; every process has one and all are asked alike."""

    def __init__(self, spec: FaultsSpec, history: History | None = None, key: str = "training") -> None:
        """Begins a stage, or goes on with it.

        Args:
            spec: the declaration.
            history: what the stage has been through.
            key: where its training is declared in the run, for messages.
        """
        history = history or History()
        self._spec, self._key = spec, key
        self._losses: deque[float] = deque(history.losses, spec.window)
        self._skipped = history.skipped

    def of_loss(self, loss: float) -> Fault | None:
        """Returns what is wrong with a global loss, None if nothing."""
        if not math.isfinite(loss):
            return Fault("loss is not finite")
        if self._spec.spike is None or len(self._losses) < self._spec.window:
            return None
        usual = statistics.median(self._losses)
        if usual <= 0 or loss <= self._spec.spike * usual:
            return None
        last = f"the median of the last {self._spec.window}, {usual:.4g}"
        return Fault(f"loss {loss:.4g} is {loss / usual:.4g} times {last}", is_spike=True)

    def of_norm(self, norm: float) -> Fault | None:
        """Returns what is wrong with a global gradient norm, None if nothing."""
        return None if math.isfinite(norm) else Fault("gradient norm is not finite")

    def accept(self, loss: float) -> None:
        """Notes a step that counts."""
        self._losses.append(loss)

    def skip(self, fault: Fault, step: int, batches: Sequence[TrainingBatch]) -> None:
        """Notes a step that does not count, and names its samples in the log. Collective.

        Args:
            fault: what is wrong.
            step: its number, counted from 1.
            batches: this process's.

        Raises:
            FloatingPointError: Such steps are not to be skipped, or one more than the budget allows.
        """
        keys = [str(key) for part in dist.gather_objects(_keys(batches)) for key in _listed(part)]
        samples = ", ".join(keys[:NAMED]) + (f", and {len(keys) - NAMED} more" if len(keys) > NAMED else "")
        if not fault.is_spike and self._spec.nonfinite == "stop":
            raise FloatingPointError(
                f"{fault.text} at step {step} (samples: {samples}). The step changed no weight. Lower "
                f"{self._key}.optimizer.lr, set {self._key}.optimizer.clip, look at these samples, or set "
                f"{self._key}.faults.nonfinite=skip"
            )
        if self._skipped >= self._spec.budget:
            raise FloatingPointError(
                f"{fault.text} at step {step}, and {self._skipped} steps were skipped before: as many as "
                f"{self._key}.faults.budget allows (samples: {samples}). The step changed no weight. Look at these "
                f"samples, lower {self._key}.optimizer.lr, or raise the budget"
            )
        self._skipped += 1
        place = f"{self._skipped} of {self._spec.budget}"
        logger().warning("step %d is skipped (%s): %s. Samples: %s", step, place, fault.text, samples)


def _keys(batches: Sequence[TrainingBatch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def _listed(part: object) -> list[object]:
    assert isinstance(part, list)
    return part
