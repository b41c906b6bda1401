"""Which rows go to which rank, written as the literal loop over ranks and tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from mmmoe.kernels.order import ExpertOrder


def send_order_reference(expert_NK: Tensor, num_experts: int, num_ranks: int) -> ExpertOrder:
    """Returns the order of the slots that carry a token to a rank: each token's first slot there."""
    num_tokens, num_chosen = expert_NK.shape
    share = num_experts // num_ranks
    sent = []
    for rank in range(num_ranks):
        carriers = []
        for n in range(num_tokens):
            there = [k for k in range(num_chosen) if int(expert_NK[n, k]) // share == rank]
            if there:
                carriers.append(n * num_chosen + there[0])
        sent.append(carriers)
    order = [slot for carriers in sent for slot in carriers]
    place = {slot: at for at, slot in enumerate(order)}
    counts = [len(carriers) for carriers in sent]
    num_slots = num_tokens * num_chosen
    return ExpertOrder(
        torch.tensor(counts),
        torch.tensor([sum(counts[:rank]) for rank in range(num_ranks + 1)]),
        torch.tensor(order + [-1] * (num_slots - len(order)), dtype=torch.int64),
        torch.tensor([place.get(slot, -1) for slot in range(num_slots)], dtype=torch.int64),
    )
