"""Rows of experts back to their tokens: weighted by the gates, summed in float32 and rounded once.

The gradient reads a token's gradient once, writes K weighted copies of it and multiplies it with the K rows for the
gates, all in one pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmmoe.kernels.backend import TYPE_CODES, has_kernels, launch
from mmmoe.kernels.library import register
from mmmoe.kernels.places import check_inverse, check_places, check_range, check_rows, exact_type


def combine(rows_SD: Tensor, gate_NK: Tensor, order_S: Tensor, inverse_S: Tensor) -> Tensor:
    """Returns (N, D): the sum over k of gate[n, k] * rows[inverse[n * K + k]]; a slot left out (-1) adds nothing.

    Args:
        rows_SD: rows in the order of experts; float32, bfloat16, float16 or float64. Differentiable.
        gate_NK: weights, as `route_topk` gives them; K from 1 to 8. Differentiable.
        order_S: slot at each place, S = N * K.
        inverse_S: place of each slot.

    Raises:
        ValueError: A type, shape or device that does not fit; on a CPU also a place that does not exist. On a GPU
            nobody waits to look: a token with such a place becomes NaN.
    """
    check_rows("rows", rows_SD, ("gate", gate_NK), ("order", order_S), ("inverse", inverse_S))
    if gate_NK.dim() != 2 or not gate_NK.is_floating_point():
        raise ValueError(f"gate must be (tokens, chosen) numbers, got {gate_NK.dtype} of shape {tuple(gate_NK.shape)}")
    num_chosen = check_places(order_S, inverse_S, gate_NK.shape[0])
    if gate_NK.shape[0] and gate_NK.shape[1] != num_chosen:
        raise ValueError(f"gate {tuple(gate_NK.shape)} does not fit order {tuple(order_S.shape)}: S must be N * K")
    if rows_SD.shape[0] != order_S.shape[0]:
        raise ValueError(f"rows {tuple(rows_SD.shape)} must have one row for each of {order_S.shape[0]} places")
    y_ND: Tensor = _combine(rows_SD, gate_NK.to(exact_type(rows_SD)), order_S, inverse_S)
    return y_ND


def gather_sum(rows_SD: Tensor, gate_NK: Tensor | None, inverse_S: Tensor, num_tokens: int) -> Tensor:
    """Returns `combine` for any number of rows and without a gradient; no gate stands for ones.

    Raises:
        ValueError: A type, shape or device that does not fit; on a CPU also a row that does not exist.
    """
    check_rows("rows", rows_SD, ("inverse", inverse_S), *([] if gate_NK is None else [("gate", gate_NK)]))
    num_chosen = check_places(inverse_S, inverse_S, num_tokens)
    if gate_NK is not None:
        if gate_NK.shape != (num_tokens, num_chosen):
            raise ValueError(f"gate {tuple(gate_NK.shape)} must be {(num_tokens, num_chosen)}")
        gate_NK = gate_NK.to(exact_type(rows_SD))
    return _gather_sum(rows_SD, gate_NK, inverse_S, num_tokens)  # type: ignore[no-any-return]  # torch.ops has no types


def _run_gather_sum(rows_SD: Tensor, gate_NK: Tensor | None, inverse_S: Tensor, num_tokens: int) -> Tensor:
    check_range("inverse", inverse_S, rows_SD.shape[0])
    return _added(rows_SD, gate_NK, inverse_S, num_tokens)


def _added(rows_SD: Tensor, gate_NK: Tensor | None, inverse_S: Tensor, num_tokens: int) -> Tensor:
    num_chosen, kind = max(inverse_S.numel() // max(num_tokens, 1), 1), rows_SD.dtype
    if has_kernels(rows_SD):
        y_ND = _fake_gather_sum(rows_SD, gate_NK, inverse_S, num_tokens)
        launch(
            "mmmoe_combine", rows_SD.contiguous(), None if gate_NK is None else gate_NK.contiguous(),
            inverse_S.contiguous(), y_ND, num_tokens, num_chosen, *rows_SD.shape, TYPE_CODES[rows_SD.dtype],
            device=rows_SD.device,
        )  # fmt: skip
        return y_ND
    if rows_SD.shape[0] == 0:
        return rows_SD.new_zeros(num_tokens, rows_SD.shape[1])
    rows_SD = rows_SD.to(exact_type(rows_SD)) if gate_NK is not None else rows_SD
    taken_SD = rows_SD.index_select(0, inverse_S.clamp(min=0)).masked_fill_((inverse_S < 0)[:, None], 0)
    taken_NKD = taken_SD.view(num_tokens, num_chosen, rows_SD.shape[1])
    exact_NKD = taken_NKD.to(exact_type(rows_SD)) if gate_NK is None else taken_NKD * gate_NK[:, :, None]
    return exact_NKD.sum(1).to(kind)


def _fake_gather_sum(rows_SD: Tensor, gate_NK: Tensor | None, inverse_S: Tensor, num_tokens: int) -> Tensor:
    return rows_SD.new_empty(num_tokens, rows_SD.shape[1])


def _run(rows_SD: Tensor, gate_NK: Tensor, order_S: Tensor, inverse_S: Tensor) -> Tensor:
    check_inverse(order_S, inverse_S)
    return _added(rows_SD, gate_NK, inverse_S, gate_NK.shape[0])


def _fake(rows_SD: Tensor, gate_NK: Tensor, order_S: Tensor, inverse_S: Tensor) -> Tensor:
    return rows_SD.new_empty(gate_NK.shape[0], rows_SD.shape[1])


def _run_backward(
    dy_ND: Tensor, rows_SD: Tensor, gate_NK: Tensor, order_S: Tensor, inverse_S: Tensor
) -> tuple[Tensor, Tensor]:
    num_tokens, num_chosen = gate_NK.shape
    if has_kernels(rows_SD):
        dy_ND, rows_SD, gate_NK = dy_ND.contiguous(), rows_SD.contiguous(), gate_NK.contiguous()
        drows_SD, dgate_NK = torch.empty_like(rows_SD), torch.empty_like(gate_NK)
        launch(
            "mmmoe_combine_backward", dy_ND, rows_SD, gate_NK, order_S.contiguous(), inverse_S.contiguous(), drows_SD,
            dgate_NK, num_tokens, num_chosen, rows_SD.shape[1], TYPE_CODES[rows_SD.dtype], device=rows_SD.device,
        )  # fmt: skip
        return drows_SD, dgate_NK
    if num_tokens == 0:
        return torch.zeros_like(rows_SD), torch.zeros_like(gate_NK)
    slot_S = order_S.clamp(min=0)
    dy_SD = dy_ND.to(gate_NK.dtype).index_select(0, slot_S // num_chosen)
    drows_SD = (dy_SD * gate_NK.reshape(-1)[slot_S, None]).masked_fill_((order_S < 0)[:, None], 0)
    product_S = (dy_SD * rows_SD).sum(1)
    dgate_NK = product_S[inverse_S.clamp(min=0)].masked_fill(inverse_S < 0, 0.0).view_as(gate_NK)
    return drows_SD.to(rows_SD.dtype), dgate_NK


def _fake_backward(
    dy_ND: Tensor, rows_SD: Tensor, gate_NK: Tensor, order_S: Tensor, inverse_S: Tensor
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(rows_SD, memory_format=torch.contiguous_format),
        torch.empty_like(gate_NK, memory_format=torch.contiguous_format),
    )


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:
    drows_SD, dgate_NK = _combine_backward(dy_ND, *ctx.saved_tensors)
    return drows_SD, dgate_NK, None, None


_gather_sum = register(
    "gather_sum(Tensor rows, Tensor? gate, Tensor inverse, SymInt num_tokens) -> Tensor",
    run=_run_gather_sum,
    fake=_fake_gather_sum,
)
_combine_backward = register(
    "combine_backward(Tensor dy, Tensor rows, Tensor gate, Tensor order, Tensor inverse) -> (Tensor, Tensor)",
    run=_run_backward,
    fake=_fake_backward,
)
_combine = register(
    "combine(Tensor rows, Tensor gate, Tensor order, Tensor inverse) -> Tensor",
    run=_run,
    fake=_fake,
    backward=_backward,
    keep=_keep,
)
