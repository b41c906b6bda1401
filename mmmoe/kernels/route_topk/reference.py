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
    """Chosen experts by falling logit, int64; ties go to the lower number. Given for tokens that are not valid too."""
    count_E: Tensor
    """Slots each expert keeps, int64."""
    offset_E1: Tensor
    """Place of each expert's first slot, and the number of kept slots at the end, int64 (E + 1)."""
    order_S: Tensor
    """Slot at each place; within an expert by number, or first choices first. -1 behind the last kept slot."""
    inverse_S: Tensor
    """Place of each slot; -1 beyond the capacity and for tokens that are not valid."""


def route_topk_reference(
    logits_NE: Tensor,
    num_chosen: int,
    gates: str = "softmax",
    capacity: int | None = None,
    *,
    valid_N: Tensor | None = None,
    priority: str = "token",
) -> Routing:
    """Returns the routing of each token to its `num_chosen` best experts; op.py says what the arguments mean."""
    num_tokens, num_experts = logits_NE.shape
    gate_rows, expert_rows = [], []
    for n in range(num_tokens):
        logits_E = logits_NE[n] if logits_NE.dtype == torch.float64 else logits_NE[n].float()
        values = logits_E.tolist()
        experts = sorted(range(num_experts), key=lambda e: (-values[e], e))[:num_chosen]
        chosen_K = logits_E[experts]
        gate_K = chosen_K.softmax(0) if gates == "softmax_chosen" else logits_E.softmax(0)[experts]
        gate_rows.append(gate_K / gate_K.sum() if gates == "softmax_renormalised" else gate_K)
        expert_rows.append(experts)

    waiting: list[list[int]] = [[] for _ in range(num_experts)]
    dropped = []
    slots = [(n, k) for n in range(num_tokens) for k in range(num_chosen)]
    for n, k in slots if priority == "token" else sorted(slots, key=lambda slot: (slot[1], slot[0])):
        own = waiting[expert_rows[n][k]]
        if valid_N is not None and not valid_N[n]:
            continue
        if capacity is None or len(own) < capacity:
            own.append(n * num_chosen + k)
        else:
            dropped.append(n * num_chosen + k)
    order = [slot for own in waiting for slot in own]
    place = {slot: at for at, slot in enumerate(order)}
    num_slots = num_tokens * num_chosen
    counts = [len(own) for own in waiting]
    offsets = [sum(counts[:e]) for e in range(num_experts + 1)]

    def numbers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=logits_NE.device)

    gate_NK = torch.stack(gate_rows) if gate_rows else logits_NE.float()[:, :num_chosen]
    is_kept_S = torch.ones(num_slots, device=logits_NE.device)
    is_kept_S[dropped] = 0.0
    return Routing(
        gate_NK * is_kept_S.view_as(gate_NK),
        numbers([e for row in expert_rows for e in row]).view(num_tokens, num_chosen),
        numbers(counts),
        numbers(offsets),
        numbers(order + [-1] * (num_slots - len(order))),
        numbers([place.get(slot, -1) for slot in range(num_slots)]),
    )
