"""What one stage hands to the next: a checkpoint, the adapters in it, and the model that it describes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import nn

from mmmoe import paths
from mmmoe.data.spec import TemplateSpec
from mmmoe.engine.checkpoint import Checkpoint, explain_mismatch, read
from mmmoe.models.adapters import AdapterSpec
from mmmoe.models.build import add_adapters, build_model
from mmmoe.models.families.llava_mole import LlavaMole
from mmmoe.models.keys import canonical
from mmmoe.models.spec import ModelSpec
from mmmoe.stages.spec import RunSpec, StageSpec

_ADAPTERS: TypeAdapter[list[AdapterSpec]] = TypeAdapter(list[AdapterSpec])


@dataclass(frozen=True)
class Heritage:
    """What a finished stage leaves: where it is, what is in it."""

    path: Path
    checkpoint: Checkpoint
    model: ModelSpec
    adapters: list[AdapterSpec]
    template: TemplateSpec
    seed: int

    @classmethod
    def read(cls, path: Path) -> Heritage:
        """Reads a finished stage's folder.

        Raises:
            ValueError: when it is none, or its files do not have the hashes of its manifest.
        """
        checkpoint = read(path)
        declared = checkpoint.state.spec
        missing = [key for key in ("model", "adapters", "template") if key not in declared]
        if missing:
            raise ValueError(f"{path}/state.json lacks {', '.join(missing)}: it was not written by a stage of mmmoe")
        return cls(
            path,
            checkpoint,
            ModelSpec.model_validate(declared["model"]),
            _ADAPTERS.validate_python(declared["adapters"]),
            TemplateSpec.model_validate(declared["template"]),
            checkpoint.state.seeds["run"],
        )


def check_same_model(heritage: Heritage, spec: ModelSpec) -> None:
    """Refuses a checkpoint whose model is built otherwise.

    Raises:
        ValueError: naming every key that differs.
    """
    theirs, ours = (_flat(m.model_dump(mode="json")) for m in (heritage.model, spec))
    differ = [
        f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} here"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    ]
    if differ:
        lines = "\n  ".join(differ[:20])
        raise ValueError(f"{heritage.path} holds another model; start from a stage of this one\n  {lines}")


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


def build_stage_model(run: RunSpec, stage: StageSpec, heritage: Heritage | None) -> tuple[LlavaMole, list[AdapterSpec]]:
    """Returns the model a stage starts from, and all adapters in it.

    Raises:
        ValueError: when the heritage belongs to another model or does not fit.
    """
    adapters = adapters_in(run, stage)
    if heritage is not None:
        check_same_model(heritage, run.model)
        if [*heritage.adapters, *stage.adapters] != adapters:
            raise ValueError(
                f"{heritage.path} was trained with other adapters than the stages before {stage.name!r} declare now; "
                "put their declaration back, or start a new run"
            )
    model = build_model(run.model, run.seed)
    add_adapters(model, adapters, run.seed)
    if heritage is not None:
        load_heritage(model, heritage)
    return model, adapters


def load_heritage(model: nn.Module, heritage: Heritage) -> None:
    """Puts a finished stage's tensors into a model; every tensor must have a place there.

    Raises:
        ValueError: listing tensors that have none or another shape.
    """
    own = {canonical(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    tensors = heritage.checkpoint.tensors
    expected = {name: tuple(own[name].shape) for name in tensors if name in own}
    problem = explain_mismatch(expected, tensors)
    if problem:
        raise ValueError(f"{heritage.path} does not fit this model: {problem}")
    for name, tensor in tensors.items():
        own[name].data.copy_(tensor)


def rebuild(path: Path) -> tuple[LlavaMole, Heritage]:
    """Returns the trained model of a finished stage's folder, from that folder and the base weights alone."""
    heritage = Heritage.read(path)
    model = build_model(heritage.model, heritage.seed)
    add_adapters(model, heritage.adapters, heritage.seed)
    load_heritage(model, heritage)
    return model, heritage


def _flat(value: Any, route: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            k: v for key, inner in value.items() for k, v in _flat(inner, f"{route}.{key}" if route else key).items()
        }
    return {route: value}
