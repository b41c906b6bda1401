"""Declarations that reach nothing: a weight on a term of frozen routers, training of weights that get no gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmmoe.models.lora.block import FFNExperts
from mmmoe.models.lora.routing import Routed
from mmmoe.models.lora.spec import ExpertsSpec, SlideLoRASpec
from mmmoe.models.moe.spec import MoESpec
from mmmoe.models.spliced import SplicedModel
from mmmoe.stages.spec import StageSpec


def check_coefficients(model: SplicedModel, stage: StageSpec) -> None:
    """Refuses a stage that weighs a term which no parameter of its adapter learns from, or trains what cannot learn.

    Adapters of earlier stages may stay frozen: their terms are then told in the log and no part of the loss.

    Args:
        model: with the stage's adapters, after `freeze`.
        stage: the declaration.

    Raises:
        ValueError: naming stage, key and cure.
    """
    idle = list(idle_declarations(model, stage))
    if idle:
        raise ValueError("\n".join(f"stages.{stage.name}.{text}" for text in idle))


def idle_declarations(model: SplicedModel, stage: StageSpec) -> Iterator[str]:
    """Yields a sentence for each coefficient and each trained weight of the stage that reaches nothing."""
    yield from idle_coefficients(model, stage)
    yield from untrainable_blocks(model)


def idle_coefficients(model: SplicedModel, stage: StageSpec) -> Iterator[str]:
    """Yields a sentence for each coefficient of the stage's own adapters whose routers are all frozen."""
    specs = [(place, spec) for place, spec in enumerate(stage.adapters) if isinstance(spec, ExpertsSpec | MoESpec)]
    own = model.routed[len(model.routed) - len(specs) :]
    for (place, spec), routed in zip(specs, own, strict=True):
        if _is_trained(model, routed):
            continue
        for key, weight in _coefficients(spec).items():
            yield (
                f"adapters.{place}.balance.{key}: {weight} weighs a term of routers that do not train; "
                f"put '*.router.*' under trains{_other_cure(spec, key)}"
            )
    yield from _idle_gate(model, stage)


def _idle_gate(model: SplicedModel, stage: StageSpec) -> Iterator[str]:
    """Yields a sentence if the stage weighs the loss of a Slide-LoRA's gate, and the gate is frozen."""
    for place, spec in enumerate(stage.adapters):
        if not isinstance(spec, SlideLoRASpec) or spec.gate_weight == 0:
            continue
        gate: Any = model.slide
        if not any(parameter.requires_grad for parameter in gate.parameters()):
            yield (
                f"adapters.{place}.gate_weight: {spec.gate_weight} weighs the loss of a gate that does not train; "
                "put 'slide.router.*' under trains, or use gate: label"
            )


def untrainable_blocks(model: SplicedModel) -> Iterator[str]:
    """Yields a sentence if the stage frees base weights of blocks that are mixed as a whole: they get no gradient."""
    blocks = {name: block for name, block in model.named_modules() if isinstance(block, FFNExperts)}
    freed = [name for name, block in blocks.items() if any(p.requires_grad for p in block.base.parameters())]
    if freed:
        yield (
            f"trains: {freed[0]} carries experts of level ffn, which leave its own weights without a gradient; "
            "name the parts that shall train so that its gate_proj, up_proj and down_proj are not among them"
        )


def _coefficients(spec: ExpertsSpec | MoESpec) -> dict[str, float]:
    """Returns the coefficients that put a term into the loss, by key."""
    balance = spec.balance
    weights = {"weight": balance.weight if balance.kind != "none" else 0.0, "z_weight": balance.z_weight}
    return {key: weight for key, weight in weights.items() if weight > 0}


def _other_cure(spec: ExpertsSpec | MoESpec, key: str) -> str:
    if key == "z_weight":
        return ", or set z_weight: 0"
    # With top1 a router learns from the balance term alone, and a spec without it is refused.
    learns_alone = isinstance(spec, MoESpec) or spec.router.selection != "top1"
    return ", or set balance: {kind: none}" if learns_alone else ""


def _is_trained(model: SplicedModel, routed: Routed) -> bool:
    modules: list[Any] = [model.get_submodule(site) for site in routed.tape.sites]
    return any(parameter.requires_grad for module in modules for parameter in module.router.parameters())
