"""Benchmarks whose answers are pictures: drawn, filed as PNG, and read by a judge who knows nothing of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmmoe.evaluation.clip_score import ClipJudge, clip_score
from mmmoe.evaluation.frechet import Extractor, distance_of_sets
from mmmoe.evaluation.questions import Question
from mmmoe.evaluation.writing import closeness, filtered, is_same


class Reader(Protocol):
    """Who reads what is written on pictures."""

    def read(self, pictures: Sequence[Image.Image], /) -> list[str]:
        """Returns the text of each picture."""


class Jury:
    """Who looks at drawn pictures: a reader of text, a CLIP and FID's network where they are given, loaded once."""

    def __init__(self, reader: Reader, clip: ClipJudge | None = None, inception: Extractor | None = None) -> None:
        self.reader = reader
        self.clip = clip
        self.inception = inception
        self._ceilings: dict[tuple[Path | None, ...], float | None] = {}

    def measures(self, questions: Sequence[Question], texts: Sequence[str], paths: Sequence[str]) -> dict[str, float]:
        """Returns what stands beside the share of right pictures.

        Args:
            questions: what was to be drawn.
            texts: what was read on each picture.
            paths: where the pictures lie.
        """
        references = tuple(question.reference for question in questions)
        if references not in self._ceilings:
            self._ceilings[references] = ceiling(self.reader, questions)
        found = likeness(texts, [question.answer for question in questions])
        best = self._ceilings[references]
        if best is not None:
            found["judge"] = best
        if self.clip is None and self.inception is None:
            return found
        drawn_I3HW = _pixels(paths)
        score = clip_score(drawn_I3HW, [question.text for question in questions], self.clip)
        eyes = {"frechet": None if self.clip is None else self.clip.images, "fid": self.inception}
        distances = {name: _from_references(drawn_I3HW, questions, eye) for name, eye in eyes.items()}
        return found | {name: x for name, x in {"clip_score": score, **distances}.items() if x is not None}


def likeness(texts: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Returns how near what was read is to what was asked for.

    `ned` is the mean likeness of words, `shuffled` the share that is right for the next question's word that is
    another, which a model that does not heed its prompt would reach as well, `shuffled_ned` likewise; where all
    questions ask for one word there is none.
    """
    found = {"ned": _mean([closeness(text, answer) for text, answer in zip(texts, answers, strict=True)])}
    others = _next_different(answers)
    if others is None:
        return found
    return found | {
        "shuffled": _mean([is_same(text, other) for text, other in zip(texts, others, strict=True)]),
        "shuffled_ned": _mean([closeness(text, other) for text, other in zip(texts, others, strict=True)]),
    }


def _next_different(answers: Sequence[str]) -> list[str] | None:
    """Returns for each answer the next one that is another to the reader, from the first on again behind the last."""
    words = [filtered(answer) for answer in answers]
    if len(set(words)) < 2:
        return None
    others, other = [""] * len(answers), 0
    # Twice round from behind: the first round finds what stands behind the last.
    for place in [*reversed(range(len(answers)))] * 2:
        following = (place + 1) % len(answers)
        other = following if words[following] != words[place] else other
        others[place] = answers[other]
    return others


def ceiling(reader: Reader, questions: Sequence[Question]) -> float | None:
    """Returns the reader's score on the reference pictures, None where a benchmark has none."""
    if any(question.reference is None for question in questions):
        return None
    pictures = [Image.open(str(question.reference)).convert("RGB") for question in questions]
    texts = reader.read(pictures)
    return _mean([is_same(text, question.answer) for text, question in zip(texts, questions, strict=True)])


def _from_references(drawn_I3HW: Tensor, questions: Sequence[Question], extractor: Extractor | None) -> float | None:
    """Returns how far drawn pictures are from the references; None where not all have one, or nobody looks."""
    references = [str(question.reference) for question in questions if question.reference is not None]
    if extractor is None or len(references) < len(questions) or len(questions) < 2:
        return None
    return distance_of_sets(drawn_I3HW, _pixels(references), extractor)


def _pixels(paths: Sequence[str]) -> Tensor:
    """Returns pictures of one size as values 0 to 1 (I, 3, H, W)."""
    pictures = [Image.open(path).convert("RGB") for path in paths]
    pictures = [one if one.size == pictures[0].size else one.resize(pictures[0].size) for one in pictures]
    return torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in pictures]).float() / 255


def as_picture(pixels_3HW: Tensor) -> Image.Image:
    """Returns the picture of values 0 to 1.

    Raises:
        ValueError: Some are no finite numbers.
    """
    if not pixels_3HW.isfinite().all():
        wrong = int((~pixels_3HW.isfinite()).sum())
        raise ValueError(
            f"a drawing has {wrong} values of {pixels_3HW.numel()} that are not finite: its sampler or its weights "
            "have diverged; take another sampler, more steps or an earlier checkpoint"
        )
    bytes_HW3 = (pixels_3HW.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(bytes_HW3))


def save(pictures: Sequence[Image.Image], questions: Sequence[Question], folder: Path) -> list[str]:
    """Writes a PNG a question and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{question.id}.png" for question in questions]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    return [str(path) for path in paths]


def grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Returns pictures of one size in rows, a line of white between them."""
    wide, high = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (wide + 2) - 2, rows * (high + 2) - 2), "white")
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        sheet.paste(picture, (column * (wide + 2), row * (high + 2)))
    return sheet


def _mean(values: Sequence[float] | Sequence[bool]) -> float:
    return float(np.mean([float(value) for value in values])) if values else 0.0
