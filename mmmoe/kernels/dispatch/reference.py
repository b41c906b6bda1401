"""Rows to the order of experts, written as the literal loop over places."""

from __future__ import annotations

import torch
from torch import Tensor


def dispatch_reference(x_ND: Tensor, order_S: Tensor) -> Tensor:
    """Returns the row of the token whose slot stands at each place; zeros where no slot stands (-1)."""
    num_chosen = order_S.numel() // max(x_ND.shape[0], 1)
    rows = [x_ND[slot // num_chosen] if slot >= 0 else torch.zeros_like(x_ND[0]) for slot in order_S.tolist()]
    return torch.stack(rows) if rows else x_ND
