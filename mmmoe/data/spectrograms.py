"""Sound becomes what the towers hear: chunks of log-mel spectrogram for speech, of Kaldi's filter banks for sound.

Both cut long sound into chunks of fixed length, the last padded with silence; each chunk is encoded on its own and has
a placeholder of its own. Sound beyond `max_chunks` is left away, as Uni-MoE does beyond 20 chunks of 30 s. Its slices
of 480,001 samples are 480,000 here, which is what Whisper sees of them.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import ASTFeatureExtractor, WhisperFeatureExtractor

from mmmoe.data.media import Item
from mmmoe.data.resample import Samples
from mmmoe.data.sound import decode_sound

HOP, WINDOW = 160, 400
"""Samples from one frame of a spectrogram to the next, and those that a frame looks at (10 and 25 ms at 16 kHz)."""


class Chunks:
    """Cuts sound into chunks of `chunk_seconds`, at most `max_chunks`."""

    def __init__(self, sample_rate: int, chunk_seconds: float, max_chunks: int) -> None:
        """Fixes the length.

        Raises:
            ValueError: A chunk is shorter than one frame of a spectrogram, or there is none.
        """
        self.sample_rate = sample_rate
        self.length = round(chunk_seconds * sample_rate)
        self.max_chunks = max_chunks
        if self.length < WINDOW or max_chunks < 1:
            raise ValueError(
                f"chunk_seconds {chunk_seconds} at {sample_rate} Hz and max_chunks {max_chunks}: a chunk needs "
                f"{WINDOW} samples, and there must be one"
            )

    @property
    def key(self) -> str:
        """Names what features depend on besides the tower."""
        return f"rate={self.sample_rate} samples={self.length} max_chunks={self.max_chunks}"

    def cut(self, item: Item) -> list[Samples]:
        """Returns the chunks of an encoded sound, each of full length but the last.

        Raises:
            ValueError: It cannot be decoded.
        """
        if not isinstance(item, bytes):
            raise ValueError("a sound is one file, not a list of frames")
        samples = decode_sound(item, self.sample_rate, self.length * self.max_chunks / self.sample_rate)
        starts = range(0, min(len(samples), self.length * self.max_chunks), self.length)
        return [samples[start : start + self.length] for start in starts]

    def silence(self) -> list[Samples]:
        """Returns one chunk without sound."""
        return [np.zeros(self.length, dtype=np.float32)]


class SpeechTransform:
    """One sound file to Whisper's log-mel spectrogram: float32 (S, mel, frames), a row a chunk."""

    def __init__(
        self, sample_rate: int = 16_000, num_mels: int = 80, chunk_seconds: float = 30.0, max_chunks: int = 20
    ) -> None:
        """Fixes the tower's numbers; a chunk has `chunk_seconds * sample_rate / 160` frames.

        Raises:
            ValueError: The chunks are too short.
        """
        self._chunks = Chunks(sample_rate, chunk_seconds, max_chunks)
        # Lengths are passed with each call, so that a chunk need not be whole seconds.
        self._extract: Any = WhisperFeatureExtractor(num_mels, sample_rate, HOP, n_fft=WINDOW)
        self.key = f"log-mel {num_mels} {self._chunks.key}"

    def __call__(self, item: Item) -> Tensor:
        """Returns a file's chunks.

        Raises:
            ValueError: It cannot be decoded.
        """
        return self._spectrogram(self._chunks.cut(item))

    def blank(self) -> Tensor:
        """Returns one chunk of silence: what a blind run hears in place of every file."""
        return self._spectrogram(self._chunks.silence())

    def _spectrogram(self, chunks: list[Samples]) -> Tensor:
        made = self._extract(chunks, max_length=self._chunks.length, sampling_rate=self._chunks.sample_rate)
        return torch.from_numpy(np.asarray(made["input_features"], dtype=np.float32))


class AudioTransform:
    """One sound file to filter banks as the Audio Spectrogram Transformer takes them: float32 (A, frames, mel).

    Natural logarithms, (x - mean) / (2 std), frames beyond the chunk zero before that. Samples are in [-1, 1]; towers
    that were trained on 16-bit numbers (BEATs) subtract 2 ln(2^15) = 20.794 from their mean.
    """

    def __init__(
        self,
        sample_rate: int = 16_000,
        num_mels: int = 128,
        chunk_seconds: float = 30.0,
        max_frames: int = 1024,
        mean: float = -4.2677393,
        std: float = 4.5689974,
        max_chunks: int = 20,
    ) -> None:
        """Fixes the tower's numbers.

        Args:
            sample_rate: What the tower hears.
            num_mels: Bands.
            chunk_seconds: Length of a chunk.
            max_frames: Frames of a chunk (10 ms each); a shorter chunk is padded, a longer one cut.
            mean: Subtracted from each value.
            std: Half of what divides each value.
            max_chunks: What a file has beyond is left away.

        Raises:
            ValueError: The chunks are too short.
        """
        self._chunks = Chunks(sample_rate, chunk_seconds, max_chunks)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of 128 bands the lowest are narrower than a bin and stay empty, as in AST
            self._extract: Any = ASTFeatureExtractor(
                sampling_rate=sample_rate, num_mel_bins=num_mels, max_length=max_frames, mean=mean, std=std
            )
        self.key = f"fbank {num_mels} {max_frames} {mean} {std} {self._chunks.key}"

    def __call__(self, item: Item) -> Tensor:
        """Returns a file's chunks.

        Raises:
            ValueError: It cannot be decoded.
        """
        return self._banks(self._chunks.cut(item))

    def blank(self) -> Tensor:
        """Returns one chunk of silence: what a blind run hears in place of every file."""
        return self._banks(self._chunks.silence())

    def _banks(self, chunks: list[Samples]) -> Tensor:
        # A remainder shorter than one frame would have none.
        whole = [np.pad(chunk, (0, max(0, WINDOW - len(chunk)))) for chunk in chunks]
        made = self._extract(whole, sampling_rate=self._chunks.sample_rate)
        return torch.from_numpy(np.stack(made["input_values"]).astype(np.float32))
