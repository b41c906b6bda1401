"""Whoever sits the exam: a model with its template and transform, known only by scoring and generating."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mmmoe.config.ids import IGNORE_ID, IMAGE_ID
from mmmoe.data.record import Turn
from mmmoe.evaluation.pictures import ImageTransform, PictureFeatures
from mmmoe.evaluation.questions import Question

Advance = Callable[[float], None]
"""Told how many questions (or parts of one) were just answered."""


class Encoded(Protocol):
    """A dialogue as ids and labels."""

    @property
    def input_ids(self) -> list[int]:
        """All ids, IMAGE_ID where an image goes."""

    @property
    def labels(self) -> list[int]:
        """The id itself on targets, IGNORE_ID elsewhere."""


class Template(Protocol):
    """Turns a dialogue into ids."""

    tokenizer: Any

    def encode(self, turns: Sequence[Turn], /) -> Encoded:
        """Returns ids and labels; only the assistant's answer has labels."""

    def prompt(self, turns: Sequence[Turn], /) -> list[int]:
        """Returns the ids up to where the assistant begins to answer."""


class Model(Protocol):
    """A multimodal language model."""

    training: bool
    tower: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns a ModelOutput for input_ids_BT, attention_mask_BT, labels_BT and features_IPC."""

    def eval(self) -> Any:
        """Switches dropout off."""

    def train(self, mode: bool = True) -> Any:
        """Switches dropout on again."""

    def encode_images(self, pixels_ICHW: Tensor) -> Tensor:
        """Returns the tower's features (I, P, C)."""

    def generate(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        """Returns new ids for left-padded prompts: max_new_tokens, eos_id and pad_id are given."""


@dataclass(frozen=True)
class _Row:
    """One sequence to run: a question with one of its choices, or its prompt alone."""

    question: int
    choice: int
    input_ids: list[int]
    labels: list[int]
    pictures: tuple[Path | None, ...]


class Subject:
    """Answers questions in batches of like length; every distinct picture is encoded once.

    `cache` is a folder where tower features are kept from one run to the next; without it they stay in memory.
    """

    def __init__(
        self,
        model: Model,
        template: Template,
        transform: ImageTransform,
        device: torch.device,
        *,
        batch: int = 64,
        cache: Path | None = None,
    ) -> None:
        self.batch = batch
        self._model = model
        self._template = template
        self._device = device
        self._pictures = PictureFeatures(model, transform, device, cache)

    def prompt_hash(self, question: Question) -> str:
        """Returns a digest of the prompt's ids; it changes with the template, the tokenizer and the wording."""
        return hashlib.sha256(repr(self._template.prompt(_turns(question))).encode()).hexdigest()

    def score(
        self, questions: Sequence[Question], blind: bool = False, advance: Advance | None = None
    ) -> list[list[float]]:
        """Returns the log-likelihood of each choice of each question, summed over the answer's tokens.

        The end-of-answer token is one of them, so a choice that begins another does not win by being short. A choice
        whose answer was cut off by the longest sequence gets -inf rather than the advantage of having fewer tokens.
        """
        rows: list[_Row] = []
        for index, question in enumerate(questions):
            for choice, text in enumerate(question.choices):
                encoded = self._template.encode(_turns(question, text))
                pictures = _pictures(encoded.input_ids, question, blind)
                rows.append(_Row(index, choice, encoded.input_ids, encoded.labels, pictures))
        scores = [[0.0] * len(question.choices) for question in questions]
        with self._answering():
            for part in self._batches(rows):
                expected = [sum(label != IGNORE_ID for label in row.labels) for row in part]
                output = self._model(**self._inputs(part, pad_left=False, with_labels=True))
                nll, targets = output.nll_B.float().tolist(), output.num_targets_B.tolist()
                for row, loss, seen, wanted in zip(part, nll, targets, expected, strict=True):
                    is_whole = wanted > 0 and seen == wanted
                    scores[row.question][row.choice] = -loss if is_whole else float("-inf")
                    if advance is not None:
                        advance(1.0 / len(questions[row.question].choices))
        return scores

    def generate(
        self,
        questions: Sequence[Question],
        max_new_tokens: int,
        blind: bool = False,
        advance: Advance | None = None,
    ) -> list[str]:
        """Returns the greedy answer to each question, special tokens removed."""
        rows: list[_Row] = []
        for index, question in enumerate(questions):
            input_ids = self._template.prompt(_turns(question))
            rows.append(_Row(index, 0, input_ids, [], _pictures(input_ids, question, blind)))
        tokenizer = self._template.tokenizer
        answers = [""] * len(questions)
        with self._answering():
            for part in self._batches(rows):
                ids = self._model.generate(
                    **self._inputs(part, pad_left=True, with_labels=False),
                    max_new_tokens=max_new_tokens,
                    eos_id=tokenizer.eos_token_id,
                    pad_id=tokenizer.pad_token_id,
                )
                for row, answer in zip(part, ids, strict=True):
                    answers[row.question] = tokenizer.decode(answer, skip_special_tokens=True).strip()
                if advance is not None:
                    advance(len(part))
        return answers

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

    def _batches(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Yields rows of like length together, the longest first (memory runs out at once or never)."""
        self._pictures.prepare(picture for row in rows for picture in row.pictures)
        order = sorted(rows, key=lambda row: (-len(row.input_ids), row.question, row.choice))
        for start in range(0, len(order), self.batch):
            yield order[start : start + self.batch]

    def _inputs(self, rows: list[_Row], *, pad_left: bool, with_labels: bool) -> dict[str, Tensor | None]:
        """Returns the model's keyword arguments for some rows."""
        longest = max(len(row.input_ids) for row in rows)
        pad_id = self._template.tokenizer.pad_token_id
        input_ids_BT = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
        attention_mask_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
        labels_BT = torch.full((len(rows), longest), IGNORE_ID, dtype=torch.int64)
        for at, row in enumerate(rows):
            length = len(row.input_ids)
            span = slice(longest - length, longest) if pad_left else slice(0, length)
            input_ids_BT[at, span] = torch.tensor(row.input_ids)
            attention_mask_BT[at, span] = True
            if with_labels:
                labels_BT[at, span] = torch.tensor(row.labels)
        pictures = [picture for row in rows for picture in row.pictures]
        inputs: dict[str, Tensor | None] = {
            "input_ids_BT": input_ids_BT.to(self._device),
            "attention_mask_BT": attention_mask_BT.to(self._device),
            "features_IPC": self._pictures.features(pictures) if pictures else None,
        }
        if with_labels:
            inputs["labels_BT"] = labels_BT.to(self._device)
        return inputs


def _turns(question: Question, answer: str | None = None) -> tuple[Turn, ...]:
    """Returns the dialogue, with LLaVA's picture-first wording unless the question places the picture itself."""
    text = question.text
    if question.image is not None and "<image>" not in text:
        text = f"<image>\n{text}"
    human = Turn("human", text)
    return (human,) if answer is None else (human, Turn("gpt", answer))


def _pictures(input_ids: list[int], question: Question, blind: bool) -> tuple[Path | None, ...]:
    """Returns one picture for each placeholder that is left in the ids (the template may have cut it off)."""
    return (None if blind else question.image,) * input_ids.count(IMAGE_ID)
