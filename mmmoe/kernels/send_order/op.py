"""Which rows go to which rank of an expert-parallel group: a token goes to a rank once, whatever it has chosen there.

Rank g holds the experts g * E / G to (g + 1) * E / G - 1. The order is one that `dispatch` and `combine` take: with it
`dispatch` fills the send buffer, and `gather_sum` adds up what comes back, one row a rank, each already weighted by the
gates of the experts there. Sending once saves (K - distinct ranks) / K of the bytes, half of them at K 8 and 4 ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmmoe.kernels.backend import is_compiled, launch
from mmmoe.kernels.library import register
from mmmoe.kernels.order import MOST_CHOSEN, MOST_EXPERTS, ExpertOrder, order_by_expert
from mmmoe.kernels.places import check_range


def send_order(expert_NK: Tensor, num_experts: int, num_ranks: int) -> ExpertOrder:
    """Returns rows for each rank (count, offset), the slot that carries each row (order) and its inverse.

    Args:
        expert_NK: Chosen experts, int64, as `route_topk` gives them.
        num_experts: E, a multiple of the ranks.
        num_ranks: G.

    Returns:
        `order` holds a slot (its token is slot // K) at each place of the send buffer, ranks one after the other,
        tokens in order, -1 behind the last; `inverse` the place of each slot, -1 where an earlier slot of the token
        carries it there.

    Raises:
        ValueError: A type or shape that does not fit, experts that do not divide, on a CPU an expert out of range.
    """
    if expert_NK.dtype != torch.int64 or expert_NK.dim() != 2:
        raise ValueError(f"expert must be int64 (tokens, chosen), got {expert_NK.dtype} {tuple(expert_NK.shape)}")
    if not 1 <= expert_NK.shape[1] <= min(MOST_CHOSEN, num_experts):
        raise ValueError(
            f"expert {tuple(expert_NK.shape)} chooses {expert_NK.shape[1]}; 1 to {min(MOST_CHOSEN, num_experts)} work"
        )
    if not 1 <= num_ranks <= num_experts <= MOST_EXPERTS or num_experts % num_ranks:
        raise ValueError(
            f"num_experts {num_experts} must be a multiple of num_ranks {num_ranks} and at most {MOST_EXPERTS}"
        )
    return ExpertOrder(*_send_order(expert_NK, num_experts, num_ranks))


def _run(expert_NK: Tensor, num_experts: int, num_ranks: int) -> tuple[Tensor, ...]:
    check_range("expert", expert_NK, num_experts, least=0)
    return tuple(order_by_expert(_carried_ranks(expert_NK, num_experts // num_ranks).reshape(-1), num_ranks))


def _carried_ranks(expert_NK: Tensor, share: int) -> Tensor:
    """Returns the rank each slot's token is carried to, -1 where an earlier slot carries it there already."""
    if is_compiled(expert_NK.device.type):
        rank_NK = torch.empty_like(expert_NK, memory_format=torch.contiguous_format)
        launch("mmmoe_carried_ranks", expert_NK.contiguous(), rank_NK, *expert_NK.shape, share, device=rank_NK.device)
        return rank_NK
    rank_NK = expert_NK // share
    is_carried_NK = torch.zeros_like(rank_NK, dtype=torch.bool)
    for k in range(1, rank_NK.shape[1]):
        is_carried_NK[:, k] = (rank_NK[:, :k] == rank_NK[:, k : k + 1]).any(1)
    return rank_NK.masked_fill(is_carried_NK, -1)


def _fake(expert_NK: Tensor, num_experts: int, num_ranks: int) -> tuple[Tensor, ...]:
    num_slots = expert_NK.shape[0] * expert_NK.shape[1]
    return tuple(expert_NK.new_empty(size) for size in (num_ranks, num_ranks + 1, num_slots, num_slots))


_send_order = register(
    "send_order(Tensor expert, int num_experts, int num_ranks) -> "
    "(Tensor count, Tensor offset, Tensor order, Tensor inverse)",
    run=_run,
    fake=_fake,
)
