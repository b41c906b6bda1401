"""How a ViT-Adapter's tokens and maps read each other: each position samples a few points of the other's maps.

Suffix Q stands for the positions that read, S for the cells of maps that lie one after the other, L for the maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from mmmoe.kernels.deformable.op import deformable_attention


def centres(sides: Sequence[int]) -> Tensor:
    """Returns (S, 2): the middle of each cell of square maps as (x, y) in 0..1, map by map, in reading order."""
    places = []
    for side in sides:
        line_S = (torch.arange(side, dtype=torch.float32) + 0.5) / side
        places.append(torch.stack([line_S.repeat(side), line_S.repeat_interleave(side)], dim=1))
    return torch.cat(places)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, section 4.1).

    Fresh offsets point from the position's own place in as many directions as there are heads, 1, 2, ... cells away.
    """

    def __init__(self, channels: int, sides: Sequence[int], heads: int, points: int, inner: int) -> None:
        super().__init__()
        self.sides, self.heads, self.points = list(sides), heads, points
        sampled = heads * len(self.sides) * points
        self.offset_proj = nn.Linear(channels, 2 * sampled)
        self.weight_proj = nn.Linear(channels, sampled)
        self.value_proj = nn.Linear(channels, inner)
        self.out_proj = nn.Linear(inner, channels)
        self.register_buffer("cell_L11", (1.0 / torch.tensor(self.sides))[:, None, None], persistent=False)
        self.cell_L11: Tensor
        for linear in (self.value_proj, self.out_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (self.offset_proj, self.weight_proj):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        angle_H = torch.arange(heads) * (2.0 * math.pi / heads)
        direction_H2 = torch.stack([angle_H.cos(), angle_H.sin()], dim=1)
        direction_H2 = direction_H2 / direction_H2.abs().amax(1, keepdim=True)
        steps_1 = torch.arange(1, points + 1)[:, None]
        with torch.no_grad():
            offset_HLP2 = (direction_H2[:, None, None] * steps_1).expand(-1, len(self.sides), -1, -1)
            self.offset_proj.bias.copy_(offset_HLP2.flatten())

    def forward(self, x_IQC: Tensor, place_Q2: Tensor, source_ISC: Tensor) -> Tensor:
        """Returns what the positions (I, Q, C) find.

        Args:
            x_IQC: what reads.
            place_Q2: its places, (x, y) in 0..1; float32, since bfloat16 does not tell neighbouring cells apart.
            source_ISC: the maps' cells.
        """
        parts = {"h": self.heads, "l": len(self.sides), "p": self.points}
        value_ISHC = rearrange(self.value_proj(source_ISC), "i s (h c) -> i s h c", h=self.heads)
        offset_IQHLP2 = rearrange(self.offset_proj(x_IQC), "i q (h l p x) -> i q h l p x", **parts)
        # Over the first axis: over a last one of 4 torch's CPU kernel is 17 times slower.
        weight_XIQH = rearrange(self.weight_proj(x_IQC), "i q (h x) -> x i q h", h=self.heads).softmax(0)
        weight_IQHLP = rearrange(weight_XIQH, "(l p) i q h -> i q h l p", p=self.points)
        location_IQHLP2 = place_Q2[:, None, None, None] + offset_IQHLP2.float() * self.cell_L11
        grids = [(side, side) for side in self.sides]
        found_IQC = deformable_attention(value_ISHC, grids, location_IQHLP2, weight_IQHLP)
        out_IQC: Tensor = self.out_proj(found_IQC)
        return out_IQC
