"""Puts adapters into a model by name pattern, and takes them out again."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase

from torch import nn

from mmmoe.models.lora.allocation import experts_by_site
from mmmoe.models.lora.block import FFNExperts, ProjectionExperts, RoutedBlock, is_gated
from mmmoe.models.lora.layer import LoRALinear, RoutedLinear
from mmmoe.models.lora.routing import Routed
from mmmoe.models.lora.spec import ExpertsSpec, LoRASpec
from mmmoe.models.lora.tape import RoutingTape

Adapted = LoRALinear | RoutedLinear | RoutedBlock
ROUTED: dict[str, type[RoutedLinear] | type[RoutedBlock]] = {
    "linear": RoutedLinear,
    "block": ProjectionExperts,
    "ffn": FFNExperts,
}


def inject(model: nn.Module, spec: LoRASpec | ExpertsSpec) -> Routed | None:
    """Swaps the modules that the spec's patterns name for adapted ones; all are found before one is swapped.

    Returns:
        The adapter with the tape that its routed layers write on, or None for plain LoRA, which has no routers.

    Raises:
        ValueError: if a pattern names no module that can be adapted, or the allocation does not fit the layers.
    """
    sites = _sites(model, spec)
    if isinstance(spec, LoRASpec):
        for name, linear in sites.items():
            assert isinstance(linear, nn.Linear)
            _swap(model, name, LoRALinear(linear, spec).to(linear.weight.device))
        return None
    counts = experts_by_site(spec, list(sites))
    tape = RoutingTape(list(sites))
    layers = [ROUTED[spec.level](module, spec, counts[name], tape, n) for n, (name, module) in enumerate(sites.items())]  # type: ignore[arg-type]  # _sites gives what the level takes
    for name, layer in zip(sites, layers, strict=True):
        for part in (layer.experts, layer.router):
            part.to(next(layer.base.parameters()).device)
        _swap(model, name, layer)
    return Routed(spec, tape)


def eject(model: nn.Module) -> int:
    """Puts every adapted module's base back in its place and returns how many there were."""
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}
    for name in sorted(adapted, key=len, reverse=True):
        _swap(model, name, adapted[name].base)
    return len(adapted)


def _sites(model: nn.Module, spec: LoRASpec | ExpertsSpec) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    inside = tuple(f"{name}." for name, module in modules.items() if isinstance(module, Adapted))
    fitting = {name: m for name, m in modules.items() if _fits(m, spec) and not name.startswith(inside)}
    for pattern in spec.sites:
        if any(fnmatchcase(name, pattern) for name in fitting):
            continue
        if any(fnmatchcase(name, pattern) and isinstance(m, Adapted) for name, m in modules.items()):
            raise ValueError(f"adapter site {pattern!r} carries an adapter already; a stage adds each site once")
        kind = "linear layer" if _wants_linear(spec) else "gated feed-forward block"
        raise ValueError(
            f"adapter site {pattern!r} names no {kind}; the nearest are {_nearest(pattern, list(fitting))}"
        )
    found = {name: m for name, m in fitting.items() if any(fnmatchcase(name, pattern) for pattern in spec.sites)}
    outside = [name for name in found if not name.startswith("language.")]
    if isinstance(spec, ExpertsSpec) and outside:
        raise ValueError(f"routed experts go into the language model, which {outside[0]!r} is no part of")
    return found


def _wants_linear(spec: LoRASpec | ExpertsSpec) -> bool:
    return isinstance(spec, LoRASpec) or spec.level == "linear"


def _fits(module: nn.Module, spec: LoRASpec | ExpertsSpec) -> bool:
    return isinstance(module, nn.Linear) if _wants_linear(spec) else is_gated(module)


def _nearest(pattern: str, names: list[str]) -> list[str]:
    return difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)


def _swap(model: nn.Module, name: str, replacement: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, replacement)
