"""The text of one YAML document as nodes, with bounds on what a hostile or broken file can cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 2**20
"""Largest file; a configuration is some kilobytes."""
MAX_VALUES = 20_000
"""Most values of a configuration with all that it includes; aliases of aliases would make billions of a few lines."""
MAX_FILES = 500
"""Most files that a configuration may read."""
MAX_DEPTH = 50
"""How deep values may stand inside one another, over all included files; ours stand seven deep."""
MERGE_TAG = "tag:yaml.org,2002:merge"


class TooLargeError(ValueError):
    """A configuration that is larger than any that a person writes; reading stops there."""


class Reading:
    """Counts what is read for one configuration, over all files that it includes."""

    def __init__(self) -> None:
        self._values = self._files = self._depth = 0

    def file(self) -> None:
        """Counts a file.

        Raises:
            TooLargeError: There are too many.
        """
        self._files += 1
        if self._files > MAX_FILES:
            raise TooLargeError(f"more than {MAX_FILES} files are included; name each where it is needed, once")

    @contextmanager
    def value(self) -> Iterator[None]:
        """Counts a value, and inside the block one more level.

        Raises:
            TooLargeError: There are too many, or they stand too deep.
        """
        self._values += 1
        self._depth += 1
        try:
            if self._values > MAX_VALUES:
                raise TooLargeError(f"more than {MAX_VALUES} values (aliases count each time); write fewer")
            if self._depth > MAX_DEPTH:
                raise TooLargeError(f"values stand more than {MAX_DEPTH} deep in one another; write it flatter")
            yield
        finally:
            self._depth -= 1


def read_nodes(path: Path, shown: str) -> yaml.Node | None:
    """Returns the root node of a file; None where it holds nothing.

    Raises:
        ValueError: It cannot be read; the text says where and why.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ValueError(f"{shown}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"{shown}: has more than {MAX_BYTES} bytes, which no configuration has")
    try:
        return compose(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{shown}:{line}: not UTF-8 ({error.reason}); save it in that encoding") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line_text = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"{shown}{line_text}: not valid YAML: {problem}") from error


def compose(text: str) -> yaml.Node | None:
    """Returns the root node of a text; None where it holds nothing.

    Raises:
        yaml.YAMLError: It is not YAML, or nested beyond what can be read.
    """
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError as error:
        raise yaml.YAMLError(f"values stand more than {MAX_DEPTH} deep in one another; write it flatter") from error
    except (ValueError, IndexError) as error:  # PyYAML's own on odd escapes and directives
        raise yaml.YAMLError(f"it cannot be parsed ({error})") from error
    return node


def key_of(node: yaml.Node) -> str:
    """Returns a key as it is written.

    Raises:
        ValueError: It is no plain text, or YAML's merge key.
    """
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError("a key must be plain text, not a list or mapping")
    if node.tag == MERGE_TAG:
        raise ValueError("the merge key << is not read; put what is shared into a file and name that as `base`")
    return str(node.value)


def scalar(node: yaml.Node) -> Any:
    """Returns a scalar node's value by YAML's own rules.

    Raises:
        ValueError: It has a tag that is not read, or is no value of its kind (a date in a 13th month).
    """
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except yaml.YAMLError as error:
        raise ValueError(f"{getattr(error, 'problem', None) or error}; quote it, or write a plain value") from error
    except (ValueError, OverflowError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(node.value)[:80]!r} is no {node.tag.rpartition(':')[2]} ({error}); quote it") from error
    finally:
        loader.dispose()
