"""Benchmark files: one question a line, checked whole before anything is answered."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmmoe.data.media import KINDS, count_marks
from mmmoe.evaluation.location import box_of
from mmmoe.evaluation.media import Files
from mmmoe.evaluation.spec import BenchmarkSpec
from mmmoe.paths import resolve

SHOWN_ERRORS = 20
FILE_NAME = re.compile(r"\w[\w.-]*")
"""What the picture drawn for a question can be called."""


@dataclass(frozen=True)
class Question:
    """One question about at most one item of each kind of media."""

    id: str
    """Unique within its benchmark."""
    text: str
    answer: str
    image: Path | None = None
    choices: tuple[str, ...] = ()
    """The answer is one of them; empty for short answers."""
    domain: str = "general"
    video: Files | None = None
    speech: Path | None = None
    audio: Path | None = None
    routing: tuple[int, ...] | None = ()
    """0 or 1 for each vision expert, of a model that has some; None where it is to say itself which it wants."""
    reference: Path | None = None
    """What a drawing might look like; the judge's score on references is the most that drawings can reach."""

    @property
    def media(self) -> Mapping[str, Files]:
        """Its items by kind."""
        named: dict[str, Files | None] = {
            "image": self.image, "video": self.video, "speech": self.speech, "audio": self.audio
        }  # fmt: skip
        return {kind: item for kind, item in named.items() if item is not None}


def load_questions(spec: BenchmarkSpec, limit: int | None = None) -> list[Question]:
    """Returns the questions of a benchmark in file order, the first `limit` of them if that is given.

    Raises:
        ValueError: the file is missing or empty, or lines in it are wrong; every wrong line is counted and the
            first twenty are named.
    """
    path = resolve(spec.file)
    if not path.is_file():
        raise ValueError(f"benchmark {spec.name!r}: no file at {path}; make it or correct `file`")
    questions: list[Question] = []
    errors: list[str] = []
    first_line: dict[str, int] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row, problems = _parse(line)
            if not problems:
                key = str(row["id"])
                if key in first_line:
                    problems.append(f"id {key!r} was already used in line {first_line[key]}; ids must differ")
                first_line.setdefault(key, number)
                problems += _check(row, spec, path.parent)
            errors += [f"line {number}: {problem}" for problem in problems]
            if not problems:
                questions.append(_question(row, spec, path.parent))
    if errors:
        more = f"\n  and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise ValueError(f"{path} has {len(errors)} errors:\n  " + "\n  ".join(errors[:SHOWN_ERRORS]) + more)
    if not questions:
        raise ValueError(f"benchmark {spec.name!r}: {path} holds no questions; write one JSON object a line")
    return questions[:limit]


def _parse(line: str) -> tuple[dict[str, Any], list[str]]:
    """Returns the line's object and what is wrong with its form."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return {}, [f"not JSON ({error.msg} at column {error.colno})"]
    if not isinstance(row, dict):
        return {}, [f"expected an object, got {type(row).__name__}"]
    problems = [f"field {name!r} is missing" for name in ("id", "question", "answer") if name not in row]
    for name in ("question", "answer", "domain", "reference", *KINDS):
        value = row.get(name)
        if name == "video" and isinstance(value, list) and value and all(isinstance(frame, str) for frame in value):
            continue
        if value is not None and not isinstance(value, str):
            also = " or a list of frames" if name == "video" else ""
            problems.append(f"field {name!r} must be text{also}, got {value!r}")
    choices = row.get("choices")
    if choices is not None and not (isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)):
        problems.append(f"field 'choices' must be a list of texts, got {choices!r}")
    return row, problems


def _check(row: dict[str, Any], spec: BenchmarkSpec, folder: Path) -> list[str]:
    """Returns what is wrong with the contents of a well-formed line."""
    problems = []
    marks = count_marks([row["question"]])
    for name, kind in KINDS.items():
        for file in _files(row.get(name), folder):
            if not file.is_file():
                problems.append(f"no {name} at {file}; `{name}` is relative to the benchmark file's folder")
        if row.get(name) is None and marks[name]:
            problems.append(f"the question holds {kind.mark} but `{name}` is null; name the file or remove the mark")
        if marks[name] > 1:
            problems.append(f"the question holds {kind.mark} more than once; a question has one {name}")
    reference = row.get("reference")
    if reference is not None and not (folder / reference).is_file():
        problems.append(f"no reference at {folder / reference}; it is relative to the benchmark file's folder")
    if not (row["answer"] or "").strip():
        problems.append("the answer is empty")
    elif spec.kind == "location" and box_of(row["answer"]) is None:
        problems.append(f"answer {row['answer']!r} names no box; give left, top, right and bottom")
    if spec.kind == "drawing" and not FILE_NAME.fullmatch(str(row["id"])):
        problems.append(
            f"id {row['id']!r} names the picture that is drawn; let it be letters, digits, '.', '-' and '_'"
        )
    choices = row.get("choices") or []
    if spec.kind == "multiple_choice":
        if len(choices) < 2:
            problems.append(f"multiple_choice needs two choices or more, got {choices!r}")
        elif row["answer"] not in choices:
            problems.append(f"answer {row['answer']!r} is not among the choices {choices!r}")
        if len(set(choices)) < len(choices):
            problems.append(f"choices repeat: {choices!r}")
    return problems


def _question(row: dict[str, Any], spec: BenchmarkSpec, folder: Path) -> Question:
    files = {kind: _files(row.get(kind), folder) for kind in KINDS}
    single = {kind: found[0] if found else None for kind, found in files.items()}
    return Question(
        id=str(row["id"]),
        text=row["question"],
        answer=row["answer"],
        image=single["image"],
        choices=tuple(row.get("choices") or ()),
        domain=row.get("domain") or spec.domain,
        video=files["video"] if isinstance(row.get("video"), list) else single["video"],
        speech=single["speech"],
        audio=single["audio"],
        reference=None if row.get("reference") is None else folder / row["reference"],
    )


def _files(named: str | list[str] | None, folder: Path) -> tuple[Path, ...]:
    """Returns the files of a field: none, one, or the frames of a video."""
    if named is None:
        return ()
    return tuple(folder / name for name in ([named] if isinstance(named, str) else named))
