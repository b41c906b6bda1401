"""Options of another program, given to ours as `name=value`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence


def as_options(where: str, options: Mapping[str, str | None]) -> str:
    """Returns options as they were given to ours."""
    words = [name if value is None else f"{name}={value}" for name, value in options.items()]
    return " ".join(f"{where} {shlex.quote(word)}" for word in words)


def parse_options(where: str, words: Sequence[str], example: str) -> dict[str, str | None]:
    """Returns options by their long names; a name alone is an option without a value.

    Args:
        where: The option of ours they came by, for messages.
        words: `name=value`, or `name`.
        example: Of one, for messages.

    Raises:
        ValueError: A word does not begin with a name, or a name is there twice.
    """
    options: dict[str, str | None] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise ValueError(f"{where} {word!r}: write the long name of an option without dashes, as {where} {example}")
        if name in options:
            raise ValueError(f"{where} {name}: given twice")
        options[name] = value if sign else None
    return options
