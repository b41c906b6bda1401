"""A gated block whose experts are LoRA updates of one frozen block, at hardly more than the frozen block's cost.

The experts share the frozen down projection, which is linear, so the gate-weighted sum over a token's experts is taken
before it (late combine): every frozen product is done once a token, forward and backward. Between them the kernels
(kernels/csrc/lora_ffn.*) go over tokens and experts in one pass. Kept for the backward: x, the frozen gate and up
outputs, and rank-wide rows; hidden rows are computed again. Nothing of size N * K * F exists.

Where there are no kernels (half types on a CPU, no compiler) the same function is put together from `grouped_lora`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmoe.kernels.grouped_lora.fused import can_fuse
from mmmoe.kernels.grouped_lora.op import grouped_lora, marked
from mmmoe.kernels.lora_ffn.fused import ACTIVATIONS, Activation, fused_ffn
from mmmoe.kernels.order import MOST_CHOSEN, MOST_EXPERTS
from mmmoe.kernels.places import check_rows, exact_type

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
        weights = tuple(weight.detach() for weight in frozen)
        return fused_ffn(x_ND, weights, factors, index_NK, gate_NK, scale=scale, activation=activation)
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
