"""Takes a model's output apart into tensors that carry a graph and a form to fill them back in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class _Hole:
    """Where a tensor was taken out."""

    place: int


def split(value: Any, tensors: list[Tensor]) -> Any:
    """Returns the value with every tensor that needs a gradient moved to the end of `tensors`."""
    if isinstance(value, Tensor):
        if not value.requires_grad:
            return value
        tensors.append(value)
        return _Hole(len(tensors) - 1)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: split(getattr(value, field.name), tensors) for field in fields(value)})
    if isinstance(value, Mapping):
        return {name: split(item, tensors) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(split(item, tensors) for item in value)
    return value


def join(form: Any, tensors: tuple[Tensor, ...]) -> Any:
    """Returns what `split` was given, with these tensors in the holes."""
    if isinstance(form, _Hole):
        return tensors[form.place]
    if is_dataclass(form) and not isinstance(form, type):
        return replace(form, **{field.name: join(getattr(form, field.name), tensors) for field in fields(form)})
    if isinstance(form, Mapping):
        return {name: join(item, tensors) for name, item in form.items()}
    if isinstance(form, list | tuple):
        return type(form)(join(item, tensors) for item in form)
    return form
