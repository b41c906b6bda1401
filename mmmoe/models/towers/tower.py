"""What every encoder has in common: frozen, always in evaluation mode, named by what its features depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor, nn

Fit = Literal["pad", "stretch", "crop"]


class Tower(nn.Module):
    """A frozen encoder: what a medium was turned into comes in, features go out."""

    kind: ClassVar[str]
    """Kind of media it was made for; says how raw inputs are prepared."""
    is_skippable = True
    """Some batches never call it, so engines that shard parameters must leave it whole on each process."""
    num_tokens: int
    """Feature vectors of one input (P)."""
    channels: int
    """Width of a feature vector (C)."""
    key: str
    """Names architecture, weights and options: features of two towers with one key are the same."""

    def freeze(self) -> None:
        """Makes every parameter constant and switches to evaluation mode."""
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Tower:
        """Stays in evaluation mode whatever the model around it does."""
        del mode
        super().train(False)
        return self


class ImageTower(Tower):
    """Pixels (I, C, H, W) in, patch features (I, P, C) out."""

    kind = "image"
    image_size: int
    """Side of the square input, in pixels."""
    mean: tuple[float, float, float]
    """Subtracted from pixels in 0..1."""
    std: tuple[float, float, float]
    """Divides pixels in 0..1."""
    fit: Fit = "pad"
    """How an image becomes square; pad, with the mean colour, as LLaVA-1.5."""

    def forward(self, pixels_ICHW: Tensor) -> Tensor:
        """Returns features (I, P, C) of normalised pixels."""
        raise TypeError(f"{type(self).__name__} has no forward")


class SoundTower(Tower):
    """Pictures of the chunks of recordings in, features (A, P, C) out; `kind` says which picture.

    `speech`: Whisper's log-mel spectrogram (A, mel, frames), normalised chunk by chunk. `audio`: Kaldi's log filter
    bank (A, frames, mel), normalised by mean and std.
    """

    sample_rate: int = 16_000
    """Samples a second."""
    num_mels: int
    """Bands of the picture."""
    chunk_seconds: float
    """A recording is cut into chunks of this length."""
    max_chunks: int
    """What a recording has beyond so many chunks is left out."""
    max_frames: int
    """Frames of the picture, 100 a second; a shorter one is filled up."""
    mean: float = -4.2677393
    """Subtracted from the filter bank; AudioSet's, as AST has it. No part of Whisper's picture."""
    std: float = 4.5689974
    """Half of what divides the filter bank."""

    def forward(self, mel_AXX: Tensor) -> Tensor:
        """Returns features (A, P, C) of normalised pictures."""
        raise TypeError(f"{type(self).__name__} has no forward")


def file_digest(path: Path) -> str:
    """Returns the first 16 hex digits of a file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
