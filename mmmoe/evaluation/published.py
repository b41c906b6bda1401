"""From rows of a published table to rows of our own form, by what a declaration says of its columns."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mmmoe.data.media import KINDS
from mmmoe.evaluation.columns import MISSING, as_text, as_texts, is_empty, look_up, missing, names_in, value_of
from mmmoe.evaluation.own_rows import OwnRow
from mmmoe.evaluation.pictures import REFERENCE, PictureStore, check_file, content
from mmmoe.evaluation.prompts import letter
from mmmoe.evaluation.spec import BoxSpec, FieldsSpec
from mmmoe.evaluation.tables import TableRow

LONGEST_NAME = 255
"""Bytes in the name of a file."""


class Translator:
    """Turns rows of one benchmark into our own form."""

    def __init__(self, fields: FieldsSpec, store: PictureStore) -> None:
        self._fields = fields
        self._store = store
        self._checked: dict[Path, str | None] = {}
        """By picture file what is wrong with it."""
        self._pictures: dict[str, str] = {}
        """By id the picture, for rows that name an earlier one instead of holding it."""
        optional = [fields.hint, fields.context, fields.category, fields.group, *(fields.where or {}), *fields.having]
        optional += _list(fields.choices)
        self._unseen = {name for source in optional if source is not None for name in names_in(source)}
        self._names: list[str] = []

    def rows(self, row: TableRow) -> Iterator[tuple[OwnRow, list[str]]]:
        """Yields a row of our own for each question, with all that is wrong with it; none for one that is left out."""
        if row.problem is not None:
            yield {}, [row.problem]
            return
        self._unseen -= {name for name in self._unseen if look_up(row.values, name) is not MISSING}
        self._names = self._names or list(row.values)
        if not self._is_wanted(row.values):
            return
        each = self._fields.each
        if each is None:
            yield self._own(row, row.values, "")
            return
        entries = look_up(row.values, each)
        if not isinstance(entries, list):
            yield (
                {},
                [missing(each, row.values) if entries is MISSING else f"column {each!r} is no list: {entries!r:.60}"],
            )
            return
        for number, entry in enumerate(entries):
            yield self._own(row, {**row.values, each: entry}, f"-{number}")

    def unseen(self) -> list[str]:
        """Returns what is wrong if no row had a column that only some need to have."""
        return [missing(name, self._names) for name in sorted(self._unseen)] if self._names else []

    def _is_wanted(self, values: Mapping[str, Any]) -> bool:
        for name, wanted in (self._fields.where or {}).items():
            cell = look_up(values, name)
            allowed = {str(value) for value in (wanted if isinstance(wanted, list) else [wanted])}
            if is_empty(cell) or str(cell).strip() not in allowed:
                return False
        return not any(is_empty(look_up(values, name)) for name in self._fields.having)

    def _own(self, row: TableRow, values: Mapping[str, Any], suffix: str) -> tuple[OwnRow, list[str]]:
        fields, own, problems = self._fields, OwnRow(), list[str]()
        folder = row.file.parent if fields.media is None else (row.file.parent / fields.media)

        def take(name: str, get: Any, *args: Any) -> None:
            try:
                own[name] = get(*args)
            except ValueError as error:
                problems.append(str(error))

        take("id", self._id, values, suffix)
        take("question", self._question, values)
        for name in ("hint", "context", "category"):
            take(name, self._optional, values, getattr(fields, name))
        take("group", self._group, values)
        take("choices", self._choices, values)
        for kind in KINDS:
            if getattr(fields, kind) is not None:
                take(kind, self._media, kind, values, folder, own.get("id", ""))
        if fields.box is not None:
            take("answers", _box, values, fields.box, own.get("image"))
        elif "choices" in own:
            take("answers", self._answers, values, own["choices"])
        return own, problems

    def _id(self, values: Mapping[str, Any], suffix: str) -> str:
        text = as_text(value_of(values, self._fields.id), self._fields.id).strip()
        if not text:
            raise ValueError(f"the id ({self._fields.id}) is empty; every question needs one")
        return text + suffix

    def _question(self, values: Mapping[str, Any]) -> str:
        if self._fields.question is None:
            return ""
        text = as_text(value_of(values, self._fields.question), self._fields.question)
        for words in self._fields.drop:
            text = text.replace(words, "")
        if not text.strip():
            raise ValueError(f"the question ({self._fields.question}) is empty")
        return text.strip()

    def _optional(self, values: Mapping[str, Any], source: str | None) -> str:
        """Returns a text that not every row has."""
        if source is None or any(look_up(values, name) is MISSING for name in names_in(source)):
            return ""
        text = as_text(value_of(values, source), source).strip()
        # What pandas writes for an empty cell, as in MMBench's files; an answer may well be that word.
        return "" if text.lower() == "nan" else text

    def _group(self, values: Mapping[str, Any]) -> str:
        text, modulo = self._optional(values, self._fields.group), self._fields.group_modulo
        if modulo is None or not text:
            return text
        if not text.isdigit():
            raise ValueError(f"the group ({self._fields.group}) is {text!r}, but a whole number is wanted")
        return str(int(text) % modulo)

    def _choices(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        sources = self._fields.choices
        if sources is None:
            return ()
        if isinstance(sources, str):
            cell = look_up(values, sources)
            return () if is_empty(cell) else as_texts(cell, sources)
        texts = [self._optional(values, source) for source in sources]
        while texts and not texts[-1]:
            texts.pop()
        if not all(texts):
            raise ValueError(f"choice {letter(texts.index(''))} is empty, but a later one is not")
        return tuple(texts)

    def _answers(self, values: Mapping[str, Any], choices: tuple[str, ...]) -> tuple[str, ...]:
        assert self._fields.answer is not None, "the spec has either an answer or a box"
        found: list[str] = []
        for source in _list(self._fields.answer):
            cell = value_of(values, source)
            cells = cell if isinstance(cell, list | tuple) else [cell]
            if self._fields.answer_is == "literal":
                cells = as_texts(cell, source)
            found += [self._answer(as_text(one, source), choices) for one in cells]
        return tuple(found)

    def _answer(self, text: str, choices: tuple[str, ...]) -> str:
        if self._fields.answer_pattern is not None:
            return " ".join(re.findall(self._fields.answer_pattern, text))
        if self._fields.answer_is not in ("index", "letter"):
            return text
        wanted = text.strip().upper()
        places = [letter(place) if self._fields.answer_is == "letter" else str(place) for place in range(len(choices))]
        if wanted not in places:
            raise ValueError(
                f"answer {text!r} is not among {', '.join(places) or 'the choices, of which there are none'}"
            )
        right = choices[places.index(wanted)]
        if choices.count(right) > 1:
            # The text is all that is kept of the answer, so a metric of letters would take the first one for right.
            raise ValueError(f"answer {text!r} is {right!r}, which stands more than once among the choices {choices!r}")
        return right

    def _media(self, kind: str, values: Mapping[str, Any], folder: Path, identity: str) -> Any:
        """Returns the file, or the frames of a film, as whole paths."""
        sources = _list(getattr(self._fields, kind))
        if self._fields.media is None:
            return self._inside(kind, value_of(values, sources[0]), identity)
        named = [value_of(values, source) for source in sources]
        if all(is_empty(name) for name in named):
            raise ValueError(_nothing(kind))
        if kind == "video" and isinstance(named[0], list):
            frames = [_inner_path("image", as_text(frame), folder) for frame in named[0]]
            return [self._checked_file("image", frame) for frame in frames]
        paths = [_inner_path(kind, as_text(name), folder) for name in named]
        return self._checked_file(kind, next((path for path in paths if path.is_file()), paths[0]))

    def _inside(self, kind: str, cell: Any, identity: str) -> str:
        """Returns the file that a cell's content was written to; an earlier row's id stands for that row's."""
        if isinstance(cell, str) and 0 < len(cell.strip()) <= REFERENCE and cell.strip() in self._pictures:
            path = self._pictures[cell.strip()]
        else:
            data = None if is_empty(cell) else content(cell)
            if data is None:
                raise ValueError(_nothing(kind))
            path = str(self._store.keep(data, kind))
        self._pictures[identity] = path
        return path

    def _checked_file(self, kind: str, path: Path) -> str:
        """Returns the path; a picture that cannot be read is told, one that is not there is told with the rest."""
        if kind == "image" and path.is_file():
            if path not in self._checked:
                self._checked[path] = _problem(path)
            if (problem := self._checked[path]) is not None:
                raise ValueError(problem)
        return str(path)


def _inner_path(kind: str, name: str, folder: Path) -> Path:
    """Returns where a file lies that a column names.

    Raises:
        ValueError: It would lie outside the folder, or is no file's name.
    """
    # By the words alone: data sets are often links into a store, and whoever laid a link meant it.
    path = Path(os.path.normpath(name))
    if path.is_absolute() or path.parts[:1] == ("..",):
        raise ValueError(f"{kind} {name!r} lies outside the folder {folder}; correct `media` or drop the row")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise ValueError(f"{kind} {name[:40]!r}... is no file's name; if the column holds it itself, leave `media` out")
    return folder / path


def _list(source: str | list[str] | None) -> list[str]:
    return [] if source is None else [source] if isinstance(source, str) else source


def _nothing(kind: str) -> str:
    return f"the row has no {kind}; if that is meant, name its column in `having`, which leaves such rows out"


def _problem(path: Path) -> str | None:
    try:
        check_file(path, "image")
    except ValueError as error:
        return str(error)
    return None


def _box(values: Mapping[str, Any], box: BoxSpec, image: str | None) -> tuple[str, ...]:
    """Returns the box as an answer, in the unit that is asked for."""
    cell = value_of(values, box.column)
    if not isinstance(cell, list) or len(cell) != 4 or not all(isinstance(number, int | float) for number in cell):
        raise ValueError(f"column {box.column!r} is no box of four numbers: {cell!r:.60}")
    left, top, right, bottom = (max(0.0, float(number)) for number in cell)
    if box.form == "xywh":
        right, bottom = left + right, top + bottom
    if box.unit == "pixel":
        return (f"[{left:.1f}, {top:.1f}, {right:.1f}, {bottom:.1f}]",)
    if image is None or not Path(image).is_file():
        raise ValueError(f"a box in shares of the image needs the image, and there is none at {image}")
    with Image.open(image) as picture:
        wide, high = picture.size
    if box.unit == "square":
        side = max(wide, high)
        left, right = left + (side - wide) / 2, right + (side - wide) / 2
        top, bottom = top + (side - high) / 2, bottom + (side - high) / 2
        wide = high = side
    return (f"[{left / wide:.4f}, {top / high:.4f}, {right / wide:.4f}, {bottom / high:.4f}]",)
