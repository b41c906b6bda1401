"""The kinds of media: the one place that knows the marks, files and shard members of each.

An item is one file, or a video given as a list of frame pictures. In a shard an image is the member `{n}.{ext}`, other
items are `{n}.{kind}.{ext}`, a frame is `{n}.video.{frame:03d}.{ext}`. In tars of others a bare sound file is audio.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mmmoe.config.ids import MEDIA_IDS, MEDIA_MARKS

Item = bytes | tuple[bytes, ...]
"""One encoded file, or the encoded frames of a video."""

IMAGE_ENDINGS = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"})
SOUND_ENDINGS = frozenset({"wav", "flac", "ogg", "opus", "mp3", "m4a"})
VIDEO_ENDINGS = frozenset({"mp4", "m4v", "mov", "webm", "mkv", "avi"})


@dataclass(frozen=True)
class Kind:
    """What sets one kind of media apart from the others."""

    name: str
    plural: str
    endings: frozenset[str]
    """Of its files."""
    is_chunked: bool = False
    """A long item is cut into chunks, each with a placeholder of its own."""

    @property
    def mark(self) -> str:
        """What stands in the text."""
        return MEDIA_MARKS[self.name]

    @property
    def id(self) -> int:
        """What stands in the ids."""
        return MEDIA_IDS[self.name]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("image", "images", IMAGE_ENDINGS),
        Kind("video", "videos", VIDEO_ENDINGS),
        Kind("speech", "speech files", SOUND_ENDINGS, is_chunked=True),
        Kind("audio", "audio files", SOUND_ENDINGS, is_chunked=True),
    )
}
"""All kinds by name, in the order they are told in."""
MARKED = re.compile("(" + "|".join(re.escape(kind.mark) for kind in KINDS.values()) + ")")
"""Splits a text into stretches and marks."""
ID_OF_MARK = {kind.mark: kind.id for kind in KINDS.values()}


def kind_of(view: str) -> str:
    """Returns the kind whose items a view shows.

    A model may look at one image through several towers. What each of them takes is a view of the kind: `image` is
    what its first tower takes, `image.sam` what another one does, and further tensors that go with each image are
    named likewise.
    """
    return view.partition(".")[0]


def member_name(kind: str, number: int, ending: str, frame: int | None = None) -> str:
    """Returns the ending under which a file of a sample lies in a shard."""
    if kind == "image":
        return f"{number}.{ending}"
    return f"{number}.{kind}.{ending}" if frame is None else f"{number}.{kind}.{frame:03d}.{ending}"


def media_members(endings: Iterable[str]) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Returns the members of each kind's items in reading order: by the number in front, then by name.

    An item has one member, a video of frames as many as it has frames. Members that are no media are left out, kinds
    without items as well.
    """
    found: dict[str, dict[tuple[int, str], list[tuple[int, str]]]] = {}
    for ending in endings:
        place = _place(ending)
        if place is not None:
            kind, item, frame = place
            found.setdefault(kind, {}).setdefault(item, []).append((frame, ending))
    return {
        kind: tuple(tuple(name for _, name in sorted(items[item])) for item in sorted(items))
        for kind in KINDS
        if (items := found.get(kind))
    }


def count_marks(texts: Iterable[str]) -> Counter[str]:
    """Returns how often each kind's mark occurs."""
    marks = Counter(part for text in texts for part in MARKED.findall(text))
    return Counter({kind.name: marks[kind.mark] for kind in KINDS.values() if marks[kind.mark]})


def compare_marks(texts: Iterable[str], counts: Mapping[str, int]) -> None:
    """Checks that a dialogue has as many marks of each kind as items.

    Raises:
        ValueError: They differ.
    """
    marks = count_marks(texts)
    for kind in KINDS.values():
        if marks[kind.name] != counts.get(kind.name, 0):
            raise ValueError(
                f"{marks[kind.name]} {kind.mark} in the text, but {counts.get(kind.name, 0)} {kind.plural}; "
                "make them match"
            )


def in_words(counts: Mapping[str, int]) -> str:
    """Returns counts by kind for a person: `20 images, 3 videos`."""
    return (
        ", ".join(f"{counts[name]:,} {kind.plural}" for name, kind in KINDS.items() if counts.get(name)) or "no media"
    )


def _place(ending: str) -> tuple[str, tuple[int, str], int] | None:
    """Returns (kind, what orders the item, number of the frame) of a member, or None where it is no media."""
    *front, suffix = ending.split(".")
    suffix = suffix.lower()
    number = int(front[0]) if front and front[0].isdigit() else 0
    named = next((part for part in front[:2] if part in KINDS), None)
    if named is not None:
        if suffix in KINDS[named].endings:
            return named, (number, ending), 0
        is_frame = named == "video" and suffix in IMAGE_ENDINGS and front[-1] != named and front[-1].isdigit()
        return (named, (number, ""), int(front[-1])) if is_frame else None
    for kind in ("image", "video", "audio"):
        if suffix in KINDS[kind].endings:
            return kind, (number, ending), 0
    return None
