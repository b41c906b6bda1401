"""Short sounds, pictures and films, made in memory, and tars of them."""

import io
import json
import tarfile
import wave

import av
import numpy as np
import soundfile
from PIL import Image


def tone(seconds, rate=16_000, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def wav(samples, rate=16_000, channels=1):
    """A 16-bit file; a mono sound is repeated over the channels."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat(np.round(samples * 32767).astype("<i2"), channels).tobytes())
    return stream.getvalue()


def picture(shade, size=(8, 8), kind="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(stream, kind)
    return stream.getvalue()


def film(shades, size=(32, 16), codec="mpeg4", form="mp4", rate=10, noise=0):
    """A film whose n-th picture has one even shade, with noise on it if that is wanted."""
    rng = np.random.default_rng(0)
    stream = io.BytesIO()
    with av.open(stream, "w", format=form) as container:
        track = container.add_stream(codec, rate=rate)
        track.width, track.height = size
        track.pix_fmt = "yuv420p"
        for shade in shades:
            pixels = shade + rng.integers(0, noise + 1, (size[1], size[0], 3))
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return stream.getvalue()


def compressed(samples, form="mp4", rate=16_000):
    """A sound as soundfile or FFmpeg packs it."""
    stream = io.BytesIO()
    if form in ("ogg", "flac"):
        soundfile.write(stream, samples, rate, format=form.upper())
        return stream.getvalue()
    codec = {"mp4": "aac", "mp3": "libmp3lame"}[form]
    with av.open(stream, "w", format=form) as container:
        track = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        container.mux(track.encode(frame))
        container.mux(track.encode())
    return stream.getvalue()


def dialogue(*marks, answer="yes"):
    said = [{"from": "human", "value": "".join(f"<{mark}>\n" for mark in marks) + "What colour ?"}]
    return json.dumps({"conversations": [*said, {"from": "gpt", "value": answer}]}).encode()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
