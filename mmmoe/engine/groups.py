"""Which parameters train, at which rate: name patterns of a stage, AdamW's groups and the schedule."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from mmmoe.engine.spec import OptimizerSpec, ScheduleSpec


@dataclass(frozen=True)
class TrainableRow:
    """What one pattern of a stage set free."""

    pattern: str
    names: tuple[str, ...]
    """Canonical names it matched; a name counts under the first pattern that matches it."""
    parameters: int
    """Numbers in those tensors."""


def same_name(name: str) -> str:
    """Returns the name itself: the canonical name where nothing renames parameters."""
    return name


def freeze(
    model: nn.Module, patterns: Sequence[str], canonical: Callable[[str], str] = same_name
) -> list[TrainableRow]:
    """Freezes every parameter but those whose canonical name matches a pattern; one row a pattern comes back.

    Raises:
        ValueError: A pattern matches no parameter.
    """
    named = [(canonical(name), parameter) for name, parameter in model.named_parameters()]
    names = [name for name, _ in named]
    _refuse_idle(patterns, names, "trains")
    owned: dict[str, list[tuple[str, int]]] = {pattern: [] for pattern in patterns}
    for name, parameter in named:
        pattern = _first_match(name, patterns)
        parameter.requires_grad_(pattern is not None)
        if pattern is not None:
            owned[pattern].append((name, parameter.numel()))
    return [
        TrainableRow(pattern, tuple(name for name, _ in found), sum(numel for _, numel in found))
        for pattern, found in owned.items()
    ]


def trainable_parameters(
    model: nn.Module, canonical: Callable[[str], str] = same_name
) -> list[tuple[str, nn.Parameter]]:
    """Returns the parameters that train with their canonical names, in the model's order.

    Raises:
        ValueError: None trains, or two share a canonical name (a checkpoint could not tell them apart).
    """
    named = [(canonical(name), parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("no parameter trains: give the stage at least one pattern under 'trains'")
    seen: set[str] = set()
    for name, _ in named:
        if name in seen:
            raise ValueError(f"two parameters share the name '{name}': give the adapters of the stages distinct names")
        seen.add(name)
    return named


def parameter_groups(named_parameters: Iterable[tuple[str, Tensor]], spec: OptimizerSpec) -> list[dict[str, Any]]:
    """Returns AdamW's groups; each one's key `rate` is its place in the list that `rates` returns.

    Vectors (biases, norms, boundary vectors) are not decayed, as in the usual recipes for transformers.

    Raises:
        ValueError: A rule of `rates` matches no trainable parameter.
    """
    named = list(named_parameters)
    rules = [rule.match for rule in spec.rates]
    _refuse_idle(rules, [name for name, _ in named], "optimizer.rates")
    members: dict[tuple[int, float], list[Tensor]] = {}
    for name, parameter in named:
        matched = _first_match(name, rules)
        rate = 0 if matched is None else 1 + rules.index(matched)
        decay = spec.weight_decay if len(getattr(parameter, "ds_shape", parameter.shape)) > 1 else 0.0
        members.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": members[key], "rate": key[0], "weight_decay": key[1]}
        for key in sorted(members, key=lambda key: (key[0], -key[1]))
    ]


class AdamW(torch.optim.AdamW):
    """torch's AdamW, which can let a step pass."""

    is_held = False
    """Whether steps change nothing."""

    def step(self, closure: Any = None) -> Any:
        """Updates, unless held."""
        return None if self.is_held else super().step(closure)


def adamw(groups: list[dict[str, Any]], spec: OptimizerSpec) -> AdamW:
    """Returns the AdamW both engines use; its rates are 0 until a step gives them."""
    return AdamW(groups, lr=0.0, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)


def set_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    """Gives every group the rate its rule stands for."""
    for group in optimizer.param_groups:
        group["lr"] = rates[group["rate"]]


def start_moments(optimizer: torch.optim.Optimizer, tensors: Iterable[Tensor], updates: int) -> None:
    """Puts Adam's state in place as if `updates` steps had passed, with zero moments to be filled.

    torch makes this state in the first step; a resumed engine needs somewhere to put it before that.
    """
    for tensor in tensors:
        optimizer.state[tensor] = {
            "step": torch.tensor(float(updates), dtype=torch.float32),
            "exp_avg": torch.zeros_like(tensor, memory_format=torch.preserve_format).detach(),
            "exp_avg_sq": torch.zeros_like(tensor, memory_format=torch.preserve_format).detach(),
        }


def rates(schedule: ScheduleSpec, optimizer: OptimizerSpec, step: int, total: int) -> list[float]:
    """Returns the learning rates of 0-based step `step` of `total`: the default's, then each rule's."""
    warmup = math.ceil(schedule.warmup_ratio * total)
    if step < warmup:
        factor = (step + 1) / warmup
    else:
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        shape = {"cosine": 0.5 * (1.0 + math.cos(math.pi * progress)), "linear": 1.0 - progress, "constant": 1.0}
        factor = schedule.final_ratio + (1.0 - schedule.final_ratio) * shape[schedule.kind]
    return [peak * factor for peak in (optimizer.lr, *(rule.lr for rule in optimizer.rates))]


def _first_match(name: str, patterns: Sequence[str]) -> str | None:
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def _refuse_idle(patterns: Sequence[str], names: Sequence[str], field: str) -> None:
    """Raises ValueError for the patterns that match no name."""
    idle = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
    if idle:
        hints = "; ".join(f"'{pattern}' matches no parameter, {nearest_names(pattern, names)}" for pattern in idle)
        raise ValueError(f"{field}: {hints}")


def nearest_names(pattern: str, names: Sequence[str]) -> str:
    """Returns the names a pattern may have meant, in words."""
    near = difflib.get_close_matches(pattern.replace("*", ""), names, n=3, cutoff=0.3)
    if near:
        return "the nearest names are " + ", ".join(f"'{name}'" for name in near)
    parts = sorted({name.split(".")[0] for name in names})
    return "names begin with " + ", ".join(f"'{part}.'" for part in parts)
