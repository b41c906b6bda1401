"""Rows of LLaVA's JSON, checked whole: dialogues, marks and the files of every kind of media they name."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from mmmoe.data.media import IMAGE_ENDINGS, KINDS, compare_marks, member_name
from mmmoe.data.record import ROUTING_FIELD
from mmmoe.data.sound import probe_sound
from mmmoe.data.transforms import BROKEN
from mmmoe.data.video import probe_video

SHOWN_ERRORS = 20
ROLES = ("human", "gpt")
VOICE = "voice"
"""Uni-MoE's field for sound of either kind, marked `<audio>`."""


MEDIA_FIELDS = (*KINDS, VOICE)


@dataclass(frozen=True)
class MediaFiles:
    """The files of one item."""

    kind: str
    paths: tuple[Path, ...]
    """One, or the frames of a video."""
    is_frames: bool = False


@dataclass(frozen=True)
class Row:
    """A usable row."""

    number: int
    key: str
    content: bytes
    """The json member."""
    items: tuple[MediaFiles, ...]

    def members(self) -> Iterator[tuple[str, Path]]:
        """Yields the member ending and the file of each file of the row."""
        seen = dict.fromkeys(KINDS, 0)
        for item in self.items:
            for frame, path in enumerate(item.paths):
                ending = path.suffix[1:].lower()
                yield member_name(item.kind, seen[item.kind], ending, frame if item.is_frames else None), path
            seen[item.kind] += 1


def read_rows(json_path: Path, folder: Path, domain: str, voice: str) -> list[Row]:
    """Returns the rows.

    Args:
        json_path: A list of rows.
        folder: What the paths are relative to.
        domain: Tag that each row gets.
        voice: The kind that the field `voice` means; for speech its `<audio>` marks become `<speech>`.

    Raises:
        ValueError: There is something wrong; everything is told at once.
    """
    try:
        raw = json.loads(json_path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{json_path} does not exist; give LLaVA's JSON file") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{json_path} is not JSON ({error}); lines of JSON (JSONL) go into one list first") from error
    if not isinstance(raw, list) or not raw:
        raise ValueError(f"{json_path} must be a JSON list with at least one row, as LLaVA's files are")
    rows: list[Row] = []
    errors: list[str] = []
    for number, row in enumerate(raw):
        try:
            rows.append(_read_row(number, row, folder, domain, voice))
        except ValueError as error:
            errors.append(f"row {number}: {error}")
    raise_all(json_path, errors)
    return rows


def _near_media(field: str) -> list[str]:
    """Returns the media field that a name nearly is: one letter more, less or other."""
    return difflib.get_close_matches(field, MEDIA_FIELDS, n=1, cutoff=0.8)


def raise_all(json_path: Path, errors: list[str]) -> None:
    """Raises one error that tells of all rows, if there are any."""
    if errors:
        shown = "\n  ".join(errors[:SHOWN_ERRORS])
        more = f"\n  and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise ValueError(f"{json_path} has {len(errors)} unusable rows:\n  {shown}{more}")


def unreadable(row: Row) -> Iterator[str]:
    """Yields what is wrong with a row's files; headers alone are read, of images the whole file."""
    for item in row.items:
        for path in item.paths:
            try:
                if item.kind == "image" or item.is_frames:
                    _verify_image(path)
                elif item.kind == "video":
                    probe_video(path)
                else:
                    probe_sound(path)
            except (ValueError, OSError) as error:
                yield f"{item.kind} {path} cannot be read ({error}); replace it or drop the row"


def _read_row(number: int, row: Any, folder: Path, domain: str, voice: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"is {type(row).__name__}, make it an object with id and conversations")
    if "conversations" not in row:
        raise ValueError(f"has no conversations (fields: {sorted(row)}); add a list of from and value")
    turns = row["conversations"]
    if not isinstance(turns, list) or len(turns) < 2:
        raise ValueError("conversations needs at least a human and a gpt turn; add them or drop the row")
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or turn.get("from") not in ROLES:
            raise ValueError(f"turn {turn!r:.80} needs from ({' or '.join(ROLES)}) and value (text)")
    spoken = [turn["from"] for turn in turns]
    if any(a == b for a, b in pairwise(spoken)) or "gpt" not in spoken[1:]:
        raise ValueError(f"turns are from {', '.join(spoken)}; let human and gpt take turns, and gpt answer")
    misspelt = [(field, near[0]) for field in row if field not in MEDIA_FIELDS and (near := _near_media(field))]
    if misspelt:
        raise ValueError(f"has a field {misspelt[0][0]!r}; did you mean {misspelt[0][1]!r}? Rename it, or drop it")
    if row.get(VOICE) is not None:
        row, turns = _voiced(row, turns, voice)
    items = tuple(item for kind in KINDS for item in _items(row.get(kind), kind, folder))
    counts = {kind: sum(item.kind == kind for item in items) for kind in KINDS}
    compare_marks((turn["value"] for turn in turns), counts)
    identity = str(row.get("id", number))
    content = {"id": identity, "conversations": turns, "domain": domain}
    if row.get(ROUTING_FIELD) is not None:
        content[ROUTING_FIELD] = _bits(row[ROUTING_FIELD])
    return Row(
        number=number,
        # Published ids repeat (one picture, many dialogues) and may hold dots; the row number makes the key unique.
        key=f"{number:08d}-{re.sub(r'[^A-Za-z0-9_-]', '_', identity)[:60]}",
        content=_encoded(content),
        items=items,
    )


def _encoded(content: dict[str, Any]) -> bytes:
    try:
        return json.dumps(content, ensure_ascii=False, sort_keys=True).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds half a character ({error.reason}), which UTF-8 has not; correct the text") from error


def _bits(routing: Any) -> list[int]:
    if not isinstance(routing, list) or not routing or any(bit not in (0, 1) for bit in routing):
        raise ValueError(f"{ROUTING_FIELD} {routing!r:.80} is no list of 0 and 1; give one for each vision expert")
    return [int(bit) for bit in routing]


def _voiced(row: Mapping[str, Any], turns: list[Any], voice: str) -> tuple[dict[str, Any], list[Any]]:
    """Returns the row and its turns with Uni-MoE's `voice` under the kind that it means."""
    for kind in ("speech", "audio"):
        if row.get(kind) is not None:
            raise ValueError(f"has both {VOICE} and {kind}; keep one of them, since both would share the marks")
    if voice == "speech":
        mark, meant = KINDS["audio"].mark, KINDS["speech"].mark
        turns = [{**turn, "value": turn["value"].replace(mark, meant)} for turn in turns]
    return {**row, voice: row[VOICE]}, turns


def _items(named: Any, kind: str, folder: Path) -> Iterator[MediaFiles]:
    """Yields the items of one field: absent, a path, a list of paths; a video may be, or hold, a list of frames."""
    if named is None:
        return
    entries = named if isinstance(named, list) else [named]
    if kind == "video" and isinstance(named, list) and named and all(_is_picture(entry) for entry in named):
        entries = [entries]  # Uni-MoE's form: the field itself lists the frames of the one video
    for entry in entries:
        if kind == "video" and isinstance(entry, list):
            if not entry:
                raise ValueError("video has a list of no frames; name its frame pictures, or drop it")
            yield MediaFiles(kind, tuple(_file(name, "frame", IMAGE_ENDINGS, folder) for name in entry), is_frames=True)
        else:
            yield MediaFiles(kind, (_file(entry, kind, KINDS[kind].endings, folder),))


def _is_picture(entry: Any) -> bool:
    return isinstance(entry, str) and entry.rsplit(".", 1)[-1].lower() in IMAGE_ENDINGS


def _file(name: Any, what: str, endings: frozenset[str], folder: Path) -> Path:
    if not isinstance(name, str):
        raise ValueError(f"{what} {name!r:.80} is not a path; give a path relative to the media folder")
    path = folder / name
    try:
        is_inside, is_file = path.resolve().is_relative_to(folder.resolve()), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, links in a circle
        raise ValueError(f"{what} {name!r:.80} names no file ({error!s:.80}); correct the path") from error
    if not is_inside:
        raise ValueError(f"{what} {name!r} lies outside the media folder {folder}; move it inside")
    if path.suffix[1:].lower() not in endings:
        raise ValueError(f"{what} {name!r} does not end in one of {', '.join(sorted(endings))}; convert or rename it")
    if not is_file:
        raise ValueError(f"{what} {path} does not exist; correct the path or the media folder")
    return path


def _verify_image(path: Path) -> None:
    try:
        with Image.open(path) as image:
            image.verify()
    except BROKEN as error:
        raise ValueError(str(error)) from error
