"""Pictures become a film file: H.264 where this PyAV can write it, MPEG-4 otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CODECS = {"libx264": {"crf": "20", "preset": "fast", "threads": "1"}, "mpeg4": {"qscale": "3", "threads": "1"}}
"""Encoders in the order they are tried, with settings; one thread, so that every machine writes the same bytes."""
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
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes(picture), format="yuv420p")))
        container.mux(stream.encode(None))


def planes(picture: Image.Image) -> NDArray[np.uint8]:
    """Returns a picture as the planes of yuv420p, one under the other.

    By hand, because FFmpeg's own conversion rounds differently with where in memory a picture happens to lie.
    """
    full = np.asarray(picture.convert("YCbCr"), dtype=np.float64)
    height, width = full.shape[:2]
    light = 16 + full[..., 0] * 219 / 255
    colour = full[..., 1:].reshape(height // 2, 2, width // 2, 2, 2).mean(axis=(1, 3))
    colour = 128 + (colour - 128) * 224 / 255
    flat = np.concatenate([light.ravel(), colour[..., 0].ravel(), colour[..., 1].ravel()])
    return np.round(flat).astype(np.uint8).reshape(height * 3 // 2, width)
