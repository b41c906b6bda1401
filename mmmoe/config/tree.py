"""YAML files as plain trees in which every key still knows the file and line it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmmoe import paths

Key = str | int
Route = tuple[Key, ...]

BASE = "base"
"""In any mapping: a file (or a list of files) whose content stands below the mapping's own keys."""


@dataclass
class Tree:
    """A document, where each of its keys stands, and what was wrong with it."""

    data: Any = None
    marks: dict[Route, str] = field(default_factory=dict)
    """`file:line` of each route from the root."""
    errors: list[str] = field(default_factory=list)

    def mark(self, route: Route) -> str:
        """Returns where a route stands, or where its nearest parent does."""
        for end in range(len(route), -1, -1):
            if route[:end] in self.marks:
                return self.marks[route[:end]]
        return "?"


def read(path: Path, chain: tuple[Path, ...] = ()) -> Tree:
    """Reads a file and everything it takes as `base`; problems are collected, not raised."""
    shown = shorten(path)
    if path in chain:
        return Tree({}, {(): f"{shown}:1"}, [f"{shown}: includes itself through {' -> '.join(p.name for p in chain)}"])
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        return Tree({}, {(): f"{shown}:1"}, [f"{shown}: cannot be read: {error.strerror}"])
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        return Tree({}, {(): f"{shown}:1"}, [f"{shown}{line}: not valid YAML: {getattr(error, 'problem', error)}"])
    tree = Tree({}, {(): f"{shown}:1"})
    if node is not None:
        tree.data = _value(node, (), tree, path, (*chain, path))
    return tree


def shorten(path: Path) -> str:
    """Returns a path as a person in the working folder would write it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def merge(lower: Tree, upper: Tree) -> Tree:
    """Returns `upper` laid over `lower`: mappings key by key, anything else replaced whole."""
    out = Tree(lower.data, dict(lower.marks), lower.errors + upper.errors)
    out.data = _overlay(lower.data, upper.data, (), out, upper)
    out.marks[()] = upper.mark(())
    return out


def _overlay(low: Any, high: Any, route: Route, out: Tree, upper: Tree) -> Any:
    if isinstance(low, dict) and isinstance(high, dict):
        merged = dict(low)
        for key, value in high.items():
            merged[key] = _overlay(low.get(key), value, (*route, key), out, upper)
            out.marks[(*route, key)] = upper.mark((*route, key))
        return merged
    for known in [r for r in out.marks if r[: len(route)] == route and len(r) > len(route)]:
        del out.marks[known]
    out.marks.update({r: m for r, m in upper.marks.items() if r[: len(route)] == route})
    return high


def _value(node: yaml.Node, route: Route, tree: Tree, path: Path, chain: tuple[Path, ...]) -> Any:
    tree.marks.setdefault(route, f"{shorten(path)}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, route, tree, path, chain)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*route, i), tree, path, chain) for i, item in enumerate(node.value)]
    return scalar(node)


def _mapping(node: yaml.MappingNode, route: Route, tree: Tree, path: Path, chain: tuple[Path, ...]) -> Any:
    own: dict[str, Any] = {}
    bases: list[str] = []
    for key_node, value_node in node.value:
        key = str(scalar(key_node))
        where = f"{shorten(path)}:{key_node.start_mark.line + 1}"
        if key in own:
            tree.errors.append(f"{where}: {dotted((*route, key))}: given twice")
        if key == BASE:
            named = _value(value_node, (*route, key), tree, path, chain)
            bases = [str(n) for n in (named if isinstance(named, list) else [named])]
            continue
        tree.marks[(*route, key)] = where
        own[key] = _value(value_node, (*route, key), tree, path, chain)
    if not bases:
        return own
    below = Tree({})
    for name in bases:
        file = paths.resolve(name, beside=path.parent)
        if file.is_file():
            below = merge(below, read(file, chain))
        else:
            tree.errors.append(f"{tree.marks[(*route, BASE)]}: {dotted((*route, BASE))}: no such file: {name}")
    tree.errors += below.errors
    marks = {(*route, *r): m for r, m in below.marks.items() if r}
    tree.marks = {**marks, **tree.marks}
    return _plain_overlay(below.data, own)


def _plain_overlay(low: Any, high: Any) -> Any:
    if isinstance(low, dict) and isinstance(high, dict):
        return {**low, **{k: _plain_overlay(low.get(k), v) for k, v in high.items()}}
    return high


def expand(value: Any, errors: list[str], where: str) -> Any:
    """Returns a value given outside any file with its `base` files laid below it."""
    if isinstance(value, list):
        return [expand(item, errors, where) for item in value]
    if not isinstance(value, dict):
        return value
    own = {key: expand(inner, errors, where) for key, inner in value.items() if key != BASE}
    if BASE not in value:
        return own
    below = Tree({})
    for name in value[BASE] if isinstance(value[BASE], list) else [value[BASE]]:
        file = paths.resolve(str(name))
        if file.is_file():
            below = merge(below, read(file))
        else:
            errors.append(f"{where}: no such file: {name}")
    errors += below.errors
    return _plain_overlay(below.data, own)


def scalar(node: yaml.Node) -> Any:
    """Returns a scalar node's value by YAML's own rules."""
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()


def dotted(route: Route) -> str:
    """Returns a route as `a.b.0.c`."""
    return ".".join(str(key) for key in route)
