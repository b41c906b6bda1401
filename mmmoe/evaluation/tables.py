"""Rows of published tables: json, jsonl, parquet, tsv, csv and txt; of parquet never a whole file at once."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmmoe.evaluation.columns import MISSING, as_text, look_up, missing
from mmmoe.evaluation.spec import FieldsSpec, JoinSpec
from mmmoe.paths import resolve

PARQUET_ROWS = 16
"""Rows of a parquet file that become Python objects at once."""
PARQUET_BUFFER = 2**20
"""Bytes that are read ahead: of six groups of 100 pictures of 1 MB 0.4 GB are held at most, 1.1 GB without this."""
GLOB = ("*", "?", "[")


@dataclass(frozen=True)
class TableRow:
    """A row, or what is wrong with its form."""

    file: Path
    place: str
    """As a person finds it: `line 3` of a text, `row 3` (from 0 on) of a document or a parquet file."""
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


def files_of(file: str | Sequence[str] | Mapping[str, str]) -> list[tuple[str, Path]]:
    """Returns the files of a declaration with the names given to them, or their stems.

    Raises:
        ValueError: One is not there.
    """
    named: list[tuple[str | None, str]] = [(None, file)] if isinstance(file, str) else []
    if isinstance(file, Mapping):
        named = list(file.items())
    elif not isinstance(file, str):
        named = [(None, one) for one in file]
    found = []
    for name, text in named:
        paths = _matching(text)
        if not paths:
            raise ValueError(f"no file at {resolve(text)}; get the data or correct `file`")
        found += [(name or path.stem, path) for path in paths]
    return found


def _matching(text: str) -> list[Path]:
    """Returns the files that a text names, where it has wildcards in the order of their names."""
    path = Path(text)
    if not any(mark in text for mark in GLOB):
        return [resolve(path)] if resolve(path).is_file() else []
    first = next(place for place, part in enumerate(path.parts) if any(mark in part for mark in GLOB))
    folder = resolve(Path(*path.parts[:first]))
    return sorted(one for one in folder.glob(str(Path(*path.parts[first:]))) if one.is_file())


def rows_of(file: str | Sequence[str] | Mapping[str, str], fields: FieldsSpec) -> Iterator[TableRow]:
    """Yields the rows of all files, joined and with `@file`, `@row` and `@key` beside their columns.

    Raises:
        ValueError: A file is not there, or is no table at all.
    """
    partners = None if fields.join is None else _partners(fields.join)
    number = 0
    for name, path in files_of(file):
        for row in read_table(path, fields.rows, fields.columns):
            if row.problem is None:
                values = {**row.values, "@file": name, "@row": number}
                problem = None
                if fields.join is not None and partners is not None:
                    values, problem = _joined(values, fields.join, partners)
                row = TableRow(row.file, row.place, values, problem)
            number += 1
            yield row


def read_table(path: Path, rows: str | None = None, columns: Sequence[str] | None = None) -> Iterator[TableRow]:
    """Yields the rows of one file.

    Args:
        path: Its ending says what it is.
        rows: Path to the rows inside a JSON document.
        columns: Names of the columns of a txt, which has none of its own.

    Raises:
        ValueError: The file is no table.
    """
    ending = path.suffix.lower()
    if ending == ".parquet":
        return _parquet(path)
    if ending == ".jsonl":
        return _lines(path)
    if ending == ".json":
        return _document(path, rows)
    if ending in (".tsv", ".csv"):
        return _separated(path, "\t" if ending == ".tsv" else ",")
    if ending == ".txt":
        if columns is None:
            raise ValueError(f"{path} has no first line of names; give `fields.columns`")
        return _plain(path, list(columns))
    raise ValueError(f"{path} does not end in .json, .jsonl, .parquet, .tsv, .csv or .txt; rename or convert it")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it") from error


def _lines(path: Path) -> Iterator[TableRow]:
    with path.open(encoding="utf-8-sig") as stream:
        try:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield _parsed(path, f"line {number}", line)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 ({error.reason}); convert it") from error


def _parsed(path: Path, place: str, line: str) -> TableRow:
    try:
        return _mapped(path, place, json.loads(line))
    except json.JSONDecodeError as error:
        return TableRow(path, place, problem=f"not JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:
        return TableRow(path, place, problem=f"not read as JSON ({error})")


def _mapped(path: Path, place: str, value: Any, key: str | None = None) -> TableRow:
    if not isinstance(value, dict):
        return TableRow(path, place, problem=f"expected an object, got {type(value).__name__}")
    return TableRow(path, place, value if key is None else {**value, "@key": key})


def _document(path: Path, rows: str | None) -> Iterator[TableRow]:
    """Yields the rows of a JSON document; POPE's are lines of JSON by that name, so those are taken as well."""
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and rows is None:
            yield from _lines(path)
            return
        raise ValueError(f"{path} is not JSON ({error.msg} in line {error.lineno}); get it anew") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not read as JSON ({error}); get it anew") from error
    if rows is not None:
        there = content if isinstance(content, dict) else {}
        content = look_up(there, rows)
        if content is MISSING:
            raise ValueError(f"{path}: fields.rows: {missing(rows, there)}")
    if isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values()):
        for number, (key, value) in enumerate(content.items()):
            yield _mapped(path, f"row {number}", value, key)
        return
    for number, value in enumerate(content if isinstance(content, list) else [content]):
        yield _mapped(path, f"row {number}", value)


def _parquet(path: Path) -> Iterator[TableRow]:
    # Loaded with the first parquet file: most runs have none.
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path, buffer_size=PARQUET_BUFFER, pre_buffer=False) as file:
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for values in batch.to_pylist():
                    yield TableRow(path, f"row {number}", values)
                    number += 1
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as parquet ({error}); get it anew") from error


def _separated(path: Path, mark: str) -> Iterator[TableRow]:
    """Yields the rows below a line of names; cells may be quoted and then hold line ends."""
    # A cell with a picture is longer than the 131,072 letters that csv takes unasked.
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=mark)
        names: list[str] | None = None
        while True:
            place = f"line {reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except (csv.Error, UnicodeDecodeError) as error:
                raise ValueError(f"{path} {place}: cannot be read ({error}); get it anew") from error
            if cells is None:
                return
            if not cells:
                continue
            if names is None:
                names = cells
            elif len(cells) != len(names):
                problem = f"{len(cells)} cells, but the first line names {len(names)} columns; mend the line"
                yield TableRow(path, place, problem=problem)
            else:
                yield TableRow(path, place, dict(zip(names, cells, strict=True)))


def _plain(path: Path, columns: list[str]) -> Iterator[TableRow]:
    """Yields lines with tabs between cells, in which quotes mean nothing."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        cells, place = line.rstrip("\r").split("\t"), f"line {number}"
        if len(cells) == len(columns):
            yield TableRow(path, place, dict(zip(columns, cells, strict=True)))
        else:
            yield TableRow(path, place, problem=f"{len(cells)} cells between tabs, expected {', '.join(columns)}")


def _partners(join: JoinSpec) -> dict[str, Mapping[str, Any]]:
    """Returns the rows of the second table by what they are found by."""
    path = join.to or join.by
    found: dict[str, Mapping[str, Any]] = {}
    for _, file in files_of(join.file):
        for row in read_table(file, join.rows):
            key = look_up(row.values, path)
            if row.problem is not None or key is MISSING:
                raise ValueError(f"{file} {row.place}: {row.problem or missing(path, row.values)}")
            found[as_text(key)] = row.values
    return found


def _joined(
    values: dict[str, Any], join: JoinSpec, partners: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], str | None]:
    """Returns the row with its partner's columns, where both have one its own; and what is wrong."""
    key = look_up(values, join.by)
    if key is MISSING:
        return values, missing(join.by, values)
    partner = partners.get(as_text(key))
    if partner is None:
        return values, f"no row of {join.file} has {join.to or join.by} {key!r}; get both files of one release"
    return {**partner, **values}, None
