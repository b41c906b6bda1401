"""Which rows of a batch an adapter works on, where it is not for all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from mmmoe.models.lora.spec import Rows


class RowSwitch:
    """Shared by a model, which knows its batch, and the adapters in it that are for routing passes or answers only.

    The rows stay until the next forward turns it: under gradient checkpointing layers run again after the forward, so
    a forward's backward comes before the next forward, as in the training loop.
    """

    def __init__(self) -> None:
        self._is_pass_B: Tensor | None = None

    def turn(self, is_pass_B: Tensor | None) -> None:
        """Says which rows of the next forward are routing passes; None: no row."""
        self._is_pass_B = is_pass_B

    def gates(self, x_BTD: Tensor, rows: Rows = "routing") -> Tensor:
        """Returns 1 at every position (B * T, 1) of a row that an adapter of such rows works on, else 0."""
        batch, length = x_BTD.shape[:2]
        is_pass_B = self._is_pass_B
        if is_pass_B is None:
            is_pass_B = torch.zeros(batch, dtype=torch.bool, device=x_BTD.device)
        if len(is_pass_B) != batch:
            raise RuntimeError(
                f"an adapter for {'routing passes' if rows == 'routing' else rows} sees {batch} rows, its model said "
                f"{len(is_pass_B)}: run a forward's backward before the next forward"
            )
        is_on_B = is_pass_B if rows == "routing" else ~is_pass_B
        on_B1: Tensor = is_on_B.to(x_BTD.device, x_BTD.dtype)[:, None]
        return torch.repeat_interleave(on_B1, length, dim=0)
