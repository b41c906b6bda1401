"""How many experts each layer gets: one number, a list, or one of MoLA's shapes under a budget (arXiv 2402.08562)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmmoe.models.lora.spec import AllocationSpec, ExpertsSpec

BANDS = {
    "rectangle": (5, 5, 5, 5),
    "triangle": (8, 6, 4, 2),
    "inverted_triangle": (2, 4, 6, 8),
    "hourglass": (8, 2, 2, 8),
}
"""Experts a layer of the four bands, as the paper's configurations for 32 layers give them (160 in all)."""


def layer_number(site: str) -> int:
    """Returns the number of the layer that a module belongs to: the first number in its name.

    Raises:
        ValueError: The name has none, so the module is in no numbered layer.
    """
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", site)
    if found is None:
        raise ValueError(
            f"routed experts go into numbered layers (their inputs have positions and the balance counts by layer); "
            f"{site!r} is in none: give it a plain LoRA"
        )
    return int(found[1])


def experts_by_site(spec: ExpertsSpec, sites: Sequence[str]) -> dict[str, int]:
    """Returns each site's number of experts; sites of one layer have the same.

    Raises:
        ValueError: A list is not as long as there are layers, a budget does not suffice, or a layer has fewer experts
            than a token chooses.
    """
    number_of = {site: layer_number(site) for site in sites}
    layers = sorted(set(number_of.values()))
    counts = dict(zip(layers, _counts(spec, len(layers)), strict=True))
    least = spec.num_chosen or 1
    short = [f"layer {layer} has {count}" for layer, count in counts.items() if count < least]
    if short:
        raise ValueError(f"experts: a token chooses {least}, but {', '.join(short)}; raise experts or lower router.k")
    return {site: counts[number] for site, number in number_of.items()}


def shaped(spec: AllocationSpec, num_layers: int) -> list[int]:
    """Returns the experts of each layer: the ratio of the band its middle is in, rounded so that the sum is the budget.

    Raises:
        ValueError: The budget is less than one expert a layer, or there are too few layers for the shape.
    """
    if spec.total < num_layers:
        raise ValueError(f"experts: a total of {spec.total} is less than one for each of {num_layers} layers; raise it")
    if spec.shape == "hourglass" and num_layers < 3:
        raise ValueError(
            f"experts: an hourglass needs three layers or more, the sites are in {num_layers}; give a list"
        )
    ratio_L = [BANDS[spec.shape][int((layer + 0.5) * 4 / num_layers)] for layer in range(num_layers)]
    exact_L = [spec.total * ratio / sum(ratio_L) for ratio in ratio_L]
    count_L = [max(int(exact), 1) for exact in exact_L]
    # What rounding left over goes to the layers that lost most by it; what the least of one took is given back alike.
    while sum(count_L) != spec.total:
        step = 1 if sum(count_L) < spec.total else -1
        open_layers = [layer for layer in range(num_layers) if count_L[layer] + step >= 1]
        chosen = max(open_layers, key=lambda layer: (step * (exact_L[layer] - count_L[layer]), -layer))
        count_L[chosen] += step
    return count_L


def _counts(spec: ExpertsSpec, num_layers: int) -> list[int]:
    if isinstance(spec.experts, int):
        return [spec.experts] * num_layers
    if isinstance(spec.experts, AllocationSpec):
        return shaped(spec.experts, num_layers)
    if len(spec.experts) != num_layers:
        raise ValueError(
            f"experts: the list has {len(spec.experts)} numbers, but the sites are in {num_layers} layers; "
            "give one number a layer"
        )
    return list(spec.experts)
