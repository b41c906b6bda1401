"""From a router's logits to places in the order of experts, with or without a capacity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmmoe.kernels.order import order_by_expert
from mmmoe.kernels.route_topk.op import Priority, route_topk
from mmmoe.kernels.route_topk.reference import Routing
from mmmoe.models.moe.spec import GateSpec


def route(logits_NE: Tensor, spec: GateSpec, valid_N: Tensor | None = None, *, drops: bool = True) -> Routing:
    """Returns each token's experts, their weights and their places.

    Without a capacity: Uni-MoE (arXiv 2405.11273, section 3.2; its code renormalises). With one: DeepSpeed 0.19's
    gates, whose top-1 is weights softmax, top-2 drop choice, top-k drop probability; the random parts of its gates
    (which tokens stay, noise on the second choice) are left out.

    Args:
        logits_NE: one row a token.
        spec: k, weights and capacity.
        valid_N: bool; tokens that are not valid (padding) go to no expert.
        drops: whether a capacity is kept; it belongs to training, where all choices of a batch are made at once.
    """
    is_renormalised = spec.weights == "renormalised"
    if spec.capacity_factor is None or not drops:
        return route_topk(logits_NE, spec.k, "softmax_chosen" if is_renormalised else "softmax", valid_N=valid_N)
    capacity = capacity_of(spec, *logits_NE.shape)
    if spec.drop == "probability":
        routing = _most_probable(logits_NE, spec.k, capacity, valid_N)
    else:
        priority: Priority = "choice" if spec.drop == "choice" else "token"
        routing = route_topk(logits_NE, spec.k, "softmax", capacity, valid_N=valid_N, priority=priority)
    if not is_renormalised:
        return routing
    sum_N1 = routing.gate_NK.sum(1, keepdim=True)
    return routing._replace(gate_NK=routing.gate_NK / sum_N1.clamp(min=torch.finfo(sum_N1.dtype).eps))


def capacity_of(spec: GateSpec, num_tokens: int, num_experts: int) -> int:
    """Returns the most choices that an expert keeps."""
    assert spec.capacity_factor is not None
    return max(math.ceil(num_tokens / num_experts * spec.capacity_factor * spec.k), spec.min_capacity)


def _most_probable(logits_NE: Tensor, k: int, capacity: int, valid_N: Tensor | None) -> Routing:
    """Returns the routing in which a full expert keeps its most probable choices."""
    chosen = route_topk(logits_NE, k, "softmax", valid_N=valid_N)
    expert_S, gate_S = chosen.expert_NK.reshape(-1), chosen.gate_NK.detach().reshape(-1)
    if valid_N is not None:
        expert_S = expert_S.masked_fill(~valid_N.repeat_interleave(k), -1)
    falling_S = torch.argsort(gate_S, descending=True, stable=True)
    ranked = order_by_expert(expert_S[falling_S], logits_NE.shape[1], capacity)
    is_kept_S = torch.zeros_like(expert_S, dtype=torch.bool).scatter(0, falling_S, ranked.inverse_S >= 0)
    order = order_by_expert(expert_S.masked_fill(~is_kept_S, -1), logits_NE.shape[1])
    is_lost_NK = ~is_kept_S.view_as(chosen.gate_NK) & ~chosen.gate_NK.isnan()  # what is no number stays so
    gate_NK = chosen.gate_NK.masked_fill(is_lost_NK, 0.0)
    return Routing(gate_NK, chosen.expert_NK, *order)
