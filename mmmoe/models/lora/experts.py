"""A stack of LoRA experts on one linear layer: E pairs (A, B) kept as two tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmmoe.kernels.grouped_lora.cost import Strategy
from mmmoe.kernels.grouped_lora.op import grouped_lora
from mmmoe.models.lora.router import Choice
from mmmoe.models.lora.spec import ExpertsSpec, LoRASpec, SlideLoRASpec


class LoRAExperts(nn.Module):
    """Adds scale * sum_k g_k B_e A_e dropout(x) to a frozen layer's output.

    A is drawn from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), B starts at zero, so a fresh stack changes nothing. Every expert
    takes part in the graph of every forward, chosen or not, so no parameter is ever left without a gradient.
    """

    def __init__(
        self,
        experts: int,
        in_features: int,
        out_features: int,
        spec: LoRASpec | ExpertsSpec | SlideLoRASpec,
        fan_in: int | None = None,
    ) -> None:
        """Draws fresh factors; `fan_in` is the number of inputs if it is not given."""
        super().__init__()
        rank = spec.rank
        self.scale = spec.scale
        self.fan_in = fan_in or in_features
        self.dropout = spec.dropout
        self.strategy: Strategy = "auto"
        self.a_ERD = nn.Parameter(torch.empty(experts, rank, in_features, dtype=torch.float32))
        self.b_EDR = nn.Parameter(torch.empty(experts, out_features, rank, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws A anew and sets B to zero."""
        bound = 1.0 / math.sqrt(self.fan_in)
        nn.init.uniform_(self.a_ERD, -bound, bound)
        nn.init.zeros_(self.b_EDR)

    def forward(self, x_ND: Tensor, base_NF: Tensor, choice: Choice) -> Tensor:
        """Returns base plus the update of each token's experts, in the base's type."""
        x_ND = F.dropout(x_ND, self.dropout, self.training).to(base_NF.dtype)
        a_ERD, b_EDR = self.a_ERD.to(base_NF.dtype), self.b_EDR.to(base_NF.dtype)
        return grouped_lora(
            base_NF, x_ND, a_ERD, b_EDR, choice.index_NK, choice.gate_NK, scale=self.scale, strategy=self.strategy
        )

    def extra_repr(self) -> str:
        """Returns the sizes, for the printed model."""
        experts, rank, in_features = self.a_ERD.shape
        return f"experts={experts}, rank={rank}, in={in_features}, out={self.b_EDR.shape[1]}, scale={self.scale:g}"
