"""Films and compressed sound through PyAV (FFmpeg), opened so that a hostile file reaches nothing but itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Any

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mp3,aac,ogg,flac,wav"
"""What is opened. Playlists and lists of files, which name other files or addresses, are not among them."""


@contextmanager
def opened(data: bytes, what: str) -> Iterator[Any]:
    """Opens a file in memory; whatever FFmpeg finds wrong inside the block becomes a ValueError.

    Args:
        data: The whole file.
        what: Names it in messages.
    """
    import av  # loaded with the first film or mp3: most runs have none, and it brings all of FFmpeg

    options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
    try:
        with av.open(BytesIO(data), mode="r", container_options=options, metadata_errors="ignore") as container:
            yield container
    except (av.FFmpegError, EOFError, MemoryError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{what} cannot be decoded ({reason})") from error


def first_of(streams: Any, what: str) -> Any:
    """Returns the first stream of a kind.

    Raises:
        ValueError: There is none, or nothing here reads its form.
    """
    if not streams:
        raise ValueError(f"the file holds no {what}")
    if streams[0].codec_context is None:
        raise ValueError(f"the file's {what} cannot be decoded: their form is unknown; convert them")
    return streams[0]


def jump(container: Any, stream: Any, time: int) -> None:
    """Goes to the last key picture up to a time; a film without an index is left where it is and read on."""
    import av

    with suppress(av.FFmpegError):
        container.seek(time, stream=stream)


def declared_seconds(container: Any, stream: Any) -> float:
    """Returns how long a stream says it is; 0 where it does not say.

    The file's own length counts where it holds nothing else: a film's sound may go on after the last picture.
    """
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    is_alone = len(container.streams) == 1 and container.duration is not None
    return container.duration / 1_000_000 if is_alone else 0.0
