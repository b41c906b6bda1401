"""The loss that keeps expert loads alike, per sample: sum over experts of mean probability times mean choice."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmoe.models.lora.router import RoutingRow
from mmmoe.models.output import RoutingStatistics
from mmmoe.models.spec import BalanceSpec


def stack_rows(rows: Mapping[int, RoutingRow]) -> tuple[Tensor, Tensor]:
    """Returns probabilities (L, B, T, E) with graph and one-hot choices of the same shape, in block order."""
    ordered = [rows[layer] for layer in sorted(rows)]
    probability_LBTE = torch.stack([row.probability_BTE for row in ordered])
    index_LBT = torch.stack([row.index_BT for row in ordered])
    return probability_LBTE, F.one_hot(index_LBT, probability_LBTE.shape[-1])


def balance_terms(probability_BLE: Tensor, load_BLE: Tensor, valid_B: Tensor, spec: BalanceSpec) -> Tensor:
    """Returns the balance term of each sample (B,).

    Uniform probabilities and equal loads give 1 / E, one expert taking everything with probability 1 gives 1. The
    gradient flows through the probabilities only.

    Args:
        probability_BLE: sums over valid positions, with graph.
        load_BLE: counts over valid positions.
        valid_B: number of valid positions of each sample.
        spec: pooled takes the means over the rows of all layers together, as the released code does; per_layer takes
            one term a layer and averages.
    """
    if spec.kind == "per_layer":
        return balance_layers(probability_BLE, load_BLE, valid_B).mean(dim=1)
    rows_B1 = (valid_B * probability_BLE.shape[1]).clamp(min=1).unsqueeze(1)
    return ((probability_BLE.sum(1) / rows_B1) * (load_BLE.sum(1) / rows_B1)).sum(dim=-1)


def balance_layers(probability_BLE: Tensor, load_BLE: Tensor, valid_B: Tensor) -> Tensor:
    """Returns the balance term of each sample and layer (B, L)."""
    rows_B11 = valid_B.clamp(min=1).view(-1, 1, 1)
    return ((probability_BLE / rows_B11) * (load_BLE / rows_B11)).sum(dim=-1)


def masked_sums(probability_LBTE: Tensor, choice_LBTE: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (B, L, E) sums of probability and of choices over the positions of the mask."""
    weight_BT = mask_BT.to(probability_LBTE.dtype)
    probability_BLE = torch.einsum("lbte,bt->ble", probability_LBTE, weight_BT)
    load_BLE = (choice_LBTE * mask_BT[None, :, :, None]).sum(dim=2).transpose(0, 1)
    return probability_BLE, load_BLE


@torch.no_grad()
def routing_statistics(
    layers: list[str], probability_LBTE: Tensor, probability_BLE: Tensor, load_BLE: Tensor, mask_BT: Tensor
) -> RoutingStatistics:
    """Returns what the routers did, detached."""
    p_LBTE = probability_LBTE.detach()
    entropy_LBT = -(p_LBTE * p_LBTE.clamp(min=torch.finfo(p_LBTE.dtype).tiny).log()).sum(dim=-1)
    return RoutingStatistics(
        layers=tuple(layers),
        load_BLE=load_BLE.detach(),
        probability_BLE=probability_BLE.detach(),
        entropy_BL=torch.einsum("lbt,bt->bl", entropy_LBT, mask_BT.to(entropy_LBT.dtype)),
    )
