"""Top-k routing written as the literal loop over tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Routing(NamedTuple):
    """Who goes where. Slots are numbered token * K + k; S = N * K."""

    gate_NK: Tensor
    """Weights, float32; 0 for a slot beyond the capacity. The only part with a gradient."""
    expert_NK: Tensor
    """Chosen experts by falling logit, int64; ties go to the lower number."""
    count_E: Tensor
    """Slots each expert keeps, int64."""
    offset_E1: Tensor
    """Place of each expert's first slot, and the number of kept slots at the end, int64 (E + 1)."""
    order_S: Tensor
    """Slot at each place; within an expert by number. -1 at the places behind the last kept slot."""
    inverse_S: Tensor
    """Place of each slot; -1 beyond the capacity."""


def route_topk_reference(
    logits_NE: Tensor, num_chosen: int, gates: str = "softmax", capacity: int | None = None
) -> Routing:
    """Returns the routing of each token to its `num_chosen` best experts; op.py says what `gates` means."""
    num_tokens, num_experts = logits_NE.shape
    waiting: list[list[int]] = [[] for _ in range(num_experts)]
    gate_rows, expert_rows = [], []
    for n in range(num_tokens):
        logits_E = logits_NE[n].float()
        values = logits_E.tolist()
        experts = sorted(range(num_experts), key=lambda e: (-values[e], e))[:num_chosen]
        chosen_K = logits_E[experts]
        gate_K = chosen_K.softmax(0) if gates == "softmax_chosen" else logits_E.softmax(0)[experts]
        if gates == "softmax_renormalised":
            gate_K = gate_K / gate_K.sum()
        for k, e in enumerate(experts):
            if capacity is not None and len(waiting[e]) >= capacity:
                gate_K = gate_K * (torch.arange(num_chosen, device=gate_K.device) != k)
            else:
                waiting[e].append(n * num_chosen + k)
        gate_rows.append(gate_K)
        expert_rows.append(experts)
    order = [slot for slots in waiting for slot in slots]
    place = {slot: at for at, slot in enumerate(order)}
    num_slots = num_tokens * num_chosen
    counts = [len(slots) for slots in waiting]
    offsets = [sum(counts[:e]) for e in range(num_experts + 1)]

    def numbers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=logits_NE.device)

    return Routing(
        torch.stack(gate_rows) if gate_rows else logits_NE.float()[:, :num_chosen],
        numbers([e for row in expert_rows for e in row]).view(num_tokens, num_chosen),
        numbers(counts),
        numbers(offsets),
        numbers(order + [-1] * (num_slots - len(order))),
        numbers([place.get(slot, -1) for slot in range(num_slots)]),
    )
