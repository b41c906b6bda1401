"""The training loop: the only one; what differs between runs is in the engine, the data and the observer."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmmoe import dist, env
from mmmoe.engine.faults import FaultRule
from mmmoe.engine.groups import rates
from mmmoe.engine.memory import memory_explained
from mmmoe.engine.protocol import BatchSource, Engine, Observer, StepRecord, TrainingBatch
from mmmoe.engine.spec import TrainingSpec
from mmmoe.engine.stop import StopRequest
from mmmoe.log import console, logger


@dataclass(frozen=True)
class FitResult:
    """How a call of `fit` ended."""

    step: int
    """Optimiser steps done since the stage began."""
    stopped: bool
    """True if somebody asked for the end before the last step; the state has been saved then."""


@dataclass(frozen=True)
class Counts:
    """A step's sizes over all processes."""

    targets: float
    samples: float
    tokens: float
    is_stopping: bool
    is_overdue: bool


def fit(
    engine: Engine,
    source: BatchSource,
    training: TrainingSpec,
    total_steps: int,
    start_step: int,
    observer: Observer,
    *,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
    faults: FaultRule | None = None,
    title: str = "training",
    key: str = "training",
) -> FitResult:
    """Trains from step `start_step` to `total_steps`.

    Every step depends on its number alone (batches, dropout, rates), so a run that is cut and resumed
    repeats the steps it would have done.

    Args:
        engine: holds the model.
        source: gives each step's batches.
        training: the declaration.
        total_steps: of the schedule.
        start_step: steps done before.
        observer: watches and saves.
        progress: shows the steps; by default a bar of its own.
        stop: may ask for the end.
        faults: knows which steps must not count, from where the stage goes on; by default from its beginning.
        title: what is trained, for the bar and messages.
        key: where `training` stands in the run's declaration, for messages.

    Raises:
        FloatingPointError: A loss or gradient is not finite, or too many steps were skipped; the text names samples.
        MemoryFullError: A step does not fit into memory.
    """
    engine.module.train()
    stop, faults = stop or StopRequest(), faults or FaultRule(training.faults, key=key)
    shown = progress or _progress_bar()
    frame: AbstractContextManager[object] = nullcontext() if progress is not None else shown
    with stop, frame:
        task = shown.add_task(title, total=total_steps, completed=start_step, loss="...")
        for step in range(start_step, total_steps):
            began = time.perf_counter()
            batches = source.step(step)
            data_seconds = time.perf_counter() - began
            counts = _count(batches, stop.requested, observer.is_overdue())
            if counts.is_stopping:
                observer.save(step)
                logger().info("stopped after step %d as asked; the state is saved", step)
                return FitResult(step, stopped=True)
            now = rates(training.schedule, training.optimizer, step, total_steps)
            with memory_explained(f"{title}, step {step + 1}", training, key):
                _seed(training.seed, step)
                loss = _run_batches(engine, batches, counts, observer)
                norm, skipped = _update(engine, loss, now, faults, step, batches)
            record = StepRecord(
                step=step + 1,
                loss=loss,
                grad_norm=norm,
                rates=tuple(now),
                seconds=time.perf_counter() - began,
                data_seconds=data_seconds,
                tokens=int(counts.tokens),
                samples=int(counts.samples),
                skipped=skipped,
            )
            observer.on_step(record)
            shown.update(task, completed=record.step, loss=f"{loss:.4f}")
            if counts.is_overdue or observer.should_save(record.step):
                observer.save(record.step)
    return FitResult(max(start_step, total_steps), stopped=False)


def _count(batches: Sequence[TrainingBatch], is_stopping: bool, is_overdue: bool) -> Counts:
    """Sums a step's sizes over processes; wishes to stop or to save go along, so that all of them do it at once."""
    targets, samples, tokens, stopping, overdue = dist.sum_over_ranks(
        [
            float(sum(batch.num_targets for batch in batches)),
            float(sum(batch.num_samples for batch in batches)),
            float(sum(batch.num_tokens for batch in batches)),
            float(is_stopping),
            float(is_overdue),
        ]
    )
    return Counts(targets, samples, tokens, stopping > 0, overdue > 0)


def _run_batches(engine: Engine, batches: Sequence[TrainingBatch], counts: Counts, observer: Observer) -> float:
    """Runs forward and backward of every micro-batch and returns the global batch's loss.

    A loss that is not finite anywhere makes the sum so everywhere, so that all processes see it.
    """
    share = 0.0
    for place, batch in enumerate(batches):
        batch = batch.to(engine.device)
        output = engine.forward(batch.inputs())
        loss = output.loss(counts.targets, counts.samples)
        engine.backward(loss, is_last=place + 1 == len(batches))
        share += float(loss.detach())
        observer.on_batch(batch, output)
    return dist.sum_over_ranks([share])[0]


def _update(
    engine: Engine, loss: float, now: list[float], faults: FaultRule, step: int, batches: Sequence[TrainingBatch]
) -> tuple[float, str | None]:
    """Makes the step's update, or drops its gradients; returns the gradient norm and why there was no update."""
    norm, fault = math.nan, faults.of_loss(loss)
    if fault is None:
        norm = engine.step(now)
        fault = faults.of_norm(norm)
    else:
        engine.discard()
    if fault is None:
        faults.accept(loss)
        return norm, None
    faults.skip(fault, step + 1, batches)
    return norm, fault.text


def _seed(seed: int, step: int) -> None:
    """Seeds dropout from (seed, step, rank) alone, so that no generator's state has to be saved."""
    word = hashlib.blake2b(f"{seed}/{step}/{env.rank()}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(word, "big") >> 1)


def _progress_bar() -> Progress:
    """Returns the bar that the first rank shows on the console."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=env.rank() != 0,
    )
