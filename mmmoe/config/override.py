"""`a.b.c=value` on the command line: the only flags there are."""

from __future__ import annotations

from typing import Any

import yaml

from mmmoe.config.tree import Key, Route, Tree, dotted, expand


def apply_overrides(tree: Tree, overrides: list[str]) -> None:
    """Writes each `a.b.c=value` into the tree; the value is read as YAML.

    An item of a list is named by its number, or by its `name` when it has one:
    `stages.mole.training.steps=50`. Problems are collected in `tree.errors`.
    """
    for text in overrides:
        route_text, equals, value_text = text.partition("=")
        where = f"override {text!r}"
        if not equals or not route_text:
            tree.errors.append(f"{where}: write it as key.path=value")
            continue
        try:
            value = yaml.safe_load(value_text)
        except yaml.YAMLError:
            tree.errors.append(f"{where}: the value is not valid YAML; quote it")
            continue
        value = expand(value, tree.errors, where)
        problem = _set(tree, route_text.split("."), value, where)
        if problem:
            tree.errors.append(f"{where}: {problem}")


def _set(tree: Tree, keys: list[str], value: Any, where: str) -> str | None:
    here: Any = tree.data
    route: Route = ()
    for key in keys[:-1]:
        step = _step(here, key)
        if step is None:
            return f"{dotted((*route, key))} does not exist; {_known(here)}"
        if isinstance(here, dict) and (step not in here or not isinstance(here[step], dict | list)):
            here[step] = {}
        here, route = here[step], (*route, step)
    last = _step(here, keys[-1])
    if last is None:
        return f"{dotted((*route, keys[-1]))} does not exist; {_known(here)}"
    here[last] = value
    _mark_all(tree, (*route, last), value, where)
    return None


def _step(here: Any, key: str) -> Key | None:
    """Returns the key that `key` means in `here`, or None."""
    if isinstance(here, dict):
        return key
    if isinstance(here, list):
        if key.isdigit():
            return int(key) if int(key) < len(here) else None
        names = [item.get("name") if isinstance(item, dict) else None for item in here]
        return names.index(key) if key in names else None
    return None


def _known(here: Any) -> str:
    if isinstance(here, list):
        names = [str(item["name"]) for item in here if isinstance(item, dict) and "name" in item]
        return f"the list has {len(here)} items" + (f" named {', '.join(names)}" if names else "")
    return f"there is no mapping but {here!r}"


def _mark_all(tree: Tree, route: Route, value: Any, where: str) -> None:
    tree.marks[route] = where
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        _mark_all(tree, (*route, key), inner, where)
