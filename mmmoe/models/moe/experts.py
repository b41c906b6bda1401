"""A stack of whole feed-forward experts: rows grouped by expert go through each expert's gated block."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmmoe.models.moe.spec import ExpertLoRASpec


@dataclass(frozen=True)
class LinearWeights:
    """One projection of E experts, as it is computed with."""

    weight_EOI: Tensor
    a_ERI: Tensor | None = None
    b_EOR: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Returns what it has, in a fixed order."""
        return [tensor for tensor in (self.weight_EOI, self.a_ERI, self.b_EOR) if tensor is not None]


@dataclass(frozen=True)
class FFNWeights:
    """All projections of E experts."""

    gate: LinearWeights
    up: LinearWeights
    down: LinearWeights

    def tensors(self) -> list[Tensor]:
        """Returns all tensors, in a fixed order."""
        return [tensor for linear in (self.gate, self.up, self.down) for tensor in linear.tensors()]

    def with_tensors(self, tensors: list[Tensor]) -> FFNWeights:
        """Returns the same with other tensors, given in the order of `tensors`."""
        rest = iter(tensors)
        return FFNWeights(*(LinearWeights(*(next(rest) for _ in p.tensors())) for p in (self.gate, self.up, self.down)))


class ExpertLinear(nn.Module):
    """E linear layers without bias in one tensor, and a LoRA on each if asked for."""

    def __init__(self, experts: int, linear: nn.Linear, lora: ExpertLoRASpec | None) -> None:
        """Makes E copies of a linear layer.

        Args:
            experts: E, of this process.
            linear: What each is a copy of.
            lora: LoRA on each; B starts at zero, so fresh ones change nothing.
        """
        super().__init__()
        self.weight_EOI = nn.Parameter(linear.weight.detach().expand(experts, -1, -1).clone())
        self.lora: ExpertLoRA | None = None
        if lora is not None:
            self.lora = ExpertLoRA(experts, linear.in_features, linear.out_features, lora.rank)
            self.lora.to(linear.weight.device)

    def weights(self) -> LinearWeights:
        """Returns the tensors to compute with."""
        if self.lora is None:
            return LinearWeights(self.weight_EOI)
        return LinearWeights(self.weight_EOI, self.lora.a_ERI, self.lora.b_EOR)


class ExpertLoRA(nn.Module):
    """The factors of E experts' LoRA."""

    def __init__(self, experts: int, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.a_ERI = nn.Parameter(torch.empty(experts, rank, in_features, dtype=torch.float32))
        self.b_EOR = nn.Parameter(torch.zeros(experts, out_features, rank, dtype=torch.float32))
        bound = 1.0 / math.sqrt(in_features)
        nn.init.uniform_(self.a_ERI, -bound, bound)


class Experts(nn.Module):
    """The experts that this process holds: down(act(gate x) * up x) each (arXiv 2405.11273, section 3.2)."""

    def __init__(self, experts: int, block: Any, lora: ExpertLoRASpec | None) -> None:
        """Makes E copies of a dense gated block."""
        super().__init__()
        self.gate_proj = ExpertLinear(experts, block.gate_proj, lora)
        self.up_proj = ExpertLinear(experts, block.up_proj, lora)
        self.down_proj = ExpertLinear(experts, block.down_proj, lora)
        self.act_fn: Callable[[Tensor], Tensor] = block.act_fn
        self.scale = 0.0
        self.dropout = 0.0
        if lora is not None:
            self.scale = lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)
            self.dropout = lora.dropout

    def weights(self) -> FFNWeights:
        """Returns the tensors to compute with."""
        return FFNWeights(self.gate_proj.weights(), self.up_proj.weights(), self.down_proj.weights())

    def forward(self, rows_SD: Tensor, count_E: Tensor, weights: FFNWeights | None = None) -> Tensor:
        """Returns each row's expert's output; rows behind the last expert's come back as zeros.

        Args:
            rows_SD: rows grouped by expert, as `dispatch` gives them.
            count_E: rows of each expert, int64.
            weights: other experts' weights than the own, as many as `count_E` has entries.
        """
        weights = weights or self.weights()
        counts = count_E.tolist()
        kept_SD = rows_SD[: sum(counts)]
        gate_SF = self._linear(kept_SD, weights.gate, counts)
        hidden_SF = self.act_fn(gate_SF) * self._linear(kept_SD, weights.up, counts)
        y_SD = self._linear(hidden_SF, weights.down, counts)
        return F.pad(y_SD, (0, 0, 0, rows_SD.shape[0] - y_SD.shape[0]))

    def _linear(self, rows_SI: Tensor, weights: LinearWeights, counts: list[int]) -> Tensor:
        y_SO = grouped_linear(rows_SI, weights.weight_EOI, counts)
        if weights.a_ERI is None or weights.b_EOR is None:
            return y_SO
        rows_SI = F.dropout(rows_SI, self.dropout, self.training)
        low_SR = grouped_linear(rows_SI, weights.a_ERI.to(y_SO.dtype), counts)
        return y_SO + self.scale * grouped_linear(low_SR, weights.b_EOR.to(y_SO.dtype), counts)


def grouped_linear(rows_SI: Tensor, weight_EOI: Tensor, counts: list[int]) -> Tensor:
    """Returns (S, O): the first counts[0] rows through expert 0's weight, the next through expert 1's, and so on.

    An expert without rows gets gradients of zero, not None. `split` and `cat` are each other's gradient, so nothing of
    size E * S is made, as slices would.
    """
    parts = torch.split(rows_SI.to(weight_EOI.dtype), counts)
    return torch.cat([F.linear(part, weight_OI) for part, weight_OI in zip(parts, weight_EOI.unbind(), strict=True)])
