"""What a declaration takes from a row of a table: a column, a path into one, or a text filled in with some."""

from __future__ import annotations

import ast
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from string import Formatter
from typing import Any

MISSING = object()
"""What a path leads to that a row does not have."""
SHOWN_COLUMNS = 24
QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def look_up(row: Mapping[str, Any], path: str) -> Any:
    """Returns what stands at a path, through a list what stands there in each entry, or MISSING."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        value = _step(value, part)
    return value


def _step(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part, MISSING)
    if isinstance(value, list):
        entries = [_step(entry, part) for entry in value]
        return MISSING if any(entry is MISSING for entry in entries) else entries
    return MISSING


def names_in(source: str) -> list[str]:
    """Returns the paths that a source takes: itself, or those in its braces."""
    if "{" not in source:
        return [source]
    return [name for _, name, _, _ in Formatter().parse(source) if name is not None]


def value_of(row: Mapping[str, Any], source: str) -> Any:
    """Returns what a source stands for in a row; a text with braces is text.

    Raises:
        ValueError: The row lacks a column, or it does not go with the form that is asked for.
    """
    if "{" not in source:
        return _present(row, source)
    text = ""
    for literal, name, form, _ in Formatter().parse(source):
        text += literal
        if name is not None:
            value = _present(row, name)
            # A number may be written as text, which `012d` would not take.
            if isinstance(value, str) and (form or "").endswith("d") and value.strip().isdigit():
                value = int(value)
            if not form:
                text += as_text(value, name)
                continue
            try:
                text += format(value, form)
            except (TypeError, ValueError) as error:
                raise ValueError(f"column {name!r} is {value!r:.60}, which {{{name}:{form}}} does not take") from error
    return text


def _present(row: Mapping[str, Any], path: str) -> Any:
    value = look_up(row, path)
    if value is MISSING:
        raise ValueError(missing(path, row))
    return value


def missing(path: str, names: Iterable[str]) -> str:
    """Returns what is told of a column that is not there."""
    there = [name for name in names if not name.startswith("@")]
    near = difflib.get_close_matches(path, there, n=1)
    shown = ", ".join(there[:SHOWN_COLUMNS]) + (", ..." if len(there) > SHOWN_COLUMNS else "")
    return f"no column {path!r} (there are {shown})" + (
        f"; did you mean {near[0]!r}?" if near else "; correct `fields`"
    )


def is_empty(value: Any) -> bool:
    """Says whether a cell holds nothing: null, not a number, or no text."""
    if value is None or value is MISSING:
        return True
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, str) and not value.strip()


def as_text(value: Any, column: str = "") -> str:
    """Returns a cell as text, empty where it holds nothing.

    Args:
        value: What the cell holds.
        column: What to call it in messages.

    Raises:
        ValueError: It is neither a text nor a number.
    """
    if is_empty(value):
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    raise ValueError(f"{_named(column)}a text is wanted, got {value!r:.80}")


def _named(column: str) -> str:
    return f"column {column!r}: " if column else ""


def as_texts(value: Any, column: str = "") -> tuple[str, ...]:
    """Returns a list column's texts.

    Args:
        value: What the cell holds.
        column: What to call it in messages.

    Raises:
        ValueError: It is no list, nor a text that is one in Python's or numpy's writing.
    """
    if isinstance(value, str):
        value = parse_list(value, column)
    if not isinstance(value, list | tuple):
        raise ValueError(f"{_named(column)}a list is wanted, got {value!r:.80}")
    return tuple(as_text(entry, column) for entry in value)


def parse_list(text: str, column: str = "") -> list[Any]:
    """Returns the list that a text writes, with or without commas (numpy leaves them out).

    Raises:
        ValueError: It writes none.
    """
    body = text.strip()
    if body[:1] in ("[", "(") and body[-1:] in ("]", ")"):
        tokens: Sequence[str] = QUOTED.findall(body)
        # Python itself would join the strings of a list without commas to one.
        if tokens and not QUOTED.sub("", body).strip("[]() ,\n\t"):
            return [ast.literal_eval(token) for token in tokens]
        try:
            value = ast.literal_eval(body)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            value = None
        if isinstance(value, list | tuple):
            return list(value)
    raise ValueError(f"{_named(column)}a list is wanted, got {text!r:.80}")
