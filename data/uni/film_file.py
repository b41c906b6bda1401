"""Pictures become a film file: H.264 where this PyAV can write it, MPEG-4 otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CODECS = {"libx264": {"crf": "20", "preset": "fast", "threads": "1"}, "mpeg4": {"qscale": "3", "threads": "1"}}
"""Encoders in the order they are tried, with their settings; one thread, so that every machine writes the same bytes."""
PICTURES_A_SECOND = 8


def codec() -> str:
    """Returns the first encoder that is there.

    Raises:
        ValueError: None is.
    """
    import av

    found = next((name for name in CODECS if name in av.codecs_available), None)
    if found is None:
        raise ValueError(
            f"PyAV {av.__version__} has none of the encoders {', '.join(CODECS)}: install PyPI's wheel of av"
        )
    return found


def write_film(path: Path, frames: Sequence[Image.Image]) -> None:
    """Writes the frames as one MP4 file."""
    import av

    name = codec()
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(name, rate=PICTURES_A_SECOND, options=CODECS[name])
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
