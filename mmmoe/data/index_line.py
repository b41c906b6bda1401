"""One line of an index: JSON with a checksum, read back as it was written or not at all."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from mmmoe.data.media import KINDS

CHECK = ', "crc32": '
"""Stands before the checksum, at a line's end."""
FIELDS = frozenset(
    [
        "version",
        "bytes",
        "sha256",
        "count",
        "items",
        "origin",
        "key",
        "members",
        "modalities",
        "sizes",
        "tokens",
        "first",
        "crc32",
        "images",
    ]
)
"""Of headers and samples; `images` was version 1's."""


def signed(fields: Mapping[str, Any], number: int) -> str:
    """Returns line `number`, whose last field is a checksum: damage or a wrong place is seen when it alone is read."""
    plain = json.dumps(fields)
    return f"{plain[:-1]}{CHECK}{zlib.crc32(plain.encode(), number)}}}"


def parse_line(line: bytes, number: int) -> dict[str, Any]:
    """Returns a line's fields, compared with its checksum; lines of before there were any have none.

    Raises:
        ValueError: It is not as it was written.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a line is not JSON: {str(error)[:80]}") from error
    if not isinstance(fields, dict):
        raise ValueError("a line is no JSON object")
    unknown = set(fields) - FIELDS
    if unknown:
        raise ValueError(f"a line has an unknown field {min(unknown):.40}")
    if "crc32" in fields:
        plain, _, told = line.decode().rpartition(CHECK)
        if told.strip() != f"{zlib.crc32(plain.encode() + b'}', number)}}}":
            raise ValueError("a line is not as it was written: its checksum is another")
    return fields


def as_sizes(values: Any) -> tuple[int, ...]:
    """Returns a list of whole numbers that a file can hold.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 2**63 for value in values):
        raise ValueError(f"{values!r:.80} are no sizes")
    return tuple(values)


def as_pair(values: Any) -> tuple[int, int]:
    """Returns two such numbers.

    Raises:
        ValueError: They are none.
    """
    first, second = as_sizes(values)
    return first, second


def as_counts(values: Any) -> dict[str, int]:
    """Returns such numbers by kind of media.

    Raises:
        ValueError: They are none.
    """
    if not isinstance(values, dict) or not set(values) <= set(KINDS):
        raise ValueError(f"{values!r:.80} are no counts by kind of media")
    return dict(zip(values, as_sizes(list(values.values())), strict=True))


def as_text(value: Any) -> str:
    """Returns a text.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.80} is no text")
    return value
