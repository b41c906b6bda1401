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

from mmmoe import dist
from mmmoe.engine.groups import rates
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
    title: str = "training",
) -> FitResult:
    """Trains from step `start_step` to `total_steps`.

    Every step depends on its number alone (batches, dropout, rates), so a run that is cut and resumed
    repeats the steps it would have done.

    Raises:
        FloatingPointError: A loss or gradient is not finite; the text names the samples of this process.
    """
    engine.module.train()
    stop = stop or StopRequest()
    shown = progress or _progress_bar()
    frame: AbstractContextManager[object] = nullcontext() if progress is not None else shown
    with stop, frame:
        task = shown.add_task(title, total=total_steps, completed=start_step, loss=math.nan)
        for step in range(start_step, total_steps):
            began = time.perf_counter()
            batches = source.step(step)
            data_seconds = time.perf_counter() - began
            counts = _count(batches, stop.requested)
            if counts.is_stopping:
                observer.save(step)
                logger().info("stopped after step %d as asked; the state is saved", step)
                return FitResult(step, stopped=True)
            _seed(training.seed, step)
            loss = _run_batches(engine, batches, counts, observer, step)
            now = rates(training.schedule, training.optimizer, step, total_steps)
            norm = engine.step(now)
            if not math.isfinite(norm):
                raise FloatingPointError(_blame("gradient norm", norm, step, batches))
            record = StepRecord(
                step=step + 1,
                loss=loss,
                grad_norm=norm,
                rates=tuple(now),
                seconds=time.perf_counter() - began,
                data_seconds=data_seconds,
                tokens=int(counts.tokens),
                samples=int(counts.samples),
            )
            observer.on_step(record)
            shown.update(task, completed=record.step, loss=loss)
            if observer.should_save(record.step):
                observer.save(record.step)
    return FitResult(max(start_step, total_steps), stopped=False)


def _count(batches: Sequence[TrainingBatch], is_stopping: bool) -> Counts:
    """Sums a step's sizes over processes; a wish to stop goes along, so that all of them stop at the same step."""
    targets, samples, tokens, stopping = dist.sum_over_ranks(
        [
            float(sum(batch.num_targets for batch in batches)),
            float(sum(batch.num_samples for batch in batches)),
            float(sum(batch.num_tokens for batch in batches)),
            float(is_stopping),
        ]
    )
    return Counts(targets, samples, tokens, stopping > 0)


def _run_batches(
    engine: Engine, batches: Sequence[TrainingBatch], counts: Counts, observer: Observer, step: int
) -> float:
    """Runs forward and backward of every micro-batch and returns the global batch's loss.

    A loss that is not finite anywhere makes the sum so everywhere: all processes stop, before any weight is touched.
    """
    share = 0.0
    for place, batch in enumerate(batches):
        batch = batch.to(engine.device)
        output = engine.forward(batch.inputs())
        loss = output.loss(counts.targets, counts.samples)
        engine.backward(loss, is_last=place + 1 == len(batches))
        share += float(loss.detach())
        observer.on_batch(batch, output)
    total = dist.sum_over_ranks([share])[0]
    if not math.isfinite(total):
        raise FloatingPointError(_blame("loss", share, step, batches))
    return total


def _seed(seed: int, step: int) -> None:
    """Seeds dropout from (seed, step, rank) alone, so that no generator's state has to be saved."""
    word = hashlib.blake2b(f"{seed}/{step}/{dist.rank()}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(word, "big") >> 1)


def _blame(what: str, value: float, step: int, batches: Sequence[TrainingBatch]) -> str:
    keys = [key for batch in batches for key in batch.keys]
    names = ", ".join(keys[:32]) + (", ..." if len(keys) > 32 else "")
    return (
        f"{what} is not finite at step {step + 1} (on rank {dist.rank()}: {value}). Samples of this rank: {names}. "
        "The step changed no weight. Lower training.optimizer.lr, set training.optimizer.clip, or look at these samples"
    )


def _progress_bar() -> Progress:
    """Returns the bar that the first rank shows on the console."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=dist.rank() != 0,
    )
