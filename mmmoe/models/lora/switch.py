"""Which rows of a batch an adapter works on, where it is not for all of them."""

from __future__ import annotations

import torch
from torch import Tensor


class RowSwitch:
    """Shared by a model, which knows its batch, and the adapters in it that are for routing passes only.

    The rows stay until the next forward turns it: under gradient checkpointing layers run again after the forward, so
    a forward's backward comes before the next forward, as in the training loop.
    """

    def __init__(self) -> None:
        self._is_on_B: Tensor | None = None

    def turn(self, is_on_B: Tensor | None) -> None:
        """Says which rows of the next forward are on; None: no row."""
        self._is_on_B = is_on_B

    def gates(self, x_BTD: Tensor) -> Tensor:
        """Returns 1 at every position (B * T, 1) of a row that is on, else 0."""
        batch, length = x_BTD.shape[:2]
        if self._is_on_B is None:
            return x_BTD.new_zeros(batch * length, 1)
        if len(self._is_on_B) != batch:
            raise RuntimeError(
                f"an adapter for routing passes sees {batch} rows, its model said {len(self._is_on_B)}: "
                "run a forward's backward before the next forward"
            )
        on_B1: Tensor = self._is_on_B.to(x_BTD.device, x_BTD.dtype)[:, None]
        return torch.repeat_interleave(on_B1, length, dim=0)
