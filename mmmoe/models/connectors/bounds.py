"""Learned start and end vectors around each image's tokens (LLaVA-MoLE's release; LLaVA-1.5 has none)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ImageBounds(nn.Module):
    """Two vectors drawn from N(0, 1 / D), one before and one after an image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.start_D = nn.Parameter(torch.empty(width).normal_(0.0, width**-0.5))
        self.end_D = nn.Parameter(torch.empty(width).normal_(0.0, width**-0.5))

    def forward(self, tokens_IPD: Tensor) -> Tensor:
        """Returns (I, P + 2, D)."""
        around = (tokens_IPD.shape[0], 1, -1)
        return torch.cat([self.start_D.expand(*around), tokens_IPD, self.end_D.expand(*around)], dim=1)
