"""The stable order that brings the slots of one expert together, in torch; both ops that group slots use it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ExpertOrder(NamedTuple):
    """S slots grouped by expert; slots of one expert keep their order."""

    order_S: Tensor
    """Slot at each place, int64."""
    inverse_S: Tensor
    """Place of each slot, int64."""
    count_E: Tensor
    """Slots of each expert, int64."""


def order_by_expert(expert_S: Tensor, num_experts: int) -> ExpertOrder:
    """Returns order, inverse and counts of slots whose experts are given; nothing waits on the host."""
    order_S = torch.argsort(expert_S, stable=True)
    inverse_S = torch.empty_like(order_S)
    inverse_S[order_S] = torch.arange(order_S.numel(), device=order_S.device)
    count_E = torch.zeros(num_experts, dtype=torch.int64, device=expert_S.device)
    count_E.scatter_add_(0, expert_S, torch.ones_like(expert_S))
    return ExpertOrder(order_S, inverse_S, count_E)
