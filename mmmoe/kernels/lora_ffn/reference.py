"""A gated block with LoRA experts, written as the literal loop over tokens and experts (arXiv 2404.15159, MixLoRA)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmmoe.kernels.lora_ffn.fused import ACTIVATIONS
from mmmoe.kernels.lora_ffn.op import Factors, Frozen


def lora_ffn_reference(
    x_ND: Tensor,
    frozen: Frozen,
    gate: Factors,
    up: Factors,
    down: Factors,
    index_NK: Tensor,
    gate_NK: Tensor,
    *,
    scale: float,
    activation: str = "silu",
) -> Tensor:
    """Returns sum over k of gate[n, k] * FFN of expert index[n, k], whose three weights are W + scale * B A."""
    act = ACTIVATIONS[activation]
    rows = []
    for n in range(x_ND.shape[0]):
        y_D = torch.zeros_like(x_ND[n])
        for k in range(index_NK.shape[1]):
            e = int(index_NK[n, k])
            w_gate, w_up, w_down = (
                w + scale * (pair.b[e] @ pair.a[e]) for w, pair in zip(frozen, (gate, up, down), strict=True)
            )
            y_D = y_D + gate_NK[n, k] * (w_down @ (act(w_gate @ x_ND[n]) * (w_up @ x_ND[n])))
        rows.append(y_D)
    return torch.stack(rows) if rows else x_ND.clone()
