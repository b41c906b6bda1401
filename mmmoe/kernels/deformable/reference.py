"""Attention to a few points of several maps, written as the literal loop over points and the cells around them.

Letters here: S cells of all maps one after the other, Q queries, H heads, L maps, P points of a head on a map, C
channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor


def deformable_attention_reference(
    value_BSHC: Tensor, sides: Sequence[tuple[int, int]], location_BQHLP2: Tensor, weight_BQHLP: Tensor
) -> Tensor:
    """Returns (B, Q, H * C): the weighted sum of the values at the points, bilinear between cells, 0 outside a map."""
    batch, _, heads, channels = value_BSHC.shape
    queries = location_BQHLP2.shape[1]
    sums = []
    for b, q, h in product(range(batch), range(queries), range(heads)):
        total_C = value_BSHC.new_zeros(channels)
        first = 0
        for level, (rows, columns) in enumerate(sides):
            for location_2, weight in zip(location_BQHLP2[b, q, h, level], weight_BQHLP[b, q, h, level], strict=True):
                x, y = location_2[0] * columns - 0.5, location_2[1] * rows - 0.5
                for row, share_y in _cells(y, rows):
                    for column, share_x in _cells(x, columns):
                        value_C = value_BSHC[b, first + row * columns + column, h]
                        total_C = total_C + weight * share_y * share_x * value_C
            first += rows * columns
        sums.append(total_C)
    if not sums:
        return value_BSHC.new_zeros(batch, queries, heads * channels)
    return torch.stack(sums).view(batch, queries, -1)


def _cells(place: Tensor, size: int) -> list[tuple[int, Tensor]]:
    """Returns those of the two cells around a place along one axis that are on the map, and what each counts."""
    low = int(place.detach().floor())
    return [(cell, share) for cell, share in ((low, low + 1 - place), (low + 1, place - low)) if 0 <= cell < size]
