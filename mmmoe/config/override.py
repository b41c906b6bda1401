"""`a.b.c=value` on the command line: the only flags there are."""

from __future__ import annotations

from typing import Any

import yaml

from mmmoe.conceal import conceal
from mmmoe.config.document import MAX_DEPTH, Reading, TooLargeError, compose
from mmmoe.config.tree import Key, Reader, Route, Tree, dotted, routes


def apply_overrides(tree: Tree, overrides: list[str]) -> None:
    """Writes each `a.b.c=value` into the tree; the value is read as YAML.

    An item of a list is named by its number, or by its `name` when it has one:
    `stages.mole.training.steps=50`. Problems are collected in `tree.errors`.
    """
    for text in overrides:
        route_text, equals, value_text = text.partition("=")
        where = conceal(f"override {text!r:.200}")
        if not equals or not route_text:
            tree.errors.append(f"{where}: write it as key.path=value")
            continue
        try:
            value = _value(value_text, where, tree)
        except (yaml.YAMLError, TooLargeError) as error:
            reason = "the value is not valid YAML; quote it" if isinstance(error, yaml.YAMLError) else str(error)
            tree.errors.append(f"{where}: {reason}")
            continue
        problem = _set(tree, route_text.split("."), value)
        if problem:
            tree.errors.append(f"{where}: {problem}")


def _value(text: str, where: str, tree: Tree) -> Tree:
    """Returns an override's value, with the files that it takes as `base`."""
    value = Tree(None, {(): where})
    node = compose(text)
    if node is not None:
        value.data = Reader(value, where, None, (), Reading()).value(node)
    tree.errors += value.errors
    return value


def _set(tree: Tree, keys: list[str], value: Tree) -> str | None:
    if len(keys) > MAX_DEPTH:
        return f"names a place {len(keys)} deep; the deepest is {MAX_DEPTH}"
    here: Any = tree.data
    route: Route = ()
    for key in keys[:-1]:
        step = _step(here, key)
        if step is None:
            return f"{dotted((*route, key))} does not exist; {_known(here)}"
        if isinstance(here, dict) and (step not in here or not isinstance(here[step], dict | list)):
            here[step] = {}
            tree.marks[(*route, step)] = value.marks[()]
        here, route = here[step], (*route, step)
    last = _step(here, keys[-1])
    if last is None:
        return f"{dotted((*route, keys[-1]))} does not exist; {_known(here)}"
    route = (*route, last)
    for known in routes(here.get(last) if isinstance(here, dict) else here[last], route):
        tree.marks.pop(known, None)
    here[last] = value.data
    tree.marks.update({(*route, *inner): mark for inner, mark in value.marks.items()})
    tree.holes += [(*route, *hole) for hole in value.holes]
    return None


def _step(here: Any, key: str) -> Key | None:
    """Returns the key that `key` means in `here`, or None."""
    if isinstance(here, dict):
        return key
    if isinstance(here, list):
        if key.isascii() and key.isdigit() and len(key) < 10:
            return int(key) if int(key) < len(here) else None
        names = [item.get("name") if isinstance(item, dict) else None for item in here]
        return names.index(key) if key in names else None
    return None


def _known(here: Any) -> str:
    if isinstance(here, list):
        names = [str(item["name"]) for item in here if isinstance(item, dict) and "name" in item]
        return f"the list has {len(here)} items" + (f" named {', '.join(names)}" if names else "")
    return f"there is no mapping but {here!r:.80}"
