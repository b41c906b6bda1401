"""A film becomes a few pictures at even places over its whole length."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmmoe.data import transforms
from mmmoe.data.container import declared_seconds, first_of, jump, opened
from mmmoe.data.media import Item
from mmmoe.data.sound import MAX_SECONDS
from mmmoe.data.transforms import ImageTransform

MAX_PICTURES = 2_000_000
"""Most pictures of a film: four hours at 120 a second."""
MAX_DECODED = 2 * 10**10
"""Most pixels decoded to get at the pictures that are wanted: ten thousand of 1080p, some tens of seconds.

Counted in pixels rather than on a clock, so that every machine and every resume set the same films aside.
"""


class VideoTransform:
    """One film to float32 (F, C, H, W): F pictures from the first to the last, each as the tower takes images."""

    def __init__(self, image: ImageTransform, frames: int = 8) -> None:
        """Fixes the number of pictures (Uni-MoE takes 8).

        Raises:
            ValueError: There are none.
        """
        if frames < 1:
            raise ValueError(f"frames {frames}: a video needs at least one picture; set frames to 1 or more")
        self.image = image
        self.frames = frames

    @property
    def key(self) -> str:
        """Names what features depend on besides the tower."""
        return f"frames={self.frames} {self.image.key}"

    def __call__(self, item: Item) -> Tensor:
        """Returns the pictures of a film, or of a list of frames that has more or fewer than F.

        Raises:
            ValueError: It cannot be decoded, is cut off or exceeds a limit.
        """
        if isinstance(item, bytes):
            chosen: Sequence[bytes | Image.Image] = decode_video(item, self.frames)
        else:
            chosen = [item[place] for place in even_places(len(item), self.frames)]
        return torch.stack([self.image(picture) for picture in chosen])

    def blank(self) -> Tensor:
        """Returns even mid-grey pictures: what a blind run sees in place of every film."""
        return self.image.blank().expand(self.frames, -1, -1, -1).clone()


def even_places(count: int, wanted: int) -> list[int]:
    """Returns `wanted` places in a list of `count`, first and last among them; some repeat where it is too short.

    One place is the middle.
    """
    if wanted == 1:
        return [(count - 1) // 2]
    return [round(place * (count - 1) / (wanted - 1)) for place in range(wanted)]


def decode_video(data: bytes, frames: int) -> list[Image.Image]:
    """Returns `frames` pictures (RGB) at even places of a film.

    Raises:
        ValueError: It cannot be decoded, is cut off or exceeds a limit.
    """
    with opened(data, "video") as container:
        stream = _film_stream(container)
        times, keys = _timetable(container, stream)
    wanted = [times[place] for place in even_places(len(times), frames)]
    with opened(data, "video") as container:  # anew, since not every film can be wound back
        pictures = dict(_pictures(container, _film_stream(container), sorted(set(wanted)), keys))
    missing = [time for time in wanted if time not in pictures]
    if missing:
        raise ValueError(f"video is damaged: {len(missing)} of {frames} pictures cannot be decoded; copy it again")
    return [pictures[time] for time in wanted]


def probe_video(path: Path) -> float:
    """Returns a film's length in seconds as its header tells it; no picture is decoded.

    Raises:
        ValueError: It is no film, or exceeds a limit.
    """
    with opened(path.read_bytes(), "video") as container:
        return declared_seconds(container, _film_stream(container))


def _film_stream(container: Any) -> Any:
    stream = first_of(container.streams.video, "pictures")
    width, height = stream.width, stream.height
    if not 0 < width * height <= transforms.MAX_PIXELS:
        raise ValueError(f"video of {width} x {height} pixels; up to {transforms.MAX_PIXELS} are decoded; shrink it")
    if (seconds := declared_seconds(container, stream)) > MAX_SECONDS:
        raise ValueError(f"video claims to last {seconds:.0f} s, more than the limit of {MAX_SECONDS:.0f}; cut it up")
    return stream


def _timetable(container: Any, stream: Any) -> tuple[list[int], list[int]]:
    """Returns when each picture is shown, and when those that can be jumped to are; packets are read, not decoded."""
    times: list[int] = []
    keys: list[int] = []
    for packet in container.demux(stream):
        time = packet.pts if packet.pts is not None else packet.dts
        if packet.size and time is not None and not packet.is_discard:
            times.append(time)
            if packet.is_keyframe:
                keys.append(time)
        if len(times) > MAX_PICTURES:
            raise ValueError(f"video has more than {MAX_PICTURES} pictures; cut it up")
    if not times:
        raise ValueError("video has no pictures; replace the file or drop the row")
    if stream.frames and len(times) < 0.95 * stream.frames - 1:
        raise ValueError(
            f"video is cut off: it declares {stream.frames} pictures and holds {len(times)}; copy it again"
        )
    held, declared = float(max(times) * stream.time_base), declared_seconds(container, stream)
    if held < 0.9 * declared - 1:
        raise ValueError(f"video is cut off: it declares {declared:.1f} s and holds {held:.1f}; copy it again")
    return sorted(times), sorted(keys)


def _pictures(container: Any, stream: Any, wanted: list[int], keys: list[int]) -> Iterator[tuple[int, Image.Image]]:
    """Yields (time, picture) for each wanted time, jumping over what lies between where that is possible."""
    budget = MAX_DECODED
    last: Any = None
    place = 0
    while place < len(wanted):
        jumped = False
        for frame in container.decode(stream):
            budget -= frame.width * frame.height
            if frame.width * frame.height > transforms.MAX_PIXELS or budget < 0:
                raise ValueError(f"video takes more than {MAX_DECODED:,} pixels to decode; shorten it or shrink it")
            last, here = frame, frame.pts if frame.pts is not None else frame.dts
            if here is None or here < wanted[place]:
                continue
            yield wanted[place], frame.to_image()
            place += 1
            if place == len(wanted):
                return
            before = bisect_right(keys, wanted[place])
            if before and keys[before - 1] > here:
                jump(container, stream, keys[before - 1])
                jumped = True
                break
        if not jumped:
            if place == len(wanted) - 1 and last is not None:
                yield wanted[place], last.to_image()  # films may end in a packet that is never shown
            return
