"""Letters laid on their cells of the canvas: what the language model made of each, where it is to be written."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from mmmoe.models.image_decoder.spec import GlyphSpec


class GlyphCells(nn.Module):
    """A map that tells each place of the canvas its letter, by a linear layer from the letter to its cell's channels.

    Letters stand in one line, `pitch` pixels apart, the line in the middle of the canvas; a cell is as high as the
    canvas. What does not fit is left out behind the last that does.
    """

    def __init__(self, spec: GlyphSpec, width: int, size: tuple[int, int], grid: tuple[int, int]) -> None:
        """Draws fresh weights.

        Args:
            spec: the declaration.
            width: D, of the language model's states.
            size: rows and columns of the canvas in pixels.
            grid: rows and columns of the latents.

        Raises:
            ValueError: A letter is no whole number of latents wide.
        """
        super().__init__()
        self.rows, self.columns = grid
        patch = size[1] // grid[1]
        if spec.pitch % patch:
            raise ValueError(
                f"image_decoder.glyphs.pitch is {spec.pitch} pixels, but a latent is {patch} wide; make it a multiple"
            )
        self.across, self.channels = spec.pitch // patch, spec.channels
        self.norm = nn.LayerNorm(width)
        self.cell = nn.Linear(width, spec.channels * self.rows * self.across)

    def forward(self, hidden_ILD: Tensor, glyph_IN: Tensor) -> Tensor:
        """Returns the map (I, C, H, W), zero where no letter is.

        Args:
            hidden_ILD: contexts.
            glyph_IN: places of the letters in them, in reading order; -1 fills up.
        """
        letter_IND = hidden_ILD.take_along_dim(glyph_IN.clamp(min=0)[..., None], dim=1)
        cell_INCHX = rearrange(
            self.cell(self.norm(letter_IND)), "i n (c h x) -> i n c h x", c=self.channels, h=self.rows
        )
        number_IW, inner_IW, is_written_IW = self._places((glyph_IN >= 0).sum(1))
        last = glyph_IN.shape[1] - 1
        image_I1 = torch.arange(len(glyph_IN), device=glyph_IN.device)[:, None]
        map_IWCH: Tensor = cell_INCHX[image_I1, number_IW.clamp(0, last), :, :, inner_IW]
        return rearrange(map_IWCH * is_written_IW[..., None, None], "i w c h -> i c h w")

    def _places(self, count_I: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns for each column of latents which letter, which column of its cell, and if any."""
        start_I1 = (self.columns - count_I * self.across)[:, None].clamp(min=0) // 2
        offset_IW = torch.arange(self.columns, device=count_I.device) - start_I1
        number_IW = offset_IW.div(self.across, rounding_mode="floor")
        is_written_IW = (number_IW >= 0) & (number_IW < count_I[:, None])
        return number_IW, offset_IW.remainder(self.across), is_written_IW
