"""Dense feed-forward blocks become sparse ones whose experts are copies of them (arXiv 2212.05055, "upcycling")."""

from __future__ import annotations

from torch import nn

from mmmoe.models.lora.allocation import layer_number
from mmmoe.models.lora.inject import find_sites, refuse_outside_language, swap
from mmmoe.models.lora.routing import Routed
from mmmoe.models.lora.tape import RoutingTape
from mmmoe.models.moe.layer import SparseFFN
from mmmoe.models.moe.place import ExpertPlace
from mmmoe.models.moe.spec import MoESpec


def upcycle(model: nn.Module, spec: MoESpec, place: ExpertPlace) -> Routed:
    """Swaps the declared blocks for sparse ones and returns their balance and the tape that they write on.

    Every expert starts as a copy of the block it takes the place of; who has other weights for it fills them in.

    Raises:
        ValueError: if a pattern names no gated block, or `layers` none of those found.
    """
    found = find_sites(model, spec.sites, wants_linear=False)
    refuse_outside_language(found)
    sites = chosen_layers(list(found), spec)
    tape = RoutingTape(sites)
    layers = []
    for number, name in enumerate(sites):
        layer = SparseFFN(found[name], spec, tape, number, place)
        layer.router.to(next(found[name].parameters()).device)
        layers.append(layer)
    for name, layer in zip(sites, layers, strict=True):
        swap(model, name, layer)
    return Routed(spec.balance, tape)


def chosen_layers(sites: list[str], spec: MoESpec) -> list[str]:
    """Returns the sites that `spec.layers` keeps.

    Raises:
        ValueError: when it names a layer that has no site.
    """
    numbers = sorted({layer_number(site) for site in sites})
    half = len(numbers) // 2
    if isinstance(spec.layers, list):
        absent = sorted(set(spec.layers) - set(numbers))
        if absent or not spec.layers:
            raise ValueError(f"layers {spec.layers}: the sites are in layers {numbers[0]} to {numbers[-1]}")
        chosen = spec.layers
    else:
        # Interval counts from the first layer, as Uni-MoE's code does with layer numbers.
        kept = {"all": numbers, "interval": numbers[::2], "first_half": numbers[:half], "second_half": numbers[half:]}
        chosen = kept[spec.layers]
    return [site for site in sites if layer_number(site) in chosen]
