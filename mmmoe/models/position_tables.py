"""Tables of positions: fixed sines and cosines of a place, and tables of a square grid that become another size."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

THETA = 10_000.0


def sincos(place_P: Tensor, width: int) -> Tensor:
    """Returns (P, C): sines of the places turned at theta^(-2 i / width), then the cosines."""
    assert width % 2 == 0, width
    frequency_C = THETA ** -(torch.arange(width // 2, dtype=torch.float64, device=place_P.device) * 2 / width)
    angle_PC = place_P.double()[:, None] * frequency_C
    return torch.cat([angle_PC.sin(), angle_PC.cos()], dim=1).float()


def sincos_grid(side: int, width: int) -> Tensor:
    """Returns (P, C) of a square grid in reading order: the first half tells the row, the second the column."""
    line_PC = sincos(torch.arange(side), width // 2)
    return torch.cat([line_PC.repeat_interleave(side, dim=0), line_PC.repeat(side, 1)], dim=1)


def resized(table_PC: Tensor, grid: tuple[int, int], prefix: int = 0, *, aligned: bool = False) -> Tensor:
    """Returns a table of a square grid, bicubically interpolated to another; rows of class tokens before it stay.

    Without antialiasing, which in torch is another cubic kernel (a = -0.5 instead of -0.75) also where a table grows.

    Args:
        table_PC: the table.
        grid: rows and columns that are wanted.
        prefix: rows of class tokens.
        aligned: let corners fall on corners, as MM-Interleaved does with CLIP's table and nobody else.
    """
    side = math.isqrt(len(table_PC) - prefix)
    assert prefix + side * side == len(table_PC), (table_PC.shape, prefix)
    if grid == (side, side):
        return table_PC
    map_1CHW = table_PC[prefix:].T.reshape(1, -1, side, side).float()
    map_1CHW = F.interpolate(map_1CHW, size=grid, mode="bicubic", align_corners=aligned)
    return torch.cat([table_PC[:prefix], map_1CHW.flatten(2)[0].T.to(table_PC.dtype)])
