"""The hidden columns of lora_ffn, cut into parts for the calls of one pass.

On a CPU a part is narrow enough that its rows stay near from one product to the next; on a GPU there is one part. Sums
go over columns in one order, so that with the own products no bit depends on how the columns are cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from mmmoe.kernels.backend import answer, workspace_size
from mmmoe.kernels.places import exact_type
from mmmoe.kernels.products import Layout, Rows, frozen_product_back, room_for_rows

PIECE = 512
"""Columns whose products with the gate and the up weight are added to dx in turn; whole slices of packed rows."""


class Part(NamedTuple):
    """Some of the hidden columns, of which there are F, and memory for rows of them; the next part has the same."""

    begin: int
    columns: slice
    rooms: list[Tensor | Rows]
    """For rows that products read."""
    sizes: tuple[int, ...]
    """What the launchers take: N, K, E, R, F, the first column, how many, and how rows lie in the rooms."""


class Hidden:
    """The parts, and what the calls work in."""

    def __init__(self, x_ND: Tensor, b_EFR: Tensor, num_chosen: int, *, is_backward: bool) -> None:
        most = answer("mmmoe_lora_ffn_columns", x_ND.device.type)  # 0: the launchers take all columns at once
        num_experts, self.inner, rank = b_EFR.shape
        self.sizes = (x_ND.shape[0], num_chosen, num_experts, rank)
        self.most = min(most or self.inner, self.inner)
        self.piece = PIECE if most else self.inner
        sizes = (*self.sizes, self.most, int(is_backward))
        size = workspace_size("mmmoe_lora_ffn_workspace", *sizes, device=x_ND.device)
        self.work = x_ND.new_empty(size, dtype=exact_type(x_ND))
        self.rooms = [room_for_rows(x_ND, x_ND.shape[0], self.most) for _ in range(2 if is_backward else 1)]

    def __iter__(self) -> Iterator[Part]:
        for begin in range(0, self.inner, self.most):
            width = min(self.most, self.inner - begin)
            rooms = [_narrowed(room, width) for room in self.rooms]
            layout = rooms[0].layout if isinstance(rooms[0], Rows) else Layout(width, 0, width)
            yield Part(begin, slice(begin, begin + width), rooms, (*self.sizes, self.inner, begin, width, *layout))

    def add_products(self, part: Part, dx_ND: Tensor, weights_FD: Sequence[Tensor]) -> None:
        """Adds dc W of gate and up to dx, piece by piece; dc is in the rooms, and the first product overwrites dx."""
        width = part.columns.stop - part.begin
        for begin in range(0, width, self.piece):
            end = min(begin + self.piece, width)
            for i, (dc, weight_FD) in enumerate(zip(part.rooms, weights_FD, strict=True)):
                piece = dc.piece(begin, end) if isinstance(dc, Rows) else dc[:, begin:end]
                rows_PD = weight_FD[part.begin + begin : part.begin + end]
                frozen_product_back(piece, rows_PD, out=dx_ND, is_added=i + part.begin + begin > 0)


def pointer(room: Tensor | Rows) -> Tensor:
    """Returns the tensor that a launcher writes a room's rows to."""
    return room.data if isinstance(room, Rows) else room


def _narrowed(room: Tensor | Rows, width: int) -> Tensor | Rows:
    if isinstance(room, Rows):
        return room.piece(0, width)
    return room.view(-1)[: room.shape[0] * width].view(room.shape[0], width)
