"""What one stage hands to the next: the model that a stage starts from, built from what others left."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from mmmoe import paths
from mmmoe.engine.checkpoint import explain_mismatch
from mmmoe.engine.expert_groups import is_share
from mmmoe.models.adapter_spec import AdapterSpec
from mmmoe.models.build import add_adapters, build_model
from mmmoe.models.keys import canonical
from mmmoe.models.moe.place import ALONE, ExpertPlace
from mmmoe.models.spliced import SplicedModel
from mmmoe.models.towers.tower import Tower
from mmmoe.models.weights import base_fingerprint
from mmmoe.stages.assembly import take_experts, take_inherited
from mmmoe.stages.heritage import Heritage, check_same_model
from mmmoe.stages.spec import RunSpec, StageSpec


@dataclass(frozen=True)
class StageModel:
    """A model as a stage starts it."""

    model: SplicedModel
    adapters: list[AdapterSpec]
    """All adapters in it."""
    inherited: dict[str, Tensor]
    """What it holds beyond the base weights, by canonical name: what others trained, and its fresh adapters."""
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
    parts: Mapping[str, Heritage] | None = None,
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
    adapters, parts = adapters_in(run, stage), parts or {}
    before = list(heritage.adapters) if heritage is not None else []
    if heritage is not None:
        check_same_model(heritage, run.model)
        _check_same_base(heritage)
    if [*before, *stage.adapters] != adapters:
        where = heritage.path if heritage is not None else "the base"
        raise ValueError(
            f"{where} was trained with other adapters than the stages before {stage.name!r} declare now; "
            "put their declaration back, or start a new run"
        )
    model = build_model(run.model, run.seed)
    bare = set(tensors_of(model))
    add_adapters(model, before, run.seed, place)
    kept: dict[str, Tensor] = {}
    if heritage is not None:
        load_heritage(model, heritage, bare, place)
        # From the file and not from the model, which may hold them in a lower format.
        kept.update(heritage.checkpoint.tensors)
    dense = tensors_of(model)
    kept |= take_inherited(dense, stage, parts, place)
    # Sparse blocks copy the dense ones, so they come when those hold what was inherited.
    add_adapters(model, stage.adapters, run.seed, place)
    take_experts(model, dense, stage, parts, heritage)
    own = tensors_of(model)
    # Fresh tensors too, trained or not: another stage, with other adapters or another seed, would draw others.
    fresh = {name: tensor for name, tensor in own.items() if name not in dense}
    inherited = {name: tensor for name, tensor in kept.items() if name in own} | {
        name: tensor.detach() for name, tensor in fresh.items()
    }
    note_trained_towers(model, inherited)
    return StageModel(model, adapters, inherited, frozenset(name for name, tensor in fresh.items() if is_share(tensor)))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns a model's parameters and buffers by canonical name."""
    return {canonical(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}


def load_heritage(model: nn.Module, heritage: Heritage, bare: Collection[str], place: ExpertPlace = ALONE) -> None:
    """Puts a finished stage's tensors into a model; every tensor must have a place there.

    Args:
        model: with the heritage's adapters.
        heritage: the finished stage.
        bare: names of the model's tensors without adapters; all others must be in the heritage.
        place: which whole experts this process holds.

    Raises:
        ValueError: listing tensors that have none or another shape, or are missing.
    """
    own, tensors = tensors_of(model), heritage.checkpoint.tensors
    wanted = [name for name in own if name in tensors or name not in bare]
    problem = explain_mismatch({name: _whole_shape(own[name], place) for name in wanted}, tensors)
    if problem:
        raise ValueError(f"{heritage.path} does not fit this model: {problem}")
    for name, tensor in tensors.items():
        own[name].data.copy_(tensor[place.own(len(tensor))] if is_share(own[name]) else tensor)


def note_trained_towers(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives towers that stages trained another key, since features kept under the old one are no longer theirs.

    Args:
        model: holds the tensors.
        tensors: what the model has beyond the base weights, by canonical name.
    """
    for name, module in model.named_modules():
        if isinstance(module, Tower):
            own = {key: tensors[key] for key in sorted(tensors) if key.startswith(f"{canonical(name)}.")}
            if own:
                module.note_training(own)


def _whole_shape(tensor: Tensor, place: ExpertPlace) -> tuple[int, ...]:
    if not is_share(tensor):
        return tuple(tensor.shape)
    return (tensor.shape[0] * place.size, *tensor.shape[1:])


def _check_same_base(heritage: Heritage) -> None:
    now = base_fingerprint(heritage.model.language)
    if heritage.base != now:
        raise ValueError(
            f"{heritage.path} was trained on other base weights than model.language has now (fingerprints "
            f"{heritage.base!r} and {now!r}); put those back, or train it anew"
        )


def rebuild(path: Path) -> tuple[SplicedModel, Heritage]:
    """Returns the trained model of a finished stage's folder, from that folder and the base weights alone.

    Raises:
        ValueError: The folder holds no finished stage, or its base weights are others now.
    """
    heritage = Heritage.read(path)
    _check_same_base(heritage)
    model = build_model(heritage.model, heritage.seed)
    bare = set(tensors_of(model))
    add_adapters(model, heritage.adapters, heritage.seed)
    load_heritage(model, heritage, bare)
    note_trained_towers(model, heritage.checkpoint.tensors)
    return model, heritage
