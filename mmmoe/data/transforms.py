"""Encoded images become the tower's square input; hostile and broken files become clear errors."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmmoe.data.media import Item

MAX_PIXELS = 64 * 10**6
"""Largest width times height that is decoded: 192 MB of RGB. A small file can claim far more."""
Fit = Literal["pad", "stretch", "crop"]
BROKEN = (
    OSError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    SyntaxError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on damaged files, besides ValueError."""


class ImageTransform:
    """One image to a normalised float32 tensor (C, H, W) of a fixed square size.

    `pad` is LLaVA-1.5's: the picture keeps its shape on a square of the background colour. `stretch` ignores the
    shape. `crop` is CLIP's: the short side fits, the middle is kept. Resizing is bicubic.
    """

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        fit: Fit = "pad",
        background: tuple[int, int, int] | None = None,
    ) -> None:
        """Fixes the tower's numbers.

        Args:
            size: Side of the square, in pixels.
            mean: Subtracted from each colour, after scaling to [0, 1].
            std: Divides each colour.
            fit: How a picture that is not square becomes one.
            background: Colour around a padded picture, 0 to 255; by default the mean, which normalises to about 0.

        Raises:
            ValueError: `fit` is unknown or the size is not positive.
        """
        if fit not in get_args(Fit) or size < 1:
            raise ValueError(f"fit {fit!r} and size {size}: fit is one of {get_args(Fit)}, size at least 1")
        self.size = size
        self.fit = fit
        # A tower's key names its size and colours already.
        self.key = f"fit={fit}"
        self.background = background or (int(mean[0] * 255), int(mean[1] * 255), int(mean[2] * 255))
        self._mean = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(3, 1, 1)

    def __call__(self, image: Item | Image.Image) -> Tensor:
        """Returns the picture as the tower takes it.

        Raises:
            ValueError: It cannot be decoded or is too large, also as the square that it is padded to.
        """
        if isinstance(image, tuple):
            raise ValueError("an image is one file, not a list of frames")
        fitted = self._fit(decode(image))
        pixels_HWC = torch.from_numpy(np.array(fitted))
        return (pixels_HWC.permute(2, 0, 1).float().div_(255) - self._mean) / self._std

    def blank(self) -> Tensor:
        """Returns an even mid-grey picture: what a blind run sees in place of every image."""
        return self(Image.new("RGB", (self.size, self.size), (128, 128, 128)))

    def _fit(self, image: Image.Image) -> Image.Image:
        target = (self.size, self.size)
        width, height = image.size
        if self.fit == "pad" and width != height:
            side = max(width, height)
            if side * side > MAX_PIXELS:
                raise ValueError(
                    f"image of {width} x {height} pixels needs a square of {side} x {side}, which exceeds the limit of "
                    f"{MAX_PIXELS}; shrink or cut it"
                )
            square = Image.new("RGB", (side, side), self.background)
            square.paste(image, ((side - width) // 2, (side - height) // 2))
            image = square
        elif self.fit == "crop" and width != height:
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        return image if image.size == target else image.resize(target, Image.Resampling.BICUBIC)


def decode(image: bytes | Image.Image) -> Image.Image:
    """Returns a picture in RGB, transparency composited on white, of an animation the first frame.

    Raises:
        ValueError: It cannot be decoded or has more pixels than are decoded.
    """
    try:
        opened = Image.open(BytesIO(image)) if isinstance(image, bytes) else image
        width, height = opened.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"image of {width} x {height} pixels exceeds the limit of {MAX_PIXELS}; shrink it")
        if opened.mode == "RGB":
            opened.load()
            return opened
        if opened.mode.startswith("I;16"):
            # Pillow would make white of every shade above 255 of the 65535.
            opened = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8))
        if opened.mode in ("RGBA", "LA", "PA") or "transparency" in opened.info:
            on_top = opened.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", on_top.size, "white"), on_top).convert("RGB")
        return opened.convert("RGB")
    except BROKEN as error:
        raise ValueError(f"image cannot be decoded ({error})") from error
