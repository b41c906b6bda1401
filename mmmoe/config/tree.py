"""YAML files as plain trees in which every key still knows the file and line it came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmmoe import paths
from mmmoe.config.document import Reading, TooLargeError, key_of, read_nodes, scalar

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
    holes: list[Route] = field(default_factory=list)
    """Places of which a part could not be read: what is missing there was not forgotten."""

    def mark(self, route: Route) -> str:
        """Returns where a route stands, or where its nearest parent does."""
        for end in range(len(route), -1, -1):
            if route[:end] in self.marks:
                return self.marks[route[:end]]
        return "?"


def read(path: Path) -> Tree:
    """Reads a file and everything it takes as `base`; problems are collected, not raised."""
    tree = Tree({}, {(): f"{shorten(path)}:1"})
    try:
        _read_into(tree, path, (), Reading())
    except TooLargeError as error:
        tree.errors.append(f"{shorten(path)}: {error}")
    return tree


def _read_into(tree: Tree, path: Path, chain: tuple[Path, ...], reading: Reading) -> None:
    """Reads a file; `chain` holds those that it is read for."""
    shown = shorten(path)
    if path in chain:
        tree.errors.append(f"{shown}: includes itself through {' -> '.join(p.name for p in chain)}")
        return
    reading.file()
    try:
        node = read_nodes(path, shown)
    except ValueError as error:
        tree.errors.append(str(error))
        return
    if node is not None:
        tree.data = Reader(tree, shown, path.parent, (*chain, path), reading).value(node)


def shorten(path: Path) -> str:
    """Returns a path as a person in the working folder would write it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def merge(lower: Tree, upper: Tree) -> Tree:
    """Returns `upper` laid over `lower`: mappings key by key, anything else replaced whole."""
    out = Tree(lower.data, dict(lower.marks), lower.errors + upper.errors, lower.holes + upper.holes)
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
    for known in routes(low, route):
        out.marks.pop(known, None)
    for new in (route, *routes(high, route)):
        if new in upper.marks:
            out.marks[new] = upper.marks[new]
    return high


def routes(value: Any, route: Route) -> Iterator[Route]:
    """Yields the routes of all that is inside a value that stands at a route."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*route, key)
        yield from routes(inner, (*route, key))


class Reader:
    """Turns the nodes of one text into plain values and notes where each stands."""

    def __init__(self, tree: Tree, shown: str, beside: Path | None, chain: tuple[Path, ...], reading: Reading) -> None:
        """Prepares for a text.

        Args:
            tree: takes the marks and the problems.
            shown: names the text in them.
            beside: folder of the file; None for a text without lines, from the command line.
            chain: the file and those that it is read for.
            reading: counts what is read.
        """
        self._tree, self._shown, self._beside = tree, shown, beside
        self._chain, self._reading = chain, reading

    def value(self, node: yaml.Node, route: Route = ()) -> Any:
        """Returns a node's value; None where it cannot be read."""
        self._tree.marks.setdefault(route, self._where(node))
        with self._reading.value():
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, route)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*route, i)) for i, item in enumerate(node.value)]
            try:
                return scalar(node)
            except ValueError as error:
                self._tree.errors.append(f"{self._where(node)}: {dotted(route) or '(file)'}: {error}")
                self._tree.holes.append(route)
                return None

    def _where(self, node: yaml.Node) -> str:
        return self._shown if self._beside is None else f"{self._shown}:{node.start_mark.line + 1}"

    def _mapping(self, node: yaml.MappingNode, route: Route) -> Any:
        own: dict[str, Any] = {}
        bases: list[str] = []
        for key_node, value_node in node.value:
            where = self._where(key_node)
            try:
                key = key_of(key_node)
            except ValueError as error:
                self._tree.errors.append(f"{where}: {dotted(route) or '(file)'}: {error}")
                continue
            if key in own:
                self._tree.errors.append(f"{where}: {dotted((*route, key))}: given twice")
            if key == BASE:
                named = self.value(value_node, (*route, key))
                bases = [str(name) for name in (named if isinstance(named, list) else [named])]
                continue
            self._tree.marks[(*route, key)] = where
            own[key] = self.value(value_node, (*route, key))
        return _plain_overlay(self._below(bases, route), own) if bases else own

    def _below(self, bases: list[str], route: Route) -> Any:
        """Returns what the files named as `base` hold together, each laid over the ones before it."""
        where = f"{self._tree.marks[(*route, BASE)]}: {dotted((*route, BASE))}"
        below = Tree({})
        for name in bases:
            file = _named(name, self._beside)
            if file is None:
                self._tree.errors.append(f"{where}: no such file: {name:.200}{_hint(name, self._beside)}")
                below.holes.append(())
                continue
            upper = Tree({}, {(): f"{shorten(file)}:1"})
            _read_into(upper, file, self._chain, self._reading)
            below = merge(below, upper)
            below.holes += [()] if upper.errors and not upper.data else []
        self._tree.errors += below.errors
        self._tree.holes += [(*route, *hole) for hole in below.holes]
        for inner, mark in below.marks.items():
            self._tree.marks.setdefault((*route, *inner), mark)
        return below.data


def _named(name: str, beside: Path | None) -> Path | None:
    """Returns the file that a name means, if there is one."""
    try:
        file = paths.resolve(name, beside=beside)
        return file if file.is_file() else None
    except (OSError, RuntimeError, ValueError):  # too long, a home of nobody, a zero byte
        return None


def _hint(name: str, beside: Path | None) -> str:
    """Returns which file was perhaps meant, for the end of a message."""
    try:
        near = paths.near(paths.resolve(Path(name).parent, beside=beside) / Path(name).name)
    except (OSError, RuntimeError, ValueError):
        return ""
    return f"; did you mean {near.name}?" if near else ""


def _plain_overlay(low: Any, high: Any) -> Any:
    if isinstance(low, dict) and isinstance(high, dict):
        return {**low, **{k: _plain_overlay(low.get(k), v) for k, v in high.items()}}
    return high


def dotted(route: Route) -> str:
    """Returns a route as `a.b.0.c`."""
    return ".".join(str(key) for key in route)
