"""What pydantic finds wrong with a tree of plain values, in words: where it stands, and what would be right."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Container
from typing import Any

from pydantic import BaseModel, ValidationError

from mmmoe.conceal import HIDDEN, is_secret
from mmmoe.config.spec import Spec
from mmmoe.config.tree import Route, Tree

DISCRIMINATORS = ("kind", "family")
"""Fields by which a declaration says which of several specs it is."""

ABSENT = ("missing", "union_tag_not_found")
"""Kinds of problems that say that something is not there."""


def told(tree: Tree, spec_type: type[Spec], error: ValidationError, known: Container[Route]) -> list[str]:
    """Returns a line a problem: file:line, key path, what is wrong, the nearest known key.

    Args:
        tree: What was validated.
        spec_type: Against this.
        error: What came of it.
        known: Places of which something was told already.
    """
    lines = []
    for item in error.errors(include_url=False):
        route = _real_route(tree.data, item["loc"])
        is_in_hole = any(
            route == hole or (item["type"] in ABSENT and route[: len(hole)] == hole) for hole in tree.holes
        )
        if route not in known and not is_in_hole:
            lines.append(_line(tree, spec_type, route, dict(item)))
    return lines


def _line(tree: Tree, spec_type: type[Spec], route: Route, item: dict[str, Any]) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = f"unknown key; {_hint(str(route[-1]), _fields(spec_type, item['loc'][:-1]))}"
    elif item["type"] == "missing":
        message = "is missing"
    elif item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        key = str(item["ctx"]["discriminator"]).strip("'")
        route, message = (*route, key), _of_tag(key, spec_type, item)
    elif item["type"] == "literal_error":
        message = message if isinstance(item["input"], dict) else f"{message}, got {_shown(route, item['input'])}"
        known = re.findall(r"'([^']*)'", str(item["ctx"]["expected"]))
        near = difflib.get_close_matches(str(item["input"]), known, n=1)
        message += f"; did you mean {near[0]!r}?" if near else ""
    elif not isinstance(item["input"], dict | list):
        message = f"{message}, got {_shown(route, item['input'])}"
    return f"{tree.mark(route)}: {_by_name(tree.data, route) or '(file)'}: {message}"


def _of_tag(key: str, spec_type: type[Spec], item: dict[str, Any]) -> str:
    """Returns what is wrong with the field that says which of several specs a declaration is."""
    tags = sorted({str(tag) for model in _models_at(spec_type, item["loc"]) for tag in _tags(model, key)})
    if item["type"] == "union_tag_not_found":
        return f"is missing; known: {', '.join(tags)}"
    tag = str(item["ctx"]["tag"])
    return f"{tag!r:.200} is not known; {_hint(tag, tags)}"


def _hint(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def _by_name(data: Any, route: Route) -> str:
    """Returns a route as overrides may write it: an item of a list by its name, where it has one of its own."""
    words: list[str] = []
    for key in route:
        names = (
            [item.get("name") if isinstance(item, dict) else None for item in data] if isinstance(data, list) else []
        )
        name = names[key] if isinstance(key, int) and key < len(names) else None
        is_plain = isinstance(name, str) and re.fullmatch(r"(?!\d+$)[^.=]+", name) and names.count(name) == 1
        words.append(str(name if is_plain else key))
        data = data[key] if _holds(data, key) else None
    return ".".join(words)


def _shown(route: Route, value: Any) -> str:
    """Returns a value as a message shows it."""
    return HIDDEN if route and is_secret(str(route[-1]), value) else f"{value!r:.200}"


def _real_route(data: Any, loc: tuple[str | int, ...]) -> Route:
    """Returns pydantic's location without the tags of unions, which no file contains."""
    route: list[str | int] = []
    may_be_tag = True
    for position, part in enumerate(loc):
        is_last = position == len(loc) - 1
        if may_be_tag and isinstance(data, dict) and part in [data.get(key) for key in DISCRIMINATORS]:
            may_be_tag = False  # the same word may be a key: an adapter of kind `experts` has `experts`
            continue
        if _holds(data, part):
            data, may_be_tag = data[part], True
        elif not is_last or not isinstance(data, dict):
            continue
        route.append(part)
    return tuple(route)


def _holds(data: Any, part: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, dict) and part in data


def _fields(spec_type: Any, loc: tuple[str | int, ...]) -> list[str]:
    """Returns the field names of the spec that stands at a location."""
    return sorted({name for model in _models_at(spec_type, loc) for name in model.model_fields})


def _models_at(spec_type: Any, loc: tuple[str | int, ...]) -> list[type[BaseModel]]:
    """Returns the specs of which one stands at a location."""
    models = _models(spec_type)
    for part in loc:
        inner: list[Any] = []
        if len(models) > 1 and (tagged := [model for model in models if part in _tags(model)]):
            models = tagged
            continue
        for model in models:
            if isinstance(part, str) and part in model.model_fields:
                inner += _models(model.model_fields[part].annotation)
            elif isinstance(part, int):
                inner.append(model)
        models = inner or models
    return models


def _tags(model: type[BaseModel], *keys: str) -> tuple[Any, ...]:
    fields = [model.model_fields[key] for key in keys or DISCRIMINATORS if key in model.model_fields]
    return tuple(tag for field in fields for tag in typing.get_args(field.annotation))


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Returns the spec types inside an annotation such as `list[A | B] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation):
        return [model for inner in typing.get_args(annotation) for model in _models(inner)]
    return []
