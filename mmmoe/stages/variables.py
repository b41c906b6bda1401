"""Variables that other nodes are given: kept from everybody else, since there may be secrets among them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmmoe.conceal import HIDDEN, is_secret


def shown(variables: Mapping[str, str]) -> list[str]:
    """Returns `name=value` of each for people, without what must not be shown."""
    return [f"{name}={HIDDEN if is_secret(name, value) else value}" for name, value in variables.items()]


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner reads, also if there was another one."""
    path.unlink(missing_ok=True)
    path.touch(0o600, exist_ok=False)
    path.write_text(text, encoding="utf-8")
