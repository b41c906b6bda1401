"""The exam: every benchmark put to a subject, its questions split over the processes, answers and scores filed."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mmmoe import dist, env
from mmmoe.evaluation.answers import Answer, Reply, write_answers
from mmmoe.evaluation.clip_score import ClipJudge
from mmmoe.evaluation.drawing import Jury, as_picture, save
from mmmoe.evaluation.grading import Sitting, gradable, graded, score_row
from mmmoe.evaluation.inception import inception
from mmmoe.evaluation.judge import OcrJudge
from mmmoe.evaluation.questions import Exam, Question, load_questions
from mmmoe.evaluation.responses import RESPONSES, Responses, folder_of
from mmmoe.evaluation.routing import judge_routing, with_routing
from mmmoe.evaluation.scores import SCORES_FILE, PaperScore, ScoreRow, write_scores
from mmmoe.evaluation.shares import joined, share
from mmmoe.evaluation.spec import BenchmarkSpec, EvaluationSpec
from mmmoe.evaluation.subject import Advance, Subject
from mmmoe.log import console

Exams = Sequence[tuple[BenchmarkSpec, Exam]]
"""What is asked, benchmark by benchmark."""
Published = Mapping[str, Sequence[PaperScore]]
"""By benchmark, what papers say of the family."""
GREEDY: Mapping[str, Any] = {"beams": 1, "repetition_penalty": 1.0}
GENERATED = ("short_answer", "location")
"""Kinds of benchmarks whose answers depend on the decoding."""


def evaluate_all(
    trained: Subject,
    spec: EvaluationSpec,
    out_folder: Path,
    untrained: Callable[[], Subject] | None = None,
    cache: Path | None = None,
    published: Published | None = None,
) -> list[ScoreRow]:
    """Returns the rows of all variants the spec asks for: trained, blind and, when it can be built, untrained."""
    jury, exams = _jury(trained, spec), load_exams(spec, cache)
    limit = min((limit for limit in (spec.limit, spec.baseline_limit) if limit), default=None)
    fewer = spec.model_copy(update={"limit": limit})
    with remembering(trained, spec, out_folder, cache):
        rows = evaluate(
            trained,
            spec,
            out_folder,
            "trained",
            jury=jury,
            exams=exams,
            cache=cache,
            published=published,
            forgets=False,
        )
        if spec.routing_labels is not None and trained.guide is not None:
            judge_routing(trained, spec, out_folder, cache)
        if spec.blind:
            rows += evaluate(
                trained, fewer, out_folder, "blind", blind=True, jury=jury, exams=exams, cache=cache, forgets=False
            )
    if spec.untrained and untrained is not None:
        rows += evaluate(
            untrained(), fewer, out_folder, "untrained", jury=jury, exams=exams, cache=cache, forgets=False
        )
    # Not before: a kill in the last variant must not cost the answers of the first.
    _forget(spec, out_folder, cache)
    return rows


def evaluate(
    subject: Subject,
    spec: EvaluationSpec,
    out_folder: Path,
    variant: str,
    *,
    blind: bool = False,
    jury: Jury | None = None,
    exams: Exams | None = None,
    cache: Path | None = None,
    published: Published | None = None,
    quiet: bool = False,
    forgets: bool = True,
) -> list[ScoreRow]:
    """Puts every benchmark to the subject; collective, the same rows come out on every process.

    Writes `out_folder/<variant>/<benchmark>.jsonl` (one line an answer) and adds the rows to `out_folder/scores.json`.
    Words and likelihoods of a subject with a key are on the disk as soon as they are there; after a kill only the rest
    is asked, on any number of processes. Pictures are drawn again. Where the spec wants no cache, they are deleted at
    the end, unless `forgets` says that other variants follow, which a kill may send back to here. `exams` are those of
    `load_exams` where they have been loaded for several variants.

    Raises:
        ValueError: a benchmark file is wrong, or there is no judge, or nobody who draws; all is looked at before the
            first question is answered.
    """
    exams = exams or load_exams(spec, cache)
    jury = jury or _jury(subject, spec)
    subject.batch = spec.batch
    decoding: dict[str, Any] = {"beams": spec.beams, "repetition_penalty": spec.repetition_penalty}
    # Set in either case: the subject may come from an evaluation that asked otherwise.
    subject.decoding = {} if decoding == GREEDY else decoding
    rows = []
    with remembering(subject, spec, out_folder, cache), _progress(quiet) as progress:
        for benchmark, exam in exams:
            asked = exam.questions[: spec.limit]
            whose = f" (process 0 of {env.world_size()})" if env.world_size() > 1 else ""
            task = progress.add_task(f"{variant}: {benchmark.name}{whose}", total=len(share(asked)))

            def advance(amount: float, task: Any = task) -> None:
                progress.advance(task, amount)

            started = time.perf_counter()
            told = _sit(subject, benchmark, asked, spec, blind, advance, out_folder / variant, jury)
            sitting = Sitting(
                variant,
                benchmark,
                exam.set_aside,
                len(asked) < len(exam.questions),
                told.prompt_hash,
                spec.bootstrap,
                time.perf_counter() - started,
                told.reused,
                **(decoding if benchmark.kind in GENERATED else {}),
            )
            answers = graded(benchmark, told.questions, told.replies)
            measures = {} if benchmark.kind != "drawing" else _measures(jury, asked, answers)
            if env.rank() == 0:
                write_answers(out_folder / variant / f"{benchmark.name}.jsonl", answers)
            row = score_row(sitting, told.questions, answers, measures)
            rows.append(replace(row, published=list((published or {}).get(benchmark.name, ()))))
    if env.rank() == 0:
        write_scores(out_folder / SCORES_FILE, rows)
    dist.barrier()
    if forgets:
        _forget(spec, out_folder, cache)
    return rows


def load_exams(spec: EvaluationSpec, cache: Path | None = None) -> Exams:
    """Returns what all benchmarks ask, read and checked; the first variant's limit is the widest.

    Raises:
        ValueError: a benchmark's files are wrong, or its metric cannot judge their answers.
    """
    loaded = [(benchmark, load_questions(benchmark, cache=cache)) for benchmark in spec.benchmarks]
    return [(benchmark, gradable(benchmark, exam, spec.limit)) for benchmark, exam in loaded]


@contextmanager
def remembering(subject: Subject, spec: EvaluationSpec, out_folder: Path, cache: Path | None) -> Iterator[None]:
    """Inside, what the subject answered before is not asked again, and what it answers is kept.

    It is kept in the cache, or, where the spec wants none, in `out_folder`. A subject without a key remembers nothing.
    """
    if subject.key is None or subject.responses is not None:
        yield
        return
    parent = cache if spec.cache and cache is not None else out_folder
    subject.responses = Responses(folder_of(subject.key, parent / RESPONSES))
    try:
        yield
    finally:
        subject.responses.close()
        subject.responses = None


def _forget(spec: EvaluationSpec, out_folder: Path, cache: Path | None) -> None:
    """Deletes answers that were to be kept until the end only; collective."""
    if spec.cache and cache is not None:
        return
    dist.barrier()
    if env.rank() == 0:
        shutil.rmtree(out_folder / RESPONSES, ignore_errors=True)
    # Nobody may keep a new answer, in a next evaluation, while the old ones are being deleted.
    dist.barrier()


def _jury(subject: Subject, spec: EvaluationSpec) -> Jury | None:
    """Returns who looks at what is drawn, where something is to be drawn."""
    drawn = [benchmark.name for benchmark in spec.benchmarks if benchmark.kind == "drawing"]
    if not drawn:
        return None
    if not subject.draws:
        raise ValueError(f"benchmark {drawn[0]!r} is of kind drawing, but the model draws no images; leave it out")
    assert spec.drawing is not None, "the spec asks for one"
    clip, fid = spec.drawing.clip, spec.drawing.fid
    return Jury(
        OcrJudge(spec.drawing.judge),
        None if clip is None else ClipJudge.load(clip.name, clip.path),
        None if fid is None else inception(fid),
    )


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """A bar with the time left, on the first process only."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} questions"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet or env.rank() != 0) as progress:
        yield progress


@dataclass(frozen=True)
class _Told:
    """What all processes together were told."""

    questions: list[Question]
    """With the routing that was chosen for each."""
    replies: list[Reply]
    prompt_hash: str
    reused: int


def _sit(
    subject: Subject,
    benchmark: BenchmarkSpec,
    questions: Sequence[Question],
    spec: EvaluationSpec,
    blind: bool,
    advance: Advance,
    out_folder: Path,
    jury: Jury | None,
) -> _Told:
    """Returns the replies to all processes in question order."""
    mine = share(questions)
    # In step, a process without a question answers the first one all the same, and nobody hears it.
    asked = mine or list(questions[:1] if subject.in_step else ())
    asked = with_routing(subject, asked, spec.routing, blind)
    subject.recalled, subject.unanswered = 0.0, {}
    if benchmark.kind == "drawing":
        number = {question.id: place for place, question in enumerate(questions)}
        numbers, folder = [number[question.id] for question in asked], out_folder / benchmark.name
        replies = _draw(subject, asked, numbers, spec, blind, advance, folder, jury)
    elif benchmark.kind == "multiple_choice":
        scored = subject.score(asked, blind, advance)
        replies = [_choose(subject, question, scores) for question, scores in zip(asked, scored, strict=True)]
    else:
        texts = subject.generate(asked, benchmark.max_new_tokens, blind, advance)
        replies = [Reply(text, subject.prompt_hash(question)) for question, text in zip(asked, texts, strict=True)]
    why = [subject.unanswered.get(question.id, "") for question in asked]
    replies = [replace(reply, unanswered=reason) for reply, reason in zip(replies, why, strict=True)]
    everything = joined(list(zip(asked, replies, strict=True))[: len(mine)])
    reused = round(sum(joined([subject.recalled])))
    assert len(everything) == len(questions), "the process group must be joined (dist.start) before an evaluation"
    prompts = "".join(reply.prompt for _, reply in everything)
    digest = hashlib.sha256(prompts.encode()).hexdigest()[:12]
    return _Told([question for question, _ in everything], [reply for _, reply in everything], digest, reused)


def _draw(
    subject: Subject,
    questions: Sequence[Question],
    numbers: Sequence[int],
    spec: EvaluationSpec,
    blind: bool,
    advance: Advance,
    folder: Path,
    jury: Jury | None,
) -> list[Reply]:
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
        Reply(text, subject.prompt_hash(question, draws=True), drawn=path)
        for question, text, path in zip(questions, jury.reader.read(pictures), paths, strict=True)
    ]


def _measures(jury: Jury | None, questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, float]:
    """Returns what else is told of a benchmark whose answers were drawn."""
    assert jury is not None, "a benchmark of drawings has one"
    return jury.measures(questions, [one.prediction for one in answers], [str(one.drawn) for one in answers])


def _choose(subject: Subject, question: Question, scores: list[float]) -> Reply:
    """Returns the most likely choice; none when no choice could be scored."""
    best = max(range(len(scores)), key=scores.__getitem__)
    prediction = question.choices[best] if math.isfinite(scores[best]) else ""
    return Reply(prediction, subject.prompt_hash(question), tuple(scores))
