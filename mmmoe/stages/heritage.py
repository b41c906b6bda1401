"""What a finished stage leaves: its checkpoint, the adapters in it, and the model that it describes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mmmoe.data.spec import TemplateSpec
from mmmoe.engine.checkpoint import Checkpoint, read
from mmmoe.models.adapter_spec import AdapterSpec
from mmmoe.models.spec import ModelSpec, model_spec

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
    base: str = ""
    """Fingerprint of the base weights that it was trained on; empty where there are none."""

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
            model_spec(declared["model"]),
            _ADAPTERS.validate_python(declared["adapters"]),
            TemplateSpec.model_validate(declared["template"]),
            checkpoint.state.seeds["run"],
            str(checkpoint.state.extra.get("base", "")),
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


def _flat(value: Any, route: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            k: v for key, inner in value.items() for k, v in _flat(inner, f"{route}.{key}" if route else key).items()
        }
    return {route: value}
