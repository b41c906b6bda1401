"""What every image encoder has in common: frozen, always in evaluation mode, named by what its features depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

Fit = Literal["pad", "stretch", "crop"]


class Tower(nn.Module):
    """A frozen image encoder: pixels in, patch features out."""

    is_skippable = True
    """A batch without images never calls it, so engines that shard parameters must leave it whole on each process."""
    num_tokens: int
    """Feature vectors of one image (P)."""
    channels: int
    """Width of a feature vector (C)."""
    image_size: int
    """Side of the square input, in pixels."""
    mean: tuple[float, float, float]
    """Subtracted from pixels in 0..1."""
    std: tuple[float, float, float]
    """Divides pixels in 0..1."""
    fit: Fit = "pad"
    """How an image becomes square; pad, with the mean colour, as LLaVA-1.5."""
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

    def forward(self, pixels_ICHW: Tensor) -> Tensor:
        """Returns features (I, P, C) of normalised pixels."""
        raise TypeError(f"{type(self).__name__} has no forward")


def file_digest(path: Path) -> str:
    """Returns the first 16 hex digits of a file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
