"""Rows of our own form, which published tables are turned into as well: what makes a line one, and what is checked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mmmoe.data.media import KINDS, count_marks
from mmmoe.evaluation.location import area, box_of
from mmmoe.evaluation.prompts import worded
from mmmoe.evaluation.spec import BenchmarkSpec
from mmmoe.evaluation.writing import filtered

OwnRow = dict[str, Any]
"""A line's object, in which media are whole paths and `answers` always is a list."""
FILE_NAME = re.compile(r"\w[\w.-]*")
"""What the picture drawn for a question can be called."""
TEXTS = ("question", "answer", "domain", "reference", "category", "group", "hint", "context")
"""Fields that are text."""


def parse_line(line: bytes) -> tuple[OwnRow, list[str]]:
    """Returns the line's object and what is wrong with its form."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return {}, [f"not UTF-8 ({error.reason} at byte {error.start}); save the file in that encoding"]
    except json.JSONDecodeError as error:
        return {}, [f"not JSON ({error.msg} at column {error.colno})"]
    except (ValueError, RecursionError) as error:
        return {}, [f"not read as JSON ({error})"]
    if not isinstance(row, dict):
        return {}, [f"expected an object, got {type(row).__name__}"]
    problems = [f"field {name!r} is missing" for name in ("id", "question") if name not in row]
    if "answer" not in row and "answers" not in row:
        problems.append("field 'answer' is missing")
    for name in (*TEXTS, *KINDS):
        value = row.get(name)
        if name == "video" and isinstance(value, list) and value and all(isinstance(frame, str) for frame in value):
            continue
        if value is not None and not isinstance(value, str):
            also = " or a list of frames" if name == "video" else ""
            problems.append(f"field {name!r} must be text{also}, got {value!r}")
    for name in ("choices", "answers"):
        value = row.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
            problems.append(f"field {name!r} must be a list of texts, got {value!r}")
    return row, problems


def with_paths(row: OwnRow, folder: Path) -> OwnRow:
    """Returns a well-formed line with whole paths and all its answers."""
    row = {**row, "answers": row.get("answers") or [row.get("answer") or ""]}
    for name in (*KINDS, "reference"):
        named = row.get(name)
        if named is not None:
            row[name] = str(folder / named) if isinstance(named, str) else [str(folder / frame) for frame in named]
    return row


def asked(row: OwnRow, spec: BenchmarkSpec) -> str:
    """Returns what a model is asked, in the benchmark's wording."""
    told = {name: row.get(name) or "" for name in ("hint", "context")}
    return worded(spec.prompt, row["question"], choices=row.get("choices") or (), **told)


def check_row(row: OwnRow, spec: BenchmarkSpec) -> list[str]:
    """Returns what is wrong with the contents of a row of our own form."""
    problems = []
    marks = count_marks([asked(row, spec)])
    for name, kind in KINDS.items():
        from_where = "`fields.media`" if spec.fields else "the benchmark file's folder"
        for file in files_in(row.get(name)):
            if not file.is_file():
                problems.append(f"no {name} at {file}; `{name}` is relative to {from_where}")
        if row.get(name) is None and marks[name]:
            problems.append(f"the question holds {kind.mark} but `{name}` is null; name the file or remove the mark")
        if marks[name] > 1:
            problems.append(f"the question holds {kind.mark} more than once; a question has one {name}")
    reference = row.get("reference")
    if reference is not None and not Path(reference).is_file():
        problems.append(f"no reference at {reference}; it is relative to the benchmark file's folder")
    problems += _check_answers([answer for answer in row["answers"] if answer.strip()], row.get("choices") or (), spec)
    if spec.kind == "drawing" and not FILE_NAME.fullmatch(str(row["id"])):
        problems.append(
            f"id {row['id']!r} names the picture that is drawn; let it be letters, digits, '.', '-' and '_'"
        )
    return problems


def _check_answers(answers: list[str], choices: list[str] | tuple[str, ...], spec: BenchmarkSpec) -> list[str]:
    problems = []
    if not answers:
        problems.append("the answer is empty")
    elif spec.kind == "location" and box_of(answers[0]) is None:
        problems.append(f"answer {answers[0]!r} names no box; give left, top, right and bottom")
    elif spec.kind == "location" and any(area(box) == 0 for answer in answers if (box := box_of(answer)) is not None):
        problems.append(
            f"answers {answers!r} hold a box without area, which nothing overlaps; give left, top, right and bottom"
        )
    elif spec.kind == "drawing" and (wordless := [answer for answer in answers if not filtered(answer)]):
        problems.append(
            f"answer {wordless[0]!r} has no letter a-z nor digit, and nothing else counts in a drawing: an empty "
            "picture would be right"
        )
    if spec.kind == "multiple_choice" and len(choices) < 2:
        problems.append(f"multiple_choice needs two choices or more, got {choices!r}")
    elif choices and answers and (wrong := [answer for answer in answers if answer not in choices]):
        problems.append(f"answer {wrong[0]!r} is not among the choices {choices!r}")
    if spec.kind == "multiple_choice" and len(set(choices)) < len(choices):
        problems.append(f"choices repeat: {choices!r}")
    return problems


def files_in(named: str | list[str] | None) -> tuple[Path, ...]:
    """Returns the files of a field: none, one, or the frames of a video."""
    if named is None:
        return ()
    return tuple(Path(name) for name in ([named] if isinstance(named, str) else named))
