"""What one stage hands to the next: the model that a stage starts from, built from what others left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from mmmoe import paths
from mmmoe.engine.checkpoint import explain_mismatch
from mmmoe.engine.expert_groups import is_share
from mmmoe.models.adapters import AdapterSpec
from mmmoe.models.build import add_adapters, build_model
from mmmoe.models.keys import canonical
from mmmoe.models.moe.place import ALONE, ExpertPlace
from mmmoe.models.spliced import SplicedModel
from mmmoe.stages.assembly import Part, take_experts, take_inherited
from mmmoe.stages.heritage import Heritage, check_same_model
from mmmoe.stages.spec import RunSpec, StageSpec


@dataclass(frozen=True)
class StageModel:
    """A model as a stage starts it."""

    model: SplicedModel
    adapters: list[AdapterSpec]
    """All adapters in it."""
    inherited: dict[str, Tensor]
    """What it holds beyond base weights and fresh ones, by canonical name."""
    shares: frozenset[str]
    """Which of these are this process's share of a stack of experts."""


def adapters_in(run: RunSpec, stage: StageSpec) -> list[AdapterSpec]:
    """Returns all adapters of a stage's model, those of the stages it descends from first; reads no weights.

    Raises:
        ValueError: when the stage starts from a folder that is no finished stage.
    """
    names = [s.name for s in run.stages]
    position = names.index(stage.name)
    start = stage.init_from or (names[position - 1] if position else None)
    if start is None:
        return list(stage.adapters)
    if start in names[:position]:
        return [*adapters_in(run, run.stages[names.index(start)]), *stage.adapters]
    if start in names:
        return list(stage.adapters)  # told by the check of the order
    return [*Heritage.read(paths.resolve(start)).adapters, *stage.adapters]


def build_stage_model(
    run: RunSpec,
    stage: StageSpec,
    heritage: Heritage | None,
    parts: Mapping[str, Part] | None = None,
    place: ExpertPlace = ALONE,
) -> StageModel:
    """Returns the model a stage starts from.

    Args:
        run: the run.
        stage: one of its stages.
        heritage: the finished stage that it starts from; None for base weights.
        parts: other finished stages that give experts or connectors, by name.
        place: which whole experts this process holds.

    Raises:
        ValueError: when the heritage belongs to another model or does not fit.
    """
    adapters = adapters_in(run, stage)
    before = list(heritage.adapters) if heritage is not None else []
    if heritage is not None:
        check_same_model(heritage, run.model)
    if [*before, *stage.adapters] != adapters:
        where = heritage.path if heritage is not None else "the base"
        raise ValueError(
            f"{where} was trained with other adapters than the stages before {stage.name!r} declare now; "
            "put their declaration back, or start a new run"
        )
    model = build_model(run.model, run.seed)
    add_adapters(model, before, run.seed, place)
    names: set[str] = set()
    if heritage is not None:
        load_heritage(model, heritage, place)
        names.update(heritage.checkpoint.tensors)
    dense = tensors_of(model)
    names |= take_inherited(dense, stage, parts or {})
    # Sparse blocks copy the dense ones, so they come when those hold what was inherited.
    add_adapters(model, stage.adapters, run.seed, place)
    take_experts(model, dense, stage, parts or {}, heritage)
    held = {name: tensor for name, tensor in tensors_of(model).items() if name in names or is_expert_weight(name)}
    shares = frozenset(name for name, tensor in held.items() if is_share(tensor))
    return StageModel(model, adapters, {name: tensor.detach() for name, tensor in held.items()}, shares)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns a model's parameters and buffers by canonical name."""
    return {canonical(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}


def is_expert_weight(name: str) -> bool:
    """Says whether a tensor is the frozen part of whole experts, which no base folder holds."""
    return name.endswith(".weight_EOI")


def load_heritage(model: nn.Module, heritage: Heritage, place: ExpertPlace = ALONE) -> None:
    """Puts a finished stage's tensors into a model; every tensor must have a place there.

    Raises:
        ValueError: listing tensors that have none or another shape.
    """
    own, tensors = tensors_of(model), heritage.checkpoint.tensors
    expected = {name: _whole_shape(own[name], place) for name in tensors if name in own}
    problem = explain_mismatch(expected, tensors)
    if problem:
        raise ValueError(f"{heritage.path} does not fit this model: {problem}")
    for name, tensor in tensors.items():
        own[name].data.copy_(tensor[place.own(len(tensor))] if is_share(own[name]) else tensor)


def _whole_shape(tensor: Tensor, place: ExpertPlace) -> tuple[int, ...]:
    if not is_share(tensor):
        return tuple(tensor.shape)
    return (tensor.shape[0] * place.size, *tensor.shape[1:])


def rebuild(path: Path) -> tuple[SplicedModel, Heritage]:
    """Returns the trained model of a finished stage's folder, from that folder and the base weights alone."""
    heritage = Heritage.read(path)
    model = build_model(heritage.model, heritage.seed)
    add_adapters(model, heritage.adapters, heritage.seed)
    load_heritage(model, heritage)
    return model, heritage
