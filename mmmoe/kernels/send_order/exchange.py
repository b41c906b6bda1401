"""Counts and rows change hands among the ranks of an expert-parallel group."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as torch_distributed


class Counts(NamedTuple):
    """Rows that this rank sends to each rank and gets from it; read on the host once, for both."""

    sent: list[int]
    received: list[int]


def exchange_counts(count_G: Tensor, group: Any = None) -> Counts:
    """Returns what every rank sends here, given what this one sends to every rank (int64, one a rank).

    The host waits for the device here: it allocates the buffers.

    Raises:
        ValueError: Not one count for each rank of the group.
    """
    num_ranks = torch_distributed.get_world_size(group)
    if count_G.shape != (num_ranks,) or count_G.dtype != torch.int64:
        raise ValueError(f"count must be int64 ({num_ranks},), got {count_G.dtype} {tuple(count_G.shape)}")
    both_2G = torch.stack([count_G, torch.empty_like(count_G)])
    torch_distributed.all_to_all_single(both_2G[1], both_2G[0], group=group)
    sent, received = both_2G.tolist()
    return Counts(sent, received)


def exchange_rows(rows: Tensor, counts: Counts, group: Any = None) -> Tensor:
    """Returns the rows that the other ranks sent here, by rank; rows go out by rank, sum(counts.sent) of them.

    The gradient goes the same way back.

    Raises:
        ValueError: Another number of rows than the counts say.
    """
    if rows.shape[0] != sum(counts.sent):
        raise ValueError(f"rows {tuple(rows.shape)} must be {sum(counts.sent)}, the sum of what is sent")
    received: Tensor = _Exchange.apply(rows, counts, group)
    return received


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Counts, group: Any) -> Tensor:
        ctx.back, ctx.group = Counts(counts.received, counts.sent), group
        return _all_to_all(rows, counts, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _all_to_all(grads[0], ctx.back, ctx.group), None, None


def _all_to_all(rows: Tensor, counts: Counts, group: Any) -> Tensor:
    received = rows.new_empty(sum(counts.received), *rows.shape[1:])
    torch_distributed.all_to_all_single(received, rows.contiguous(), counts.received, counts.sent, group=group)
    return received
