"""One of our models as lmms-eval asks for one: a finished run by its folder, or a subject that is being trained.

From the command line: `python -m lmms_eval --model mmmoe --model_args path=runs/NAME --batch_size 32 --tasks ...`. In
a program, without a copy of the model: `simple_evaluate(model=MmmoeLmms(subject, cache), tasks=...)`; with
`random_seed=None, numpy_random_seed=None, torch_random_seed=None` it leaves the random numbers of a training alone.

A question has one image or one film, as everywhere here. Dialogues of several rounds are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.utils import simple_parse_args_string
from PIL import Image

from mmmoe import dist
from mmmoe.data.media import KINDS
from mmmoe.evaluation.pictures import PictureStore
from mmmoe.evaluation.questions import Question
from mmmoe.evaluation.subject import Subject
from mmmoe.stages.evaluate import subject_of
from mmmoe.stages.handover import rebuild
from mmmoe.stages.ledger import finished_stage

MAX_NEW_TOKENS = 1024
"""Longest answer where a task says nothing, as in lmms-eval's own models."""
ARGUMENTS = ("path", "max_new_tokens")


class Request(Protocol):
    """One of lmms-eval's `Instance`s."""

    @property
    def args(self) -> tuple[Any, ...]:
        """Text, settings or continuation, what gives the media, and document, task and split; or the first two."""


@dataclass(frozen=True, order=True)
class Decoding:
    """How an answer is generated."""

    max_new_tokens: int
    beams: int = 1
    repetition_penalty: float = 1.0
    until: tuple[str, ...] = ()
    """An answer ends before the first of these."""

    @classmethod
    def of(cls, settings: Mapping[str, Any], longest: int) -> Decoding:
        """Returns what a task's `generation_kwargs` say.

        Raises:
            ValueError: They ask for random answers.
        """
        if settings.get("do_sample") or (settings.get("temperature") or 0.0) > 0.0:
            raise ValueError(
                "the task asks for answers drawn at random, and only the most likely one is given here; "
                "add --gen_kwargs do_sample=False,temperature=0"
            )
        until = settings.get("until") or ()
        return cls(
            int(settings.get("max_new_tokens") or longest),
            int(settings.get("num_beams") or 1),
            float(settings.get("repetition_penalty") or 1.0),
            tuple([until] if isinstance(until, str) else until),
        )

    def cut(self, answer: str) -> str:
        """Returns an answer up to where it is to end."""
        return answer[
            : min([at for mark in self.until if mark and (at := answer.find(mark)) >= 0], default=len(answer))
        ]


class MmmoeLmms(lmms):  # type: ignore[misc]  # lmms-eval is optional, so mypy does not look at it
    """Answers lmms-eval's requests in batches, as `mmmoe eval` does its own questions."""

    is_simple: ClassVar[bool] = True

    def __init__(self, subject: Subject, cache: Path, max_new_tokens: int = MAX_NEW_TOKENS) -> None:
        """Takes a subject as it is.

        Args:
            subject: who answers.
            cache: where the pictures go that lmms-eval holds in memory.
            max_new_tokens: longest answer where a task says nothing.
        """
        super().__init__()
        self._subject = subject
        self._store = PictureStore(cache)
        self._max_new_tokens = max_new_tokens
        self._media_of: dict[tuple[Any, ...], dict[str, Path]] = {}
        """By task, split and document; of several choices the picture is the same."""

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> Self:
        """Returns the model of `--model_args path=FOLDER,max_new_tokens=N`, the folder a run's or a finished stage's.

        Raises:
            ValueError: An argument is unknown or missing, or the folder is neither.
        """
        given = simple_parse_args_string(arg_string)
        unknown = sorted(set(given) - set(ARGUMENTS))
        if unknown or "path" not in given:
            wrong = f"does not take {unknown[0]!r}" if unknown else "needs path=FOLDER, a run's or a finished stage's"
            raise ValueError(f"--model_args of mmmoe {wrong}; it knows {', '.join(ARGUMENTS)}")
        subject, cache = _subject_at(Path(str(given["path"])))
        batch = str((additional_config or {}).get("batch_size") or "")
        if batch.isdigit():
            subject.batch = int(batch)
        return cls(subject, cache, int(given.get("max_new_tokens", MAX_NEW_TOKENS)))

    @property
    def device(self) -> torch.device:
        """Where lmms-eval puts what several processes tell one another."""
        return dist.device()

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Returns the answer to each request."""
        questions = [self._question(place, request) for place, request in enumerate(requests)]
        ways = [Decoding.of(request.args[1], self._max_new_tokens) for request in requests]
        answers = [""] * len(requests)
        for way in self._in_step(sorted(set(ways))):
            part = [question for question, own in zip(questions, ways, strict=True) if own == way]
            with self._decoding(way):
                texts = self._subject.generate(part, way.max_new_tokens)
            for question, text in zip(part, texts, strict=True):
                answers[int(question.id)] = way.cut(text)
        return answers

    def loglikelihood(self, requests: Sequence[Request]) -> list[Any]:
        """Returns for each continuation a result whose `text` is (loss, whether it would be said unasked).

        The loss is minus the log-likelihood: lmms-eval takes the choice with the lowest number. A bare pair it turns
        into text (0.7.3, `unwrap_generation_output`), on which its own metrics then fail.
        """
        questions = [self._question(place, request) for place, request in enumerate(requests)]
        losses = [-scores[0] for scores in self._subject.score(questions)]
        asked: dict[tuple[Any, ...], Question] = {}
        for question in questions:
            asked.setdefault(_prompt(question), question)
        longest = max(len(question.choices[0].encode()) for question in questions)
        said = dict(zip(asked, self._subject.generate(list(asked.values()), longest), strict=True))
        return [
            GenerationResult(text=(loss, said[_prompt(question)] == question.choices[0]))
            for loss, question in zip(losses, questions, strict=True)
        ]

    def generate_until_multi_round(self, requests: Sequence[Request]) -> list[str]:
        """Refuses.

        Raises:
            ValueError: Always.
        """
        raise ValueError("the task asks in several rounds, and a question here has one; leave the task out")

    @contextmanager
    def _decoding(self, way: Decoding) -> Iterator[None]:
        """The subject generates so inside, and as before outside."""
        before = self._subject.decoding
        if way.beams > 1 or way.repetition_penalty != 1.0:
            self._subject.decoding = {"beams": way.beams, "repetition_penalty": way.repetition_penalty}
        try:
            yield
        finally:
            self._subject.decoding = before

    def _in_step(self, ways: list[Decoding]) -> list[Decoding]:
        """Returns the ways, which all processes have to share where they hold the model together."""
        if self._subject.in_step and any(other != ways for other in dist.gather_objects(ways)):
            raise ValueError("some process has no question of some task; leave out tasks smaller than the processes")
        return ways

    def _question(self, place: int, request: Request) -> Question:
        text, told, *rest = request.args
        media: dict[str, Path] = {}
        document = None
        if rest:
            visuals, *key = rest
            number, task, split = key
            document = self.task_dict[task][split][number]
            if tuple(key) not in self._media_of:
                self._media_of[tuple(key)] = self._media(visuals(document))
            media = self._media_of[tuple(key)]
        continuation = told(document) if callable(told) else told
        choices = (continuation.strip(),) if isinstance(continuation, str) else ()
        for kind in KINDS.values():
            if text.count(kind.mark) > (kind.name in media):
                raise ValueError(f"question {text[:60]!r} holds {kind.mark} without an item; leave the task out")
        return Question(str(place), text, "", choices=choices, image=media.get("image"), video=media.get("video"))

    def _media(self, visuals: Sequence[Any] | None) -> dict[str, Path]:
        """Returns the files of a document's media by kind."""
        items = [] if visuals is None else list(visuals)
        if len(items) > 1:
            raise ValueError(f"a document has {len(items)} pictures, a question here has one; leave the task out")
        found: dict[str, Path] = {}
        for item in items:
            if isinstance(item, Image.Image):
                found["image"] = self._store.keep_picture(item)
            elif isinstance(item, str) and Path(item).suffix[1:].lower() in KINDS["video"].endings:
                found["video"] = Path(item)
            else:
                shown = type(item).__name__
                raise ValueError(f"a document has {shown}, and pictures and films are taken; leave the task out")
        return found


def _prompt(question: Question) -> tuple[Any, ...]:
    """Returns what is asked, whatever the continuation."""
    return (question.text, question.image, question.video)


def _subject_at(path: Path) -> tuple[Subject, Path]:
    """Returns who answers, and the run's cache."""
    final, cache = finished_stage(path)
    dist.start()
    model, heritage = rebuild(final)
    return subject_of(model, heritage, cache), cache
