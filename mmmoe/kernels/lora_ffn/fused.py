"""lora_ffn by its kernels: the two passes, and how they go over the hidden columns.

On a CPU some columns at a time: the frozen gate and up outputs c, the middle (kernels/csrc/lora_ffn.cpp) and the frozen
down product follow one another while rows are near, and the backward goes the same way. So of all that is as large as
the hidden rows only c exists as a whole. On a GPU all columns at once. Kept for the backward: x, c and rank-wide rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmoe.kernels.backend import TYPE_CODES, launch
from mmmoe.kernels.grouped_lora.fused import Slots
from mmmoe.kernels.library import register
from mmmoe.kernels.lora_ffn.hidden import Hidden, pointer
from mmmoe.kernels.order import order_by_expert
from mmmoe.kernels.places import check_range, exact_type
from mmmoe.kernels.products import frozen_product, frozen_product_back, rows_of

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh")}
CODES = {"silu": 0, "gelu_tanh": 1}


def fused_ffn(
    x_ND: Tensor,
    frozen: tuple[Tensor, ...],
    factors: tuple[Tensor, ...],
    index_NK: Tensor,
    gate_NK: Tensor,
    *,
    scale: float,
    activation: str,
) -> Tensor:
    """Returns what `lora_ffn` returns; only where there are kernels. Factors: A and B of gate, up and down."""
    y_ND: Tensor = _fused(x_ND, *frozen, *factors, index_NK, gate_NK, scale, CODES[activation])[0]
    return y_ND


def _run(
    x_ND: Tensor,
    gate_FD: Tensor,
    up_FD: Tensor,
    down_DF: Tensor,
    ag: Tensor,
    bg: Tensor,
    au: Tensor,
    bu: Tensor,
    ad: Tensor,
    bd: Tensor,
    index_NK: Tensor,
    gate_NK: Tensor,
    scale: float,
    activation: int,
) -> tuple[Tensor, ...]:
    check_range("index", index_NK, ag.shape[0], least=0)
    order = order_by_expert(index_NK.reshape(-1), ag.shape[0])
    slots = Slots(order.order_S, order.offset_E1, index_NK.shape[1])
    x_ND, bg, bu, ad, bd = (t.contiguous() for t in (x_ND, bg, bu, ad, bd))
    # A of gate and up read the same rows: both in one walk.
    z_SR2 = slots.shrink(x_ND, torch.cat((ag, au), 1), wide_first=False).mul_(scale)
    zg_SR, zu_SR = _halves(z_SR2)
    gate_S = slots.by_place(gate_NK, zg_SR)
    zd_SR = torch.empty_like(zg_SR)
    # Experts whose B are all zero change nothing, on a CPU not a bit: torch's own products and activation serve then.
    is_fresh = x_ND.device.type == "cpu" and not (bg.any() or bu.any() or bd.any())
    if is_fresh:
        with torch.autocast("cpu", enabled=False):
            c_gate_NF, c_up_NF = F.linear(x_ND, gate_FD), F.linear(x_ND, up_FD)
            y_ND = _untouched(c_gate_NF, c_up_NF, down_DF, gate_NK, activation)
    else:
        c_gate_NF, c_up_NF = (x_ND.new_empty(x_ND.shape[0], gate_FD.shape[0]) for _ in range(2))
        y_ND = torch.empty_like(x_ND)
    rows = x_ND if is_fresh else rows_of(x_ND)
    hidden = Hidden(x_ND, bg, index_NK.shape[1], is_backward=False)
    for part in hidden:
        (sum_NW,) = part.rooms
        if not is_fresh:
            frozen_product(rows, gate_FD[part.columns], out=c_gate_NF[:, part.columns])
            frozen_product(rows, up_FD[part.columns], out=c_up_NF[:, part.columns])
        launch(
            "mmmoe_lora_ffn", c_gate_NF, c_up_NF, zg_SR, zu_SR, bg, bu, ad, gate_S, order.order_S, order.offset_E1,
            pointer(sum_NW), zd_SR, hidden.work, *part.sizes, activation, TYPE_CODES[x_ND.dtype], device=x_ND.device,
        )  # fmt: skip
        if not is_fresh:
            frozen_product(sum_NW, down_DF[:, part.columns], out=y_ND, is_added=part.begin > 0)
    if not is_fresh:
        slots.add_expanded(zd_SR * (gate_S[:, None] * scale), bd, y_ND, wide_first=True)
    return y_ND, c_gate_NF, c_up_NF, zg_SR, zu_SR, zd_SR, order.order_S, order.offset_E1


def _untouched(gate_NF: Tensor, up_NF: Tensor, down_DF: Tensor, gate_NK: Tensor, activation: int) -> Tensor:
    """Returns the frozen block's output, to the last bit, times each token's sum of gates."""
    act = ACTIVATIONS[next(name for name, code in CODES.items() if code == activation)]
    total_N1 = gate_NK.sum(1, keepdim=True)
    is_one_N1 = (total_N1 - 1).abs() < 4 * torch.finfo(total_N1.dtype).eps  # gates that add up to 1 but for rounding
    return F.linear(act(gate_NF) * up_NF, down_DF) * total_N1.masked_fill(is_one_N1, 1.0)


def _halves(tensor: Tensor) -> list[Tensor]:
    """Returns both halves along the second axis, each with memory of its own."""
    return [half.clone(memory_format=torch.contiguous_format) for half in tensor.chunk(2, 1)]


def _fake(x_ND: Tensor, gate_FD: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    ag, index_NK = rest[2], rest[8]
    num_slots, rank = index_NK.shape[0] * index_NK.shape[1], ag.shape[1]
    z = [x_ND.new_empty(num_slots, rank, dtype=exact_type(x_ND)) for _ in range(3)]
    return (
        torch.empty_like(x_ND, memory_format=torch.contiguous_format),
        *(x_ND.new_empty(x_ND.shape[0], gate_FD.shape[0]) for _ in range(2)),
        *z,
        index_NK.new_empty(num_slots),
        index_NK.new_empty(ag.shape[0] + 1),
    )


def _run_backward(
    dy_ND: Tensor,
    x_ND: Tensor,
    gate_FD: Tensor,
    up_FD: Tensor,
    down_DF: Tensor,
    ag: Tensor,
    bg: Tensor,
    au: Tensor,
    bu: Tensor,
    ad: Tensor,
    bd: Tensor,
    gate_NK: Tensor,
    c_gate_NF: Tensor,
    c_up_NF: Tensor,
    zg_SR: Tensor,
    zu_SR: Tensor,
    zd_SR: Tensor,
    order_S: Tensor,
    offset_E1: Tensor,
    scale: float,
    activation: int,
    x_wants: bool,
) -> tuple[Tensor, ...]:
    slots = Slots(order_S, offset_E1, gate_NK.shape[1])
    dy_ND, x_ND, bg, bu, ad, bd = (t.contiguous() for t in (dy_ND, x_ND, bg, bu, ad, bd))
    gate_S = slots.by_place(gate_NK, zg_SR)
    weight_S1 = gate_S[:, None] * scale
    dzd_SR = slots.shrink(dy_ND, bd, wide_first=True)
    own_S = (dzd_SR * zd_SR).sum(1) * scale
    dbd = slots.outer(zd_SR * weight_S1, dy_ND, bd, wide_first=True)
    dzd_SR *= weight_S1
    dzg_SR, dzu_SR, dgate_S, dbg, dbu, dad = (torch.empty_like(t) for t in (zg_SR, zu_SR, gate_S, bg, bu, ad))
    dx_ND = torch.empty_like(x_ND) if x_wants else x_ND.new_empty(0)
    rows = rows_of(dy_ND)
    hidden = Hidden(x_ND, bg, gate_NK.shape[1], is_backward=True)
    for part in hidden:
        dsum_NW = frozen_product_back(rows, down_DF[:, part.columns])
        launch(
            "mmmoe_lora_ffn_backward", c_gate_NF, c_up_NF, zg_SR, zu_SR, bg, bu, ad, gate_S, order_S, offset_E1,
            dsum_NW, dzd_SR, *map(pointer, part.rooms), dzg_SR, dzu_SR, dgate_S, dbg, dbu, dad, hidden.work,
            *part.sizes, activation, TYPE_CODES[x_ND.dtype], device=x_ND.device,
        )  # fmt: skip
        if x_wants:
            hidden.add_products(part, dx_ND, (gate_FD, up_FD))
    dz_SR2, a_E2D = torch.cat((dzg_SR, dzu_SR), 1).mul_(scale), torch.cat((ag, au), 1)
    dag, dau = _halves(slots.outer(dz_SR2, x_ND, a_E2D, wide_first=False))
    if x_wants:
        slots.add_expanded(dz_SR2, a_E2D, dx_ND, wide_first=False)
    dgate_NK = torch.empty_like(gate_NK, memory_format=torch.contiguous_format)
    dgate_NK.view(-1)[order_S] = (dgate_S + own_S).to(gate_NK.dtype)
    return dx_ND, dag, dbg, dau, dbu, dad, dbd, dgate_NK


def _fake_backward(dy_ND: Tensor, x_ND: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_, x_wants = rest
    factors, gate_NK = rest[3:9], rest[9]
    shaped = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x_ND, *factors, gate_NK)]
    return (shaped[0] if x_wants else x_ND.new_empty(0), *shaped[1:])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, gate_NK, scale, activation = inputs
    ctx.save_for_backward(*tensors, gate_NK, *output[1:])
    ctx.scale, ctx.activation = scale, activation
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # or zeros as large as c are written for the outputs that have no gradient


def _backward(ctx: Any, dy_ND: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy_ND is None:
        return (None,) * 14
    x_wants = ctx.needs_input_grad[0]
    dx_ND, *dfactors, dgate_NK = _lora_ffn_backward(dy_ND, *ctx.saved_tensors, ctx.scale, ctx.activation, x_wants)
    return dx_ND if x_wants else None, None, None, None, *dfactors, None, dgate_NK, None, None


_WEIGHTS = "Tensor gate, Tensor up, Tensor down, Tensor ag, Tensor bg, Tensor au, Tensor bu, Tensor ad, Tensor bd"
_lora_ffn_backward = register(
    f"lora_ffn_backward(Tensor dy, Tensor x, {_WEIGHTS}, Tensor gates, Tensor c_gate, Tensor c_up, Tensor zg, "
    "Tensor zu, Tensor zd, Tensor order, Tensor offset, float scale, int activation, bool x_wants) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    run=_run_backward,
    fake=_fake_backward,
)
_fused = register(
    f"lora_ffn(Tensor x, {_WEIGHTS}, Tensor index, Tensor gates, float scale, int activation) -> "
    "(Tensor y, Tensor c_gate, Tensor c_up, Tensor zg, Tensor zu, Tensor zd, Tensor order, Tensor offset)",
    run=_run,
    fake=_fake,
    backward=_backward,
    keep=_keep,
)
