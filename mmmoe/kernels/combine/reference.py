"""The gate-weighted sum of a token's rows, written as the literal loop over slots."""

from __future__ import annotations

import torch
from torch import Tensor


def combine_reference(rows_SD: Tensor, gate_NK: Tensor, inverse_S: Tensor) -> Tensor:
    """Returns sum over k of gate[n, k] * rows[inverse[n * K + k]], added in the gates' type; -1 adds nothing."""
    num_tokens, num_chosen = gate_NK.shape
    sums = []
    for n in range(num_tokens):
        total_D = torch.zeros(rows_SD.shape[1], dtype=gate_NK.dtype, device=rows_SD.device)
        for k in range(num_chosen):
            place = int(inverse_S[n * num_chosen + k])
            if place >= 0:
                total_D = total_D + gate_NK[n, k] * rows_SD[place].to(gate_NK.dtype)
        sums.append(total_D)
    return torch.stack(sums).to(rows_SD.dtype) if sums else rows_SD
