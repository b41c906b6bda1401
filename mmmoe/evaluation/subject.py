"""Whoever sits the exam: a model with its template and transform, known only by scoring and generating."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from mmmoe import dist
from mmmoe.config.ids import IGNORE_ID, LETTERS_VIEW, MEDIA_IDS
from mmmoe.data.media import KINDS, kind_of
from mmmoe.data.transform import Transform
from mmmoe.engine.precision import cast_inputs
from mmmoe.evaluation.media import features_by_view
from mmmoe.evaluation.protocol import Model, QuestionGuide, Template
from mmmoe.evaluation.questions import Question
from mmmoe.evaluation.responses import Response, Responses, key_of
from mmmoe.evaluation.sequences import Row, empty, length_of, padded, turns_of
from mmmoe.log import logger
from mmmoe.models.generation import words_of

T = TypeVar("T")
TaskRule = Callable[[str, bool], int]
"""From a question and whether a picture is asked for to the number of its task, of families that tell tasks apart."""
Advance = Callable[[float], None]
"""Told how many questions (or parts of one) were just answered."""


class Subject:
    """Answers questions in batches of like length; every distinct file is encoded once."""

    responses: Responses | None = None
    """What it answered before and need not be asked again; set for the time of an evaluation."""
    recalled: float = 0.0
    """Questions (or parts of one) that were answered from there since somebody set this to 0."""
    unanswered: dict[str, str]
    """By id of a question why the model could not answer it, since somebody emptied this."""

    def __init__(
        self,
        model: Model,
        template: Template,
        transforms: Mapping[str, Transform],
        device: torch.device,
        *,
        batch: int = 64,
        cache: Path | None = None,
        guide: QuestionGuide | None = None,
        task: TaskRule | None = None,
        key: str | None = None,
        dtype: torch.dtype = torch.float32,
        in_step: bool = False,
    ) -> None:
        """Takes a model as it is.

        Args:
            model: who answers.
            template: how it is asked.
            transforms: by view, how it is shown media.
            device: where it is.
            batch: sequences it is given at once.
            cache: a folder where tower features are kept from one run to the next; without it they stay in memory.
            guide: chooses the views of an image.
            task: tells tasks apart.
            key: names the model's weights; None: they are still changing, so no answer is kept.
            dtype: the format that it computes in.
            in_step: every process must run the model as often as all others, since they hold parts of it together.
        """
        self.batch = batch
        self.key = key
        self.in_step = in_step
        self.unanswered = {}
        self.decoding: dict[str, Any] = {}
        """How answers are generated, where not greedily: beams and repetition_penalty."""
        self._model = model
        self._template = template
        self.device = device
        self._dtype = dtype
        self._features = features_by_view(model, transforms, device, cache, dtype)
        self.guide = guide
        self._task = task

    @property
    def draws(self) -> bool:
        """Says whether the model draws images."""
        return self._model.canvas is not None

    def prompt_hash(self, question: Question, draws: bool = False) -> str:
        """Returns a digest of the prompt's ids; it changes with the template, the tokenizer and the wording."""
        prompt = self._template.prompt_to_draw if draws else self._template.prompt
        return hashlib.sha256(repr(prompt(turns_of(question))).encode()).hexdigest()

    def score(
        self, questions: Sequence[Question], blind: bool = False, advance: Advance | None = None
    ) -> list[list[float]]:
        """Returns the log-likelihood of each choice of each question, summed over the answer's tokens.

        The end-of-answer token is one of them, so a choice that begins another does not win by being short. A choice
        whose answer was cut off by the longest sequence gets -inf rather than the advantage of having fewer tokens; a
        question of which none is left is unanswered, and so is one with a choice whose likelihood is no number.
        """
        rows: list[Row] = []
        for question in questions:
            for text in question.choices:
                encoded = self._template.encode(turns_of(question, text))
                rows.append(self._row(len(rows), encoded.input_ids, encoded.labels, question, blind))
        shares = [1.0 / len(question.choices) for question in questions for _ in question.choices]
        scores = iter(self._answers(rows, ["score"], self._likelihoods, advance, shares, broken=math.nan))
        found = [[float(next(scores)) for _ in question.choices] for question in questions]
        for place, (question, own) in enumerate(zip(questions, found, strict=True)):
            if any(map(math.isnan, own)):
                found[place] = [float("-inf")] * len(own)
            elif all(score == float("-inf") for score in own):
                most = self._model.max_positions
                self._cannot(
                    question.id,
                    f"with its prompt none of its choices fits into the model's {most} positions and the template's "
                    "max_length; shorten it or raise these",
                )
        return found

    def generate(
        self,
        questions: Sequence[Question],
        max_new_tokens: int,
        blind: bool = False,
        advance: Advance | None = None,
    ) -> list[str]:
        """Returns the greedy answer to each question, special tokens removed; none where the prompt is too long."""
        rows: list[Row] = []
        for question in questions:
            input_ids = self._template.prompt(turns_of(question))
            rows.append(self._row(len(rows), input_ids, [IGNORE_ID] * len(input_ids), question, blind))

        def ask(part: list[Row]) -> list[str | None]:
            return self._words(part, max_new_tokens)

        how = ["generate", max_new_tokens, self.decoding]
        return [str(text) for text in self._answers(rows, how, ask, advance, instead="", broken="")]

    def draw(
        self,
        questions: Sequence[Question],
        seeds: Sequence[int],
        *,
        steps: int | None,
        guidance: float | None,
        blind: bool = False,
        advance: Advance | None = None,
    ) -> list[Tensor]:
        """Returns the picture (3, H, W), values 0 to 1, that each question asks for, one seed a question.

        Where the prompt is too long, or the model says no numbers, it is black.
        """
        rows: list[Row] = []
        letters = self._template.letters
        for index, question in enumerate(questions):
            input_ids = self._template.prompt_to_draw(turns_of(question))
            row = self._row(index, input_ids, [IGNORE_ID] * len(input_ids), question, blind, draws=True)
            asked = {} if letters is None else {LETTERS_VIEW: letters.padded(input_ids)[None]}
            rows.append(replace(row, beside={**row.beside, **asked}))

        def ask(part: list[Row]) -> list[Tensor | None]:
            inputs = self._inputs(part, pad_left=True, with_labels=False)
            own = [seeds[row.place] for row in part]
            drawn = self._model.draw(**inputs, steps=steps, guidance=guidance, seeds=own).cpu()
            return [None if bool(one.isnan().any()) else one for one in drawn]

        # A picture is far larger than words, and lies in its file already: only words are kept.
        black = torch.zeros(3, *(self._model.canvas or (0, 0)))
        # The position that begins the image has to find room as well.
        return self._answers(rows, None, ask, advance, instead=black, room=1, broken=black)

    def _likelihoods(self, part: list[Row]) -> list[float | None]:
        """Returns the log-likelihood of the labelled tokens of each row, -inf where some were cut off, None for NaN."""
        expected = [sum(label != IGNORE_ID for label in row.labels) for row in part]
        output = self._model(**self._inputs(part, pad_left=False, with_labels=True))
        nll, targets = output.nll_B.float().tolist(), output.num_targets_B.tolist()
        return [
            None if math.isnan(loss) else -loss if wanted > 0 and seen == wanted else float("-inf")
            for loss, seen, wanted in zip(nll, targets, expected, strict=True)
        ]

    def _words(self, part: list[Row], max_new_tokens: int) -> list[str | None]:
        """Returns what is generated after each row, None where the logits held a NaN."""
        tokenizer = self._template.tokenizer
        end = tokenizer.eos_token_id
        ids = self._model.generate(
            **self._inputs(part, pad_left=True, with_labels=False),
            max_new_tokens=max_new_tokens,
            # Whoever has to stay in step goes on to the last token, whatever it says.
            eos_id=None if self.in_step else end,
            pad_id=tokenizer.pad_token_id,
            **self.decoding,
        )
        if self.in_step:
            ids = [list(takewhile(lambda token: token != end, answer)) for answer in ids]
        return [words_of(tokenizer, answer) for answer in ids]

    def _answers(
        self,
        rows: list[Row],
        how: Sequence[object] | None,
        ask: Callable[[list[Row]], Sequence[T | None]],
        advance: Advance | None = None,
        shares: Sequence[float] | None = None,
        instead: T | None = None,
        room: int = 0,
        broken: T | None = None,
    ) -> list[T]:
        """Returns the answer to each row: one that is known already, or what `ask` says of batches.

        Args:
            rows: what is asked, in the order of their places.
            how: what an answer depends on besides; None: answers are not kept.
            ask: runs the model; None: it says no numbers, of which nothing is kept.
            advance: is told.
            shares: what part of a question each row is; None: a whole one.
            instead: the answer to a row that the model has no room for; None: the model cuts such rows itself.
            room: positions that a row needs besides its own.
            broken: the answer to a row of which the model says no numbers.
        """
        found: list[T | None] = [None] * len(rows)
        responses = self.responses if how is not None else None
        keys = [] if responses is None else [self._key(row, how) for row in rows]
        if responses is not None:
            found = [cast("T | None", responses.get(key)) for key in keys]
        tell, parts = advance or (lambda amount: None), shares or [1.0] * len(rows)
        wanted = [row for row in rows if found[row.place] is None]
        known = sum(parts[row.place] for row in rows if found[row.place] is not None)
        self.recalled += known
        tell(known)
        with self._answering():
            asked = self._with_media(wanted)
            if instead is not None:
                asked, too_long = self._that_fit(asked, room)
                found = [instead if place in too_long else answer for place, answer in enumerate(found)]
                tell(sum(parts[place] for place in too_long))
            for part in self._batches(asked, empty(rows[0], self._template.tokenizer.pad_token_id) if rows else None):
                new = [(row, answer) for row, answer in zip(part, ask(part), strict=True) if found[row.place] is None]
                if responses is not None:
                    responses.keep({keys[row.place]: cast(Response, said) for row, said in new if said is not None})
                tell(sum(parts[row.place] for row, _ in new))
                for row, answer in new:
                    found[row.place] = self._broken(row, broken) if answer is None else answer
        return cast("list[T]", found)

    def _broken(self, row: Row, instead: T | None) -> T | None:
        self._cannot(
            row.question,
            "the model says NaN: its weights hold some, or numbers overflow; engine.precision=fp32 shows which",
        )
        return instead

    def _that_fit(self, rows: list[Row], room: int) -> tuple[list[Row], set[int]]:
        """Returns the rows that the model has room for, and the places of the others."""
        most, fit, too_long = self._model.max_positions, list[Row](), set[int]()
        for row in rows:
            length = length_of(row, self._model.positions) + room
            if length <= most:
                fit.append(row)
                continue
            too_long.add(row.place)
            self._cannot(
                row.question,
                f"its prompt takes {length} positions and the model has {most}; shorten it or raise max_positions",
            )
        return fit, too_long

    def _cannot(self, question: str, reason: str) -> None:
        told = f"question {question!r}: {reason}"
        if not self.unanswered:
            logger().warning("some questions are not answered, the first is %s", told)
        self.unanswered[question] = told

    def _key(self, row: Row, how: Sequence[object] | None) -> str:
        """Returns the name of a row's answer."""
        media = {view: self._features[view].name(item) for view, item in row.media.items()}
        beside = {view: tensor.tolist() for view, tensor in row.beside.items()}
        targets = [label != IGNORE_ID for label in row.labels].count(True)
        setting = [self.device.type, str(self._dtype), how]
        return key_of(self.key, setting, row.input_ids, targets, media, beside, row.task)

    def _row(
        self,
        place: int,
        input_ids: list[int],
        labels: list[int],
        question: Question,
        blind: bool,
        draws: bool = False,
    ) -> Row:
        # The template may have cut a placeholder off; what is gone is not encoded.
        kept = {kind: item for kind, item in question.media.items() if MEDIA_IDS[kind] in input_ids}
        for kind in kept:
            if kind not in self._features:
                takes = ", ".join(view for view in self._features if view in KINDS)
                raise ValueError(
                    f"question {question.id!r} has {KINDS[kind].mark}, but the model takes {takes}; "
                    "leave the benchmark out or evaluate another model"
                )
        views, beside = frozenset(self._features), dict[str, Tensor]()
        if self.guide is not None:
            views, found = self.guide.of_question(question.text, question.routing)
            beside = {view: row for view, row in found.items() if kind_of(view) in kept}
        media = {
            view: None if blind else kept[kind_of(view)]
            for view in self._features
            if view in views and kind_of(view) in kept
        }
        task = -1 if self._task is None else self._task(question.text, draws)
        is_glance = self.guide is not None and question.routing is None
        return Row(place, input_ids, labels, media, beside, task, question.id, is_glance)

    def _with_chunks(self, row: Row) -> Row:
        """Returns the row with the placeholder of a sound once a chunk."""
        counts = {
            MEDIA_IDS[view]: self._features[view].count(item) for view, item in row.media.items() if view in KINDS
        }
        if all(count == 1 for count in counts.values()):
            return row
        pairs = [pair for pair in zip(row.input_ids, row.labels, strict=True) for _ in range(counts.get(pair[0], 1))]
        return replace(row, input_ids=[token for token, _ in pairs], labels=[label for _, label in pairs])

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """No gradients and no dropout inside; the model is left as it was found."""
        was_training = self._model.training
        self._model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self._model.train(was_training)

    def _with_media(self, rows: list[Row]) -> list[Row]:
        """Returns rows whose media are encoded, with a placeholder for each chunk of a sound."""
        for view, features in self._features.items():
            features.prepare(row.media[view] for row in rows if view in row.media)
        return [self._with_chunks(row) for row in rows]

    def _batches(self, rows: list[Row], nothing: Row | None) -> Iterator[list[Row]]:
        """Yields rows of like length together, the longest first (memory runs out at once or never).

        In step, a process that is done before others repeats its last row until they are, and `nothing` if it has none.
        """
        order = sorted(rows, key=lambda row: (-len(row.input_ids), row.place))
        parts = [order[start : start + self.batch] for start in range(0, len(order), self.batch)]
        most = max(cast("list[int]", dist.gather_objects(len(parts)))) if self.in_step else len(parts)
        yield from parts
        for _ in range(most - len(parts)):
            assert nothing is not None, "in step everybody is asked something"
            yield order[-1:] or [nothing]

    def _inputs(self, rows: list[Row], *, pad_left: bool, with_labels: bool) -> dict[str, Any]:
        """Returns the model's keyword arguments for some rows."""
        input_ids_BT, attention_mask_BT, labels_BT = padded(rows, self._template.tokenizer.pad_token_id, left=pad_left)
        items = {view: [row.media[view] for row in rows if view in row.media] for view in self._features}
        found = {view: self._features[view].features(wanted) for view, wanted in items.items() if wanted}
        beside = {
            view: torch.cat([row.beside[view] for row in rows if view in row.beside]).to(self.device)
            for view in sorted({view for row in rows for view in row.beside})
        }
        inputs: dict[str, Any] = {
            "input_ids_BT": input_ids_BT.to(self.device),
            "attention_mask_BT": attention_mask_BT.to(self.device),
            "features": found or None,
        }
        if beside:
            inputs["media"] = beside
        if any(row.task >= 0 for row in rows):
            inputs["task_B"] = torch.tensor([row.task for row in rows], device=self.device)
        if with_labels:
            inputs["labels_BT"] = labels_BT.to(self.device)
        return cast_inputs(inputs, self._dtype)
