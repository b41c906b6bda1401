"""Sound at another sample rate: a windowed sinc, evaluated phase by phase, so that any pair of rates is exact."""

from __future__ import annotations

from math import gcd

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

CROSSINGS = 32
"""Zero crossings of the sinc at each side."""
KEPT = 0.93
"""Share of the band that passes; the rest is where the filter falls off."""
WINDOW = (0.35875, 0.48829, 0.14128, 0.01168)
"""Blackman and Harris's four terms: what would be folded back is damped by 90 dB, and cosines are cheap."""

Samples = NDArray[np.float32]


def resample(samples: Samples, rate: int, target: int) -> Samples:
    """Returns the sound at `target` samples a second, as long as before, band-limited to the lower of both rates.

    With rates in the proportion down : up, output j lies at input j * down / up; outputs j, j + up, ... share one set
    of weights and step over whole input samples.
    """
    common = gcd(rate, target)
    down, up = rate // common, target // common
    if down == up or not len(samples):
        return samples
    cutoff = KEPT * min(1.0, up / down)
    half = int(np.ceil(CROSSINGS / cutoff))
    count = -(-len(samples) * up // down)
    padded = np.pad(samples, (half, half + down + 1))
    out = np.empty(count, dtype=np.float32)
    step = padded.strides[0]
    around = np.arange(-half, half + 1, dtype=np.float64)
    for phase in range(min(up, count)):
        first, rest = divmod(phase * down, up)
        offset = around - rest / up
        angle = np.pi * np.clip(offset / half, -1, 1)
        window = sum(term * np.cos(number * angle) for number, term in enumerate(WINDOW))
        weights = (cutoff * np.sinc(cutoff * offset) * window).astype(np.float32)
        rows = len(range(phase, count, up))
        out[phase::up] = as_strided(padded[first:], (rows, 2 * half + 1), (down * step, step)) @ weights
    return out
