"""The projector from tower channels to the language model's width (LLaVA-1.5's mm_projector)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmmoe.models.spec import ConnectorSpec

NUM_LINEARS = {"linear": 1, "mlp2x_gelu": 2, "mlp3x_gelu": 3}


class MLPConnector(nn.Module):
    """Linear layers with exact (erf) GELU between them, and optionally a learned vector a position.

    LLaVA-1.5 has no position vectors; a convolutional tower carries little position, so the demo adds them.
    """

    def __init__(self, spec: ConnectorSpec, channels: int, width: int, num_tokens: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(channels, width)]
        for _ in range(NUM_LINEARS[spec.kind] - 1):
            layers += [nn.GELU(), nn.Linear(width, width)]
        self.layers = nn.Sequential(*layers)
        self.position_PD: nn.Parameter | None = None
        if spec.position_std > 0:
            self.position_PD = nn.Parameter(torch.empty(num_tokens, width).normal_(0.0, spec.position_std))

    def forward(self, features_IPC: Tensor) -> Tensor:
        """Returns image tokens (I, P, D)."""
        tokens_IPD: Tensor = self.layers(features_IPC.to(next(self.layers.parameters()).dtype))
        return tokens_IPD if self.position_PD is None else tokens_IPD + self.position_PD
