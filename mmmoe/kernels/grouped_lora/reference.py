"""Low-rank updates of several experts, written as the literal loop over tokens and their experts."""

from __future__ import annotations

import torch
from torch import Tensor


def grouped_lora_reference(
    base_NF: Tensor,
    x_ND: Tensor,
    a_ERD: Tensor,
    b_EFR: Tensor,
    index_NK: Tensor,
    gate_NK: Tensor | None = None,
    *,
    scale: float,
) -> Tensor:
    """Returns base + scale * sum over k of gate[n, k] * B[e] A[e] x[n], with e = index[n, k] (gate 1 if None)."""
    rows = []
    for n in range(x_ND.shape[0]):
        y_F = base_NF[n]
        for k in range(index_NK.shape[1]):
            e = int(index_NK[n, k])
            update_F = scale * (b_EFR[e] @ (a_ERD[e] @ x_ND[n]))
            y_F = y_F + (update_F if gate_NK is None else gate_NK[n, k] * update_F)
        rows.append(y_F)
    return torch.stack(rows) if rows else base_NF
