"""Writes planned clips on every core: films as MP4, sound as FLAC."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path

from demo.emoji import open_album
from preparation.workers import cores
from uni.clips import EffectClip, LanguageClip, PromptClip
from uni.film_file import write_film
from uni.films import Film

Clip = Film | LanguageClip | PromptClip | EffectClip


def write_clip(root: Path, clip: Clip) -> None:
    """Writes one clip under `root`."""
    target = root / clip.path
    if isinstance(clip, Film):
        write_film(target, clip.frames())
    else:
        clip.write(target)


def write_clips(clips: Sequence[Clip], root: Path, drawings: Path, advance: Callable[[int], None]) -> None:
    """Writes every clip; the same plan gives the same bytes whatever the number of cores.

    Args:
        clips: What is planned.
        root: What their paths are relative to.
        drawings: The demo's packages, which hold the emoji.
        advance: Told how many more are done.
    """
    for folder in {(root / clip.path).parent for clip in clips}:
        folder.mkdir(parents=True, exist_ok=True)
    with multiprocessing.Pool(cores(), open_album, (drawings,)) as pool:
        for _ in pool.imap_unordered(functools.partial(write_clip, root), clips, chunksize=4):
            advance(1)
