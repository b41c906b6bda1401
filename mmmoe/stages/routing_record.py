"""What a step's line says of the routers: who got how much of what, and how sure they were."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from mmmoe.models.output import RoutingStatistics


def routing_record(
    routing: RoutingStatistics, sources: list[str], load_SLME: Tensor, entropy_L: Tensor, positions: float
) -> dict[str, Any]:
    """Returns the fields of a step's line.

    - `load`: choices of each expert by source, modality and layer; routers of one layer are added up.
    - `load_by_router`: choices of each expert by router, all data together, where a layer has several routers.
    - `positions`: positions that each router decided over; its choices are k times as many with top-k.
    - `entropy`: by layer, the mean entropy of its routers as a share of the largest possible, log(experts); null where
      no router has more than one expert.

    Args:
        routing: names and sizes.
        sources: names of the data sources (S).
        load_SLME: choices by source, router, modality and expert, over all processes.
        entropy_L: sums of entropy over positions, in nats.
        positions: positions that were routed.
    """
    layers = sorted(set(routing.layers))
    routers = {layer: [at for at, one in enumerate(routing.layers) if one == layer] for layer in layers}
    experts = {layer: max(routing.num_experts[place] for place in at) for layer, at in routers.items()}
    load = {
        source: {
            modality: {
                str(layer): load_LME[at, number, : experts[layer]].sum(0).long().tolist()
                for layer, at in routers.items()
            }
            for number, modality in enumerate(routing.modalities)
            if load_LME[:, number].sum() > 0
        }
        for source, load_LME in zip(sources, load_SLME, strict=True)
        if load_LME.sum() > 0
    }
    record: dict[str, Any] = {"load": load, "positions": int(positions)}
    if len(layers) < len(routing.sites):
        load_LE = load_SLME.sum((0, 2)).long()
        record["load_by_router"] = {
            site: load_E[:count].tolist()
            for site, load_E, count in zip(routing.sites, load_LE, routing.num_experts, strict=True)
        }
    share_L = [
        float(entropy) / (math.log(count) * max(positions, 1.0)) if count > 1 else None
        for entropy, count in zip(entropy_L, routing.num_experts, strict=True)
    ]
    record["entropy"] = [_mean([share_L[place] for place in at]) for at in routers.values()]
    return record


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
