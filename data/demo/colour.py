"""The main colour of a drawing, from its pixels: eleven basic names, given only when one covers more than half."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
OPAQUE = 128
MORE_THAN_HALF = 0.5


def name_pixels(rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Returns the index into COLOURS of each pixel of an (N, 3) array."""
    value = rgb.astype(np.float64) / 255
    high, low = value.max(axis=1), value.min(axis=1)
    spread = high - low
    saturation = np.where(high > 0, spread / np.maximum(high, 1e-9), 0)
    red, green, blue = value.T
    step = np.maximum(spread, 1e-9)
    hue = np.select(
        [high == red, high == green], [((green - blue) / step) % 6, (blue - red) / step + 2], (red - green) / step + 4
    )
    hue = hue * 60
    warm = (hue < 15) | (hue >= 345)
    # The first rule that holds decides; the borders follow the basic colour terms, so brown is dark orange.
    rules = [
        ("black", high < 0.25),
        ("white", (saturation < 0.13) & (high > 0.85)),
        ("gray", saturation < 0.17),
        ("pink", warm & (saturation < 0.55) & (high > 0.75)),
        ("brown", warm & (high < 0.55)),
        ("red", warm),
        ("brown", (hue < 45) & ((high < 0.7) | ((saturation < 0.5) & (high < 0.88)))),
        ("brown", (hue < 65) & (high < 0.5)),
        ("orange", hue < 40),
        ("yellow", hue < 68),
        ("green", hue < 168),
        ("blue", hue < 255),
        ("purple", hue < 292),
        ("purple", high < 0.6),
        ("pink", hue < 345),
    ]
    return np.select([rule for _, rule in rules], [COLOURS.index(name) for name, _ in rules])


def main_colour(picture: Image.Image) -> str | None:
    """Returns the colour of more than half of an RGBA drawing's opaque pixels, or None when there is none."""
    pixels = np.asarray(picture.convert("RGBA")).reshape(-1, 4)
    drawn = pixels[pixels[:, 3] >= OPAQUE, :3]
    if len(drawn) == 0:
        return None
    count = np.bincount(name_pixels(drawn), minlength=len(COLOURS))
    best = int(count.argmax())
    return COLOURS[best] if count[best] > MORE_THAN_HALF * len(drawn) else None
