"""What every encoder has in common: frozen unless a stage trains it, named by what its features depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmmoe.models.folder import tensors_digest
from mmmoe.models.recompute import recompute_layers

Fit = Literal["pad", "stretch", "crop"]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and std of colours that most networks of images were trained with."""
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""The same of CLIP."""
TRAINED = "-trained-"
"""Stands in a key between what the tower was and what a stage made of it."""


class Tower(nn.Module):
    """An encoder: what a medium was turned into comes in, features go out. Frozen unless a stage trains it."""

    kind: ClassVar[str]
    """Kind of media it was made for; says how raw inputs are prepared."""
    num_tokens: int
    """Feature vectors of one input (P)."""
    channels: int
    """Width of a feature vector (C)."""
    key: str
    """Names architecture, weights and options: features of two towers with one key are the same."""
    num_constants: int = 0
    """Numbers in weights that are no torch parameters: those of a network that another runtime carries out."""

    @property
    def is_trained(self) -> bool:
        """Says whether a stage has set any of its parameters free."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def is_skippable(self) -> bool:
        """Says whether some batches never call it, so that engines that shard parameters must leave it whole.

        A trained tower runs in every batch (`SplicedModel.blank`), as all that trains.
        """
        return not self.is_trained

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Returns the shape of one raw input."""
        raise TypeError(f"{type(self).__name__} has no inputs")

    def freeze(self) -> None:
        """Makes every parameter constant and switches to evaluation mode."""
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Tower:
        """Follows the model around it where it is trained, and stays in evaluation mode where it is not."""
        super().train(mode and self.is_trained)
        return self

    def encode(self, media: Tensor) -> Tensor:
        """Returns features of raw inputs, with a graph exactly where a stage trains the tower."""
        with torch.set_grad_enabled(self.is_trained and torch.is_grad_enabled()):
            features: Tensor = self(media)
        return features

    def gradient_checkpointing(self, enabled: bool) -> None:
        """Recomputes each layer in the backward pass, where its library can."""
        for network in self.children():
            if getattr(network, "supports_gradient_checkpointing", False):
                recompute_layers(network, enabled)

    def note_training(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts into the key that a stage has trained the tower.

        Args:
            tensors: what the stage left in it, by name.
        """
        self.key = f"{self.key.partition(TRAINED)[0]}{TRAINED}{tensors_digest(tensors)}"


class ImageTower(Tower):
    """Pixels (I, C, H, W) in, patch features (I, P, C) out, in reading order."""

    kind = "image"
    image_size: int
    """Side of the square input, in pixels."""
    grid: tuple[int, int]
    """Rows and columns of the features; their product is `num_tokens`."""
    mean: tuple[float, float, float]
    """Subtracted from pixels in 0..1."""
    std: tuple[float, float, float]
    """Divides pixels in 0..1."""
    fit: Fit = "pad"
    """How an image becomes square; pad, with the mean colour, as LLaVA-1.5."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Returns (C, H, W) of normalised pixels."""
        return (3, self.image_size, self.image_size)

    @property
    def colours(self) -> str:
        """Returns mean and std for the key of a tower whose spec or folder chooses them."""
        return ",".join(f"{number:g}" for number in (*self.mean, *self.std))

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

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Returns (mel, frames) of speech, (frames, mel) of other sound."""
        return (self.num_mels, self.max_frames) if self.kind == "speech" else (self.max_frames, self.num_mels)

    def forward(self, mel_AXX: Tensor) -> Tensor:
        """Returns features (A, P, C) of normalised pictures."""
        raise TypeError(f"{type(self).__name__} has no forward")


def file_digest(path: Path) -> str:
    """Returns the first 16 hex digits of a file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
