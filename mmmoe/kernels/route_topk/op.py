"""Top-k routing in one call: logits to gates, experts, counts, offsets, a stable order and its inverse.

On a GPU three launches do it (kernels/csrc/route_topk.cu), without atomics, without waiting on the host, and with the
same order every time; on a CPU C++ (route_topk.cpp); where neither can be compiled, torch, with a stable sort. Only the
gates have a gradient.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mmmoe.kernels.backend import TYPE_CODES, has_kernels, launch
from mmmoe.kernels.library import register
from mmmoe.kernels.order import (
    MOST_CHOSEN,
    MOST_EXPERTS,
    UNLIMITED,
    empty_order,
    order_by_expert,
    order_in_torch,
    workspace,
)
from mmmoe.kernels.places import check_rows
from mmmoe.kernels.route_topk.reference import Routing

Priority = Literal["token", "choice"]
Gates = Literal["softmax", "softmax_renormalised", "softmax_chosen"]
RULES: dict[str, int] = {"softmax": 0, "softmax_renormalised": 1, "softmax_chosen": 2}


def route_topk(
    logits_NE: Tensor,
    num_chosen: int,
    gates: Gates = "softmax",
    capacity: int | None = None,
    *,
    valid_N: Tensor | None = None,
    priority: Priority = "token",
) -> Routing:
    """Routes each token to the experts of its `num_chosen` largest logits.

    Args:
        logits_NE: float32, bfloat16, float16 or float64; any strides. The softmax is taken in float32 (float64).
        num_chosen: K, from 1 to 8 and at most E; E is at most 1024.
        gates: `softmax` over all experts; `softmax_renormalised`: divided by its sum over the chosen (Mixtral);
            `softmax_chosen`: softmax over the chosen logits alone, the same up to rounding.
        capacity: Most slots an expert keeps; None keeps all. A slot beyond gets gate 0 and place -1; the gates of the
            token's other slots stay as they are.
        valid_N: bool; tokens that are not valid (padding) keep experts and gates but get place -1 and no gradient.
        priority: In what order an expert takes slots: `token` by token, or first choices before second ones
            (`choice`, as GShard and DeepSpeed do).

    Raises:
        ValueError: An argument is out of range. What logits hold is not looked at: a NaN, or a row without any finite
            value, turns the row's gates into NaN, so that a training step's loss shows it on every process.
    """
    _check(logits_NE, num_chosen, gates, capacity, valid_N, priority)
    limit = UNLIMITED if capacity is None else capacity
    return Routing(*_route_topk(logits_NE, valid_N, num_chosen, RULES[gates], limit, priority == "choice"))


def _check(
    logits_NE: Tensor, num_chosen: int, gates: str, capacity: int | None, valid_N: Tensor | None, priority: str
) -> None:
    valid = [] if valid_N is None else [("valid", valid_N)]
    check_rows("logits", logits_NE, *valid)
    shape, num_experts = tuple(logits_NE.shape), logits_NE.shape[1]
    if not 1 <= num_experts <= MOST_EXPERTS:
        raise ValueError(f"logits {shape} have {num_experts} experts; 1 to {MOST_EXPERTS} work")
    most = min(MOST_CHOSEN, num_experts)
    if not 1 <= num_chosen <= most:
        raise ValueError(f"num_chosen is {num_chosen}; with {num_experts} experts 1 to {most} work")
    if gates not in RULES:
        raise ValueError(f"gates is {gates!r}; give one of {', '.join(RULES)}")
    if priority not in ("token", "choice"):
        raise ValueError(f"priority is {priority!r}; give one of token, choice")
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity is {capacity}; give at least 1, or None for no limit")
    if valid_N is not None and (valid_N.dtype != torch.bool or valid_N.shape != shape[:1]):
        raise ValueError(f"valid must be bool {shape[:1]}, got {valid_N.dtype} {tuple(valid_N.shape)}")


def _run(
    logits_NE: Tensor, valid_N: Tensor | None, num_chosen: int, rule: int, capacity: int, by_choice: bool
) -> tuple[Tensor, ...]:
    first_limit = UNLIMITED if by_choice else capacity
    if has_kernels(logits_NE):
        routing = _launched(logits_NE.contiguous(), valid_N, num_chosen, rule, first_limit)
    else:
        routing = _in_torch(logits_NE, valid_N, num_chosen, rule, first_limit)
    return _by_choice(routing, valid_N, logits_NE.shape[1], capacity) if by_choice else routing


def _launched(
    logits_NE: Tensor, valid_N: Tensor | None, num_chosen: int, rule: int, capacity: int
) -> tuple[Tensor, ...]:
    routing = _empty(logits_NE, num_chosen)
    num_experts, num_slots = logits_NE.shape[1], routing[1].numel()
    launch(
        "mmmoe_route", logits_NE, None if valid_N is None else valid_N.contiguous(), *routing,
        workspace(logits_NE, num_experts, num_slots),
        *logits_NE.shape, num_chosen, rule, capacity, TYPE_CODES[logits_NE.dtype], device=logits_NE.device,
    )  # fmt: skip
    return routing


def _by_choice(
    routing: tuple[Tensor, ...], valid_N: Tensor | None, num_experts: int, capacity: int
) -> tuple[Tensor, ...]:
    """Returns the routing with the order in which all first choices come before all second ones."""
    gate_NK, expert_NK, *_ = routing
    num_tokens, num_chosen = expert_NK.shape
    sent_NK = expert_NK if valid_N is None else expert_NK.masked_fill(~valid_N[:, None], -1)
    order = order_by_expert(sent_NK.t().reshape(-1), num_experts, capacity)  # numbered choice * N + token
    slot_S = order.order_S % max(num_tokens, 1) * num_chosen + order.order_S // max(num_tokens, 1)
    inverse_NK = order.inverse_S.view(num_chosen, num_tokens).t()
    dropped_NK = (inverse_NK < 0) & (sent_NK >= 0)
    return (
        gate_NK.masked_fill(dropped_NK & ~gate_NK.isnan(), 0.0),
        expert_NK,
        order.count_E,
        order.offset_E1,
        torch.where(order.order_S < 0, -1, slot_S),
        inverse_NK.reshape(-1),
    )


def _in_torch(
    logits_NE: Tensor, valid_N: Tensor | None, num_chosen: int, rule: int, capacity: int
) -> tuple[Tensor, ...]:
    logits_NE = logits_NE if logits_NE.dtype == torch.float64 else logits_NE.float()
    top_NK, expert_NK = _largest(logits_NE, num_chosen)
    gate_NK = _gates(logits_NE, top_NK, rule).masked_fill(torch.isnan(logits_NE).any(1, keepdim=True), torch.nan)
    sent_NK = expert_NK if valid_N is None else expert_NK.masked_fill(~valid_N[:, None], -1)
    order = order_in_torch(sent_NK.reshape(-1), logits_NE.shape[1], capacity)
    dropped_NK = (order.inverse_S < 0).view_as(sent_NK) & (sent_NK >= 0)
    return gate_NK.masked_fill(dropped_NK & ~gate_NK.isnan(), 0.0), expert_NK, *order


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


def _empty(logits_NE: Tensor, num_chosen: int) -> tuple[Tensor, ...]:
    num_tokens, num_experts = logits_NE.shape
    gate_type = torch.float64 if logits_NE.dtype == torch.float64 else torch.float32
    gate_NK = logits_NE.new_empty(num_tokens, num_chosen, dtype=gate_type)
    expert_NK = torch.empty_like(gate_NK, dtype=torch.int64)
    return gate_NK, expert_NK, *empty_order(logits_NE, num_experts, num_tokens * num_chosen)


def _fake(
    logits_NE: Tensor, valid_N: Tensor | None, num_chosen: int, rule: int, capacity: int, by_choice: bool
) -> tuple[Tensor, ...]:
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


def _run_backward(dgate_NK: Tensor, logits_NE: Tensor, expert_NK: Tensor, inverse_S: Tensor, rule: int) -> Tensor:
    if not has_kernels(logits_NE):
        return _backward_in_torch(dgate_NK, logits_NE, expert_NK, inverse_S, rule)
    logits_NE, dgate_NK = logits_NE.contiguous(), dgate_NK.contiguous()
    dlogits_NE = torch.empty_like(logits_NE)
    launch(
        "mmmoe_route_backward", logits_NE, expert_NK, inverse_S, dgate_NK, dlogits_NE,
        *logits_NE.shape, expert_NK.shape[1], rule, TYPE_CODES[logits_NE.dtype], device=logits_NE.device,
    )  # fmt: skip
    return dlogits_NE


def _backward_fake(dgate_NK: Tensor, logits_NE: Tensor, expert_NK: Tensor, inverse_S: Tensor, rule: int) -> Tensor:
    return torch.empty_like(logits_NE, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits_NE, _, _, rule, *_ = inputs
    ctx.save_for_backward(logits_NE, output[1], output[5])
    ctx.rule = rule
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, dgate_NK: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    logits_NE, expert_NK, inverse_S = ctx.saved_tensors
    return _route_topk_backward(dgate_NK, logits_NE, expert_NK, inverse_S, ctx.rule), None, None, None, None, None


_route_topk_backward = register(
    "route_topk_backward(Tensor dgate, Tensor logits, Tensor expert, Tensor inverse, int rule) -> Tensor",
    run=_run_backward,
    fake=_backward_fake,
)
_route_topk = register(
    "route_topk(Tensor logits, Tensor? valid, int num_chosen, int rule, int capacity, bool by_choice) -> "
    "(Tensor gate, Tensor expert, Tensor count, Tensor offset, Tensor order, Tensor inverse)",
    run=_run,
    fake=_fake,
    backward=_backward,
    keep=_keep,
)
