"""Puts adapters into a model by name pattern, and takes them out again."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase

from torch import nn

from mmmoe.models.lora.layer import LoRALinear, MoLEFeedForward
from mmmoe.models.lora.router import RoutingTape
from mmmoe.models.spec import LoRASpec, MoLESpec

Adapted = LoRALinear | MoLEFeedForward


def inject(model: nn.Module, spec: LoRASpec | MoLESpec) -> RoutingTape | None:
    """Swaps the modules that the spec's patterns name for adapted ones; all are found before one is swapped.

    Returns:
        The tape that the routed blocks write on, or None for plain LoRA.

    Raises:
        ValueError: if a pattern names no module that can be adapted.
    """
    sites = _sites(model, spec)
    if isinstance(spec, LoRASpec):
        for name, module in sites.items():
            assert isinstance(module, nn.Linear)
            _swap(model, name, LoRALinear(module, spec).to(module.weight.device))
        return None
    tape = RoutingTape(list(sites))
    for layer, (name, module) in enumerate(sites.items()):
        block = MoLEFeedForward(module, spec, tape, layer)
        for part in (block.experts, block.router):
            part.to(next(module.parameters()).device)
        _swap(model, name, block)
    return tape


def eject(model: nn.Module) -> int:
    """Puts every adapted module's base back in its place and returns how many there were."""
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}
    for name in sorted(adapted, key=len, reverse=True):
        _swap(model, name, adapted[name].base)
    return len(adapted)


def _sites(model: nn.Module, spec: LoRASpec | MoLESpec) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    inside = tuple(f"{name}." for name, module in modules.items() if isinstance(module, Adapted))
    fitting = {name: m for name, m in modules.items() if _fits(m, spec) and not name.startswith(inside)}
    for pattern in spec.sites:
        if any(fnmatchcase(name, pattern) for name in fitting):
            continue
        if any(fnmatchcase(name, pattern) and isinstance(m, Adapted) for name, m in modules.items()):
            raise ValueError(f"adapter site {pattern!r} carries an adapter already; a stage adds each site once")
        kind = "linear layer" if isinstance(spec, LoRASpec) else "SwiGLU block"
        raise ValueError(
            f"adapter site {pattern!r} names no {kind}; the nearest are {_nearest(pattern, list(fitting))}"
        )
    return {name: m for name, m in fitting.items() if any(fnmatchcase(name, pattern) for pattern in spec.sites)}


def _fits(module: nn.Module, spec: LoRASpec | MoLESpec) -> bool:
    if isinstance(spec, LoRASpec):
        return isinstance(module, nn.Linear)
    projections = (getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down"))
    return hasattr(module, "act_fn") and all(isinstance(linear, nn.Linear) for linear in projections)


def _nearest(pattern: str, names: list[str]) -> list[str]:
    return difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)


def _swap(model: nn.Module, name: str, replacement: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, replacement)
