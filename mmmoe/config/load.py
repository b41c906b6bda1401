"""From a YAML file to a spec, with all that is wrong with it told at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from mmmoe import paths
from mmmoe.conceal import conceal, is_secret
from mmmoe.config.override import apply_overrides
from mmmoe.config.problems import told
from mmmoe.config.spec import Spec
from mmmoe.config.tree import Route, Tree, dotted, read, routes, shorten

S = TypeVar("S", bound=Spec)


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
    if not os.path.exists(path) and (near := paths.near(path)):  # noqa: PTH110  # of a name that no system takes, too
        raise ConfigError(shorten(path), [f"no such file; did you mean {shorten(near)}?"])
    if os.path.isdir(path):  # noqa: PTH112  # as above
        raise ConfigError(shorten(path), ["is a folder; give a file in it, or, of a run, go on with `mmmoe resume`"])
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
    secrets = _secrets(tree)
    tree.errors += secrets.values()
    try:
        spec = TypeAdapter(spec_type).validate_python(tree.data)
    except ValidationError as error:
        tree.errors += told(tree, spec_type, error, secrets)
    if tree.errors or spec is None:
        raise ConfigError(source, _in_order(tree.errors))
    return spec


def _in_order(problems: list[str]) -> list[str]:
    """Returns problems file by file and line by line, those of the command line last; each once."""
    places = {text: re.match(r"(\S[^:]*):(\d+): ", text) for text in problems}
    files = list(dict.fromkeys(place[1] for place in places.values() if place))

    def order(text: str) -> tuple[int, int]:
        place = places[text]
        return (files.index(place[1]), int(place[2])) if place else (len(files), 0)

    return sorted(places, key=order)


def _secrets(tree: Tree) -> Mapping[Route, str]:
    """Returns a problem for each secret: a run's configuration is copied into its folder, its ledger and its report."""
    return {
        route: f"{tree.mark(route)}: {dotted(route)}: is a secret, and a configuration is copied into reports; give it "
        "in the environment of whatever asks for it"
        for route in routes(tree.data, ())
        if is_secret(str(route[-1]), _at(tree.data, route))
    }


def _at(data: Any, route: Route) -> Any:
    for key in route:
        data = data[key]
    return data


def dump(spec: Spec) -> str:
    """Returns a spec as YAML in which nothing is left to defaults or includes."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
