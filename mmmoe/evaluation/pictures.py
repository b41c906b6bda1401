"""Pictures, sounds and films that a table holds itself: each content is written once, to a file named by its digest."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from mmmoe.data.media import KINDS
from mmmoe.data.sound import probe_sound
from mmmoe.data.transforms import BROKEN, MAX_PIXELS, decode
from mmmoe.data.video import probe_video

TABLE_MEDIA = "table_media"
"""Of the cache, where they lie."""
ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "WEBP": "webp", "TIFF": "tif"}
"""By Pillow's name of a format the ending of its files."""
SIGNATURES = (
    (0, b"fLaC", "flac"), (0, b"OggS", "ogg"), (0, b"ID3", "mp3"), (0, b"\xff\xfb", "mp3"), (0, b"\xff\xf3", "mp3"),
    (8, b"WAVE", "wav"), (8, b"AVI ", "avi"), (4, b"ftypM4A", "m4a"), (4, b"ftyp", "mp4"),
    (0, b"\x1a\x45\xdf\xa3", "mkv"),
)  # fmt: skip
"""What stands where in a sound or a film, and the ending of such files."""
DATA_URI = re.compile(r"data:[^,;]*(?:;[^,;]*)*;base64,", re.IGNORECASE)
ADDRESS = re.compile(r"https?://", re.IGNORECASE)
REFERENCE = 64
"""A text as short as this is no picture but may be the id of an earlier row that has it, as in MMBench's files."""


class PictureStore:
    """Files under a cache folder, by content; several processes may write the same one."""

    def __init__(self, cache: Path | None) -> None:
        """Takes the run's cache; None where there is none, which tables without pictures inside do not need."""
        self._folder = None if cache is None else cache / TABLE_MEDIA

    def keep(self, data: bytes, kind: str) -> Path:
        """Returns the file that has this content.

        Raises:
            ValueError: It cannot be decoded as an item of that kind, or there is no cache.
        """
        if self._folder is None:
            raise ValueError("the table holds its own pictures, but no cache was given to write them to")
        digest = hashlib.sha256(data).hexdigest()
        folder = self._folder / digest[:2]
        known = next(iter(folder.glob(f"{digest}.*")), None) if folder.is_dir() else None
        if known is not None:
            return known
        path = folder / f"{digest}.{_image_ending(data) if kind == 'image' else _ending(data, kind)}"
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{digest}.{os.getpid()}.partial"
        try:
            partial.write_bytes(data)
            if kind != "image":
                check_file(partial, kind)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def keep_picture(self, picture: Image.Image) -> Path:
        """Returns the file that has a picture in memory, as PNG."""
        stream = BytesIO()
        # A noisy page of 1,700 x 2,200 takes 0.5 s at level 1 and 2.2 s at the usual 6, for a file an eighth larger.
        picture.convert("RGB").save(stream, "PNG", compress_level=1)
        return self.keep(stream.getvalue(), "image")


def _image_ending(data: bytes) -> str:
    """Returns the ending of a picture's format, after the whole of it was decoded."""
    try:
        with Image.open(BytesIO(data)) as image:
            ending = ENDINGS.get(str(image.format), str(image.format).lower())
    except BROKEN as error:
        raise ValueError(f"image cannot be decoded ({_reason(error)}); replace it or drop the row") from error
    decode(data)
    return ending


def _ending(data: bytes, kind: str) -> str:
    for place, mark, ending in SIGNATURES:
        if data[place : place + len(mark)] == mark and ending in KINDS[kind].endings:
            return ending
    known = ", ".join(sorted(KINDS[kind].endings))
    raise ValueError(f"{kind} of an unknown form ({data[:8]!r}); {known} are read: convert it or drop the row")


def check_file(path: Path, kind: str) -> None:
    """Checks what a file's header says, and of a picture that all of it is there.

    A JPEG is decoded at an eighth of its size, other pictures whole: some milliseconds each.

    Raises:
        ValueError: It cannot be read as an item of that kind, or is too large.
    """
    try:
        if kind == "image":
            with Image.open(path) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise ValueError(f"{width} x {height} pixels exceed the limit of {MAX_PIXELS}")
                image.draft("RGB", (1, 1))
                image.load()
        elif kind == "video":
            probe_video(path)
        else:
            probe_sound(path)
    except (*BROKEN, ValueError) as error:
        raise ValueError(f"{kind} {path.name} cannot be read ({_reason(error)}); replace it or drop the row") from error


def _reason(error: BaseException) -> str:
    # Pillow names the object in memory, which is another one each time.
    return "unknown form" if "cannot identify image file" in str(error) else str(error)


def content(cell: Any) -> bytes | None:
    """Returns the bytes that a cell holds, None where it holds nothing.

    Args:
        cell: Bytes, base64, a data URI, a mapping with `bytes`, or a list of one such.

    Raises:
        ValueError: It holds something else.
    """
    if isinstance(cell, list):
        if len(cell) > 1:
            raise ValueError(f"the cell holds {len(cell)} items, a question has one; choose rows with one by `where`")
        cell = cell[0] if cell else None
    if isinstance(cell, Mapping):
        if cell.get("bytes") is None and cell.get("path"):
            raise ValueError(f"the cell names {cell['path']!r} but does not hold it; give `media` and name its path")
        cell = cell.get("bytes")
    if cell is None or isinstance(cell, bytes):
        return cell
    if isinstance(cell, str):
        return _from_text(cell)
    raise ValueError(f"the cell holds {type(cell).__name__}, expected bytes, base64 or a mapping with bytes")


def _from_text(cell: str) -> bytes | None:
    text = "".join(cell.split())
    if ADDRESS.match(text):
        raise ValueError(f"the cell holds the address {text[:60]!r}, and nothing is fetched; get the file")
    match = DATA_URI.match(text)
    try:
        return base64.b64decode(text[match.end() if match else 0 :], validate=True) or None
    except binascii.Error as error:
        raise ValueError(f"the cell is not base64 ({error}); if it is a file's name, give `media`") from error
