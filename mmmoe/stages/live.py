"""Asks the model questions while it trains: the very model, between two steps, which then goes on as if nobody had."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmmoe.engine.precision import compute_dtype
from mmmoe.engine.protocol import Engine
from mmmoe.evaluation.runner import evaluate
from mmmoe.evaluation.spec import EvaluationSpec
from mmmoe.evaluation.subject import Subject
from mmmoe.log import logger
from mmmoe.models.spliced import SplicedModel
from mmmoe.stages.cache_content import PICTURES
from mmmoe.stages.evaluate import EVALUATION, asked_as, question_task
from mmmoe.stages.spec import RunSpec, StageSpec


class LiveExam:
    """A stage's exams while it trains; every method but `is_due` is collective."""

    def __init__(
        self, run: RunSpec, stage: StageSpec, model: SplicedModel, engine: Engine, folder: Path, in_step: bool
    ) -> None:
        """Prepares a stage's.

        Args:
            run: the run.
            stage: one of its stages, which asks for exams.
            model: what trains; no copy is made.
            engine: trains it.
            folder: the stage's.
            in_step: whether processes hold parts of the model together, so that all must run it equally often.
        """
        self._run, self._stage, self._model, self._engine = run, stage, model, engine
        self._folder, self._in_step = folder / EVALUATION, in_step
        self._spec = live_spec(run, stage)

    def is_due(self, step: int) -> bool:
        """Says whether an exam follows after so many steps."""
        assert self._stage.evaluate is not None, "whoever makes an exam has looked"
        return step % self._stage.evaluate.every == 0

    def sit(self, step: int) -> dict[str, Any]:
        """Puts the questions; returns what the step's line says of it, and writes `evaluation/step-N/scores.json`."""
        began = time.perf_counter()
        with undisturbed(self._model):
            out = self._folder / f"step-{step}"
            rows = evaluate(self._subject(), self._spec, out, "trained", cache=Path(self._run.cache), quiet=True)
        seconds = time.perf_counter() - began
        told = ", ".join(f"{row.benchmark} {row.shown(row.score)}" for row in rows)
        logger().info("stage %s, step %d: %s (%.1f s)", self._stage.name, step, told, seconds)
        scores = {row.benchmark: round(row.score, 6) for row in rows if row.score == row.score}
        return {"evaluation": scores, "evaluation_seconds": round(seconds, 3)}

    def _subject(self) -> Subject:
        run, model = self._run, self._model
        dtype = compute_dtype(run.engine)
        # What a tower makes while it trains, or in bfloat16, must not be taken for what its file makes.
        keeps = dtype == torch.float32 and not any(model.tower_of(view).is_trained for view in model.views)
        return asked_as(
            run.model,
            self._stage.template,
            model,
            self._engine.device,
            cache=Path(run.cache) / PICTURES if keeps else None,
            # A stage before the one that adds a Slide-LoRA has nobody to tell.
            task=question_task(model, "model" if model.slide is None else self._spec.tasks),
            dtype=dtype,
            in_step=self._in_step,
        )


def live_spec(run: RunSpec, stage: StageSpec) -> EvaluationSpec:
    """Returns what is asked while a stage trains: the run's evaluation, cut to a few questions; nothing is drawn."""
    assert run.evaluation is not None, "the preflight asks for one"
    assert stage.evaluate is not None, "whoever asks has looked"
    wanted = stage.evaluate.benchmarks
    benchmarks = [
        benchmark
        for benchmark in run.evaluation.benchmarks
        if (benchmark.kind != "drawing" if wanted is None else benchmark.name in wanted)
    ]
    return run.evaluation.model_copy(update={"benchmarks": benchmarks, "limit": stage.evaluate.limit})


@contextmanager
def undisturbed(model: SplicedModel) -> Iterator[None]:
    """Inside, random numbers may be drawn and the model be asked; afterwards both are as before."""
    heeds = None if model.slide is None else model.slide.heeds_tasks
    modes = {module: module.training for module in model.modules()}
    with torch.random.fork_rng():
        yield
    for module, mode in modes.items():
        module.training = mode
    if model.slide is not None and heeds is not None:
        model.slide.heeds_tasks = heeds
