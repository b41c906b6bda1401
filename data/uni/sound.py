"""Sound as 16 kHz mono: read, cut to what is heard, changed in pitch, level and noise, written as FLAC.

FLAC and not Ogg: it holds the samples themselves in half of WAV's bytes, and the same samples give the same file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
RATE = 16_000
HEARD, LOUD = 0.05, 0.97
"""Above which share of what is loud there is something to hear; loud is this quantile, so that a click is not."""
MARGIN = 0.05
"""Seconds kept around it."""
STEP = 160
"""Samples over which loudness is measured: ten milliseconds."""
PEAK = 0.7
"""Loudest sample of a levelled recording."""


def read_sound(path: Path) -> Samples:
    """Returns a file's sound at 16 kHz, channels averaged."""
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return resample(samples.mean(axis=1), int(rate), RATE)


def write_sound(path: Path, samples: Samples) -> None:
    """Writes a sound as 16-bit FLAC."""
    import soundfile

    soundfile.write(path, np.clip(samples, -1, 1), RATE, subtype="PCM_16")


def resample(samples: Samples, rate: int, target: int) -> Samples:
    """Returns the sound at another rate, band-limited by cutting its spectrum (whole files are short here)."""
    count = round(len(samples) * target / rate)
    if count == len(samples) or not count:
        return samples
    # A margin of silence, since a spectrum cut in one piece wraps its end around to its beginning.
    margin = rate // 20
    padded = np.pad(samples, (margin, margin))
    total = round(len(padded) * target / rate)
    spectrum = np.fft.rfft(padded)
    kept = np.zeros(total // 2 + 1, dtype=spectrum.dtype)
    shared = min(len(spectrum), len(kept))
    kept[:shared] = spectrum[:shared]
    start = round(margin * target / rate)
    return np.fft.irfft(kept, total)[start : start + count].astype(np.float32) * np.float32(total / len(padded))


def cut_silence(samples: Samples, longest: float) -> Samples:
    """Returns what is heard, levelled, `longest` seconds of it at most; nothing where all is silent."""
    loudness = loudness_of(samples)
    loud = np.flatnonzero(loudness > HEARD * np.quantile(loudness, LOUD)) if len(loudness) else np.zeros(0, int)
    if not len(loud):
        return samples[:0]
    start = max(0, loud[0] * STEP - round(MARGIN * RATE))
    end = min((loud[-1] + 1) * STEP + round(MARGIN * RATE), start + round(longest * RATE))
    return levelled(samples[start:end])


def loudness_of(samples: Samples) -> NDArray[np.float64]:
    """Returns the root mean square of every ten milliseconds."""
    whole = samples[: len(samples) // STEP * STEP].reshape(-1, STEP).astype(np.float64)
    return np.sqrt((whole**2).mean(axis=1))


def levelled(samples: Samples) -> Samples:
    """Returns the sound with its loudest sample at PEAK."""
    loudest = float(np.abs(samples).max(initial=0))
    return samples * np.float32(PEAK / loudest) if loudest else samples


def pitched(samples: Samples, factor: float) -> Samples:
    """Returns the sound higher by a factor, and shorter by the same, as a tape played faster."""
    return resample(samples, round(RATE * factor), RATE)


def noisy(samples: Samples, decibels: float, draw: np.random.Generator) -> Samples:
    """Returns the sound under white noise, so many decibels below the sound."""
    power = float((samples.astype(np.float64) ** 2).mean()) if len(samples) else 0.0
    size = np.sqrt(power / 10 ** (decibels / 10))
    return samples + (size * draw.standard_normal(len(samples))).astype(np.float32)


def softer(samples: Samples, decibels: float) -> Samples:
    """Returns the sound so many decibels softer."""
    return samples * np.float32(10 ** (-decibels / 20))
