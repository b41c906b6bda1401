"""Canonical parameter names: a base weight keeps one name with and without an adapter around it."""

from __future__ import annotations


def canonical(name: str) -> str:
    """Returns a parameter's or module's global name: the parts that adapters insert for their base are left out."""
    return ".".join(part for part in name.split(".") if part != "base")
