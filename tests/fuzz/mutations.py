"""Damage done to bytes and to JSON: what disks, copies, editors and attackers do to files that were sound."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 2**31, 2**63, 2**200, 1.5, float("nan"), float("inf"), "", "x", "\0", "\ud800", "../../x",
    "/etc/passwd", "a" * 5000, [], {}, [[]], [None], {"": {}}, ["<image>"] * 3, [1, 2], [-1, 5], [2**62, 2**62],
]  # fmt: skip


def damaged(sound: bytes, pieces: tuple[bytes, ...] = ()) -> st.SearchStrategy[bytes]:
    """Draws the bytes with one to four places flipped, cut out, filled in, doubled, or overwritten by a piece."""
    place = st.integers(0, len(sound))
    filling = st.one_of(st.binary(max_size=12), *([st.sampled_from(pieces)] if pieces else []))
    kinds = st.sampled_from(["flip", "cut", "end", "insert", "write", "double", "append", "zero"])
    return st.lists(st.tuples(kinds, place, st.integers(1, 600), filling), min_size=1, max_size=4).map(
        lambda wounds: _wounded(sound, wounds)
    )


def _wounded(sound: bytes, wounds: list[tuple[str, int, int, bytes]]) -> bytes:
    data = bytearray(sound)
    for kind, at, width, filling in wounds:
        at = min(at, len(data))
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << (width % 8)
        elif kind == "cut":
            del data[at : at + width]
        elif kind == "end":
            del data[at:]
        elif kind == "insert":
            data[at:at] = filling
        elif kind == "write":
            data[at : at + len(filling)] = filling
        elif kind == "double":
            data[at:at] = data[at : at + width]
        elif kind == "append":
            data += filling * (width % 5 + 1)
        elif kind == "zero":
            data[at : at + width] = bytes(len(data[at : at + width]))
    return bytes(data)


def odd_json(sound: Any) -> st.SearchStrategy[Any]:
    """Draws a JSON value with one to three of its parts replaced by odd ones, taken out, renamed or nested."""
    routes = list(_routes(sound, ()))
    wound = st.tuples(
        st.sampled_from(routes), st.sampled_from(["put", "drop", "rename", "nest", "move"]), st.sampled_from(ODD_VALUES)
    )
    return st.lists(wound, min_size=1, max_size=3).map(lambda wounds: _odd(sound, wounds))


def _odd(sound: Any, wounds: list[tuple[tuple[Any, ...], str, Any]]) -> Any:
    holder = [copy.deepcopy(sound)]
    for route, kind, value in wounds:
        here: Any = holder
        *front, last = (0, *route)
        try:
            for key in front:
                here = here[key]
            if kind == "put":
                here[last] = copy.deepcopy(value)
            elif kind == "drop":
                del here[last]
            elif kind == "rename":
                here[str(value)[:50]] = here.pop(last)
            elif kind == "move":
                here[last] = copy.deepcopy(holder[0])
            else:
                for _ in range(30):
                    here[last] = [here[last]]
        except (KeyError, IndexError, TypeError, AttributeError):
            continue  # an earlier wound took it
    return holder[0] if holder else None


def _routes(value: Any, route: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [route, *(inner for key, part in items for inner in _routes(part, (*route, key)))]
