"""Held-out questions and prompts: words that were in no training picture, in lines as the evaluation reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from writing.dialogues import GENERATION, Said


def write_benchmark(task: str, asked: Sequence[Said], folder: Path) -> int:
    """Writes one file of questions with their pictures beside it and returns how many there are."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)

    def save(picture: Image.Image, name: str) -> str:
        picture.save(pictures / name)
        return f"pictures/{name}"

    lines = [_line(task, number, question, save) for number, question in enumerate(asked)]
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return len(lines)


def _line(task: str, number: int, asked: Said, save: Callable[[Image.Image, str], str]) -> dict[str, Any]:
    identity = f"{task}-{number:04d}"
    line: dict[str, Any] = {"id": identity, "question": asked.question, "answer": asked.answer}
    if asked.shown is not None:
        line["image"] = save(asked.shown, f"{identity}.png")
    if asked.choices:
        line["choices"] = list(asked.choices)
    if task in GENERATION and asked.drawn is not None:
        line["reference"] = save(asked.drawn, f"{identity}-reference.png")
    return line
