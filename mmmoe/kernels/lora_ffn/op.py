"""A gated block whose experts are LoRA updates of one frozen block, at hardly more than the frozen block's cost.

The experts share the frozen down projection, which is linear, so the gate-weighted sum over a token's experts is taken
before it (late combine): every frozen product is done once a token, forward and backward. Between them the kernels
(kernels/csrc/lora_ffn.cpp) go over tokens and experts in one pass. Kept for the backward: x, the frozen gate and up
outputs, and rank-wide rows; hidden rows are computed again. Nothing of size N * K * F exists.

Where there are no kernels (half types on a CPU, no compiler) the same function is put together from `grouped_lora`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmoe.kernels.backend import TYPE_CODES, launch, workspace_size
from mmmoe.kernels.grouped_lora.fused import Slots, can_fuse
from mmmoe.kernels.grouped_lora.op import grouped_lora, marked
from mmmoe.kernels.library import register
from mmmoe.kernels.order import MOST_CHOSEN, MOST_EXPERTS, order_by_expert
from mmmoe.kernels.places import check_range, check_rows, exact_type
from mmmoe.kernels.products import frozen_product, frozen_product_back, has_own_product

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh")}
CODES = {"silu": 0, "gelu_tanh": 1}
MOST_ON_A_GPU = 256
"""Experts that the CUDA kernels' tables of slots leave shared memory for on every card (86 KiB with 8 chosen)."""


class Frozen(NamedTuple):
    """The frozen block's weights, as nn.Linear keeps them. They get no gradient."""

    gate_FD: Tensor
    up_FD: Tensor
    down_DF: Tensor


class Factors(NamedTuple):
    """The experts' factors for one of the three projections: A (E, R, in) and B (E, out, R)."""

    a: Tensor
    b: Tensor


def lora_ffn(
    x_ND: Tensor,
    frozen: Frozen,
    gate: Factors,
    up: Factors,
    down: Factors,
    index_NK: Tensor,
    gate_NK: Tensor,
    *,
    scale: float,
    activation: str | Activation = "silu",
    dropout: float = 0.0,
) -> Tensor:
    """Returns sum over k of gate[n, k] * FFN(x[n]; W + scale * B_e A_e) with e = index[n, k] (arXiv 2404.15159).

    Args:
        x_ND: the block's input; of one type with all weights and factors.
        frozen: weights of the frozen block.
        gate: factors of the gate projection.
        up: factors of the up projection.
        down: factors of the down projection.
        index_NK: experts of each token, int64.
        gate_NK: their weights. The frozen block's share is their sum, so gates that add up to 1 leave it as it is.
        scale: alpha / rank.
        activation: `silu` or `gelu_tanh`; any function of the gate's output runs too, without the kernels.
        dropout: of the experts' inputs (not the frozen block's), drawn anew for each choice and projection; it runs
            without the kernels.

    Raises:
        ValueError: Shapes, types or devices that do not fit, an unknown activation, an expert out of range (on a GPU,
            where nobody waits to look, its token's result is then NaN).
    """
    _check(x_ND, frozen, gate, up, down, index_NK, gate_NK, activation)
    factors = (*gate, *up, *down)
    if index_NK.device.type != "cpu":
        index_NK, gate_NK = marked(x_ND, index_NK, gate_NK, gate.a.shape[0])
    is_small = x_ND.device.type == "cpu" or (index_NK.shape[1] <= MOST_CHOSEN and gate.a.shape[0] <= MOST_ON_A_GPU)
    if can_fuse(x_ND) and is_small and isinstance(activation, str) and dropout == 0.0:
        weights = (weight.detach() for weight in frozen)
        y_ND: Tensor = _lora_ffn(x_ND, *weights, *factors, index_NK, gate_NK, scale, CODES[activation])[0]
        return y_ND
    act = ACTIVATIONS[activation] if isinstance(activation, str) else activation
    return _put_together(x_ND, frozen, gate, up, down, index_NK, gate_NK, scale, act, dropout)


def _put_together(
    x_ND: Tensor,
    frozen: Frozen,
    gate: Factors,
    up: Factors,
    down: Factors,
    index_NK: Tensor,
    gate_NK: Tensor,
    scale: float,
    act: Activation,
    dropout: float,
) -> Tensor:
    """Returns the same, choice by choice; still one frozen product a token, but the hidden rows are kept."""
    gate_NF, up_NF = F.linear(x_ND, frozen.gate_FD.detach()), F.linear(x_ND, frozen.up_FD.detach())
    sum_NF, y_ND = torch.zeros_like(gate_NF, dtype=exact_type(x_ND)), torch.zeros_like(x_ND)
    for k in range(index_NK.shape[1]):
        index_N1, gate_N1 = index_NK[:, k : k + 1], gate_NK[:, k : k + 1].to(sum_NF.dtype)
        h_NF = act(grouped_lora(gate_NF, F.dropout(x_ND, dropout), *gate, index_N1, scale=scale))
        h_NF = h_NF * grouped_lora(up_NF, F.dropout(x_ND, dropout), *up, index_N1, scale=scale)
        sum_NF = sum_NF + gate_N1 * h_NF
        y_ND = grouped_lora(y_ND, F.dropout(h_NF, dropout), *down, index_N1, gate_N1, scale=scale)
    return y_ND + F.linear(sum_NF.to(x_ND.dtype), frozen.down_DF.detach())


def _check(
    x_ND: Tensor,
    frozen: Frozen,
    gate: Factors,
    up: Factors,
    down: Factors,
    index_NK: Tensor,
    gate_NK: Tensor,
    activation: str | Activation,
) -> None:
    if isinstance(activation, str) and activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; give one of {', '.join(ACTIVATIONS)}")
    pairs = {"gate": gate, "up": up, "down": down}
    named = {f"{name}.{part}": getattr(pair, part) for name, pair in pairs.items() for part in ("a", "b")}
    named |= {f"frozen.{field}": weight for field, weight in zip(Frozen._fields, frozen, strict=True)}
    check_rows("x", x_ND, *named.items(), ("index", index_NK), ("gates", gate_NK))
    num_tokens, width = x_ND.shape
    inner = frozen.gate_FD.shape[0]
    num_experts, rank = gate.a.shape[:2]
    if not 1 <= num_experts <= MOST_EXPERTS:
        raise ValueError(f"gate.a {tuple(gate.a.shape)} has {num_experts} experts; 1 to {MOST_EXPERTS} work")
    wide, narrow = (num_experts, rank, width), (num_experts, inner, rank)
    shapes: dict[str, tuple[int, ...]] = {"gate.a": wide, "gate.b": narrow, "up.a": wide, "up.b": narrow}
    shapes |= {"down.a": (num_experts, rank, inner), "down.b": (num_experts, width, rank)}
    shapes |= {"frozen.gate_FD": (inner, width), "frozen.up_FD": (inner, width), "frozen.down_DF": (width, inner)}
    for name, shape in shapes.items():
        if tuple(named[name].shape) != shape or named[name].dtype != x_ND.dtype:
            found = f"{named[name].dtype} {tuple(named[name].shape)}"
            raise ValueError(f"{name} must be {x_ND.dtype} {shape} for x {tuple(x_ND.shape)}, got {found}")
    if index_NK.dtype != torch.int64 or index_NK.dim() != 2 or index_NK.shape[0] != num_tokens:
        raise ValueError(f"index must be int64 ({num_tokens}, chosen), got {index_NK.dtype} {tuple(index_NK.shape)}")
    if not 1 <= index_NK.shape[1] <= num_experts:
        raise ValueError(f"index {tuple(index_NK.shape)} chooses {index_NK.shape[1]}; 1 to {num_experts} work")
    if gate_NK.shape != index_NK.shape or not gate_NK.is_floating_point():
        raise ValueError(f"gates {gate_NK.dtype} {tuple(gate_NK.shape)} must be numbers of index' shape")


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
    x_ND, bg, bu, ad = (t.contiguous() for t in (x_ND, bg, bu, ad))
    # Experts whose B are all zero change nothing, on a CPU not a bit: torch's own products and activation serve then.
    is_fresh = x_ND.device.type == "cpu" and not (bg.any() or bu.any() or bd.any())
    product = F.linear if is_fresh else frozen_product
    c_gate_NF, c_up_NF = product(x_ND, gate_FD), product(x_ND, up_FD)
    zg_SR = slots.shrink(x_ND, ag.contiguous(), wide_first=False).mul_(scale)
    zu_SR = slots.shrink(x_ND, au.contiguous(), wide_first=False).mul_(scale)
    sum_NF, zd_SR = torch.empty_like(c_gate_NF), torch.empty_like(zg_SR)
    gate_S = slots.by_place(gate_NK, zg_SR)
    sizes = _sizes(x_ND, index_NK.shape[1], bg)
    launch(
        "mmmoe_lora_ffn", c_gate_NF, c_up_NF, zg_SR, zu_SR, bg, bu, ad, gate_S, order.order_S, order.offset_E1,
        sum_NF, zd_SR, _workspace(zg_SR, sizes, is_backward=False), *sizes, activation, TYPE_CODES[x_ND.dtype],
        device=x_ND.device,
    )  # fmt: skip
    if is_fresh:
        y_ND = _untouched(c_gate_NF, c_up_NF, down_DF, gate_NK, activation)
    else:
        y_ND = slots.expand(None, zd_SR * (gate_S[:, None] * scale), bd.contiguous(), x_ND, wide_first=True)
        y_ND = frozen_product(sum_NF, down_DF, onto=y_ND)
    return y_ND, c_gate_NF, c_up_NF, zg_SR, zu_SR, zd_SR, order.order_S, order.offset_E1


def _untouched(gate_NF: Tensor, up_NF: Tensor, down_DF: Tensor, gate_NK: Tensor, activation: int) -> Tensor:
    """Returns the frozen block's output, to the last bit, times each token's sum of gates."""
    act = ACTIVATIONS[next(name for name, code in CODES.items() if code == activation)]
    total_N1 = gate_NK.sum(1, keepdim=True)
    is_one_N1 = (total_N1 - 1).abs() < 4 * torch.finfo(total_N1.dtype).eps  # gates that add up to 1 but for rounding
    return F.linear(act(gate_NF) * up_NF, down_DF) * total_N1.masked_fill(is_one_N1, 1.0)


def _sizes(x_ND: Tensor, num_chosen: int, b_EFR: Tensor) -> tuple[int, ...]:
    num_experts, inner, rank = b_EFR.shape
    return x_ND.shape[0], num_chosen, num_experts, rank, inner


def _workspace(z_SR: Tensor, sizes: tuple[int, ...], *, is_backward: bool) -> Tensor:
    size = workspace_size("mmmoe_lora_ffn_workspace", *sizes, int(is_backward), device=z_SR.device)
    return z_SR.new_empty(size)


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
    dy_ND, x_ND, ag, bg, au, bu, ad, bd = (t.contiguous() for t in (dy_ND, x_ND, ag, bg, au, bu, ad, bd))
    gate_S = slots.by_place(gate_NK, zg_SR)
    weight_S1 = gate_S[:, None] * scale
    dsum_NF = frozen_product_back(dy_ND, down_DF)
    dzd_SR = slots.shrink(dy_ND, bd, wide_first=True)
    own_S = (dzd_SR * zd_SR).sum(1) * scale
    dbd = slots.outer(zd_SR * weight_S1, dy_ND, bd, wide_first=True)
    dzd_SR *= weight_S1
    dc_gate_NF = torch.empty_like(dsum_NF)
    # The C++ kernel can write dc_up over dsum: 64 MiB that are not touched for the first time save 27 ms.
    dc_up_NF = dsum_NF if has_own_product(dsum_NF) else torch.empty_like(dsum_NF)
    dzg_SR, dzu_SR, dgate_S, dbg, dbu, dad = (torch.empty_like(t) for t in (zg_SR, zu_SR, gate_S, bg, bu, ad))
    sizes = _sizes(x_ND, gate_NK.shape[1], bg)
    launch(
        "mmmoe_lora_ffn_backward", c_gate_NF, c_up_NF, zg_SR, zu_SR, bg, bu, ad, gate_S, order_S, offset_E1,
        dsum_NF, dzd_SR, dc_gate_NF, dc_up_NF, dzg_SR, dzu_SR, dgate_S, dbg, dbu, dad,
        _workspace(zg_SR, sizes, is_backward=True), *sizes, activation, TYPE_CODES[x_ND.dtype], device=x_ND.device,
    )  # fmt: skip
    dag = slots.outer(dzg_SR.mul_(scale), x_ND, ag, wide_first=False)
    dau = slots.outer(dzu_SR.mul_(scale), x_ND, au, wide_first=False)
    dx_ND = x_ND.new_empty(0)
    if x_wants:
        dx_ND = slots.expand(None, dzg_SR, ag, x_ND, wide_first=False)
        dx_ND = slots.expand(dx_ND, dzu_SR, au, x_ND, wide_first=False)
        dx_ND = frozen_product_back(dc_gate_NF, gate_FD, onto=dx_ND)
        dx_ND = frozen_product_back(dc_up_NF, up_FD, onto=dx_ND)
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
_lora_ffn = register(
    f"lora_ffn(Tensor x, {_WEIGHTS}, Tensor index, Tensor gates, float scale, int activation) -> "
    "(Tensor y, Tensor c_gate, Tensor c_up, Tensor zg, Tensor zu, Tensor zd, Tensor order, Tensor offset)",
    run=_run,
    fake=_fake,
    backward=_backward,
    keep=_keep,
)
