"""The hidden columns of lora_ffn, cut into parts for the calls of one pass.

On a CPU a part is narrow enough that its rows stay near from one product to the next; on a GPU there is one part. What
is computed has the same bits however the columns are cut: sums go over columns in one order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmmoe.kernels.backend import answer, workspace_size
from mmmoe.kernels.places import exact_type
from mmmoe.kernels.products import frozen_product_back

PIECE = 512
"""Columns whose products with the gate and the up weight are added to dx in turn."""


class Part(NamedTuple):
    """Some of the hidden columns, of which there are F."""

    begin: int
    columns: slice
    rooms: list[Tensor]
    """Of each (N, width), for rows of these columns; the next part has the same memory."""
    sizes: tuple[int, ...]
    """What the launchers take: N, K, E, R, F, the first column and how many."""


class Hidden:
    """The parts, and what the calls work in."""

    def __init__(self, x_ND: Tensor, b_EFR: Tensor, num_chosen: int, *, is_backward: bool) -> None:
        most = answer("mmmoe_lora_ffn_columns", x_ND.device.type)  # 0: the launchers take all columns at once
        num_experts, self.inner, rank = b_EFR.shape
        self.sizes = (x_ND.shape[0], num_chosen, num_experts, rank)
        self.most = min(most or self.inner, self.inner)
        self.piece = PIECE if most else self.inner
        # Backward: the sum's gradient, that of the gate's outputs and of the up's. In parts, the last may be the first.
        num_rooms = (2 if most else 3) if is_backward else 1
        sizes = (*self.sizes, self.most, int(is_backward))
        size = workspace_size("mmmoe_lora_ffn_workspace", *sizes, device=x_ND.device)
        self.work = x_ND.new_empty(size, dtype=exact_type(x_ND))
        self.rooms = [x_ND.new_empty(x_ND.shape[0] * self.most) for _ in range(num_rooms)]

    def __iter__(self) -> Iterator[Part]:
        num_tokens = self.sizes[0]
        for begin in range(0, self.inner, self.most):
            width = min(self.most, self.inner - begin)
            rooms = [room[: num_tokens * width].view(num_tokens, width) for room in self.rooms]
            yield Part(begin, slice(begin, begin + width), rooms, (*self.sizes, self.inner, begin, width))

    def add_products(self, part: Part, dx_ND: Tensor, dc: tuple[Tensor, ...], weights_FD: tuple[Tensor, ...]) -> None:
        """Adds dc W of gate and up to dx, piece by piece; the first part's first product overwrites dx."""
        is_added = part.begin > 0
        cut_dc = [torch.split(dc_NW, self.piece, 1) for dc_NW in dc]
        cut_weights = [torch.split(weight_FD[part.columns], self.piece) for weight_FD in weights_FD]
        for i in range(len(cut_dc[0])):
            for dc_NP, weight_PD in zip((d[i] for d in cut_dc), (w[i] for w in cut_weights), strict=True):
                frozen_product_back(dc_NP, weight_PD, out=dx_ND, is_added=is_added)
                is_added = True
