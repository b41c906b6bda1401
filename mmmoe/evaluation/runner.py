"""The exam: every benchmark put to a subject, its questions split over the processes, answers and scores filed."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mmmoe import dist
from mmmoe.evaluation.clip_score import ClipJudge
from mmmoe.evaluation.drawing import Jury, as_picture, save
from mmmoe.evaluation.judge import OcrJudge
from mmmoe.evaluation.location import is_there
from mmmoe.evaluation.metrics.exact import is_correct, normalise
from mmmoe.evaluation.questions import Question, load_questions
from mmmoe.evaluation.routing import judge_routing, with_routing
from mmmoe.evaluation.scores import ScoreRow, write_scores
from mmmoe.evaluation.shares import joined, share, write_text
from mmmoe.evaluation.spec import BenchmarkSpec, EvaluationSpec
from mmmoe.evaluation.statistics import chance, interval, majority
from mmmoe.evaluation.subject import Advance, Subject
from mmmoe.evaluation.writing import contains, is_same
from mmmoe.log import console

SCORES_FILE = "scores.json"
RULES: dict[str, Callable[[str, str], bool]] = {
    "short_answer": is_correct,
    "contained": lambda prediction, answer: contains(prediction, [answer]),
    "location": is_there,
}
"""By kind of benchmark whether a generated answer is right."""


@dataclass(frozen=True)
class Answer:
    """One line of a benchmark's answer file."""

    id: str
    image: str | None
    question: str
    answer: str
    prediction: str
    correct: bool
    choices: list[str]
    scores: list[float | None]
    """Log-likelihood of each choice; null where the answer did not fit the longest sequence."""
    domain: str
    video: str | list[str] | None = None
    speech: str | None = None
    audio: str | None = None
    routing: list[int] = field(default_factory=list)
    """0 or 1 for each vision expert; empty where the model has none."""
    drawn: str | None = None
    """The picture that was drawn; the prediction is then what the judge reads on it."""


def evaluate_all(
    trained: Subject,
    spec: EvaluationSpec,
    out_folder: Path,
    untrained: Callable[[], Subject] | None = None,
    cache: Path | None = None,
) -> list[ScoreRow]:
    """Returns the rows of all variants the spec asks for: trained, blind and, when it can be built, untrained."""
    jury = _jury(trained, spec)
    rows = evaluate(trained, spec, out_folder, "trained", jury=jury, cache=cache)
    if spec.routing_labels is not None and trained.guide is not None:
        judge_routing(trained, spec, out_folder, cache)
    limit = min((limit for limit in (spec.limit, spec.baseline_limit) if limit), default=None)
    fewer = spec.model_copy(update={"limit": limit})
    if spec.blind:
        rows += evaluate(trained, fewer, out_folder, "blind", blind=True, jury=jury, cache=cache)
    if spec.untrained and untrained is not None:
        rows += evaluate(untrained(), fewer, out_folder, "untrained", jury=jury, cache=cache)
    return rows


def evaluate(
    subject: Subject,
    spec: EvaluationSpec,
    out_folder: Path,
    variant: str,
    *,
    blind: bool = False,
    jury: Jury | None = None,
    cache: Path | None = None,
) -> list[ScoreRow]:
    """Puts every benchmark to the subject; collective, the same rows come out on every process.

    Writes `out_folder/<variant>/<benchmark>.jsonl` (one line an answer) and adds the rows to `out_folder/scores.json`.

    Raises:
        ValueError: a benchmark file is wrong, or there is no judge, or nobody who draws; all is looked at before the
            first question is answered.
    """
    exams = [(benchmark, load_questions(benchmark, cache=cache).questions) for benchmark in spec.benchmarks]
    jury = jury or _jury(subject, spec)
    subject.batch = spec.batch
    if spec.beams > 1 or spec.repetition_penalty != 1.0:
        subject.decoding = {"beams": spec.beams, "repetition_penalty": spec.repetition_penalty}
    rows = []
    with _progress() as progress:
        for benchmark, questions in exams:
            asked = questions[: spec.limit]
            task = progress.add_task(f"{variant}: {benchmark.name}", total=len(share(asked)))

            def advance(amount: float, task: Any = task) -> None:
                progress.advance(task, amount)

            started = time.perf_counter()
            answers, prompts = _sit(subject, benchmark, asked, spec, blind, advance, out_folder / variant, jury)
            seconds = time.perf_counter() - started
            if dist.rank() == 0:
                _write_answers(out_folder / variant / f"{benchmark.name}.jsonl", answers)
            rows.append(
                _row(
                    variant,
                    benchmark,
                    asked,
                    answers,
                    prompt_hash=prompts,
                    partial=len(asked) < len(questions),
                    resamples=spec.bootstrap,
                    seconds=seconds,
                    measures={} if benchmark.kind != "drawing" else _measures(jury, asked, answers),
                )
            )
    if dist.rank() == 0:
        write_scores(out_folder / SCORES_FILE, rows)
    dist.barrier()
    return rows


def _jury(subject: Subject, spec: EvaluationSpec) -> Jury | None:
    """Returns who looks at what is drawn, where something is to be drawn."""
    drawn = [benchmark.name for benchmark in spec.benchmarks if benchmark.kind == "drawing"]
    if not drawn:
        return None
    if not subject.draws:
        raise ValueError(f"benchmark {drawn[0]!r} is of kind drawing, but the model draws no images; leave it out")
    assert spec.drawing is not None, "the spec asks for one"
    clip = spec.drawing.clip
    return Jury(OcrJudge(spec.drawing.judge), None if clip is None else ClipJudge.load(clip.name, clip.path))


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar with the time left, on the first process only."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} questions"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=dist.rank() != 0) as progress:
        yield progress


def _sit(
    subject: Subject,
    benchmark: BenchmarkSpec,
    questions: Sequence[Question],
    spec: EvaluationSpec,
    blind: bool,
    advance: Advance,
    out_folder: Path,
    jury: Jury | None,
) -> tuple[list[Answer], str]:
    """Returns the answers of all processes in question order, and the digest of all prompts."""
    mine = with_routing(subject, share(questions), spec.routing, blind)
    if benchmark.kind == "drawing":
        number = {question.id: place for place, question in enumerate(questions)}
        numbers, folder = [number[question.id] for question in mine], out_folder / benchmark.name
        answers = _draw(subject, mine, numbers, spec, blind, advance, folder, jury)
    elif benchmark.kind == "multiple_choice":
        scored = subject.score(mine, blind, advance)
        answers = [_choose(question, scores) for question, scores in zip(mine, scored, strict=True)]
    else:
        texts = subject.generate(mine, benchmark.max_new_tokens, blind, advance)
        is_right = RULES[benchmark.kind]
        answers = [
            _answer(question, text, [], is_right(text, question.answer))
            for question, text in zip(mine, texts, strict=True)
        ]
    hashes = [subject.prompt_hash(question, benchmark.kind == "drawing") for question in mine]
    everything, prompts = joined(answers), "".join(joined(hashes))
    assert len(everything) == len(questions), "the process group must be joined (dist.start) before an evaluation"
    return everything, hashlib.sha256(prompts.encode()).hexdigest()[:12]


def _draw(
    subject: Subject,
    questions: Sequence[Question],
    numbers: Sequence[int],
    spec: EvaluationSpec,
    blind: bool,
    advance: Advance,
    folder: Path,
    jury: Jury | None,
) -> list[Answer]:
    """Draws a picture a question, files it and returns what a judge reads on it."""
    assert spec.drawing is not None, "the spec asks for one"
    assert jury is not None, "a benchmark of drawings has one"
    pixels = subject.draw(
        questions,
        [spec.drawing.seed + number for number in numbers],
        steps=spec.drawing.steps,
        guidance=spec.drawing.guidance,
        blind=blind,
        advance=advance,
    )
    pictures = [as_picture(one) for one in pixels]
    paths = save(pictures, questions, folder)
    return [
        replace(_answer(question, text, [], is_same(text, question.answer)), drawn=path)
        for question, text, path in zip(questions, jury.reader.read(pictures), paths, strict=True)
    ]


def _measures(jury: Jury | None, questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, float]:
    """Returns what else is told of a benchmark whose answers were drawn."""
    assert jury is not None, "a benchmark of drawings has one"
    return jury.measures(questions, [one.prediction for one in answers], [str(one.drawn) for one in answers])


def _choose(question: Question, scores: list[float]) -> Answer:
    """Returns the most likely choice; none when no choice could be scored."""
    best = max(range(len(scores)), key=scores.__getitem__)
    prediction = question.choices[best] if math.isfinite(scores[best]) else ""
    # A choice is one of the listed texts or it is not; only free answers are compared after normalisation.
    return _answer(question, prediction, scores, prediction == question.answer)


def _answer(question: Question, prediction: str, scores: list[float], is_right: bool) -> Answer:
    return Answer(
        id=question.id,
        image=_named(question.image),
        question=question.text,
        answer=question.answer,
        prediction=prediction,
        correct=is_right,
        choices=list(question.choices),
        scores=[score if math.isfinite(score) else None for score in scores],
        domain=question.domain,
        video=[str(frame) for frame in question.video] if isinstance(question.video, tuple) else _named(question.video),
        speech=_named(question.speech),
        audio=_named(question.audio),
        routing=list(question.routing or ()),
    )


def _named(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _write_answers(path: Path, answers: Sequence[Answer]) -> None:
    write_text(path, "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers))


def _row(
    variant: str,
    benchmark: BenchmarkSpec,
    questions: Sequence[Question],
    answers: Sequence[Answer],
    *,
    prompt_hash: str,
    partial: bool,
    resamples: int,
    seconds: float,
    measures: dict[str, float],
) -> ScoreRow:
    """Returns the score with what is needed to judge it."""
    outcomes = [answer.correct for answer in answers]
    low, high = interval(outcomes, resamples)
    return ScoreRow(
        variant=variant,
        benchmark=benchmark.name,
        domain=benchmark.domain,
        kind=benchmark.kind,
        n=len(answers),
        score=sum(outcomes) / len(outcomes),
        low=low,
        high=high,
        chance=chance(questions),
        majority=majority(questions),
        empty_share=sum(not normalise(answer.prediction) for answer in answers) / len(answers),
        partial=partial,
        prompt_hash=prompt_hash,
        seconds=round(seconds, 3),
        measures={name: round(value, 4) for name, value in measures.items()},
    )
