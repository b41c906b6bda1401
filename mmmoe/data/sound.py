"""Encoded sound becomes mono float32 at the rate a tower hears; hostile and broken files become clear errors.

WAV, FLAC and Ogg go through soundfile (libsndfile), all else (mp3, m4a) through PyAV.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from mmmoe.data.container import declared_seconds, first_of, opened
from mmmoe.data.resample import Samples, resample

MAX_SECONDS = 4 * 3600.0
"""Longest sound (or film) that is opened at all."""
RATES = (2_000, 384_000)
"""Lowest and highest sample rate that is believed."""
MAX_CHANNELS = 32
MAX_SAMPLES = 2**28
"""Most samples decoded at once, over all channels: 1 GB."""
SHORT_BY = 0.05
"""Share of the declared length that may be missing (encoders round up); more, and the file was cut off."""


def decode_sound(data: bytes, sample_rate: int, seconds: float = 600.0) -> Samples:
    """Returns the first `seconds` of a sound (what 20 chunks of 30 s hear) as mono samples, channels averaged.

    Raises:
        ValueError: It is empty, cut off, cannot be decoded, or claims a length or rate that is not believed.
    """
    native, rate = _by_soundfile(data, seconds) if _is_sndfile(data) else _by_av(data, seconds)
    if not len(native):
        raise ValueError("sound has no samples; replace the file or drop the row")
    if not np.isfinite(native).all():
        raise ValueError("sound holds samples that are not finite; convert the file again")
    return resample(native, rate, sample_rate)


def probe_sound(path: Path) -> float:
    """Returns a file's length in seconds as its header tells it, 0 where it does not; nothing is decoded.

    Raises:
        ValueError: It is empty, cut off, or claims a length or rate that is not believed.
    """
    data = path.read_bytes()
    if not _is_sndfile(data):
        with opened(data, "sound") as container:
            stream = first_of(container.streams.audio, "sounds")
            _check(stream.rate, stream.channels, declared_seconds(container, stream))
            return declared_seconds(container, stream)
    with _sndfile(data) as file:
        _check(file.samplerate, file.channels, file.frames / max(file.samplerate, 1))
        if not file.frames:
            raise ValueError("sound has no samples")
        return float(file.frames / file.samplerate)


def _is_sndfile(data: bytes) -> bool:
    return data[:4] in (b"RIFF", b"RF64", b"fLaC", b"OggS")


def _sndfile(data: bytes) -> Any:
    import soundfile  # loaded with the first sound: most runs have none

    _refuse_cut(data)
    try:
        return soundfile.SoundFile(BytesIO(data))
    except soundfile.LibsndfileError as error:
        # Its text names the object in memory, which is another one each time.
        raise ValueError(f"sound cannot be decoded ({error.error_string})") from error


def _by_soundfile(data: bytes, seconds: float) -> tuple[Samples, int]:
    with _sndfile(data) as file:
        rate = int(file.samplerate)
        _check(rate, file.channels, file.frames / max(rate, 1))
        wanted = min(file.frames, int(seconds * rate))
        _check_samples(wanted * file.channels)
        try:
            samples = file.read(wanted, dtype="float32", always_2d=True)
        except RuntimeError as error:  # soundfile's own errors are RuntimeErrors
            raise ValueError(f"sound cannot be decoded ({error})") from error
    _check_length(len(samples) / rate, wanted / rate)
    return samples.mean(axis=1, dtype=np.float32), rate


def _by_av(data: bytes, seconds: float) -> tuple[Samples, int]:
    with opened(data, "sound") as container:
        stream = first_of(container.streams.audio, "sounds")
        rate, declared = int(stream.rate), declared_seconds(container, stream)
        _check(rate, stream.channels, declared)
        parts: list[Samples] = []
        wanted, count = int(min(seconds, declared or seconds) * rate) + rate, 0
        _check_samples(wanted)
        for part in _mono(container, stream):
            parts.append(part)
            count += len(part)
            if count >= wanted:
                break
    _check_length(count / rate, min(declared, seconds))
    return np.concatenate(parts)[: int(seconds * rate)] if parts else np.zeros(0, dtype=np.float32), rate


def _mono(container: Any, stream: Any) -> Iterator[Samples]:
    import av

    planar = av.AudioResampler(format="fltp")  # another form of the same samples; rate and channels stay
    for frame in container.decode(stream):
        for out in planar.resample(frame):
            yield out.to_ndarray().mean(axis=0, dtype=np.float32)


def _check(rate: int, channels: int, seconds: float) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"sound claims {rate} samples a second; between {RATES[0]} and {RATES[1]} is believed")
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"sound claims {channels} channels; 1 to {MAX_CHANNELS} are read")
    if seconds > MAX_SECONDS:
        raise ValueError(f"sound claims to last {seconds:.0f} s, more than the limit of {MAX_SECONDS:.0f}; cut it up")


def _check_samples(count: int) -> None:
    if count > MAX_SAMPLES:
        raise ValueError(f"sound has {count} samples to decode, more than {MAX_SAMPLES}; cut it up or resample it")


def _check_length(seconds: float, declared: float) -> None:
    if seconds < declared * (1 - SHORT_BY) - 0.2:
        raise ValueError(f"sound is cut off: it declares {declared:.2f} s and holds {seconds:.2f}; copy it again")


def _refuse_cut(data: bytes) -> None:
    """Looks for a cut that libsndfile would not mention: it believes the file's end rather than its header."""
    if data[:4] == b"RIFF" and len(data) >= 8:
        (size,) = struct.unpack("<I", data[4:8])
        # 0 and the largest number are written by programs that stream and do not know the size yet.
        if size not in (0, 0xFFFFFFFF) and size + 8 > len(data) + 1:
            raise ValueError(f"sound is cut off: it declares {size + 8} bytes and has {len(data)}; copy it again")
    if data[:4] == b"OggS":
        last = data.rfind(b"OggS")
        table = data[last + 27 : last + 27 + data[last + 26]] if len(data) > last + 26 else b""
        if len(data) < last + 27 or last + 27 + data[last + 26] + sum(table) > len(data):
            raise ValueError("sound is cut off in the middle of an Ogg page; copy it again")
