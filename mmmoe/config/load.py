"""From a YAML file to a spec, with all that is wrong with it told at once."""

from __future__ import annotations

import difflib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from mmmoe.conceal import HIDDEN, conceal, is_secret
from mmmoe.config.override import apply_overrides
from mmmoe.config.spec import Spec
from mmmoe.config.tree import Route, Tree, dotted, read, routes, shorten

S = TypeVar("S", bound=Spec)

DISCRIMINATORS = ("kind", "family")
"""Fields by which a declaration says which of several specs it is."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the text lists every problem, one a line."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.problems = problems = [conceal(line) for line in problems]
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  {line}" for line in problems))


def load(path: Path, spec_type: type[S], overrides: list[str] | None = None) -> S:
    """Returns the spec that a YAML file and its overrides declare; the type may be a union of specs.

    Raises:
        ConfigError: with one line a problem: file:line, key path, what is wrong, the nearest known key.
    """
    tree = read(path)
    if tree.errors and not tree.data:
        raise ConfigError(shorten(path), tree.errors)
    apply_overrides(tree, overrides or [])
    if not isinstance(tree.data, dict):
        tree.errors.append(f"{shorten(path)}:1: must be a mapping of keys, got {type(tree.data).__name__}")
        raise ConfigError(shorten(path), tree.errors)
    return _validated(tree, spec_type, shorten(path))


def settings(spec_type: type[S], overrides: list[str]) -> S:
    """Returns the spec that `key=value` alone declare.

    Raises:
        ConfigError: with one line a problem.
    """
    tree = Tree({}, {(): "the command line"})
    apply_overrides(tree, overrides)
    return _validated(tree, spec_type, "the command line")


def _validated(tree: Tree, spec_type: type[S], source: str) -> S:
    spec = None
    tree.errors += _secrets(tree)
    try:
        spec = TypeAdapter(spec_type).validate_python(tree.data)
    except ValidationError as error:
        tree.errors += [_line(tree, spec_type, dict(item)) for item in error.errors(include_url=False)]
    if tree.errors or spec is None:
        raise ConfigError(source, list(dict.fromkeys(tree.errors)))
    return spec


def _secrets(tree: Tree) -> list[str]:
    """Returns a problem for each secret: a run's configuration is copied into its folder, its ledger and its report."""
    found = []
    for route in routes(tree.data, ()):
        if is_secret(str(route[-1]), _at(tree.data, route)):
            found.append(
                f"{tree.mark(route)}: {dotted(route)}: is a secret, and a configuration is copied into reports; give "
                "it in the environment of whatever asks for it"
            )
    return found


def _at(data: Any, route: Route) -> Any:
    for key in route:
        data = data[key]
    return data


def dump(spec: Spec) -> str:
    """Returns a spec as YAML in which nothing is left to defaults or includes."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _line(tree: Tree, spec_type: type[Spec], item: dict[str, Any]) -> str:
    route = _real_route(tree.data, item["loc"])
    known = _fields(spec_type, item["loc"][:-1])
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(route[-1]), known, n=1)
        message = f"unknown key; did you mean {near[0]!r}?" if near else f"unknown key; known: {', '.join(known)}"
    elif item["type"] == "missing":
        message = "is missing"
    elif item["type"] in ("union_tag_invalid", "literal_error"):
        message = message if isinstance(item["input"], dict) else f"{message}, got {_shown(route, item['input'])}"
    elif not isinstance(item["input"], dict | list):
        message = f"{message}, got {_shown(route, item['input'])}"
    return f"{tree.mark(route)}: {dotted(route) or '(file)'}: {message}"


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
    return sorted({name for model in models for name in model.model_fields})


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    fields = [model.model_fields[key] for key in DISCRIMINATORS if key in model.model_fields]
    return tuple(tag for field in fields for tag in typing.get_args(field.annotation))


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Returns the spec types inside an annotation such as `list[A | B] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation):
        return [model for inner in typing.get_args(annotation) for model in _models(inner)]
    return []
