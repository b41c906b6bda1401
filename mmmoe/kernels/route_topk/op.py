"""Top-k routing in one call: logits to gates, experts, counts, offsets, a stable order and its inverse.

On a GPU three launches do it (kernels/csrc/route.cu), without atomics, without waiting on the host, and with the same
order every time. Elsewhere torch does it: a stable sort of the slots by expert. Only the gates have a gradient.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mmmoe.kernels.backend import TYPE_CODES, active, cuda_call, cuda_library
from mmmoe.kernels.library import register
from mmmoe.kernels.order import order_by_expert
from mmmoe.kernels.route_topk.reference import Routing

Gates = Literal["softmax", "softmax_renormalised", "softmax_chosen"]
RULES: dict[str, int] = {"softmax": 0, "softmax_renormalised": 1, "softmax_chosen": 2}
MOST_EXPERTS, MOST_CHOSEN = 1024, 8
UNLIMITED = 2**62


def route_topk(logits_NE: Tensor, num_chosen: int, gates: Gates = "softmax", capacity: int | None = None) -> Routing:
    """Routes each token to the experts of its `num_chosen` largest logits.

    Args:
        logits_NE: float32, bfloat16 or float16 (float64 on the CPU); any strides. The softmax is taken in float32.
        num_chosen: K, from 1 to 8 and at most E; E is at most 1024.
        gates: `softmax` over all experts; `softmax_renormalised`: divided by its sum over the chosen (Mixtral);
            `softmax_chosen`: softmax over the chosen logits alone, the same up to rounding.
        capacity: Most slots an expert keeps, earlier slots first; None keeps all. A slot beyond gets gate 0 and place
            -1; the gates of the token's other slots stay as they are.

    Raises:
        ValueError: An argument is out of range, or logits on the CPU hold a NaN. On a GPU nobody waits to look: there a
            NaN turns the row's gates into NaN.
    """
    _check(logits_NE, num_chosen, gates, capacity)
    limit = UNLIMITED if capacity is None else capacity
    return Routing(*_route_topk(logits_NE, num_chosen, RULES[gates], limit))


def _check(logits_NE: Tensor, num_chosen: int, gates: str, capacity: int | None) -> None:
    if logits_NE.dim() != 2:
        raise ValueError(f"logits must have two dimensions (tokens, experts), got shape {tuple(logits_NE.shape)}")
    shape, num_experts = tuple(logits_NE.shape), logits_NE.shape[1]
    types = (*TYPE_CODES, torch.float64) if logits_NE.device.type == "cpu" else tuple(TYPE_CODES)
    if logits_NE.dtype not in types:
        names = ", ".join(map(str, types))
        raise ValueError(f"logits {shape} are {logits_NE.dtype} on {logits_NE.device}; give one of {names}")
    if not 1 <= num_experts <= MOST_EXPERTS:
        raise ValueError(f"logits {shape} have {num_experts} experts; 1 to {MOST_EXPERTS} work")
    most = min(MOST_CHOSEN, num_experts)
    if not 1 <= num_chosen <= most:
        raise ValueError(f"num_chosen is {num_chosen}; with {num_experts} experts 1 to {most} work")
    if gates not in RULES:
        raise ValueError(f"gates is {gates!r}; give one of {', '.join(RULES)}")
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity is {capacity}; give at least 1, or None for no limit")


def _on_cpu(logits_NE: Tensor, num_chosen: int, rule: int, capacity: int) -> tuple[Tensor, ...]:
    if bool(torch.isnan(logits_NE).any()):
        rows = torch.isnan(logits_NE).any(1).nonzero()[:, 0].tolist()
        raise ValueError(f"logits hold NaN in {len(rows)} of {logits_NE.shape[0]} rows, the first are {rows[:5]}")
    return _in_torch(logits_NE, num_chosen, rule, capacity)


def _on_cuda(logits_NE: Tensor, num_chosen: int, rule: int, capacity: int) -> tuple[Tensor, ...]:
    if active().name != "cuda":
        return _in_torch(logits_NE, num_chosen, rule, capacity)
    num_tokens, num_experts = logits_NE.shape
    logits_NE = logits_NE.contiguous()
    gate, expert, count, offset, order, inverse = _empty(logits_NE, num_chosen)
    size = cuda_library().mmmoe_route_workspace(num_tokens, num_experts, num_chosen)
    workspace = torch.empty(size, dtype=torch.int32, device=logits_NE.device)
    cuda_call(
        "mmmoe_route", logits_NE, gate, expert, count, offset, order, inverse, workspace,
        num_tokens, num_experts, num_chosen, rule, capacity, TYPE_CODES[logits_NE.dtype], device=logits_NE.device,
    )  # fmt: skip
    return gate, expert, count, offset, order, inverse


def _in_torch(logits_NE: Tensor, num_chosen: int, rule: int, capacity: int) -> tuple[Tensor, ...]:
    num_tokens, num_experts = logits_NE.shape
    logits_NE = logits_NE if logits_NE.dtype == torch.float64 else logits_NE.float()
    top_NK, expert_NK = _largest(logits_NE, num_chosen)
    gate_NK = _gates(logits_NE, top_NK, rule)
    expert_S = expert_NK.reshape(-1)
    order_S, inverse_S, count_E = order_by_expert(expert_S, num_experts)
    offset_E1 = _offsets(count_E)
    if capacity < num_tokens:  # an expert is chosen at most once a token
        rank_S = inverse_S - offset_E1[expert_S]
        is_kept_S = rank_S < capacity
        count_E = count_E.clamp(max=capacity)
        offset_E1 = _offsets(count_E)
        inverse_S = torch.where(is_kept_S, offset_E1[expert_S] + rank_S, -1)
        # Kept slots first, in order of their place; what was dropped goes behind and becomes -1.
        place_S = torch.where(is_kept_S, inverse_S, num_tokens * num_chosen)
        order_S = torch.argsort(place_S, stable=True)
        order_S = torch.where(torch.arange(order_S.numel(), device=order_S.device) < offset_E1[-1], order_S, -1)
        gate_NK = gate_NK * is_kept_S.view_as(gate_NK)
    return gate_NK, expert_NK, count_E, offset_E1, order_S, inverse_S


def _largest(logits_NE: Tensor, num_chosen: int) -> tuple[Tensor, Tensor]:
    """Returns the largest logits and their experts; ties go to the lower number, which torch.topk leaves open."""
    if num_chosen == 1:
        top_N, expert_N = logits_NE.max(1)
        return top_N[:, None], expert_N[:, None]
    top_NK, expert_NK = torch.sort(logits_NE, dim=1, descending=True, stable=True)
    return top_NK[:, :num_chosen].contiguous(), expert_NK[:, :num_chosen].contiguous()


def _gates(logits_NE: Tensor, top_NK: Tensor, rule: int) -> Tensor:
    if rule == RULES["softmax"]:
        return (top_NK - logits_NE.logsumexp(1, keepdim=True)).exp()
    return top_NK.softmax(1)


def _offsets(count_E: Tensor) -> Tensor:
    return torch.nn.functional.pad(count_E.cumsum(0), (1, 0))


def _empty(logits_NE: Tensor, num_chosen: int) -> tuple[Tensor, ...]:
    num_tokens, num_experts = logits_NE.shape
    gate_type = torch.float64 if logits_NE.dtype == torch.float64 else torch.float32
    num_slots = num_tokens * num_chosen
    sizes = ((num_tokens, num_chosen), (num_experts,), (num_experts + 1,), (num_slots,), (num_slots,))
    whole = [logits_NE.new_empty(size, dtype=torch.int64) for size in sizes]
    return logits_NE.new_empty(num_tokens, num_chosen, dtype=gate_type), *whole


def _fake(logits_NE: Tensor, num_chosen: int, rule: int, capacity: int) -> tuple[Tensor, ...]:
    return _empty(logits_NE, num_chosen)


def _backward_in_torch(dgate_NK: Tensor, logits_NE: Tensor, expert_NK: Tensor, inverse_S: Tensor, rule: int) -> Tensor:
    """Uses d gate_k / d logit_j = gate_k (1[j chosen as k] - p_j), with p over all experts or over the chosen."""
    dgate_NK = dgate_NK * (inverse_S >= 0).view_as(dgate_NK)
    exact_NE = logits_NE if logits_NE.dtype == torch.float64 else logits_NE.float()
    gate_NK = _gates(exact_NE, exact_NE.gather(1, expert_NK), rule)
    pull_NK = gate_NK * dgate_NK
    inner_N1 = pull_NK.sum(1, keepdim=True)
    if rule == RULES["softmax"]:
        return (exact_NE.softmax(1).mul(-inner_N1).scatter_add(1, expert_NK, pull_NK)).to(logits_NE.dtype)
    dlogits_NE = torch.zeros_like(exact_NE).scatter(1, expert_NK, pull_NK - gate_NK * inner_N1)
    return dlogits_NE.to(logits_NE.dtype)


def _backward_on_cuda(dgate_NK: Tensor, logits_NE: Tensor, expert_NK: Tensor, inverse_S: Tensor, rule: int) -> Tensor:
    if active().name != "cuda":
        return _backward_in_torch(dgate_NK, logits_NE, expert_NK, inverse_S, rule)
    logits_NE, dgate_NK = logits_NE.contiguous(), dgate_NK.contiguous()
    dlogits_NE = torch.empty_like(logits_NE)
    cuda_call(
        "mmmoe_route_backward", logits_NE, expert_NK, inverse_S, dgate_NK, dlogits_NE,
        *logits_NE.shape, expert_NK.shape[1], rule, TYPE_CODES[logits_NE.dtype], device=logits_NE.device,
    )  # fmt: skip
    return dlogits_NE


def _backward_fake(dgate_NK: Tensor, logits_NE: Tensor, expert_NK: Tensor, inverse_S: Tensor, rule: int) -> Tensor:
    return torch.empty_like(logits_NE, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits_NE, _, rule, _ = inputs
    ctx.save_for_backward(logits_NE, output[1], output[5])
    ctx.rule = rule
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, dgate_NK: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    logits_NE, expert_NK, inverse_S = ctx.saved_tensors
    return _route_topk_backward(dgate_NK, logits_NE, expert_NK, inverse_S, ctx.rule), None, None, None


_route_topk_backward = register(
    "route_topk_backward(Tensor dgate, Tensor logits, Tensor expert, Tensor inverse, int rule) -> Tensor",
    cpu=_backward_in_torch,
    cuda=_backward_on_cuda,
    fake=_backward_fake,
)
_route_topk = register(
    "route_topk(Tensor logits, int num_chosen, int rule, int capacity) -> "
    "(Tensor gate, Tensor expert, Tensor count, Tensor offset, Tensor order, Tensor inverse)",
    cpu=_on_cpu,
    cuda=_on_cuda,
    fake=_fake,
    backward=_backward,
    keep=_keep,
)
