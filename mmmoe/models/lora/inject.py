"""Puts adapters into a model by name pattern, and takes them out again."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from mmmoe.models.lora.allocation import experts_by_site
from mmmoe.models.lora.block import FFNExperts, ProjectionExperts, RoutedBlock, is_gated
from mmmoe.models.lora.layer import LoRALinear, RoutedLinear
from mmmoe.models.lora.routing import Routed
from mmmoe.models.lora.slide import SlideGate, SlideLinear
from mmmoe.models.lora.spec import ExpertsSpec, LoRASpec, SlideLoRASpec
from mmmoe.models.lora.switch import RowSwitch
from mmmoe.models.lora.tape import RoutingTape

Adapted = LoRALinear | RoutedLinear | RoutedBlock | SlideLinear
ROUTED: dict[str, type[RoutedLinear] | type[RoutedBlock]] = {
    "linear": RoutedLinear,
    "block": ProjectionExperts,
    "ffn": FFNExperts,
}


def inject(model: nn.Module, spec: LoRASpec | ExpertsSpec | SlideLoRASpec) -> Routed | None:
    """Swaps the modules that the spec's patterns name for adapted ones; all are found before one is swapped.

    A Slide-LoRA also gives the model its gate, as `slide`.

    Returns:
        The adapter's balance and the tape that its routed layers write on, or None for plain LoRA and Slide-LoRA.

    Raises:
        ValueError: if a pattern names no module that can be adapted, or the allocation does not fit the layers.
    """
    sites = _sites(model, spec)
    if isinstance(spec, LoRASpec):
        switch = _switch(model, sites, spec) if spec.rows != "all" else None
        for name, linear in sites.items():
            assert isinstance(linear, nn.Linear)
            swap(model, name, LoRALinear(linear, spec, switch).to(linear.weight.device))
        return None
    if isinstance(spec, SlideLoRASpec):
        _slide(model, spec, sites)
        return None
    counts = experts_by_site(spec, list(sites))
    tape = RoutingTape(list(sites))
    layers = [ROUTED[spec.level](module, spec, counts[name], tape, n) for n, (name, module) in enumerate(sites.items())]  # type: ignore[arg-type]  # _sites gives what the level takes
    for name, layer in zip(sites, layers, strict=True):
        for part in (layer.experts, layer.router):
            part.to(next(layer.base.parameters()).device)
        swap(model, name, layer)
    return Routed(spec.balance, tape)


def eject(model: nn.Module) -> int:
    """Puts every adapted module's base back in its place and returns how many there were."""
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}
    for name in sorted(adapted, key=len, reverse=True):
        swap(model, name, adapted[name].base)
    owner: Any = model
    if isinstance(getattr(owner, "slide", None), SlideGate):
        owner.slide = None
    return len(adapted)


def _slide(model: Any, spec: SlideLoRASpec, sites: dict[str, Any]) -> None:
    """Gives a model a gate and the layers that follow it.

    Raises:
        ValueError: It has one already.
    """
    if getattr(model, "slide", None) is not None:
        raise ValueError(
            "this model has a Slide-LoRA already, whose gate sets all its layers: name all sites in one adapter, or "
            "start from a stage without it (init_from)"
        )
    table = model.language.get_input_embeddings()
    gate = SlideGate(spec, table.embedding_dim).to(table.weight.device)
    for name, linear in sites.items():
        swap(model, name, SlideLinear(linear, spec, gate.rows).to(linear.weight.device))
    model.slide = gate


def _switch(model: Any, sites: dict[str, nn.Module], spec: LoRASpec) -> RowSwitch:
    """Returns what tells a model's routing passes from its answers."""
    switch = getattr(model, "switch", None)
    if not isinstance(switch, RowSwitch):
        raise ValueError(f"rows: {spec.rows} needs a model that routes images (MoVA), {type(model).__name__} does not")
    refuse_outside_language(sites)
    head = model.language.get_output_embeddings()
    for name, site in sites.items():
        if site is head:
            raise ValueError(
                f"rows: {spec.rows} has no rows to tell apart at {name}, which sees single positions: leave it out of "
                "this adapter, or take rows: all"
            )
    return switch


def _sites(model: nn.Module, spec: LoRASpec | ExpertsSpec | SlideLoRASpec) -> dict[str, nn.Module]:
    if isinstance(spec, LoRASpec):
        return find_sites(model, spec.sites, wants_linear=True)
    is_linear = isinstance(spec, SlideLoRASpec) or spec.level == "linear"
    found = find_sites(model, spec.sites, wants_linear=is_linear)
    refuse_outside_language(found)
    return found


def find_sites(model: nn.Module, patterns: list[str], *, wants_linear: bool) -> dict[str, nn.Module]:
    """Returns the linear layers, or the gated feed-forward blocks, that patterns name, in the model's order.

    Raises:
        ValueError: if a pattern names none, or only such as carry an adapter already.
    """
    modules = dict(model.named_modules())
    inside = tuple(f"{name}." for name, module in modules.items() if isinstance(module, Adapted))
    fits = (lambda module: isinstance(module, nn.Linear)) if wants_linear else is_gated
    fitting = {name: m for name, m in modules.items() if fits(m) and not name.startswith(inside)}
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in fitting):
            continue
        if any(fnmatchcase(name, pattern) and isinstance(m, Adapted) for name, m in modules.items()):
            raise ValueError(
                f"adapter site {pattern!r} carries an adapter already; a stage adds each site once, and one of an "
                "earlier stage stays: start from a stage without it (init_from)"
            )
        parents = {name.rpartition(".")[0] for name, module in modules.items() if isinstance(module, Adapted)}
        if any(fnmatchcase(name, pattern) for name in parents):
            raise ValueError(
                f"adapter site {pattern!r} names blocks whose parts carry an adapter of an earlier stage: start from a "
                "stage without it (init_from)"
            )
        kind = "linear layer" if wants_linear else "gated feed-forward block"
        raise ValueError(
            f"adapter site {pattern!r} names no {kind}; the nearest are {_nearest(pattern, list(fitting))}"
        )
    return {name: m for name, m in fitting.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def refuse_outside_language(found: dict[str, nn.Module]) -> None:
    """Refuses sites whose inputs have no positions of a sequence.

    Raises:
        ValueError: naming the first one.
    """
    outside = [name for name in found if not name.startswith("language.")]
    if outside:
        raise ValueError(f"routed experts go into the language model, which {outside[0]!r} is no part of")


def _nearest(pattern: str, names: list[str]) -> list[str]:
    return difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)


def swap(model: nn.Module, name: str, replacement: nn.Module) -> None:
    """Puts another module in the place of the one called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, replacement)
