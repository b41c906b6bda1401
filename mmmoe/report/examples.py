"""Answers worth showing: right and wrong ones of each benchmark, with their pictures, films and sounds inlined."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmmoe.data.media import KINDS, MARKED
from mmmoe.report.files import Row, RunFiles

OF_EACH_KIND = 4
"""Right and wrong answers shown per benchmark; half as many when there are more than four benchmarks."""
LONGEST_SIDE = 360
MAX_PIXELS = 50_000_000
"""A picture with more is not opened."""
MAX_INLINED = 300_000
"""Largest film or sound, in bytes, that is put into the page; of larger ones the name is told."""
TYPES = {
    "wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg", "opus": "audio/ogg", "mp3": "audio/mpeg",
    "m4a": "audio/mp4", "mp4": "video/mp4", "m4v": "video/mp4", "webm": "video/webm",
}  # fmt: skip
"""What browsers play."""


@dataclass(frozen=True)
class Clip:
    """A film or sound of a question."""

    kind: str
    """video, speech or audio."""
    name: str
    address: str | None
    """data: address; None where the file is large, gone, or nothing that a browser plays."""


@dataclass(frozen=True)
class Choice:
    """One choice as the page shows it."""

    text: str
    probability: float | None
    """Share of the likelihood among the choices; None when it could not be scored."""
    is_answer: bool
    is_predicted: bool


@dataclass(frozen=True)
class Example:
    """One answered question."""

    question: str
    answer: str
    prediction: str
    is_correct: bool
    picture: str | None
    """data: address."""
    drawn: str | None
    """data: address of the picture that was drawn for an answer."""
    clips: tuple[Clip, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class ExampleSet:
    """The examples of one benchmark."""

    benchmark: str
    variant: str
    num_right: int
    num_all: int
    examples: tuple[Example, ...]


def choose_examples(run: RunFiles) -> list[ExampleSet]:
    """Returns examples of the first variant of each benchmark, taken at even distances through its answers."""
    sets: dict[str, ExampleSet] = {}
    count = OF_EACH_KIND if len({benchmark for _, benchmark in run.answers}) <= 4 else OF_EACH_KIND // 2
    for (variant, benchmark), rows in run.answers.items():
        if benchmark in sets or not rows:
            continue
        right = [row for row in rows if row.get("correct")]
        wrong = [row for row in rows if not row.get("correct")]
        chosen = _spread(right, count) + _spread(wrong, count)
        examples = tuple(_example(row, run.folder) for row in chosen)
        sets[benchmark] = ExampleSet(benchmark, variant, len(right), len(rows), examples)
    return list(sets.values())


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    count = min(count, len(rows))
    return [rows[(2 * at + 1) * len(rows) // (2 * count)] for at in range(count)]


def _example(row: Row, folder: Path) -> Example:
    probabilities = _softmax(row.get("scores") or [])
    choices = tuple(
        Choice(text, probability, text == row.get("answer"), text == row.get("prediction"))
        for text, probability in zip(row.get("choices") or [], probabilities, strict=False)
    )
    return Example(
        question=MARKED.sub("", str(row.get("question", ""))).strip(),
        answer=str(row.get("answer", "")),
        prediction=str(row.get("prediction", "")),
        is_correct=bool(row.get("correct")),
        picture=None if row.get("image") is None else thumbnail(folder / str(row["image"])),
        drawn=None if row.get("drawn") is None else thumbnail(folder / str(row["drawn"])),
        clips=tuple(clip(kind, row[kind], folder) for kind in KINDS if kind != "image" and row.get(kind)),
        choices=choices,
    )


def _softmax(scores: Sequence[float | None]) -> list[float | None]:
    known = [score for score in scores if score is not None]
    if not known:
        return [None] * len(scores)
    top = max(known)
    total = sum(math.exp(score - top) for score in known)
    return [None if score is None else math.exp(score - top) / total for score in scores]


def thumbnail(path: Path) -> str | None:
    """Returns a small copy of a picture as a data: address, or None when there is no such picture any more.

    It is decoded and encoded anew, so nothing but pixels can reach the page.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            small = image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB")
            small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return png_address(buffer.getvalue())


def clip(kind: str, named: str | list[str], folder: Path) -> Clip:
    """Returns a film or sound with its content as a data: address if it is small; of frames their number is told."""
    if isinstance(named, list):
        return Clip(kind, f"{len(named)} frames from {Path(named[0]).name}", None)
    path = folder / str(named)
    mime = TYPES.get(path.suffix[1:].lower())
    if mime is None or not path.is_file() or path.stat().st_size > MAX_INLINED:
        return Clip(kind, path.name, None)
    return Clip(kind, path.name, f"data:{mime};base64," + base64.b64encode(path.read_bytes()).decode("ascii"))


def png_address(data: bytes) -> str:
    """Returns PNG bytes as a data: address."""
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
