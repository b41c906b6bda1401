"""What a picture is to the diffusion network: latents of a VAE, or its own pixels folded into channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from mmmoe.models.folder import state_digest
from mmmoe.models.towers.tower import ImageTower

MINI_BATCH = 32
"""Pictures that go through the VAE at a time, as in the authors' code: its activations are large."""


class Canvas(ImageTower):
    """Pixels (I, 3, H, W) in -1..1 in, features (I, P, C) out: the moments of a VAE, or cells of pixels.

    The VAE is no part of the module tree: no name pattern can set it free, no engine shards or casts it. It stays in
    float32, as half precision overflows in it.
    """

    vae: Any
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    fit = "stretch"

    def __init__(self, vae: Any | None, size: tuple[int, int], patch: int) -> None:
        """Takes a VAE, or none: then `patch` x `patch` pixels are a cell.

        Raises:
            ValueError: Rows or columns are no multiple of a cell's.
        """
        super().__init__()
        self.__dict__["vae"] = vae
        self.size, self.patch = size, patch if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        if size[0] % self.patch or size[1] % self.patch:
            raise ValueError(f"image_decoder: a canvas of {size[0]} x {size[1]} is no multiple of {self.patch} pixels")
        self.image_size = max(size)
        self.grid = (size[0] // self.patch, size[1] // self.patch)
        self.num_tokens = self.grid[0] * self.grid[1]
        self.latent_channels = 3 * patch**2 if vae is None else int(vae.config.latent_channels)
        self.channels = self.latent_channels if vae is None else 2 * self.latent_channels
        weights = "none"
        if vae is not None:
            vae.requires_grad_(False).eval()
            self.num_constants = sum(parameter.numel() for parameter in vae.parameters())
            weights = state_digest(vae)
        self.key = f"canvas-{weights}-{size[0]}x{size[1]}-patch{self.patch}"
        self.freeze()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Returns (C, H, W) of pixels."""
        return (3, *self.size)

    def forward(self, pixels_ICHW: Tensor) -> Tensor:
        """Returns features (I, P, C) of pixels in -1..1."""
        if self.vae is None:
            return self._flat(F.pixel_unshuffle(pixels_ICHW, self.patch))
        with torch.no_grad():
            moments = [self.vae.encode(part).latent_dist.parameters for part in _parts(pixels_ICHW.float())]
        return self._flat(torch.cat(moments))

    def latents(self, canvas: Tensor) -> Tensor:
        """Returns latents (I, C, H, W), float32, of pixels or of their features; a VAE's are drawn from its moments."""
        features_IPC = self(canvas) if canvas.dim() == 4 else canvas
        cells_ICHW = rearrange(features_IPC.float(), "i (h w) c -> i c h w", h=self.grid[0])
        if self.vae is None:
            return cells_ICHW
        mean_ICHW, logarithm_ICHW = cells_ICHW.chunk(2, dim=1)
        std_ICHW = (0.5 * logarithm_ICHW.clamp(-30.0, 20.0)).exp()
        drawn_ICHW = mean_ICHW + std_ICHW * torch.randn_like(mean_ICHW)
        return drawn_ICHW * float(self.vae.config.scaling_factor)

    @torch.no_grad()
    def pixels(self, latents_ICHW: Tensor) -> Tensor:
        """Returns pictures (I, 3, H, W) in 0..1."""
        if self.vae is None:
            pixels_ICHW = F.pixel_shuffle(latents_ICHW, self.patch)
        else:
            scaled_ICHW = latents_ICHW.float() / float(self.vae.config.scaling_factor)
            pixels_ICHW = torch.cat([self.vae.decode(part).sample for part in _parts(scaled_ICHW)])
        return (pixels_ICHW / 2 + 0.5).clamp(0.0, 1.0)

    def _flat(self, cells_ICHW: Tensor) -> Tensor:
        return rearrange(cells_ICHW, "i c h w -> i (h w) c")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Canvas:
        """Moves the VAE with the model; its values keep float32, which going through a shorter format would round."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it without types
        if self.vae is not None:
            self.vae._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device))
        return self


def _parts(batch: Tensor) -> list[Tensor]:
    """Returns a batch in mini-batches, one at least."""
    return [batch[start : start + MINI_BATCH] for start in range(0, max(len(batch), 1), MINI_BATCH)]
