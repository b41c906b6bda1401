"""How many weights an ONNX file declares and which files beside it hold them, read without any of the weights.

An ONNX file is a protobuf message: model.graph (field 7) has initialisers (5), each with its dimensions (1) and, where
its values are in another file, pairs of strings (13) of which `location` names that file. All else is stepped over.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GRAPH, INITIALISER, DIMENSION, EXTERNAL, KEY, VALUE = 7, 5, 1, 13, 1, 2
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
Buffer = mmap.mmap | bytes
Span = tuple[int, int]


@dataclass(frozen=True)
class OnnxWeights:
    """The initialisers of a network."""

    count: int
    """Numbers in them."""
    files: tuple[Path, ...]
    """The ONNX file and those beside it that hold values."""


def onnx_weights(path: Path) -> OnnxWeights:
    """Returns what an ONNX file says of its weights.

    Raises:
        ValueError: It is no ONNX file.
    """
    count, beside = 0, set[str]()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for graph in _messages(data, (0, len(data)), GRAPH):
                for tensor in _messages(data, graph, INITIALISER):
                    count += math.prod(_numbers(data, tensor, DIMENSION))
                    beside |= {_text(data, pair, VALUE) for pair in _messages(data, tensor, EXTERNAL)
                               if _text(data, pair, KEY) == "location"}  # fmt: skip
    except (IndexError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no ONNX file ({error})") from error
    return OnnxWeights(count, (path, *(path.parent / name for name in sorted(beside))))


def _fields(data: Buffer, span: Span) -> Iterator[tuple[int, int, int, Span]]:
    """Yields number, wire type, value (of a varint) and span (of all else) of a message's fields."""
    at, end = span
    while at < end:
        tag, at = _varint(data, at)
        wire, value, start = tag & 7, 0, at
        if wire == VARINT:
            value, at = _varint(data, at)
        elif wire == BYTES:
            length, start = _varint(data, at)
            at = start + length
        elif wire in (EIGHT_BYTES, FOUR_BYTES):
            at += 8 if wire == EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at > end:
            raise ValueError(f"a field ends at byte {at}, its message at {end}")
        yield tag >> 3, wire, value, (start, at)


def _varint(data: Buffer, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _messages(data: Buffer, span: Span, number: int) -> Iterator[Span]:
    return (inner for found, wire, _, inner in _fields(data, span) if (found, wire) == (number, BYTES))


def _numbers(data: Buffer, span: Span, number: int) -> Iterator[int]:
    """Yields a repeated integer, whether packed or one by one."""
    for found, wire, value, (at, end) in _fields(data, span):
        if found != number:
            continue
        if wire == VARINT:
            yield value
        while wire == BYTES and at < end:
            value, at = _varint(data, at)
            yield value


def _text(data: Buffer, span: Span, number: int) -> str:
    return "".join(bytes(data[at:end]).decode() for at, end in _messages(data, span, number))
