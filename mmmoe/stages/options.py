"""Options of another program, given to ours as `name=value`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence


def long_options(options: Mapping[str, str | None]) -> list[str]:
    """Returns options as the other program takes them."""
    return [f"--{name}" + ("" if value is None else f"={value}") for name, value in options.items()]


def as_given(where: str, options: Mapping[str, str | None]) -> str:
    """Returns options as they were given to ours."""
    return " ".join(f"{where} {shlex.quote(word.removeprefix('--'))}" for word in long_options(options))


def parse_options(where: str, words: Sequence[str], example: str, refused: Sequence[str]) -> dict[str, str | None]:
    """Returns options by their long names; a name alone is an option without a value.

    Args:
        where: The option of ours they came by, for messages.
        words: `name=value`, or `name`.
        example: Of one, for messages.
        refused: Names of options with which the program does not start the run.

    Raises:
        ValueError: A word does not begin with a name, or a name is there twice or refused.
    """
    options: dict[str, str | None] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise ValueError(f"{where} {word!r}: write the long name of an option without dashes, as {where} {example}")
        if name in options:
            raise ValueError(f"{where} {name}: given twice")
        if name in refused:
            raise ValueError(f"{where} {name}: with it something else than the run is started; leave it out")
        options[name] = value if sign else None
    return options
