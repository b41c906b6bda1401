"""Tokens to the processes that hold their experts and back, or those experts' weights to the tokens.

Both give the same function; which sends fewer bytes is counted before (performance: N * D tokens against E * D * F
weights).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

from mmmoe.kernels.combine.op import combine, gather_sum
from mmmoe.kernels.dispatch.op import dispatch
from mmmoe.kernels.order import ExpertOrder, order_by_expert
from mmmoe.kernels.route_topk.reference import Routing
from mmmoe.kernels.send_order.exchange import Counts, exchange_counts, exchange_rows
from mmmoe.models.moe.experts import Experts, FFNWeights
from mmmoe.models.moe.place import ExpertPlace

EXPERT_NUMBER_BYTES = 4
"""A chosen expert travels as int32."""


def compute_here(x_ND: Tensor, routing: Routing, experts: Experts, weights: FFNWeights | None = None) -> Tensor:
    """Returns (N, D): each token's weighted sum over its experts, all of which are at hand."""
    rows_SD = dispatch(x_ND, routing.order_S, routing.inverse_S)
    y_SD = experts(rows_SD, routing.count_E, weights)
    return combine(y_SD, routing.gate_NK, routing.order_S, routing.inverse_S).to(y_SD.dtype)


def compute_there(x_ND: Tensor, routing: Routing, order: ExpertOrder, experts: Experts, place: ExpertPlace) -> Tensor:
    """Returns the same with the experts spread over the group: tokens travel, once to each process that serves them.

    Weighted sums of a process's experts come back, so a token's row travels 2 * (distinct processes) times.
    """
    num_tokens, num_chosen = routing.expert_NK.shape
    share = _held(experts)
    counts = exchange_counts(order.count_E, place.group)
    slot_P = order.order_S[: sum(counts.sent)]
    token_P = slot_P // num_chosen
    to_P = torch.arange(place.size, device=x_ND.device).repeat_interleave(order.count_E, output_size=len(slot_P))
    expert_PK = routing.expert_NK[token_P]
    is_there_PK = (expert_PK // share == to_P[:, None]) & (routing.inverse_S.view(num_tokens, -1)[token_P] >= 0)
    number_PK = (expert_PK - to_P[:, None] * share).masked_fill(~is_there_PK, -1)
    gate_PK = routing.gate_NK[token_P].masked_fill(~is_there_PK, 0.0)

    rows_PD = dispatch(x_ND, order.order_S, order.inverse_S)[: len(slot_P)]
    got_RD = exchange_rows(rows_PD, counts, place.group)
    got_gate_RK = exchange_rows(gate_PK, counts, place.group)
    got_number_RK = exchange_rows(number_PK.to(torch.int32), counts, place.group).long()
    y_RD = _partial_sums(got_RD, got_number_RK, got_gate_RK, experts)
    back_PD = exchange_rows(y_RD, Counts(counts.received, counts.sent), place.group)
    _count_tokens(counts, rows_PD, back_PD, gate_PK, place)
    y_ND: Tensor = _Returned.apply(back_PD, order.order_S, order.inverse_S, num_tokens)
    return y_ND


def _partial_sums(rows_RD: Tensor, number_RK: Tensor, gate_RK: Tensor, experts: Experts) -> Tensor:
    """Returns each received row's weighted sum over the experts that it has chosen here."""
    order = order_by_expert(number_RK.reshape(-1), _held(experts))
    return compute_here(rows_RD, Routing(gate_RK, number_RK.clamp(min=0), *order), experts)


def _held(experts: Experts) -> int:
    return experts.gate_proj.weight_EOI.shape[0]


def compute_with_gathered(x_ND: Tensor, routing: Routing, experts: Experts, place: ExpertPlace) -> Tensor:
    """Returns the same: every process gets all experts' weights and serves its own tokens."""
    own = experts.weights()
    gathered = own.with_tensors([_Gathered.apply(tensor, place.group) for tensor in own.tensors()])
    place.traffic.weights += weight_bytes(experts, place.size, with_backward=torch.is_grad_enabled())
    return compute_here(x_ND, routing, experts, gathered)


def token_bytes(rows: int, width: int, element: int, num_chosen: int, *, with_backward: bool) -> int:
    """Returns what crosses between processes when so many rows leave one: out, back and, with gradients, both again.

    Weights of the choices travel in float32 and their gradients come back; expert numbers travel once.
    """
    passes = 2 if with_backward else 1
    return rows * (passes * (2 * width * element + 4 * num_chosen) + EXPERT_NUMBER_BYTES * num_chosen)


def weight_bytes(experts: Experts, size: int, *, with_backward: bool) -> int:
    """Returns what one process sends when all processes get all experts, and the gradients that come back."""
    tensors = experts.weights().tensors()
    out = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    back = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.requires_grad)
    return (size - 1) * (out + (back if with_backward else 0))


def moves_tokens(order: ExpertOrder, x_ND: Tensor, num_chosen: int, experts: Experts, place: ExpertPlace) -> bool:
    """Says whether moving the tokens is fewer bytes than moving the weights, over the whole group; collective."""
    with_backward = torch.is_grad_enabled()
    element = experts.gate_proj.weight_EOI.element_size()
    a_row = token_bytes(1, x_ND.shape[1], element, num_chosen, with_backward=with_backward)
    weights = place.size * weight_bytes(experts, place.size, with_backward=with_backward)
    # Every process of the group holds as many weights, so only the rows have to be added up; the host waits once.
    leaving = order.count_E.sum() - order.count_E[place.rank]
    torch_dist.all_reduce(leaving, group=place.group)
    return int(leaving) * a_row <= weights


def _count_tokens(counts: Counts, rows_PD: Tensor, back_PD: Tensor, gate_PK: Tensor, place: ExpertPlace) -> None:
    """Notes what leaves this process now and in the backward pass: rows out and their gradients back, and the like of
    the rows of others that are served here.
    """
    out, served = (sum(numbers) - numbers[place.rank] for numbers in (counts.sent, counts.received))
    row, result = (part.shape[1] * part.element_size() for part in (rows_PD, back_PD))
    gates = gate_PK.shape[1] * gate_PK.element_size()
    sent = out * (row + gates + gate_PK.shape[1] * EXPERT_NUMBER_BYTES) + served * result
    if torch.is_grad_enabled():
        sent += served * (row + gates) + out * result
    place.traffic.tokens += sent


class _Returned(torch.autograd.Function):
    """Adds up the rows that came back for each token; its gradient sends a token's gradient to each of its rows."""

    @staticmethod
    def forward(ctx: Any, rows_PD: Tensor, order_S: Tensor, inverse_S: Tensor, num_tokens: int) -> Tensor:
        ctx.save_for_backward(order_S, inverse_S)
        ctx.num_rows = rows_PD.shape[0]
        return gather_sum(rows_PD, None, inverse_S, num_tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        order_S, inverse_S = ctx.saved_tensors
        return dispatch(grads[0], order_S, inverse_S)[: ctx.num_rows], None, None, None


class _Gathered(torch.autograd.Function):
    """All processes' experts in one tensor; the gradient goes back to each expert's process, summed."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Any) -> Tensor:
        ctx.group = group
        size = torch_dist.get_world_size(group)
        gathered = own.new_empty(size * own.shape[0], *own.shape[1:])
        torch_dist.all_gather_into_tensor(gathered, own.contiguous(), group=group)
        return gathered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        size = torch_dist.get_world_size(ctx.group)
        parts = torch.empty_like(grads[0], memory_format=torch.contiguous_format)
        torch_dist.all_to_all_single(parts, grads[0].contiguous(), group=ctx.group)
        return parts.view(size, -1, *grads[0].shape[1:]).sum(0), None
