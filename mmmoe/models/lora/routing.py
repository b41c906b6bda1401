"""From what routers wrote on their tapes to loss terms and statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmoe.models.lora.balance import RouterSums, balance_terms, z_terms
from mmmoe.models.lora.spec import BalanceSpec
from mmmoe.models.lora.tape import RoutingRow, RoutingTape
from mmmoe.models.output import ModelOutput, RoutingStatistics

Rows = Mapping[int, RoutingRow]


@dataclass(frozen=True)
class Routed:
    """One adapter with routers, and their tape."""

    balance: BalanceSpec
    tape: RoutingTape


@contextmanager
def recording(routed: list[Routed], prompt_BT: Tensor, mask_BT: Tensor | None = None) -> Iterator[list[Rows]]:
    """Gives what the routers of each adapter do in the forward that runs inside; see `RoutingTape.recording`."""
    with ExitStack() as stack:
        yield [stack.enter_context(one.tape.recording(prompt_BT, mask_BT)) for one in routed]


@contextmanager
def holding(routed: list[Routed], prompt_BT: Tensor) -> Iterator[None]:
    """Keeps decisions once a sample while an answer is written; see `RoutingTape.holding`."""
    with ExitStack() as stack:
        for one in routed:
            stack.enter_context(one.tape.holding(prompt_BT))
        yield


@dataclass(frozen=True)
class Positions:
    """Which positions of a batch count, and of what kind they are."""

    mask_BT: Tensor
    """True at real positions."""
    modality_BT: Tensor
    """Number of each position's modality, int64."""
    modalities: tuple[str, ...]

    def loads(self, row: RoutingRow, most: int | None = None) -> Tensor:
        """Returns how often each of a router's experts was chosen, per sample and modality (B, M, E) int64.

        Args:
            row: what the router did.
            most: choices of a position that count, the first ones; None for all.
        """
        index_BTK, num_experts = row.index_BTK[:, :, :most], row.probability_BTE.shape[-1]
        batch, kinds = index_BTK.shape[0], len(self.modalities)
        sample_B11 = torch.arange(batch, device=index_BTK.device).view(-1, 1, 1)
        place_BTK = (sample_B11 * kinds + self.modality_BT[:, :, None]) * num_experts + index_BTK.clamp(min=0)
        counted_BTK = (self.mask_BT[:, :, None] & (index_BTK >= 0)).long()
        load = counted_BTK.new_zeros(batch * kinds * num_experts)
        return load.scatter_add_(0, place_BTK.reshape(-1), counted_BTK.reshape(-1)).view(batch, kinds, num_experts)


def with_routing(
    output: ModelOutput, routed: list[Routed], rows_by_adapter: list[Rows], positions: Positions
) -> ModelOutput:
    """Returns the output with each adapter's loss terms and the statistics of all routers.

    The terms of the first adapter are called balance and z; those of a second one balance_2 and z_2. Where no router of
    an adapter trains, its terms are told and not part of the loss: there they could only move what lies before it.
    """
    auxiliary, layers, weights = dict(output.auxiliary), dict(output.auxiliary_layers), dict(output.weights)
    loads: list[list[Tensor]] = []
    for number, (one, rows) in enumerate(zip(routed, rows_by_adapter, strict=True), 1):
        suffix = "" if number == 1 else f"_{number}"
        is_trained = any(row.is_trained for row in rows.values())
        loads.append([positions.loads(rows[place]) for place in range(len(one.tape.sites))])
        for name, (term_B, by_layer_BG, weight) in _terms(one, rows, positions, loads[-1]).items():
            layers[name + suffix] = by_layer_BG
            if is_trained:
                auxiliary[name + suffix], weights[name + suffix] = term_B, weight
    layers = {name: term.detach() for name, term in layers.items()}
    routing = _statistics(routed, rows_by_adapter, positions, [load_BME for part in loads for load_BME in part])
    return replace(output, auxiliary=auxiliary, auxiliary_layers=layers, weights=weights, routing=routing)


def _terms(
    one: Routed, rows: Rows, positions: Positions, loads: list[Tensor]
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Returns an adapter's terms by name: of each sample (B,), of each sample and layer (B, G), and the coefficient."""
    balance = one.balance

    def _counted(row: RoutingRow, place: int) -> Tensor:
        return positions.loads(row, most=1) if balance.choices == "first" else loads[place]

    sums = [
        RouterSums.together([router_sums(rows[place], positions, _counted(rows[place], place)) for place in places])
        for places in one.tape.layers.values()
    ]
    terms: dict[str, tuple[Tensor, Tensor, float]] = {}
    if balance.kind != "none":
        terms["balance"] = (*balance_terms(sums, balance), balance.weight)
    if balance.z_weight > 0:
        terms["z"] = (*z_terms(sums, balance), balance.z_weight)
    return terms


def router_sums(row: RoutingRow, positions: Positions, load_BME: Tensor) -> RouterSums:
    """Returns what a router did, summed over the positions that count."""
    mask_BT, load_BE = positions.mask_BT, load_BME.sum(1)
    if row.probability_BTE.shape[1] != mask_BT.shape[1]:  # one decision a sample
        mask_BT = mask_BT.any(1, keepdim=True)
        load_BE = load_BE.clamp(max=1)
    weight_BT = mask_BT.to(row.probability_BTE.dtype)
    return RouterSums(
        torch.einsum("bte,bt->be", row.probability_BTE, weight_BT),
        load_BE,
        torch.einsum("bt,bt->b", row.logits_BTE.logsumexp(-1).square(), weight_BT),
        mask_BT.sum(1),
    )


@torch.no_grad()
def _statistics(
    routed: list[Routed], rows_by_adapter: list[Rows], positions: Positions, loads: list[Tensor]
) -> RoutingStatistics:
    rows = [found[place] for found in rows_by_adapter for place in sorted(found)]
    counts = [row.probability_BTE.shape[-1] for row in rows]
    widest = max(counts)

    def padded(parts: list[Tensor]) -> Tensor:
        return torch.stack([F.pad(part, (0, widest - part.shape[-1])) for part in parts], dim=1)

    return RoutingStatistics(
        sites=tuple(site for one in routed for site in one.tape.sites),
        layers=tuple(number for one in routed for number in one.tape.layer_of),
        num_experts=tuple(counts),
        modalities=positions.modalities,
        load_BLME=padded(loads),
        probability_BLE=padded([_summed(row.probability_BTE, positions.mask_BT) for row in rows]),
        entropy_BL=torch.cat([_summed(_entropy(row)[..., None], positions.mask_BT) for row in rows], dim=1),
        positions_B=positions.mask_BT.sum(1),
    )


def _summed(values_BTX: Tensor, mask_BT: Tensor) -> Tensor:
    """Returns sums over positions; a decision once a sample counts at each of them."""
    return torch.einsum("btx,bt->bx", values_BTX.expand(-1, mask_BT.shape[1], -1), mask_BT.to(values_BTX.dtype))


def _entropy(row: RoutingRow) -> Tensor:
    p = row.probability_BTE
    return -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum(dim=-1)
