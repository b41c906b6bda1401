"""The stable order that brings the slots of one expert together; every op that groups slots uses it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmoe.kernels.backend import is_compiled, launch, workspace_size

UNLIMITED = 2**62
"""A capacity that no expert reaches."""
MOST_EXPERTS, MOST_CHOSEN = 1024, 8
"""What the kernels are built for."""


class ExpertOrder(NamedTuple):
    """S slots grouped by expert; slots of one expert keep their order. A slot with expert -1 has no place."""

    count_E: Tensor
    """Slots of each expert, int64."""
    offset_E1: Tensor
    """Place of each expert's first slot, and the number of kept slots at the end, int64 (E + 1)."""
    order_S: Tensor
    """Slot at each place, int64; -1 at the places behind the last kept slot."""
    inverse_S: Tensor
    """Place of each slot, int64; -1 for a slot that is left out."""


def order_by_expert(expert_S: Tensor, num_experts: int, capacity: int = UNLIMITED) -> ExpertOrder:
    """Returns the order of slots whose experts are given (out of range: left out); nothing waits on the host.

    Beyond `capacity` slots of an expert, the later ones are left out.

    Raises:
        ValueError: The experts are not one row of int64.
    """
    if expert_S.dtype != torch.int64 or expert_S.dim() != 1:
        raise ValueError(f"expert must be one row of int64, got {expert_S.dtype} {tuple(expert_S.shape)}")
    if not is_compiled(expert_S.device.type):
        return order_in_torch(expert_S, num_experts, capacity)
    expert_S = expert_S.contiguous()
    order = empty_order(expert_S, num_experts, expert_S.numel())
    launch(
        "mmmoe_order", expert_S, *order, workspace(expert_S, num_experts, expert_S.numel()),
        expert_S.numel(), num_experts, capacity, device=expert_S.device,
    )  # fmt: skip
    return order


def empty_order(like: Tensor, num_experts: int, num_slots: int) -> ExpertOrder:
    """Returns room for an order on a tensor's device."""
    sizes = (num_experts, num_experts + 1, num_slots, num_slots)
    return ExpertOrder(*(like.new_empty(size, dtype=torch.int64) for size in sizes))


def workspace(like: Tensor, num_experts: int, num_slots: int) -> Tensor:
    """Returns what the kernels of an order need to work in."""
    size = workspace_size("mmmoe_order_workspace", num_slots, num_experts, device=like.device)
    return like.new_empty(size, dtype=torch.int32)


def order_in_torch(expert_S: Tensor, num_experts: int, capacity: int = UNLIMITED) -> ExpertOrder:
    """Returns the same order by a stable sort."""
    num_slots = expert_S.numel()
    last_S = torch.where((expert_S < 0) | (expert_S > num_experts), num_experts, expert_S)
    sorted_S, order_S = torch.sort(last_S, stable=True)
    count_E1 = torch.zeros(num_experts + 1, dtype=torch.int64, device=expert_S.device)
    count_E1.scatter_add_(0, last_S, torch.ones_like(last_S))
    first_E1 = count_E1.cumsum(0) - count_E1
    place_S = torch.arange(num_slots, device=expert_S.device)
    is_kept_S = (sorted_S < num_experts) & (place_S - first_E1[sorted_S] < capacity)
    count_E = count_E1[:-1].clamp(max=capacity)
    offset_E1 = F.pad(count_E.cumsum(0), (1, 0))
    inverse_S = torch.empty_like(order_S)
    inverse_S[order_S] = torch.where(is_kept_S, offset_E1[sorted_S] + place_S - first_E1[sorted_S], -1)
    # Kept slots first, in order of their place; what is left out goes behind and becomes -1.
    order_S = order_S[torch.sort((~is_kept_S).to(torch.int8), stable=True).indices]
    return ExpertOrder(count_E, offset_E1, torch.where(place_S < offset_E1[-1], order_S, -1), inverse_S)
