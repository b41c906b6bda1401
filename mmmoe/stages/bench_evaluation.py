"""What batches are worth in an evaluation: a run's questions answered many at once, and one by one.

mmmoe bench evaluation run=RUN [limit=64 batch=64 rounds=3]

The first questions of each kind (words that are generated, choices by likelihood) of the run's own benchmarks, put to
its last stage. Pictures are encoded before the clock runs, so the language model is what is timed, with its key-value
cache in both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydantic import Field

from mmmoe.config.load import settings
from mmmoe.config.spec import Spec
from mmmoe.evaluation.questions import Question, load_questions
from mmmoe.evaluation.spec import BenchmarkSpec, EvaluationSpec
from mmmoe.evaluation.subject import Subject
from mmmoe.kernels.measure import Result, compare, one_thread, take_turns
from mmmoe.log import console
from mmmoe.stages.evaluate import subject_of
from mmmoe.stages.handover import rebuild
from mmmoe.stages.ledger import RunFolder

BOUND = 1 / 3
"""Of the time that one by one takes."""
CHOICES = "multiple_choice"
Answers = Sequence[str | list[float]]


class BenchEvaluationSpec(Spec):
    """What is measured."""

    run: str
    """Folder of a run that is finished."""
    limit: int = Field(default=64, ge=1)
    """Questions of each kind."""
    batch: int = Field(default=64, ge=2)
    """Questions at once."""
    rounds: int = Field(default=3, ge=1)


def bench_evaluation(given: Sequence[str]) -> list[Result]:
    """Returns the ratios of batched answers to single ones, and tells whether the answers are the same.

    Raises:
        ValueError: There is no such run, or its evaluation has no questions to answer.
    """
    spec = settings(BenchEvaluationSpec, list(given))
    folder = RunFolder.open(Path(spec.run))
    run = folder.spec()
    if run.evaluation is None:
        raise ValueError(f"{spec.run} declares no evaluation, so there is nothing to answer")
    model, heritage = rebuild(folder.final(run.stages[-1].name))
    cache = Path(run.cache)
    subject = subject_of(model, heritage, cache, run.evaluation.tasks)
    results = []
    for kind, benchmark, questions in _asked(run.evaluation, spec.limit, cache):
        results.append(measured(subject, kind, benchmark, questions, spec.batch, spec.rounds))
    return results


def measured(
    subject: Subject, kind: str, benchmark: BenchmarkSpec, questions: Sequence[Question], batch: int, rounds: int
) -> Result:
    """Returns what so many questions at once cost over one at a time.

    Args:
        subject: who answers.
        kind: of the questions, in words.
        benchmark: says how they are answered.
        questions: some.
        batch: how many at once.
        rounds: that each way takes.
    """
    said: dict[int, Answers] = {}

    def answer(size: int) -> None:
        subject.batch = size
        is_choice = benchmark.kind == CHOICES
        said[size] = subject.score(questions) if is_choice else subject.generate(questions, benchmark.max_new_tokens)

    ways: dict[str, Callable[[], None]] = {f"batch {size}": partial(answer, size) for size in (batch, 1)}
    with one_thread(subject.device):
        times = take_turns(ways, rounds, subject.device)
    same = sum(_said(one) == _said(other) for one, other in zip(said[batch], said[1], strict=True))
    console.print(f"{kind}: {same} of {len(questions)} answers are the same in both ways", highlight=False)
    name = f"{len(questions)} questions, {kind}, batch {batch}"
    return compare(name, times[f"batch {batch}"], "one by one", times["batch 1"], bound=BOUND)


def _said(answer: str | list[float]) -> str | int:
    """Returns the answer: words, or the number of the most likely choice."""
    return answer if isinstance(answer, str) else max(range(len(answer)), key=answer.__getitem__)


def _asked(spec: EvaluationSpec, limit: int, cache: Path) -> list[tuple[str, BenchmarkSpec, list[Question]]]:
    """Returns the first questions of each kind, with the first benchmark of that kind."""
    found = []
    kinds = {"words": [b for b in spec.benchmarks if b.kind not in (CHOICES, "drawing")],
             "choices": [b for b in spec.benchmarks if b.kind == CHOICES]}  # fmt: skip
    for kind, benchmarks in kinds.items():
        questions = [one for benchmark in benchmarks for one in load_questions(benchmark, limit, cache).questions]
        if questions:
            found.append((kind, benchmarks[0], questions[:limit]))
    if not found:
        raise ValueError("the run's evaluation only has drawings; this times words and choices")
    return found
