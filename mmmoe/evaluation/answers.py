"""The answers to a benchmark, a JSON line each, with everything that a score is made of."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from mmmoe.evaluation.metrics.metric import Item, Verdict
from mmmoe.evaluation.questions import Question
from mmmoe.evaluation.shares import write_text

LATER = frozenset({"unanswered"})
"""Fields that files of an earlier day lack, whose defaults hold there."""
RIGHT = 0.5
"""Least score of an answer that is shown as right, of metrics that give parts."""


@dataclass(frozen=True)
class Reply:
    """What the subject said to one question."""

    prediction: str
    prompt: str
    """Digest of the prompt's ids."""
    scores: tuple[float, ...] = ()
    """Log-likelihood of each choice."""
    drawn: str | None = None
    """File of the picture that was drawn; the prediction is then what the judge reads on it."""
    unanswered: str = ""
    """Why the subject could say nothing, such as a prompt that is too long; empty: it was asked."""


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
    answers: list[str] = field(default_factory=list)
    """All right ones."""
    score: float = 0.0
    """What the metric gives for the prediction."""
    parsed: str | None = None
    """What the metric understood of it; null: nothing."""
    category: str = ""
    group: str = ""
    prompt: str = ""
    """Digest of the prompt's ids."""
    unanswered: str = ""
    """Why the question could not be put to the subject, which is then wrong; empty: it was."""

    @property
    def item(self) -> Item:
        """The question as a metric knows it."""
        return Item(self.id, tuple(self.answers), tuple(self.choices), self.category, self.group)

    @property
    def verdict(self) -> Verdict:
        """What the metric said."""
        return Verdict(self.score, self.parsed)


def answer_of(question: Question, reply: Reply, verdict: Verdict) -> Answer:
    """Returns the line of a judged answer."""
    film = question.video
    return Answer(
        id=question.id,
        image=_named(question.image),
        question=question.text,
        answer=question.answer,
        prediction=reply.prediction,
        correct=verdict.score >= RIGHT,
        choices=list(question.choices),
        scores=[score if math.isfinite(score) else None for score in reply.scores],
        domain=question.domain,
        video=[str(frame) for frame in film] if isinstance(film, tuple) else _named(film),
        speech=_named(question.speech),
        audio=_named(question.audio),
        routing=list(question.routing or ()),
        drawn=reply.drawn,
        answers=list(question.answers),
        score=verdict.score,
        parsed=verdict.parsed,
        category=question.category,
        group=question.group,
        prompt=reply.prompt[:12],
        unanswered=reply.unanswered,
    )


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Writes a benchmark's file, whole or not at all."""
    write_text(path, "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers))


def read_answers(path: Path) -> list[Answer]:
    """Returns the answers in a file.

    Raises:
        ValueError: There is none, or it is of another form.
    """
    if not path.is_file():
        raise ValueError(f"no answers at {path}; evaluate with `mmmoe eval`")
    names = {field.name for field in fields(Answer)}
    answers = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = dict(json.loads(line.decode()))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{path} line {number} is no answer ({error}); evaluate again with `mmmoe eval`"
                ) from error
            if missing := sorted(names - row.keys() - LATER):
                raise ValueError(
                    f"{path} line {number} lacks {', '.join(missing)}: it was written before answers had scores of "
                    "their own; evaluate again with `mmmoe eval`"
                )
            answers.append(Answer(**{name: value for name, value in row.items() if name in names}))
    return answers


def _named(path: Path | None) -> str | None:
    return None if path is None else str(path)
