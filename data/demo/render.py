"""Draws planned pictures on every core and writes them as PNG files."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from demo.colour import main_colour
from demo.emoji import SIZE, EmojiPicture, open_album, rasterise
from preparation.workers import cores

Picture = TypeVar("Picture")


def draw_one(root: Path, picture: Picture) -> Picture:
    """Writes one picture and returns it, an emoji with its main colour filled in."""
    target = root / picture.path  # type: ignore[attr-defined]  # every planned picture has a path and draws itself
    picture.draw().save(target, compress_level=6)  # type: ignore[attr-defined]
    if isinstance(picture, EmojiPicture):
        return dataclasses.replace(picture, colour=main_colour(rasterise(picture.artist, picture.code, SIZE - 8)))
    return picture


def draw_all(pictures: Sequence[Picture], root: Path, packages: Path, advance: Callable[[int], None]) -> list[Picture]:
    """Draws every picture under `root`; the same plan gives the same bytes whatever the number of cores."""
    for folder in {(root / picture.path).parent for picture in pictures}:  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with multiprocessing.Pool(cores(), open_album, (packages,)) as pool:
        for picture in pool.imap(functools.partial(draw_one, root), pictures, chunksize=16):
            drawn.append(picture)
            advance(1)
    return drawn
