"""The demo's own benchmarks: which held-out pictures are asked what, and how an answer is judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import questions as q
from demo.emoji import EmojiPicture
from preparation.chance import digest, generator

MULTIPLE_CHOICE, SHORT_ANSWER = "multiple_choice", "short_answer"


@dataclass(frozen=True)
class Benchmark:
    """One list of questions."""

    name: str
    kind: str
    domain: str
    pictures: str
    """Key of the picture lists it draws on, in this order; several are joined by '+'."""
    asking: q.Asking
    number: int


BENCHMARKS = (
    Benchmark("name_of_four", MULTIPLE_CHOICE, "general", "seen", q.ask_name, 500),
    Benchmark("name", SHORT_ANSWER, "general", "seen", q.ask_open, 500),
    Benchmark("category", MULTIPLE_CHOICE, "general", "seen", q.ask_category, 500),
    Benchmark("category_unseen", MULTIPLE_CHOICE, "general", "unseen", q.ask_category, 500),
    Benchmark("colour", SHORT_ANSWER, "general", "coloured", q.ask_colour, 300),
    Benchmark("count", SHORT_ANSWER, "general", "counts", q.ask_count, 300),
    Benchmark("position", MULTIPLE_CHOICE, "general", "pairs", q.ask_position, 200),
    Benchmark("document_word", MULTIPLE_CHOICE, "document", "words", q.ask_word, 300),
    Benchmark("document_word_font", MULTIPLE_CHOICE, "document", "font_words", q.ask_word, 300),
    Benchmark("document_lines", SHORT_ANSWER, "document", "pages", q.ask_lines, 200),
    Benchmark("document_number", SHORT_ANSWER, "document", "numbers", q.ask_number, 200),
    Benchmark("document_table", SHORT_ANSWER, "document", "tables", q.ask_table, 200),
    Benchmark("chart_kind", MULTIPLE_CHOICE, "chart", "pies+bars+lines", q.ask_kind, 150),
    Benchmark("chart_tallest", SHORT_ANSWER, "chart", "bars", q.ask_tallest, 200),
    Benchmark("chart_trend", MULTIPLE_CHOICE, "chart", "lines", q.ask_trend, 150),
    Benchmark("chart_bars", SHORT_ANSWER, "chart", "bars", q.ask_bars, 150),
)


def lines_of(benchmark: Benchmark, pictures: dict[str, list[Any]], pool: q.Pool) -> list[dict[str, Any]]:
    """Returns the lines of a benchmark's file; image paths are relative to that file."""
    kinds = benchmark.pictures.split("+")
    share = benchmark.number // len(kinds)
    chosen = [picture for kind in kinds for picture in pictures[kind][:share]]
    lines = []
    for index, picture in enumerate(chosen):
        asked = benchmark.asking(picture, pool, generator("benchmark", benchmark.name, picture.path))
        assert asked is not None, f"{benchmark.name} cannot be asked about {picture.path}"
        line = {"id": f"{benchmark.name}-{index:04d}", "image": picture.path, "question": asked.question}
        line["answer"] = asked.answer
        if benchmark.kind == MULTIPLE_CHOICE:
            line["choices"] = list(asked.choices)
        lines.append({**line, "domain": benchmark.domain})
    return lines


def capped_colours(pictures: Sequence[EmojiPicture], number: int) -> list[EmojiPicture]:
    """Returns up to `number` pictures with a main colour, none of the colours on more than a fifth of them."""
    ordered = sorted((p for p in pictures if p.colour), key=lambda p: digest("colour", p.path))
    size = min(number, len(ordered))
    while size:
        room = Counter({colour: max(1, size // 5) for colour in {p.colour for p in ordered}})
        chosen = []
        for picture in ordered:
            if room[picture.colour] > 0 and len(chosen) < size:
                room[picture.colour] -= 1
                chosen.append(picture)
        if len(chosen) == size:
            return chosen
        size = len(chosen)
    return []


def remove_unused(folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Deletes pictures that no question uses (candidates whose colour was asked often enough)."""
    used = {line["image"] for line in lines}
    for path in (folder / "images").iterdir():
        if f"images/{path.name}" not in used:
            path.unlink()
