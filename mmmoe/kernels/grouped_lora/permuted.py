"""LoRA experts in plain torch without the arithmetic of all B: rank-wide rows are brought to the order of experts.

It is what is left where there is no compiler and many experts. The product of each group is an op, so that the counts,
which are read on the host, stay out of the graph, and so that its gradient writes each expert's part once.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mmmoe.kernels.library import register
from mmmoe.kernels.order import order_by_expert
from mmmoe.kernels.places import check_range


def permuted_lora(
    base_NF: Tensor,
    x_ND: Tensor,
    a_ERD: Tensor,
    b_EFR: Tensor,
    index_NK: Tensor,
    gate_NK: Tensor | None,
    *,
    scale: float,
) -> Tensor:
    """Returns what `grouped_lora` returns; on a GPU it waits for the counts."""
    num_experts, rank, width = a_ERD.shape
    order_S, offset_E1 = _order(index_NK.reshape(-1), num_experts)
    token_S = order_S // index_NK.shape[1]
    z_NER = (x_ND @ a_ERD.reshape(num_experts * rank, width).t()).view(-1, num_experts, rank)
    z_SR = z_NER[token_S, index_NK.reshape(-1)[order_S]]
    if gate_NK is not None:
        z_SR = z_SR * gate_NK.reshape(-1)[order_S, None].to(z_SR.dtype)
    update_SF: Tensor = _grouped_linear(z_SR * scale, b_EFR, offset_E1)
    return base_NF.index_add(0, token_S, update_SF)


def _run_order(expert_S: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    check_range("index", expert_S, num_experts, least=0)
    order = order_by_expert(expert_S, num_experts)
    return order.order_S, order.offset_E1


def _fake_order(expert_S: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(expert_S), expert_S.new_empty(num_experts + 1)


def _run(x_SI: Tensor, w_EOI: Tensor, offset_E1: Tensor) -> Tensor:
    y_SO = _fake(x_SI, w_EOI, offset_E1)
    for e, rows in _groups(offset_E1):
        torch.mm(x_SI[rows], w_EOI[e].t(), out=y_SO[rows])
    return y_SO


def _fake(x_SI: Tensor, w_EOI: Tensor, offset_E1: Tensor) -> Tensor:
    return x_SI.new_empty(x_SI.shape[0], w_EOI.shape[1])


def _run_backward(dy_SO: Tensor, x_SI: Tensor, w_EOI: Tensor, offset_E1: Tensor) -> tuple[Tensor, Tensor]:
    dx_SI, dw_EOI = _fake_backward(dy_SO, x_SI, w_EOI, offset_E1)
    dy_SO = dy_SO.contiguous()
    for e, rows in _groups(offset_E1):
        torch.mm(dy_SO[rows], w_EOI[e], out=dx_SI[rows])
        torch.mm(dy_SO[rows].t(), x_SI[rows], out=dw_EOI[e])
    return dx_SI, dw_EOI


def _fake_backward(dy_SO: Tensor, x_SI: Tensor, w_EOI: Tensor, offset_E1: Tensor) -> tuple[Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return torch.empty_like(x_SI, memory_format=contiguous), torch.empty_like(w_EOI, memory_format=contiguous)


def _groups(offset_E1: Tensor) -> list[tuple[int, slice]]:
    offsets = offset_E1.tolist()
    return [(e, slice(begin, end)) for e, (begin, end) in enumerate(pairwise(offsets))]


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy_SO: Tensor) -> tuple[Tensor | None, ...]:
    return (*_grouped_linear_backward(dy_SO, *ctx.saved_tensors), None)


_order = register(
    "order_by_expert(Tensor expert, SymInt num_experts) -> (Tensor order, Tensor offset)",
    run=_run_order,
    fake=_fake_order,
)
_grouped_linear_backward = register(
    "grouped_linear_backward(Tensor dy, Tensor x, Tensor w, Tensor offset) -> (Tensor, Tensor)",
    run=_run_backward,
    fake=_fake_backward,
)
_grouped_linear = register(
    "grouped_linear(Tensor x, Tensor w, Tensor offset) -> Tensor",
    run=_run,
    fake=_fake,
    backward=_backward,
    keep=_keep,
)
