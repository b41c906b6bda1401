"""The losses that keep routers useful: even loads and small logits, by one convention for all methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmmoe.models.lora.spec import BalanceSpec


@dataclass(frozen=True)
class RouterSums:
    """What one router did, summed over the positions that count."""

    probability_BE: Tensor
    """Softmax over all experts, with graph."""
    load_BE: Tensor
    """Choices of each expert."""
    squared_B: Tensor
    """Squared logsumexp of the logits, with graph."""
    rows_B: Tensor
    """Positions; 1 for a router that decides once a sample."""

    def over(self, spec: BalanceSpec) -> RouterSums:
        """Returns the sums that a term of each sample is made of: its own, or those of all samples together."""
        if spec.over == "sample":
            return self
        parts = (self.probability_BE, self.load_BE, self.squared_B, self.rows_B)
        return RouterSums(*(part.sum(0, keepdim=True).expand_as(part) for part in parts))

    @classmethod
    def together(cls, sums: Sequence[RouterSums]) -> RouterSums:
        """Returns the sums of several routers with as many experts each."""
        fields = ("probability_BE", "load_BE", "squared_B", "rows_B")
        return cls(*(torch.stack([getattr(one, name) for one in sums]).sum(0) for name in fields))


def balance_term(sums: RouterSums) -> Tensor:
    """Returns E sum_e f_e P_e of each sample (B,).

    Even probabilities and loads give 1, all positions on the same k experts with probability 1 / k each E / k. The
    gradient flows through the probabilities only. (Switch Transformer, arXiv 2101.03961, equation 4, which MoLA,
    MixLoRA and LLaVA-MoLE take up with other factors: see `BalanceSpec`.)
    """
    mean_BE = sums.probability_BE / sums.rows_B.clamp(min=1)[:, None]
    share_BE = sums.load_BE / sums.load_BE.sum(1, keepdim=True).clamp(min=1)
    return (mean_BE * share_BE).sum(1) * mean_BE.shape[1]


def z_term(sums: RouterSums) -> Tensor:
    """Returns the mean squared logsumexp of each sample (B,) (ST-MoE, arXiv 2202.08906, equation 5)."""
    return sums.squared_B / sums.rows_B.clamp(min=1)


def balance_terms(layers: Sequence[RouterSums], spec: BalanceSpec) -> tuple[Tensor, Tensor]:
    """Returns the balance term of each sample (B,) and of each sample and layer (B, G), from the sums of G layers."""
    by_layer_BG = torch.stack([balance_term(sums.over(spec)) for sums in layers], dim=1)
    if spec.kind == "pooled":
        return balance_term(RouterSums.together(layers).over(spec)), by_layer_BG
    return by_layer_BG.mean(dim=1), by_layer_BG


def z_terms(layers: Sequence[RouterSums], spec: BalanceSpec) -> tuple[Tensor, Tensor]:
    """Returns the z-loss of each sample (B,), averaged over layers, and of each sample and layer (B, G)."""
    by_layer_BG = torch.stack([z_term(sums.over(spec)) for sums in layers], dim=1)
    return by_layer_BG.mean(dim=1), by_layer_BG
