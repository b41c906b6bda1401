"""Attention whose queries and keys turn with their place in an image: rows turn half of a head, columns the rest.

Suffix X stands for the channels of one head.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_SIZE = 64
"""Channels of a head: the released rotary table is made for it."""
THETA = 10_000.0


class GridRotary(nn.Module):
    """Rotary embedding of a grid in reading order: scores of turned vectors depend on the distance in both directions.

    Neighbouring channels are the two coordinates that turn; the first 32 of a head by the row, the last 32 by the
    column, at theta^(-2 i / 32) a step (MoVA's code). Angles are no weights, so checkpoints do not hold them.
    """

    def __init__(self, grid: tuple[int, int], theta: float = THETA) -> None:
        super().__init__()
        rows, columns = grid
        half = HEAD_SIZE // 2
        frequency_X = 1.0 / theta ** (torch.arange(0, half, 2, dtype=torch.float32) / half)
        angle_XX = torch.arange(max(grid), dtype=torch.float32)[:, None] * frequency_X
        angle_XX = angle_XX.repeat_interleave(2, dim=1)
        row_PX = angle_XX[:rows].repeat_interleave(columns, dim=0)
        angle_PX = torch.cat([row_PX, angle_XX[:columns].repeat(rows, 1)], dim=1)
        self.register_buffer("cos_PX", angle_PX.cos(), persistent=False)
        self.register_buffer("sin_PX", angle_PX.sin(), persistent=False)
        self.cos_PX: Tensor
        self.sin_PX: Tensor

    def forward(self, x_IHPX: Tensor) -> Tensor:
        """Returns each vector turned by its place; fewer positions than the grid has are its first ones."""
        places = x_IHPX.shape[-2]
        even_IHPX, odd_IHPX = x_IHPX[..., ::2], x_IHPX[..., 1::2]
        across_IHPX = torch.stack((-odd_IHPX, even_IHPX), dim=-1).flatten(-2)
        turned_IHPX = x_IHPX * self.cos_PX[:places] + across_IHPX * self.sin_PX[:places]
        return turned_IHPX.to(x_IHPX.dtype)


class RotaryAttention(nn.Module):
    """Attention from tokens to tokens of any width, normalised over all heads before it goes out.

    The way out starts at zero, so that a fresh adapter passes the base tower's features on as they are.
    """

    def __init__(self, channels: int, source_channels: int) -> None:
        super().__init__()
        self.heads = channels // HEAD_SIZE
        self.q_proj = nn.Linear(channels, channels, bias=False)
        self.k_proj = nn.Linear(source_channels, channels, bias=False)
        self.v_proj = nn.Linear(source_channels, channels, bias=False)
        self.norm = nn.LayerNorm(channels)
        self.out_proj = nn.Linear(channels, channels)
        nn.init.zeros_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x_IPC: Tensor, source_IPC: Tensor, rotary: GridRotary) -> Tensor:
        """Returns what the tokens (I, P, C) find in the source; both lie on the rotary's grid."""
        query_IHPX, key_IHPX, value_IHPX = (
            rearrange(part_IPC, "i p (h x) -> i h p x", h=self.heads)
            for part_IPC in (self.q_proj(x_IPC), self.k_proj(source_IPC), self.v_proj(source_IPC))
        )
        found_IHPX = F.scaled_dot_product_attention(rotary(query_IHPX), rotary(key_IHPX), value_IHPX)
        out_IPC: Tensor = self.out_proj(self.norm(rearrange(found_IHPX, "i h p x -> i p (h x)")))
        return out_IPC
