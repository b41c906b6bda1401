"""Images that a model learns to draw, as its decoder takes them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmmoe.data.media import Item
from mmmoe.data.transforms import decode


class CanvasTransform:
    """One image to float32 (3, height, width) in -1..1, resized without regard to its shape, as TextHarmony does."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.key = f"canvas={height}x{width}"

    def __call__(self, item: Item | Image.Image) -> Tensor:
        """Returns the image as the decoder takes it.

        Raises:
            ValueError: The item cannot be decoded; the text says why.
        """
        if isinstance(item, tuple):
            raise ValueError("an image is one file, not a list of frames")
        image = decode(item)
        if image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), Image.Resampling.BICUBIC)
        pixels_HWC = torch.from_numpy(np.asarray(image, dtype=np.float32).copy())
        return pixels_HWC.permute(2, 0, 1).contiguous() / 127.5 - 1.0

    def blank(self) -> Tensor:
        """Returns an even grey."""
        return torch.zeros(3, self.height, self.width)
