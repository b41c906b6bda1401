"""TextHarmony's visual tokenizer after the encoder: positions are added, and a perceiver makes the image's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmmoe.models.connectors.perceiver import PerceiverResampler
from mmmoe.models.connectors.visual_tokenizer_spec import VisualTokenizerSpec
from mmmoe.models.position_tables import resized, sincos_grid

EPSILON = 1e-6


class VisualTokenizer(nn.Module):
    """Tokens for the language model, and maps that tell where their cells are (MM-Interleaved, arXiv 2401.10208).

    tokens = perceiver(norm(norm(linear(features)) + position)); maps = maps + position. Suffix S stands for the cells
    of a map. The table of positions is a constant here; the release's training loop also trains it, because its name
    contains "visual", so weights hold one.
    """

    def __init__(
        self, spec: VisualTokenizerSpec, channels: int, grid: tuple[int, int], sides: Sequence[int], width: int
    ) -> None:
        """Draws fresh weights.

        Args:
            spec: the declaration.
            channels: C, of the encoder's features.
            grid: rows and columns of its patches.
            sides: of its maps, in the order in which they are given.
            width: D, of the language model.

        Raises:
            ValueError: The channels cannot hold sines and cosines of rows and columns.
        """
        super().__init__()
        if channels % 4:
            raise ValueError(
                f"the tower has {channels} channels, but sines and cosines of rows and columns take a multiple of 4"
            )
        self.grid, self.sides = grid, tuple(sides)
        self.position_proj = nn.Linear(channels, channels)
        self.position_norm = nn.LayerNorm(channels, eps=EPSILON)
        self.norm = nn.LayerNorm(channels, eps=EPSILON)
        table_PC = sincos_grid(spec.position_grid, channels)
        self.register_buffer("position_PC", torch.cat([table_PC.new_zeros(1, channels), table_PC]))
        self.position_PC: Tensor
        self.perceiver: PerceiverResampler | None = None
        self.projector: nn.Linear | None = None
        if spec.perceiver is None:
            self.num_tokens = 1 + grid[0] * grid[1]
            projector = self.projector = nn.Linear(channels, width)
        else:
            self.perceiver = PerceiverResampler(spec.perceiver, channels, width)
            self.num_tokens = self.perceiver.num_tokens
            assert self.perceiver.projector is not None
            projector = self.perceiver.projector
        nn.init.normal_(projector.weight, std=spec.projector_std)

    def forward(self, tokens_INC: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Returns the image's tokens (I, Q, D) and the maps (I, S, C) with positions.

        Args:
            tokens_INC: the class token, then those of the patches.
            maps: as many as sides.
        """
        dtype = self.position_proj.weight.dtype
        read_INC = self.position_norm(self.position_proj(tokens_INC.to(dtype))) + self.token_position().to(dtype)
        reader = self.perceiver or self.projector
        assert reader is not None
        tokens_IQD: Tensor = reader(self.norm(read_INC))
        return tokens_IQD, self.placed(maps)

    def token_position(self) -> Tensor:
        """Returns (N, C): zeros for the class token, then the patches' positions."""
        return resized(self.position_PC, self.grid, prefix=1)

    def placed(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Returns the maps (I, S, C) with their positions added, in the weights' number format."""
        dtype = self.position_proj.weight.dtype
        return [
            map_ISC.to(dtype) + resized(self.position_PC[1:], (side, side)).to(dtype)
            for side, map_ISC in zip(self.sides, maps, strict=True)
        ]
